"""The verb `run`."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from analysis.format import duration, plural
from sweeps.cli.options import FAILED_TRIALS, LIMITED, Available, Json, Scale, Set, Spec, interrupted_by, load
from sweeps.cli.plan import precision_words, print_estimate_line, print_header, weak_of
from sweeps.cli.printing import emit, err, out, print_files, print_weak, probing
from sweeps.cli.results import print_best
from sweeps.cli.watching.verb import Browser, beside
from sweeps.errors import Problem, SpecError

if TYPE_CHECKING:
    from analysis.store.remote import Location
    from sweeps.engine.run import RunSummary
    from sweeps.plan.estimate import Estimate
    from sweeps.plan.plan import Plan
    from sweeps.spec.spec import SweepSpec
    from sweeps.watch.observers import Observer

_SUMMARY = (
    "finished",
    "failed",
    "failed_before",
    "skipped",
    "stuck",
    "damaged",
    "seconds",
    "interrupted",
    "stopped_by",
    "not_uploaded",
)
"""Fields of `RunSummary` that the JSON document of a run has."""


def run(
    spec: Spec,
    overrides: Set = None,
    scale: Scale = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="PATH", help="Results folder; default: output in the file, or results/NAME."
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join: auto, or HOST:PORT; default: a local one.")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="What runs the trials: ray, or inline (one after another in this process, without Ray).")
    ] = "ray",
    restart: Annotated[bool, typer.Option(help="Start Ray again if it dies, and continue.")] = True,
    max_hours: Annotated[
        float | None, typer.Option("--max-hours", help="Stop after this many hours (the same as limits.max_hours).")
    ] = None,
    available: Available = False,
    report: Annotated[bool, typer.Option(help="Draw the figures and write the report at the end.")] = True,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also run the trials again that failed in earlier runs.")
    ] = False,
    optuna_storage: Annotated[
        str | None,
        typer.Option(help="Write the trials to a file or sqlite:///studies.db, for optuna-dashboard."),
    ] = None,
    track: Annotated[
        list[str] | None, typer.Option(help="Send trials to tensorboard, mlflow, wandb or trackio. Repeatable.")
    ] = None,
    upload: Annotated[
        str | None, typer.Option(help="Copy results to this URI while the sweep runs: s3://BUCKET/FOLDER, gs://...")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Also show the sweep on a web page, as `watch` does.")] = False,
    browser: Browser = True,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print no progress; warnings are still printed.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Run a sweep. The same command resumes it after a stop, and extends it after a change of the file.

    Finished trials are never repeated. With --json the command prints one document to standard output at its end, and
    progress as JSON lines to standard error (none with --quiet). Warnings there are plain text.
    """
    from sweeps.backends.registry import started_early
    from sweeps.engine.prepare import prepare
    from sweeps.engine.run import run_prepared

    all_overrides = list(overrides or ())
    if max_hours is not None:
        all_overrides.append(f"limits.max_hours={max_hours}")
    if output is not None:
        all_overrides.append(f"output={json.dumps(output, ensure_ascii=False)}")
    with contextlib.ExitStack() as until_the_end:
        until_the_end.enter_context(started_early(backend, ["sweeps.plan.estimate"]))
        planned = load(spec, all_overrides, scale, available=available)
        options: dict[str, Sequence[object]] = {
            "--scale": [scale],
            "--set": overrides or [],
            "--output": [output],
            "--address": [address],
            "--backend": [] if backend == "ray" else [backend],
            "--upload": [upload],
            "--optuna-storage": [optuna_storage],
            "--track": track or [],
        }
        flags = {
            "--available": available,
            "--retry-failed": retry_failed,
            "--no-restart": not restart,
            "--no-report": not report,
        }
        resume_command = command(spec, options, flags)
        progress: bool | Literal["json"] = "json" if as_json else True
        with prepare(planned, backend=backend, address=address, restart=restart, upload=upload) as prepared:
            _print_cautions(prepared.plan, joined=address is not None)
            observers = watchers(planned.spec, optuna_storage, track or ())
            foreseen = None
            if not quiet and address is None:
                foreseen = _foresee(prepared.plan, backend, retry_failed=retry_failed, as_json=as_json)
            if watch:
                until_the_end.enter_context(beside(planned.spec.folder, browser))
            summary = run_prepared(
                prepared,
                progress=False if quiet else progress,
                retry_failed=retry_failed,
                observers=observers,
                estimate=None if foreseen is None or foreseen.unknown else foreseen.as_dict(),
            )
        if summary.interrupted and max_hours is not None:  # a limit that was reached would stop the next run too
            resume_command += f" --max-hours {max_hours:g}"
        return _end(planned.spec, summary, prepared.location, resume_command, report=report, as_json=as_json)


def _print_cautions(plan: Plan, *, joined: bool) -> None:
    """Print what the user may want to change before the run. `joined`: whether trials run on a joined cluster."""
    from sweeps.plan.split_sizes import fewer_words

    lines = fewer_words(plan.feasible)
    if not joined:
        lines += precision_words(plan)
    for line in lines:
        err.print(line, style="yellow")
    print_weak(weak_of(plan), err)


