"""Score against the amount of training data: one curve per method and budget, for sweeps over several sizes."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from analysis.curves.measured import examples
from analysis.format import Row
from analysis.statistics.runs import by
from analysis.statistics.scaling import curve
from analysis.store.columns import INT, REAL, TEXT, typed
from analysis.store.store import Store
from analysis.styles import place_of, size_key, size_text, style

SIZES = pa.schema(
    [
        *typed(TEXT, "sweep", "model", "dataset"),  # dataset null: the mean over data sets
        *typed(TEXT, "method", "reference"),
        ("adapter_params", INT),
        ("train_size", TEXT),
        ("position", INT),  # 0 for the least size of the sweep
        ("images", REAL),  # examples in an epoch; null where no trial says
        ("n", INT),
        *typed(REAL, "mean", "low", "high"),
    ]
)


def size_curves(store: Store) -> pa.Table:
    """Rows of `scaling.curve` arranged by training size, where a (sweep, model, data set) has at least two; `SIZES`."""
    at = examples(store)
    rows: list[Row] = []
    for mine in by(curve(store).to_pylist(), "sweep", "model", "dataset").values():
        sizes = sorted({r["train_size"] for r in mine}, key=size_key)
        if len(sizes) > 1:
            rows += [r | {"position": sizes.index(r["train_size"]), "images": at.get(place_of(r))} for r in mine]
    return pa.Table.from_pylist(sorted(rows, key=_order), schema=SIZES)


def size_labels(table: pa.Table) -> list[str]:
    """The sizes in words, by position; of one (sweep, model, data set)."""
    found = {r["position"]: size_text(r["train_size"]) for r in table.to_pylist()}
    return [found[i] for i in sorted(found)]


def _order(r: Row) -> tuple[Any, ...]:
    place = (r["sweep"], r["model"], r["dataset"] is not None, r["dataset"] or "")
    return (*place, style(r["method"]).order, r["method"], r["adapter_params"] or 0, r["position"])
