"""The verbs that use trials of a sweep: `export` and `predict` (kept weights), `again` (train again), `analyze`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from analysis.format import percent
from sweeps.cli.options import FAILED_TRIALS, Json, Set, Source, Trial, folder_of, store_of
from sweeps.cli.printing import emit, err, out, print_named
from sweeps.errors import Problem, SpecError

if TYPE_CHECKING:
    from sweeps.exporting.kept import KeptTrial

SWEEP_FORMS = ("results", "method-comparison")
"""Forms of `export` that export a whole sweep, not one trial."""

Best = Annotated[
    str, typer.Argument(help="Trial id or its beginning; or best: the best kept trial of the best cell, by validation.")
]
Method = Annotated[str | None, typer.Option("--method", help="With best: choose among trials of this method.")]
Budget = Annotated[
    str | None, typer.Option("--budget", help="With best: choose among trials at this budget (lora-4, params-5000).")
]


def export(
    source: Source,
    trial: Best = "best",
    to: Annotated[
        Path | None,
        typer.Argument(
            help="Folder to write; default: METHOD-BUDGET-FORM in the working directory, FOLDER-FORM of a whole sweep."
        ),
    ] = None,
    method: Method = None,
    budget: Budget = None,
    form: Annotated[
        str,
        typer.Option(
            "--form", help="Of a trial: adapter, peft or merged. Of the whole sweep: results, method-comparison."
        ),
    ] = "adapter",
    push: Annotated[
        str | None, typer.Option("--push", help="Also send it to this repository of the Hugging Face Hub: ORG/NAME.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="Licence for the card, as the Hub names it: apache-2.0.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: make the repository public.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="With --push: replace the files of a repository that exists.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the trained weights of a trial into a folder, with code that loads them and predicts.

    The form `adapter` has the adapter alone, `peft` is a folder of Hugging Face PEFT, and `merged` is the whole model.
    Two forms export the whole sweep and take no TRIAL. `results` writes its tables as a data set. `method-comparison`
    writes its tuned learning rates as experiments of Hugging Face PEFT. With `--push` and without TO the folder is a
    temporary one. Without `--push` nothing is sent.
    """
    from sweeps.exporting.hub import Push

    make_export = _of_sweep if form in SWEEP_FORMS else _of_trial
    planned = make_export(folder_of(source), form, trial, to, method, budget, push, licence)
    hub = None if push is None else Push(push, planned.kind, licence, public=public, overwrite=overwrite)
    if hub is not None:
        hub.check()
    elif public or overwrite:
        rule = "is about what is sent to the Hub, but nothing is sent; leave it out, or add --push ORG/NAME"
        raise SpecError([Problem("--public" if public else "--overwrite", None, rule)])
    with tempfile.TemporaryDirectory() as aside:
        place = planned.to if hub is None or planned.given else Path(aside) / planned.to
        answer = planned.write(place)
        url = None if hub is None else hub.send(place)
    path = str(place) if place == planned.to else None
    done = " and ".join(filter(None, (path and f"wrote {path}", url and f"sent {url}")))
    for line in () if as_json else answer.get("left_out", ()):
        out.print(f"left out  {line}")
    document = {"path": path, "url": url, "form": form, **answer}
    emit(as_json, lambda: document, lambda: out.print(f"{done}: {planned.about}"))


@dataclass(frozen=True)
class _Export:
    """An export that is checked but not written yet.

    Attributes:
        kind: the kind of repository that holds it on the Hub.
        to: the folder to write.
        given: whether the user named this folder.
        write: writes the export into a folder, and returns its part of the JSON answer.
        about: what it is and how to use it, in words.
    """

    kind: Literal["model", "dataset"]
    to: Path
    given: bool
    write: Callable[[Path], dict[str, Any]]
    about: str


def _of_trial(
    folder: Path, form: str, trial: str, to: Path | None, method: str | None, budget: str | None, push: str | None,
    licence: str | None,
) -> _Export:  # fmt: skip
    from sweeps.exporting.export import check_shareable, export_trial
    from sweeps.exporting.kept import kept_trial

    kept = kept_trial(folder, trial, method, budget)
    if push is not None:
        check_shareable(kept, form)

    def write(place: Path) -> dict[str, Any]:
        export_trial(kept, place, form, licence)
        return {"trial_id": kept.row["trial_id"]}

    usual = Path(f"{kept.name}-{form}")
    return _Export("model", to or usual, to is not None, write, f"{_named(kept)}; its README.md has code that loads it")


def _of_sweep(
    folder: Path, form: str, trial: str, to: Path | None, method: str | None, budget: str | None, push: str | None,
    licence: str | None,
) -> _Export:  # fmt: skip
    from sweeps.exporting.comparison import export_experiments
    from sweeps.exporting.dataset import export_results

    if method is not None or budget is not None or (trial != "best" and to is not None):
        arguments = " ".join(filter(None, (trial, method, budget)))
        rule = f"the form {form} exports the whole sweep, so it takes no trial, no method and no budget"
        raise SpecError([Problem("--form", arguments, rule, f"sweeps export {folder} FOLDER --form {form}")])
    experiments = form == "method-comparison"
    if experiments and push is not None:
        rule = "PEFT takes experiments as a pull request on GitHub, not on the Hub (docs/peft-published.md)"
        raise SpecError([Problem("--push", push, rule, "--form results")])
    given_to = to if trial == "best" else Path(trial)

    def write(place: Path) -> dict[str, Any]:
        if not experiments:
            export_results(folder, place, licence, push)
            return {}
        made, left_out = export_experiments(folder, place)
        return {"experiments": [one.place for one in made], "left_out": left_out}

    if experiments:
        about = "copy experiments/ into PEFT's method_comparison/MetaMathQA; pull-request.md has a text for it"
    else:
        about = "its README.md says how to read the tables"
    return _Export("dataset", given_to or Path(f"{folder.name}-{form}"), given_to is not None, write, about)


