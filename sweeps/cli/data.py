"""The verb `data`: the registered data sets, and what is known of one."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from analysis.format import whole
from sweeps.cli.options import Json
from sweeps.cli.printing import emit, out
from sweeps.errors import SpecError, unknown


def data(
    name: Annotated[str | None, typer.Argument(help="A data set, cifar100; default: a list of all.")] = None,
    as_json: Json = False,
) -> None:
    """The registered data sets and their sizes; of one also its split, source, licence, prompts, how to get it."""
    from trainables.data.registry import known_datasets

    if name is None:
        found = [describe(known) for known in known_datasets()]
        emit(as_json, lambda: found, lambda: _print_all(found))
    else:
        one = describe(name)
        emit(as_json, lambda: one, lambda: _print_one(one))


def describe(name: str) -> dict[str, Any]:
    """What is known of a registered or embedded data set, JSON-able.

    Raises:
        SpecError: a name that is not registered.
    """
    from trainables.data.registry import DATASETS, known_datasets, load_dataset
    from trainables.data.text.registry import TEXT_DATASETS

    if name in DATASETS:
        info = DATASETS[name]
        sizes = None if info.sizes is None else {k: getattr(info.sizes, k) for k in ("train", "val", "test")}
        return {
            "name": name,
            "about": info.about,
            "kind": "images",
            "classes": info.classes,
            "sizes": sizes,
            "sizes_verified": info.sizes is not None and info.sizes.verified,
            "split": info.rule,
            "metric": info.metric,
            "epochs": info.epochs,
            "source": info.source,
            "further_sources": [f"{name}@{s}" for s in info.others],
            "licence": info.licence,
            "get": info.get,
            "templates": list(info.templates),
            "prompt": info.prompt,
        }
    if name in TEXT_DATASETS:
        text = TEXT_DATASETS[name]
        return {
            "name": name,
            "about": text.about,
            "kind": "text",
            "sizes": {"train": text.train, "test": text.test},
            "sizes_verified": text.verified,
            "epochs": text.epochs,
            "source": text.source,
            "licence": text.licence,
        }
    if name.startswith("embedded:") and name in known_datasets():
        data = load_dataset(name, stage="CONFIRM")
        return {
            "name": name,
            "about": "comes with the package",
            "kind": "images",
            "classes": len(data.class_names),
            "class_names": list(data.class_names),
            "sizes": {"train": len(data.train), "test": len(data.test)},
            "templates": list(data.templates),
            "prompt": data.prompt,
        }
    raise SpecError([unknown("name", name, "data set", known_datasets())])


def _print_all(found: list[dict[str, Any]]) -> None:
    """A line per data set."""
    table = Table(box=None, pad_edge=False)
    widths = {"name": max(len(each["name"]) for each in found), "train": 9}
    for column, justify in (("name", "left"), ("train", "right"), ("test", "right"), ("classes", "right")):
        table.add_column(column, justify=justify, no_wrap=True, min_width=max(len(column), widths.get(column, 0)))  # type: ignore[arg-type]
    table.add_column("about", no_wrap=True, overflow="ellipsis")
    for each in found:
        sizes = each["sizes"] or {}
        train = None if sizes.get("train") is None else sizes["train"] + sizes.get("val", 0)
        counts = [whole(train), whole(sizes.get("test")), whole(each.get("classes"))]
        table.add_row(each["name"], *counts, each["about"])
    out.print(table)
    out.print(
        "train counts training and validation rows; `sweeps data NAME` says more. A set of your own: folder:DIR, "
        "parquet:DIR, arrow:DIR, hf:ORG/NAME, json:DIR"
    )


def _print_one(found: dict[str, Any]) -> None:
    """A line per fact."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in found.items():
        if value in (None, [], ""):
            continue
        shown = value
        if isinstance(value, dict):
            shown = ", ".join(f"{k} {whole(v)}" for k, v in value.items() if v is not None)
        elif isinstance(value, list):
            shown = "\n".join(map(str, value)) if key == "templates" else ", ".join(map(str, value))
        table.add_row(key.replace("_", " "), str(shown))
    out.print(table)
