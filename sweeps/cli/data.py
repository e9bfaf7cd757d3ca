"""The verb `data`: lists the registered data sets, and describes one of them or your own files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from analysis.format import quantity
from analysis.sheets.sheet import sheet_of
from analysis.sheets.terminal import print_sheet
from sweeps.cli.options import Json
from sweeps.cli.printing import emit, err, out, print_named, print_weak
from sweeps.errors import Problem, SpecError, unknown

_CARVED = "validation is 10 % of train, 5,000 at most, the same examples in every trial"


def data(
    name: Annotated[
        str | None,
        typer.Argument(help="A data set: cifar100, folder:DIR, ...; default: list all registered data sets."),
    ] = None,
    split: Annotated[
        Path | None,
        typer.Option(
            help="Write folder:DIR (a folder for each class) or sft:FILE into this folder, a fifth of it as test."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the registered data sets and their sizes, or describe one data set.

    Of a registered set the command prints its sizes, split, source, licence, prompts and how to get it. Of your own
    files it prints classes, sizes, which examples validate, and classes that the test split lacks.
    """
    from trainables.data.registry import known_datasets

    if split is not None:
        name = _divided(name, split)
    if name is None:
        descriptions = [describe(each) for each in known_datasets()]
        emit(as_json, lambda: descriptions, lambda: _print_all(descriptions))
    else:
        one = describe(name)
        emit(as_json, lambda: one, lambda: _print_one(one))


def _divided(name: str | None, into: Path) -> str:
    """Divide a folder of classes or a file of texts into splits, in the new folder `into`. Return its id."""
    from rich.progress import track

    from trainables.data.images.dividing import divide
    from trainables.data.text.fine_tuning import FORM, read_place
    from trainables.data.text.looking import divide as divide_texts

    kind, _, path = (name or "").partition(":")
    if name is not None and kind == FORM and (file := Path(read_place(name).path).expanduser()).is_file():
        return divide_texts(name, file, into)
    folder = Path(path).expanduser()
    if kind != "folder" or not folder.is_dir():
        rule = "is neither a folder of classes nor a file of texts"
        raise SpecError([Problem("name", name, rule, "folder:DIR, with DIR/CLASS/IMAGE, or sft:FILE.jsonl")])
    divide(folder, into, lambda classes: track(classes, "classes", console=err, transient=True))
    return f"folder:{into}"


def describe(name: str) -> dict[str, Any]:
    """Return the description of a registered data set, or of one on this disk, as JSON values.

    Raises:
        SpecError: the name is neither.
        DataError: files are missing or damaged.
    """
    from trainables.data.facts import ImageSet, TextSet, facts_of
    from trainables.data.registry import known_datasets, on_disk
    from trainables.data.templates import DEFAULT_PROMPT

    info = facts_of(name)
    registered, _, source = name.partition("@")
    if isinstance(info, ImageSet) and (not source or source in info.others):
        return {
            "name": name,
            "about": info.about,
            "kind": "images",
            "classes": info.classes,
            "sizes": info.sizes.model_dump(),
            "split": info.split,
            "epochs": info.epochs,
            "source": info.source.place,
            "further_sources": [f"{registered}@{s}" for s in info.others],
            "licence": info.licence,
            "get": info.how_to_get,
            "templates": list(info.templates),
            "prompt": DEFAULT_PROMPT,
        }
    if isinstance(info, TextSet):
        return {
            "name": name,
            "about": info.about,
            "kind": "text",
            "sizes": {"train": info.train, "test": info.test},
            "sizes_verified": info.verified,
            "epochs": info.epochs,
            "source": info.source.place,
            "licence": info.licence,
        }
    if on_disk(name):
        return _read(name)
    raise SpecError([unknown("name", name, "data set", [*known_datasets(), "folder:DIR", "parquet:DIR", "json:DIR"])])


def _read(name: str) -> dict[str, Any]:
    """Read a data set on this disk, and return its description."""
    from sweeps.plan.digests import shared_examples
    from sweeps.plan.split_sizes import absent_from_test, forget, loaded
    from trainables.data.registry import embedded_datasets
    from trainables.data.splits import split
    from trainables.data.text.dataset import TextDataset

    forget()  # files may have changed since this process read them
    data = loaded(name)
    rows = split(data, 1.0, 0, "CONFIRM")
    description: dict[str, Any] = {"name": name, "kind": "text" if isinstance(data, TextDataset) else "images"}
    description["about"] = "comes with the package" if name in embedded_datasets() else "files of this machine"
    description["sizes"] = {"train": len(rows.train_idx), "val": len(rows.val_idx), "test": len(rows.test_idx)}
    description["split"] = _CARVED if data.val_rows is None else "the validation split is the set's own"
    shared = shared_examples(data)
    description["test_in_train"] = None if shared is None else shared.count
    description["shared"] = (
        None if shared is None else shared.words + ("; a run refuses this" if shared.refused else "")
    )
    if data.class_names:
        counts = sorted(Counter(data.train.labels.tolist()).values())
        description |= {"classes": len(data.class_names), "class_names": list(data.class_names)}
        ends = dict.fromkeys((counts[0], counts[-1]))
        description["per_class"] = f"{' to '.join(map(quantity, ends))} for train and validation"
        description["test_lacks"] = list(absent_from_test(name))
    if isinstance(data, TextDataset):
        return description | {"metric": data.metric}
    return description | {"templates": list(data.templates), "prompt": data.prompt}


def _weak(description: dict[str, Any]) -> list[str]:
    """Return texts on what makes evidence from a data set weak."""
    from analysis.findings.weak import weak_evidence
    from analysis.verdict.inference import FEW_SEEDS

    sizes, lacks = description["sizes"] or {}, description.get("test_lacks")
    row = {"dataset": description["name"], "train_size": "1.0", "lr_centre": 1.0, "confirm_seeds": FEW_SEEDS}
    row |= {"val_examples": sizes.get("val"), "test_examples": sizes.get("test")}
    return weak_evidence([row | {"test_lacks": json.dumps(lacks) if lacks else None}])


def _print_all(descriptions: list[dict[str, Any]]) -> None:
    """Print a line for each data set."""
    rows = []
    for each in descriptions:
        sizes = each["sizes"] or {}
        train = None if sizes.get("train") is None else sizes["train"] + sizes.get("val", 0)
        counts = [quantity(train), quantity(sizes.get("test")), quantity(each.get("classes"))]
        rows.append([each["name"], *counts, each["about"]])
    print_sheet(sheet_of(("name", "train", "test", "classes", "about"), rows), out)
    out.print(
        "train counts training and validation rows; `sweeps data NAME` says more. Your own data: folder:DIR, "
        "parquet:DIR, arrow:DIR, hf:ORG/NAME, json:DIR, sft:DIR, sft-hf:ORG/NAME"
    )


def _print_one(description: dict[str, Any]) -> None:
    """Print a line for each fact, and what makes evidence from the data set weak."""
    facts = {}
    for key, value in description.items():
        if value in (None, [], ""):
            continue
        shown = value
        if isinstance(value, dict):
            shown = ", ".join(f"{k} {quantity(v)}" for k, v in value.items() if v is not None)
        elif isinstance(value, list):
            shown = "\n".join(map(str, value)) if key == "templates" else ", ".join(map(str, value))
        facts[key.replace("_", " ")] = shown
    print_named(facts.items())
    print_weak(_weak(description))