def predict(
    source: Source,
    trial: Best,
    given: Annotated[list[str], typer.Argument(help="Image files, or texts if it is a text task.", metavar="INPUT...")],
    method: Method = None,
    budget: Budget = None,
    as_json: Json = False,
) -> None:
    """Classify new images or texts with the weights of a trial. Each gets a line with its answer.

    The answer is a class with its probability, a number, or a text that the model wrote.
    """
    from sweeps.exporting.kept import kept_trial
    from trainables.predicting.answers import answers
    from trainables.predicting.trained import load_trained

    kept = kept_trial(folder_of(source), trial, method, budget)
    if not as_json:
        err.print(_named(kept), style="dim")
    predictions = list(answers(load_trained(kept.config, kept.folder), given))

    def draw() -> None:
        shares = ("" if one.probability is None else f"  {percent(one.probability)} %" for one in predictions)
        print_named((one.given, f"{one.answer}{share}") for one, share in zip(predictions, shares, strict=True))

    emit(as_json, lambda: {"trial_id": kept.row["trial_id"], "answers": [asdict(one) for one in predictions]}, draw)


def _named(kept: KeptTrial) -> str:
    """Return a text that describes a kept trial."""
    row = kept.row
    budget = f" at {row['reference']}" if row["reference"] else ""
    score = "" if row["val_score"] is None else f", validation score {percent(row['val_score'])}"
    return f"{row['method']}{budget} on {row['dataset']}, trial {row['trial_id']}{score}"


def again(source: Source, trial: Trial, as_json: Json = False) -> int:
    """Train one finished trial again on this machine and compare its scores with the tables.

    It also names the hardware and the versions of packages that differ from those of the sweep. The command writes
    nothing. Exit code 1 if the scores differ.
    """
    from sweeps.engine.rerun import train_again

    answer = train_again(folder_of(source), trial)
    elsewhere = "".join(f"{'elsewhere':<10}  {each}\n" for each in answer.elsewhere)
    words = (
        f"{'validation':<10}  in the tables {answer.val_score}  again {answer.val_again}\n"
        f"{'test':<10}  in the tables {answer.test_score}  again {answer.test_again}\n"
        f"{elsewhere}{answer.verdict}"
    )
    emit(as_json, lambda: {**asdict(answer), "same": answer.same}, lambda: out.print(words))
    return 0 if answer.same else FAILED_TRIALS


def analyze(
    kind: Annotated[
        str, typer.Argument(help="spectrum, intruders, retention, cka, landscape, full_rank, curvature or tasks.")
    ],
    source: Source,
    overrides: Set = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; default: a new local one.")] = None,
    backend: Annotated[
        str, typer.Option(help="What computes: ray, or inline (one task after another in this process, without Ray).")
    ] = "ray",
    cpus: Annotated[float, typer.Option(help="CPUs for each task.", min=0)] = 1,
    examples: Annotated[
        float | None,
        typer.Option(
            help="Use at most this many examples. For cka, curvature and landscape a number below 1 is a share of them."
        ),
    ] = None,
    points: Annotated[
        int | None, typer.Option(help="For landscape: number of points on each side of the grid and on each path.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="For tasks: a task of lm-eval, such as arc_easy. Repeatable.")
    ] = None,
    include: Annotated[
        Path | None, typer.Option("--include", help="For tasks: a folder with your own task files for lm-eval.")
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(help="For retention of language models: a file of general text that no trial has trained on."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="For retention of CLIPs: a data set that no trial has trained on, such as cifar100."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compute again what was computed before.")] = False,
    upload: Annotated[
        str | None, typer.Option(help="Copy the tables to the sweep's URI at the end: s3://BUCKET/FOLDER.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Compute diagnostics of trained weights that the sweep kept (`[keep] adapters`).

    cka and landscape also need `[keep] full = true`. curvature needs no kept weights. tasks scores language models on
    tasks of lm-eval (the extra `lm-eval`); these scores choose nothing. If the command is stopped, the same command
    resumes it. The results are tables (`sweeps query`) and figures (`sweeps report`).
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
        store,
        kind,
        execute=execute,
        force=force,
        examples=examples,
        points=points,
        tasks=task or (),
        include=include,
        texts=texts,
        data=data,
    )
    if not as_json:
        out.print(says)
    emit(
        as_json,
        lambda: {"says": says, "rows": table.num_rows, "paths": {k: str(v) for k, v in paths.items()}},
        lambda: print_named(paths.items()),
    )
    missing = None if location is None else Upload(folder, location, note=lambda _: None).copy_now()
    if missing:
        err.print(f"{missing}; the same command tries again", style="red")
    return FAILED_TRIALS if missing else 0
