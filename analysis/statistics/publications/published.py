"""Published numbers, shipped in the folders beside: a JSON file per figure or table, every number with its source.

A number here is a fact someone else published; nothing is fitted or filled in. A count the publication does not give,
and that cannot be computed, is null.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import pyarrow as pa

from analysis.errors import StoreError, nearest
from analysis.format import Row
from analysis.statistics.scaling import CURVE, curve
from analysis.store.store import Store
from analysis.styles import place_of, place_text, places, style


@dataclass(frozen=True)
class Publication:
    """One file.

    Attributes:
        name: its file name without suffix.
        title, source, precision, note: what it is, where it stands, how exact the numbers are, what to know.
        points: one row per number: model, adapt, dataset, train_size, method, setting (the method's capacity as the
            source prints it), adapter_params, score (a fraction), source, and seconds_train, peak_memory_bytes,
            file_bytes where given.
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
    for file in resources.files("analysis.statistics.publications").joinpath(folder).iterdir()
}


def publication_names() -> tuple[str, ...]:
    """The publications at hand."""
    return tuple(sorted(_FILES))


def publication(name: str) -> Publication:
    """One publication. Raises StoreError for an unknown name, with the known ones."""
    if name not in _FILES:
        raise StoreError(f"unknown published results {name!r}; {nearest(name, publication_names())}")
    whole = json.loads(_FILES[name].read_text(encoding="utf-8"))
    points = [
        {k: v for k, v in {**group, **point}.items() if k not in ("points", "datasets", "scores")}
        | {"dataset": dataset, "score": score / 100}
        for group in whole["groups"]  # of one data set, or of several with a score for each
        for point in group["points"]
        for dataset, score in zip(
            group.get("datasets") or [group["dataset"]], point.get("scores") or [point["score"]], strict=True
        )
    ]
    facts = {k: whole[k] for k in ("name", "title", "source", "precision", "note")}
    return Publication(**facts, points=tuple(points))


def published_reference(point: Row) -> str | None:
    """'randlora-6': method and capacity as printed; None without one. It says what a cell is, not a matched budget."""
    return None if point.get("setting") is None else f"{point['method']}-{point['setting']}"


def published_curve(
    name: str, model: str | None = None, dataset: str | None = None, train_size: str | None = None
) -> tuple[pa.Table, str]:
    """A publication as a table like `scaling.curve`'s (n = 1, no intervals), and its title.

    Args:
        name: of the publication.
        model, dataset, train_size: where ours was measured (`dataset` None: a mean over data sets). Of several places
            the nearest to it is taken: the same model before the same data before the same size; else the first.
    """
    found = publication(name)
    keys = ("model", "dataset", "train_size")
    measured = list(dict.fromkeys(tuple(point[k] for k in keys) for point in found.points))

    def nearness(place: tuple[Any, ...]) -> tuple[bool, bool, bool]:
        same_data = "mean-of" in place[1] if dataset is None else place[1] == dataset.rpartition(":")[2]
        return place[0] == model, same_data, place[2] == train_size

    first = max(measured, key=nearness)  # the first of those that are equally near
    rows = []
    for point in (p for p in found.points if tuple(p[k] for k in keys) == first):
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
    return pa.Table.from_pylist(rows, schema=CURVE), found.title + where


def overlaid(store: Store, overlay: str) -> tuple[pa.Table, pa.Table, str]:
    """Our first panel (the mean over data sets where there is one), the published curve of that name, its title."""
    ours = curve(store)
    first = next(iter(places(ours)), None)
    rows = [r for r in ours.to_pylist() if place_of(r) == first]
    theirs, title = published_curve(overlay, *(first[1:] if first else ()))
    return pa.Table.from_pylist(rows, schema=CURVE), theirs, title
