"""The verbs that take trials up again: `export` and `predict` (kept weights), `again` (once more), `analyze`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analysis.format import percent
from sweeps.cli.options import FAILED_TRIALS, Json, Set, Source, Trial, folder_of, store_of
from sweeps.cli.printing import emit, err, out, print_named

if TYPE_CHECKING:
    from sweeps.engine.kept import KeptTrial


Best = Annotated[str, typer.Argument(help="Trial id (or its beginning), or best: the highest validation score.")]
Method = Annotated[str | None, typer.Option("--method", help="With best: only trials of this method.")]
Budget = Annotated[
    str | None, typer.Option("--budget", help="With best: only trials at this budget (lora-4, params-5000).")
]


def export(
    source: Source,
    trial: Best = "best",
    to: Annotated[Path | None, typer.Argument(help="Folder to write; default: METHOD-BUDGET-FORM.")] = None,
    method: Method = None,
    budget: Budget = None,
    form: Annotated[str, typer.Option("--form", help="adapter, peft, or merged.")] = "adapter",
    as_json: Json = False,
) -> None:
    """Write a kept trial, with all that it takes to predict: as it is, as a PEFT folder, or merged into the model."""
    from sweeps.engine.export import export_trial
    from sweeps.engine.kept import kept_trial

    kept = kept_trial(folder_of(source), trial, method, budget)
    written = export_trial(kept, to or Path(f"{kept.name}-{form}"), form)
    said = f"wrote {written}: {_named(kept)}; its README.md has code that loads it"
    answer = {"path": str(written), "form": form, "trial_id": kept.row["trial_id"]}
    emit(as_json, lambda: answer, lambda: out.print(said))


def predict(
    source: Source,
    trial: Best,
    given: Annotated[list[str], typer.Argument(help="Image files, or texts if it is a text task.", metavar="INPUT...")],
    method: Method = None,
    budget: Budget = None,
    as_json: Json = False,
) -> None:
    """Classify new images or texts with a kept trial: class and probability, a line each. For a first look."""
    from sweeps.engine.kept import kept_trial
    from trainables.predicting.answers import answers
    from trainables.predicting.trained import load_trained

    kept = kept_trial(folder_of(source), trial, method, budget)
    if not as_json:
        err.print(_named(kept), style="dim")
    found = list(answers(load_trained(kept.config, kept.folder), given))
    width = max(len(one.given) for one in found)

    def draw() -> None:
        for one in found:
            share = "" if one.probability is None else f"  {percent(one.probability)} %"
            out.print(f"{one.given:<{width}}  {one.answer}{share}")

    emit(as_json, lambda: {"trial_id": kept.row["trial_id"], "answers": [asdict(one) for one in found]}, draw)


def _named(kept: KeptTrial) -> str:
    """A kept trial in words."""
    row = kept.row
    budget = f" at {row['reference']}" if row["reference"] else ""
    score = "" if row["val_score"] is None else f", validation score {percent(row['val_score'])}"
    return f"{row['method']}{budget} on {row['dataset']}, trial {row['trial_id']}{score}"


def again(source: Source, trial: Trial, as_json: Json = False) -> int:
    """Train one finished trial again on this machine and compare its scores with the tables. Writes nothing."""
    from sweeps.engine.rerun import again as once_more

    answer = once_more(folder_of(source), trial)
    words = (
        f"{'validation':<10}  in the tables {answer.val_score}  again {answer.val_again}\n"
        f"{'test':<10}  in the tables {answer.test_score}  again {answer.test_again}\n"
        f"{answer.word}"
    )
    emit(as_json, lambda: {**asdict(answer), "same": answer.same}, lambda: out.print(words))
    return 0 if answer.same else FAILED_TRIALS


def analyze(
    kind: Annotated[str, typer.Argument(help="spectrum, intruders, retention, cka, landscape or full_rank.")],
    source: Source,
    overrides: Set = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; default: a new local one.")] = None,
    backend: Annotated[
        str, typer.Option(help="What computes: ray, or inline (one task after another in this process, no Ray).")
    ] = "ray",
    cpus: Annotated[float, typer.Option(help="CPUs for each task.", min=0)] = 1,
    examples: Annotated[
        float | None, typer.Option(help="For cka and landscape: most examples to use; below 1: a share of them.")
    ] = None,
    points: Annotated[
        int | None, typer.Option(help="For landscape: points along each side of the grid and of each path.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="For retention: a file of general text that no trial has trained on.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compute again what is already there.")] = False,
    upload: Annotated[
        str | None, typer.Option(help="Copy the tables to the sweep's URI at the end: s3://BUCKET/FOLDER.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Compute diagnostics of kept weights. They need [keep] adapters; cka and landscape also need full = true.

    Stopped, the same command goes on. The results are tables (`sweeps query`) and figures (`sweeps report`).
    """
    from analysis.diagnostics.analyze import analyze as run_diagnostic
    from analysis.store.remote import Location
    from sweeps.engine.analyze import executor
    from sweeps.records.upload import Upload, check_same

    folder = folder_of(source, overrides)
    location = None if upload is None else Location.of(upload)
    if location is not None:
        check_same(location, folder)
    execute = executor(backend, address, cpus=cpus, progress=not as_json)
    store = store_of(folder)
    table, paths, says = run_diagnostic(
        store, kind, execute=execute, force=force, examples=examples, points=points, texts=texts
    )
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
