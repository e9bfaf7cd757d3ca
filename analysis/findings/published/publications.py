"""Published numbers, in JSON files beside this module: one file for each figure or table, with its source.

These numbers are facts that others published; nothing is fitted or filled in. A parameter count is null if the
publication does not give it and it cannot be computed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import pyarrow as pa

from analysis.errors import StoreError, nearest
from analysis.findings.scaling.numbers import CURVE, curve
from analysis.format import Row
from analysis.store.store import Store
from analysis.styles import place_of, place_text, places, style


@dataclass(frozen=True)
class Publication:
    """The numbers of one published figure or table.

    Attributes:
        name: name of its JSON file, without suffix.
        title: what it shows.
        source: the publication, with the number of its figure or table.
        precision: how exact the numbers are.
        note: what a reader should know about them.
        points: one row for each number: model, adapt, dataset, train_size, method, setting (the method's capacity as
            the source prints it), adapter_params, score (a fraction) and source; also seconds_train, peak_memory_bytes
            and file_bytes if the source gives them.
    """

    name: str
    title: str
    source: str
    precision: str
    note: str
    points: tuple[Row, ...]


_FILES = {
    file.name.removesuffix(".json"): file
    for folder in ("images", "language")
    for file in resources.files("analysis.findings.published").joinpath(folder).iterdir()
}


def publication_names() -> tuple[str, ...]:
    """Return the names of all stored publications."""
    return tuple(sorted(_FILES))


def publication(name: str) -> Publication:
    """Return a publication by name. Raises StoreError if the name is unknown; the error lists the known ones."""
    if name not in _FILES:
        raise StoreError(f"unknown published results {name!r}; {nearest(name, publication_names())}")
    document = json.loads(_FILES[name].read_text(encoding="utf-8"))
    points = [
        {k: v for k, v in {**group, **point}.items() if k not in ("points", "datasets", "scores")}
        | {"dataset": dataset, "score": score / 100}
        for group in document["groups"]  # of one data set, or of several with a score for each
        for point in group["points"]
        for dataset, score in zip(
            group.get("datasets") or [group["dataset"]], point.get("scores") or [point["score"]], strict=True
        )
    ]
    facts = {k: document[k] for k in ("name", "title", "source", "precision", "note")}
    return Publication(**facts, points=tuple(points))


def published_reference(point: Row) -> str | None:
    """Return a name such as 'randlora-6' from method and printed capacity, or None if no capacity was printed.

    It names the cell. It is not a budget that other methods were matched to.
    """
    return None if point.get("setting") is None else f"{point['method']}-{point['setting']}"


def published_curve(
    name: str, model: str | None = None, dataset: str | None = None, train_size: str | None = None
) -> tuple[pa.Table, str]:
    """Return a publication as a table like that of `scaling.curve` (n = 1, no intervals), and its title.

    Args:
        name: name of the publication.
        model, dataset, train_size: place of our own results; `dataset` None means a mean over data sets. If the
            publication has several places, the most similar one is taken: the same model counts most, then the same
            data, then the same size. If none is similar, it is the first.
    """
    source = publication(name)
    keys = ("model", "dataset", "train_size")
    measured = list(dict.fromkeys(tuple(point[k] for k in keys) for point in source.points))

    def nearness(place: tuple[Any, ...]) -> tuple[bool, bool, bool]:
        same_data = "mean-of" in place[1] if dataset is None else place[1] == dataset.rpartition(":")[2]
        return place[0] == model, same_data, place[2] == train_size

    first = max(measured, key=nearness)  # the first of those that are equally near
    rows = []
    for point in (p for p in source.points if tuple(p[k] for k in keys) == first):
        budget = point["adapter_params"] if published_reference(point) else None
        rows.append(
            {k: point[k] for k in (*keys, "method", "adapter_params")}
            | {
                "sweep": name,
                "name": style(point["method"]).name,
                "reference": published_reference(point),
                "budget": budget,
            }
            | {"kind": "line" if budget is None else "curve", "n": 1, "mean": point["score"], "n_datasets": 1}
        )
    where = f", {place_text(first[1], first[2])}" if len(measured) > 1 else ""
    return pa.Table.from_pylist(rows, schema=CURVE), source.title + where


def overlaid(store: Store, overlay: str) -> tuple[pa.Table, pa.Table, str]:
    """Return our curve at the first place, the published curve of this name, and the title of the publication.

    The first place is the mean over data sets if there is one.
    """
    ours = curve(store)
    first = next(iter(places(ours)), None)
    rows = [r for r in ours.to_pylist() if place_of(r) == first]
    published, title = published_curve(overlay, *(first[1:] if first else ()))
    return pa.Table.from_pylist(rows, schema=CURVE), published, title
