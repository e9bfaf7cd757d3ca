"""The verbs that take trials up again: `export` (kept weights), `again` (once more), `analyze` (diagnostics)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sweeps.cli.options import FAILED_TRIALS, Json, Set, Source, Trial, folder_of, store_of
from sweeps.cli.printing import emit, err, out, print_named


def export(
    source: Source,
    trial: Trial,
    to: Annotated[Path, typer.Argument(help="Folder to write.")],
    form: Annotated[str, typer.Option("--form", help="adapter, peft, or merged.")] = "adapter",
    as_json: Json = False,
) -> None:
    """Write a kept adapter: as it is, as a PEFT folder, or merged into the base model's weights."""
    from sweeps.engine.export import export_trial

    written = export_trial(folder_of(source), trial, to, form)
    emit(as_json, lambda: {"path": str(written), "form": form}, lambda: out.print(f"wrote {written}"))


def again(source: Source, trial: Trial, as_json: Json = False) -> int:
    """Train one finished trial again, here, and hold its scores against those in the tables; writes nothing."""
    from sweeps.engine.rerun import again as once_more

    answer = once_more(folder_of(source), trial)
    words = (
        f"{'validation':<10}  in the tables {answer.val_score}  again {answer.val_again}\n"
        f"{'test':<10}  in the tables {answer.test_score}  again {answer.test_again}\n"
        f"{'the same' if answer.same else 'NOT the same'}"
    )
    emit(as_json, lambda: {**asdict(answer), "same": answer.same}, lambda: out.print(words))
    return 0 if answer.same else FAILED_TRIALS


def analyze(
    kind: Annotated[str, typer.Argument(help="spectrum, cka or landscape.")],
    source: Source,
    overrides: Set = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; default: one of its own.")] = None,
    cpus: Annotated[float, typer.Option(help="CPUs of a task.", min=0)] = 1,
    examples: Annotated[int | None, typer.Option(help="cka, landscape: examples at most.")] = None,
    points: Annotated[int | None, typer.Option(help="landscape: points of a row and of an edge.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Compute again what is there.")] = False,
    upload: Annotated[
        str | None, typer.Option(help="Copy the tables there at the end, beside the sweep's: s3://BUCKET/FOLDER.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Diagnostics of kept weights, as Ray tasks; needs [keep] adapters = "confirm" and full = true.

    Stopped, the same command goes on. The results are tables (`sweeps query`) and figures (`sweeps report`).
    """
    from analysis.diagnostics.analyze import analyze as run_diagnostic
    from analysis.store.remote import Location
    from sweeps.engine.analyze import ray_tasks
    from sweeps.records.upload import Upload, check_same

    folder = folder_of(source, overrides)
    location = None if upload is None else Location.of(upload)
    if location is not None:
        check_same(location, folder)
    execute = ray_tasks(address, cpus=cpus, progress=not as_json)
    store = store_of(folder)
    table, paths, says = run_diagnostic(store, kind, execute=execute, force=force, examples=examples, points=points)
    if not as_json:
        out.print(says)
    emit(
        as_json,
        lambda: {"says": says, "rows": table.num_rows, "paths": {k: str(v) for k, v in paths.items()}},
        lambda: print_named(paths),
    )
    missing = None if location is None else Upload(folder, location, note=lambda _: None).once()
    if missing:
        err.print(f"{missing}; the same command tries again", style="red")
    return FAILED_TRIALS if missing else 0
