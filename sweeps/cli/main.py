"""The command line: a file and a few verbs. Every verb takes `--json`.

Exit codes: 0 done, 1 finished with failed trials, 2 bad input, 3 stopped by a limit, 130 interrupted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from sweeps.cli import compare as cli_compare
from sweeps.cli import data, printing
from sweeps.cli import results as cli_analysis
from sweeps.cli import run as cli_run
from sweeps.cli.printing import err, out
from sweeps.cli.run import BAD_INPUT, FAILED_TRIALS, INTERRUPTED, Json, Scale, Set, Source, Spec, load
from sweeps.errors import Problem, SpecError, nearest, unknown

if TYPE_CHECKING:
    from analysis import Store

P = ParamSpec("P")

app = typer.Typer(
    name="sweeps",
    help="Compare parameter-efficient fine-tuning methods at equal parameters and equal tuning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"sweeps {version('randlora-sweeps')}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Compare parameter-efficient fine-tuning methods at equal parameters and equal tuning."""


def _verb(function: Callable[P, int | None]) -> Callable[P, None]:
    """Run a verb; say everything that is wrong with its input, and leave with code 2."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = function(*args, **kwargs)
        except KeyboardInterrupt:
            err.print("interrupted", highlight=False)
            raise typer.Exit(INTERRUPTED) from None
        except (ValueError, RuntimeError, OSError) as error:
            if not _is_user_error(error):
                raise
            problems = getattr(error, "problems", None)
            lines = [str(p) for p in problems] if problems else [str(error)]
            if kwargs.get("as_json"):
                printing.print_json({"errors": lines})
            for line in lines:
                err.print(f"error: {line}", style="red", markup=False, highlight=False)
            raise typer.Exit(BAD_INPUT) from error
        raise typer.Exit(code or 0)

    return run


def _is_user_error(error: Exception) -> bool:
    """Our packages' own errors, and a disk that is full or closed; any other exception is a fault of ours."""
    if isinstance(error, OSError):
        return error.errno is not None
    return type(error).__module__.split(".")[0] in {"sweeps", "trainables", "analysis", "randlora"}


def _folder(source: Path, overrides: list[str] | None = None) -> Path:
    """The results folder that a sweep file or a folder names; an error where there is nothing yet."""
    from sweeps.spec.spec import SweepSpec

    if not source.exists() and source.suffix == "":
        raise SpecError([Problem("results", str(source), "no such results folder or sweep file", _nearby(source))])
    folder = source if source.is_dir() else SweepSpec.load(source, overrides or ()).folder
    if not (folder / "journal.jsonl").exists() and not (folder / "tables").is_dir():
        parent = folder.parent
        known = [p.name for p in parent.iterdir() if (p / "journal.jsonl").exists()] if parent.is_dir() else []
        raise SpecError(
            [
                Problem(
                    "results",
                    str(folder),
                    "holds no sweep yet; start one with `sweeps run`",
                    nearest(folder.name, known),
                )
            ]
        )
    return folder


def _nearby(source: Path) -> str | None:
    """Results that a name may stand for: those of that name in results/, or the closest one beside it."""
    if (Path("results") / source / "journal.jsonl").exists():
        return str(Path("results") / source)
    beside = [p.name for p in source.parent.iterdir()] if source.parent.is_dir() else []
    near = nearest(source.name, beside)
    return None if near is None else str(source.parent / near)


def _store(source: Path, overrides: list[str] | None = None) -> Store:
    from analysis import open_store

    return open_store(_folder(source, overrides))


