"""`sweeps run`, and what the verbs that take a sweep file share: its options, and the reading of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sweeps.cli import printing
from sweeps.cli.printing import err
from sweeps.errors import Problem, SpecError

if TYPE_CHECKING:
    from sweeps.plan.plan import Plan
    from sweeps.spec.spec import SweepSpec
    from sweeps.watch.observers import Observer

Spec = Annotated[Path, typer.Argument(help="Sweep file (TOML or YAML).", show_default=False)]
Source = Annotated[Path, typer.Argument(help="Sweep file, or a results folder.", show_default=False)]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set search.trials=6.")]
Scale = Annotated[str | None, typer.Option("--scale", help="small: the file's [small] form, for a laptop.")]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]

FAILED_TRIALS, BAD_INPUT, LIMITED, INTERRUPTED = 1, 2, 3, 130


def load(spec: Path, overrides: list[str] | None, scale: str | None) -> tuple[SweepSpec, Plan]:
    """A sweep file, and its plan."""
    from sweeps.plan.plan import Plan
    from sweeps.spec.spec import SweepSpec

    loaded = SweepSpec.load(spec, overrides or (), scale)
    return loaded, Plan.from_spec(loaded)


def attach(app: typer.Typer, verb: Callable[[Callable[..., int | None]], Callable[..., None]]) -> None:
    """Add `run` and `resume` to the command line; `verb` turns bad input into its exit code."""

    @app.command()
    @verb
    def run(
        spec: Spec,
        overrides: Set = None,
        scale: Scale = None,
        output: Annotated[
            Path | None, typer.Option("--output", "-o", help="Results folder; default: the file's, or results/NAME.")
        ] = None,
        address: Annotated[
            str | None, typer.Option(help="Ray cluster to join: auto, or HOST:PORT; default: a local one.")
        ] = None,
        max_hours: Annotated[
            float | None, typer.Option("--max-hours", help="Stop cleanly after so long: limits.max_hours.")
        ] = None,
        report: Annotated[bool, typer.Option(help="Draw the figures and the report at the end.")] = True,
        retry_failed: Annotated[
            bool, typer.Option("--retry-failed", help="Try failed trials of earlier runs again.")
        ] = False,
        optuna_storage: Annotated[
            str | None,
            typer.Option(help="Mirror the studies for optuna-dashboard: a journal file, or sqlite:///studies.db."),
        ] = None,
        track: Annotated[
            list[str] | None, typer.Option(help="Report trials to tensorboard, mlflow, wandb or trackio; repeatable.")
        ] = None,
        upload: Annotated[
            str | None, typer.Option(help="Copy results there as they come: s3://BUCKET/FOLDER, gs://...")
        ] = None,
        quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No live progress.")] = False,
        as_json: Json = False,
    ) -> int:
        """Run a sweep; the same command resumes it, or extends it after an edit.

        Finished trials are never repeated. With --json, one document on standard output at the end, and progress as
        JSON lines on standard error (none with --quiet).
        """
        from analysis.store.remote import Location
        from sweeps.engine.export import write_spec
        from sweeps.engine.run import run as run_engine
        from sweeps.plan.estimate import estimate_plan
        from sweeps.plan.inputs import check_inputs
        from sweeps.records.upload import check_there, put_fact, restore

        more = [] if max_hours is None else [f"limits.max_hours={max_hours}"]
        more += [] if output is None else [f"output={json.dumps(str(output))}"]
        again = f"sweeps run {spec}{'' if output is None else f' --output {output}'}"
        loaded, planned = load(spec, [*(overrides or ()), *more], scale)
        if upload is not None:  # what is there says which data its trials saw
            location = Location.of(upload)
            check_there(location, loaded.identity())
            restore(loaded.folder, location)
        check_inputs(planned)
        observers = watchers(loaded, optuna_storage, track or ())
        progress: bool | Literal["json"] = False if quiet else "json" if as_json else True
        foreseen = None if quiet else estimate_plan(planned)
        if progress is True and foreseen is not None:
            printing.print_header(planned)
            printing.print_estimate_line(foreseen)
        summary = run_engine(
            planned,
            address=address,
            progress=progress,
            retry_failed=retry_failed,
            observers=observers,
            upload=upload,
            estimate=None if foreseen is None else foreseen.as_dict(),
        )
        path = write_spec(loaded)
        missing = summary.not_uploaded or (None if upload is None else put_fact(Location.of(upload), path))
        if missing:
            err.print(f"{missing}; the same command tries again", style="red", markup=False)
        if summary.interrupted:
            err.print(f"interrupted; finished trials are kept: `{again}` goes on from here", markup=False)
            if as_json:
                printing.print_json(printing.summary_dict(summary))
            return INTERRUPTED
        if summary.stopped_by:
            goes_on = f"`{again}` with a larger one goes on"
            err.print(f"stopped by {summary.stopped_by}; finished trials are kept: {goes_on}", markup=False)
            if as_json:
                printing.print_json(printing.summary_dict(summary))
            return LIMITED
        paths = _draw(loaded.folder) if report else {}
        if as_json:
            printing.print_json({**printing.summary_dict(summary), "paths": {k: str(v) for k, v in paths.items()}})
        else:
            printing.print_results(loaded.folder, summary, paths)
        return 0 if summary.complete and not missing else FAILED_TRIALS

    app.command("resume", help="The same as `run`.")(run)


def watchers(spec: SweepSpec, optuna_storage: str | None, trackers: Sequence[str]) -> list[Observer]:
    """The observers that the command line asks for.

    Raises:
        SpecError: a storage that can't be opened, trackers that are unknown or not installed; all at once.
    """
    from sweeps.watch.mirror import StudyMirror
    from sweeps.watch.trackers import make_tracker

    made: list[Observer] = []
    problems: list[Problem] = []
    makers: list[Callable[[], Observer]] = [partial(make_tracker, t, spec.name, spec.folder) for t in trackers]
    if optuna_storage is not None:
        makers.append(partial(StudyMirror, optuna_storage, spec.name))
    for make in makers:
        try:
            made.append(make())
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    return made


def _draw(folder: Path) -> dict[str, Path]:
    """Figures and report of a results folder; names to paths."""
    from analysis.report.page import write_report

    return dict(write_report(folder))