def _foresee(plan: Plan, backend: str, *, retry_failed: bool, as_json: bool) -> Estimate:
    """Estimate the remaining trials, and print the estimate unless standard output is for JSON."""
    from sweeps.plan.estimate import estimate_plan
    from sweeps.progress.of_folder import used_hours

    if not as_json:
        print_header(plan)
    with probing(quiet=as_json) as tell:
        foreseen = estimate_plan(
            plan if backend != "inline" else plan.with_resources(concurrent=1, min_concurrent=None),
            retry_failed=retry_failed,
            used_hours=used_hours(plan.spec.folder),
            tell=tell,
        )
    if not as_json:
        print_estimate_line(foreseen)
    return foreseen


def _hidden(uri: str) -> str:
    """Return a URI without everything after its scheme, which may contain a password."""
    scheme, separator, _ = uri.partition("://")
    return f"{scheme}://..." if separator else "..."


def command(spec: Path, given: Mapping[str, Sequence[object]], flags: Mapping[str, bool]) -> str:
    """Return the command that resumes the run. A URI that may contain a password is shown as s3://... ."""
    secret = ("--upload", "--optuna-storage")
    shown = [
        (name, _hidden(str(value)) if name in secret and "@" in str(value) else str(value))
        for name, values in given.items()
        for value in values
        if value is not None
    ]
    return shlex.join(["sweeps", "run", str(spec), *chain(*shown), *(name for name, on in flags.items() if on)])


def _end(
    loaded: SweepSpec, summary: RunSummary, location: Location | None, again: str, *, report: bool, as_json: bool
) -> int:
    """Write the sweep file and the report, print how the run ended, and return the exit code.

    Args:
        loaded: the sweep.
        summary: what the run did.
        location: the location that results are copied to; None if they are not copied.
        again: the command that resumes the run.
        report: whether to write the report.
        as_json: whether to print JSON.
    """
    from analysis.report.page import write_report
    from sweeps.engine.verifying import receipt_of
    from sweeps.exporting.export import write_spec
    from sweeps.records.upload import Upload

    write_spec(loaded)
    missing = summary.not_uploaded
    if location is not None and not missing:
        missing = Upload(loaded.folder, location, note=lambda _: None).copy_now()
    if missing:
        err.print(f"{missing}; the same command tries again", style="red")
    if summary.interrupted or summary.stopped_by:
        why = "interrupted" if summary.interrupted else f"stopped by {summary.stopped_by}"
        on = "goes on from here" if summary.interrupted else "with a larger one goes on"
        err.print(f"{why}; finished trials are kept: `{again}` {on}")
        emit(as_json, lambda: _summary(summary), lambda: None)
        return interrupted_by(summary.signal) if summary.interrupted else LIMITED
    paths = dict(write_report(loaded.folder, receipt=receipt_of(loaded.folder))) if report else {}
    emit(
        as_json,
        lambda: {**_summary(summary), "paths": {k: str(v) for k, v in paths.items()}},
        lambda: _print_results(loaded.folder, summary, paths),
    )
    return 0 if summary.complete and not missing else FAILED_TRIALS


def watchers(spec: SweepSpec, optuna_storage: str | None, trackers: Sequence[str]) -> list[Observer]:
    """Return the observers that the command line asks for.

    Raises:
        SpecError: the storage can't be opened, or trackers are unknown or not installed. It has all problems.
    """
    from sweeps.watch.mirror import StudyMirror
    from sweeps.watch.trackers import make_tracker

    observers: list[Observer] = []
    problems: list[Problem] = []
    makers: list[Callable[[], Observer]] = [partial(make_tracker, t, spec.name, spec.folder) for t in trackers]
    if optuna_storage is not None:
        makers.append(partial(StudyMirror, optuna_storage, spec.name))
    for make in makers:
        try:
            observers.append(make())
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    return observers


def _summary(summary: RunSummary) -> dict[str, Any]:
    return {"folder": str(summary.folder), **{name: getattr(summary, name) for name in _SUMMARY}}


def _print_results(folder: Path, summary: RunSummary, paths: Mapping[str, Path]) -> None:
    """Print the end of a run: results with intervals, failures, and where the files are."""
    from analysis import open_store

    store = open_store(folder)
    print_best(store)
    ran = summary.finished + summary.failed
    failed = summary.failed + summary.failed_before
    done = f"{plural(ran, 'trial')} run" if ran else "nothing was left to run"
    out.print(f"\n{done} in {duration(summary.seconds)}, {summary.skipped} done before, {failed} failed in total")
    for label in summary.stuck:
        err.print(f"no learning rate of {label} finished: nothing to confirm", style="red")
    if failed:
        last = store.table("last_attempts").to_pylist()
        reasons = Counter(row["reason"] for row in last if row["status"] == "failed")
        for reason, count in reasons.most_common(3):
            err.print(f"{plural(count, 'trial')} failed: {reason}", style="red")
        err.print("to run failed trials again: `sweeps run ... --retry-failed`")
    print_files({"tables": folder / "tables", **paths})