@app.command()
@_verb
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("sweep.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: Json = False,
) -> None:
    """Write a commented starter file."""
    if path.exists() and not force:
        raise SpecError([Problem("path", str(path), "exists; give another name, or --force to overwrite it")])
    path.write_text(
        resources.files("sweeps.cli").joinpath("starter.toml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    if as_json:
        printing.print_json({"path": str(path)})
    else:
        out.print(f"wrote {path}; next: sweeps plan {path}", highlight=False)


@app.command()
@_verb
def plan(spec: Spec, overrides: Set = None, scale: Scale = None, as_json: Json = False) -> None:
    """List the cells: solved ranks, counts, residuals, infeasible cells. Starts nothing."""
    from sweeps.plan.packing import packing_of

    _, planned = load(spec, overrides, scale)
    if as_json:
        packing = packing_of(planned)
        counted = {"trials": planned.n_trials, "allowance": planned.spec.search.given}
        printing.print_json({"cells": planned.table().to_pylist(), **counted, "packing": packing})
    else:
        printing.print_plan(planned)


@app.command()
@_verb
def estimate(
    spec: Source,
    overrides: Set = None,
    scale: Scale = None,
    compare: Annotated[bool, typer.Option("--compare", help="The last run's estimate against what it took.")] = False,
    as_json: Json = False,
) -> None:
    """Time, accelerator-hours, memory, disk and money of a sweep, from a short probe of every method."""
    from analysis.statistics.estimates import foresight
    from sweeps.plan.estimate import estimate_plan

    if compare:
        table = foresight(_store(spec, overrides))
        if as_json:
            printing.print_json(table.to_pylist())
        elif table.num_rows:
            printing.print_table(table, "estimate against actual, last run")
        else:
            out.print("no run of this sweep was estimated (`sweeps run` without --quiet does)", highlight=False)
        return
    _, planned = load(spec, overrides, scale)
    answer = estimate_plan(planned)
    if as_json:
        printing.print_json(answer.as_dict())
    else:
        printing.print_estimate(answer)
        printing.print_packing(planned)


cli_run.attach(app, _verb)


@app.command()
@_verb
def status(source: Source, overrides: Set = None, as_json: Json = False) -> None:
    """How far a sweep is; works while it runs."""
    from sweeps.cli.status import progress_of

    progress = progress_of(_folder(source, overrides))
    if as_json:
        printing.print_json(progress)
    else:
        printing.print_status(progress)


@app.command()
@_verb
def best(source: Source, overrides: Set = None, as_json: Json = False) -> None:
    """The results: score with interval per method and budget, and the difference to LoRA."""
    from analysis.tables.console import results_table

    store = _store(source, overrides)
    if as_json:
        printing.print_json(results_table(store).to_pylist())
    else:
        printing.print_best(store)


@app.command()
@_verb
def report(
    source: Source,
    overrides: Set = None,
    x: Annotated[
        str, typer.Option("--x", help="Cost of the fits and the front: seconds_train, ...")
    ] = "adapter_params",
    overlay: Annotated[str | None, typer.Option(help="Published curve to draw beside ours: fig1-clip, ...")] = None,
    as_json: Json = False,
) -> None:
    """Draw the scaling curve and write one self-contained report.html."""
    from analysis.report.page import write_report

    paths = dict(write_report(_folder(source, overrides), x=x, overlay=overlay))
    if as_json:
        printing.print_json({k: str(v) for k, v in paths.items()})
    else:
        printing.print_files(paths)


@app.command()
@_verb
def export(
    source: Source,
    trial: Annotated[str, typer.Argument(help="Trial id (or its beginning), from `sweeps query`.")],
    to: Annotated[Path, typer.Argument(help="Folder to write.")],
    form: Annotated[str, typer.Option("--form", help="adapter, peft, or merged.")] = "adapter",
    as_json: Json = False,
) -> None:
    """Write a kept adapter: as it is, as a PEFT folder, or merged into the base model's weights."""
    from sweeps.engine.export import export_trial

    written = export_trial(_folder(source), trial, to, form)
    if as_json:
        printing.print_json({"path": str(written), "form": form})
    else:
        out.print(f"wrote {written}", highlight=False)


@app.command()
@_verb
def again(
    source: Source,
    trial: Annotated[str, typer.Argument(help="Trial id (or its beginning), from `sweeps query`.")],
    as_json: Json = False,
) -> int:
    """Train one finished trial again, here, and hold its scores against those in the tables; writes nothing."""
    from dataclasses import asdict

    from sweeps.engine.rerun import again as once_more

    answer = once_more(_folder(source), trial)
    if as_json:
        printing.print_json({**asdict(answer), "same": answer.same})
    else:
        for name, then, now in (
            ("validation", answer.val_score, answer.val_again),
            ("test", answer.test_score, answer.test_again),
        ):
            out.print(f"{name:<10}  in the tables {then}  again {now}", highlight=False)
        out.print("the same" if answer.same else "NOT the same", highlight=False)
    return 0 if answer.same else FAILED_TRIALS


@app.command()
@_verb
def budget(
    model: Annotated[str, typer.Option(help="Model id: open_clip:ARCH, local:DIR, hf:ORG/NAME, embedded:NAME.")],
    lora_rank: Annotated[int, typer.Option(help="The LoRA rank whose count is the budget.", min=1)],
    targets: Annotated[list[str] | None, typer.Option(help="Target weights; default: the family's.")] = None,
    adapt: Annotated[str, typer.Option(help="CLIP: vision or both towers; else all.")] = "both",
    as_json: Json = False,
) -> None:
    """The budget solver alone: what every method trains at a LoRA rank's count. Needs no weights."""
    from sweeps.budget.solver import budget_table
    from trainables.models.shapes import default_targets, target_shapes

    towers = ("vision", "both", "all")
    if adapt not in towers:
        raise SpecError([unknown("--adapt", adapt, "choice", towers)])
    shapes = target_shapes(model, targets or list(default_targets(model)), adapt)
    largest = max(min(shape) for shape in shapes.values())
    if lora_rank > largest:
        rule = "is above the largest rank of these weights"
        raise SpecError([Problem("--lora-rank", lora_rank, rule, f"--lora-rank {largest}")])
    answer = budget_table(shapes, lora_rank)
    if as_json:
        printing.print_json(answer)
    else:
        printing.print_budget(model, answer)


data.attach(app, _verb)
cli_analysis.attach(app, _verb, _folder)
cli_compare.attach(app, _verb, _folder)


@app.command()
@_verb
def doctor(as_json: Json = False) -> int:
    """Check this machine: Python, packages, devices, disk, and that the four package names are ours."""
    from sweeps.cli.doctor import examine

    checks = examine()
    if as_json:
        printing.print_json([c.__dict__ for c in checks])
    else:
        printing.print_checks(checks)
    return 0 if all(c.ok for c in checks) else FAILED_TRIALS


def main(arguments: list[str] | None = None) -> Any:
    """Entry point of the program `sweeps`."""
    return app(args=arguments)


if __name__ == "__main__":
    main()
