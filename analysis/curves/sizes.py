"""Score against the amount of training data: one curve per method and budget, for sweeps over several sizes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pyarrow as pa

from analysis.curves.size_fits import images
from analysis.statistics.scaling import curve
from analysis.store.store import Store
from analysis.styles import size_key, size_text, style

Row = dict[str, Any]

SIZES = pa.schema(
    [
        ("sweep", pa.string()),
        ("model", pa.string()),
        ("dataset", pa.string()),  # null: the mean over data sets
        ("method", pa.string()),
        ("reference", pa.string()),
        ("adapter_params", pa.int64()),
        ("train_size", pa.string()),
        ("position", pa.int64()),  # 0 for the least size of the sweep
        ("images", pa.float64()),  # examples in an epoch; null where no trial says
        ("n", pa.int64()),
        ("mean", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)


def size_curves(store: Store) -> pa.Table:
    """Rows of `scaling.curve` arranged by training size, where a (sweep, model, data set) has at least two; `SIZES`."""
    groups: dict[tuple[str, str, str | None], list[Row]] = defaultdict(list)
    for row in curve(store).to_pylist():
        groups[row["sweep"], row["model"], row["dataset"]].append(row)
    at = images(store)
    rows: list[Row] = []
    for mine in groups.values():
        sizes = sorted({r["train_size"] for r in mine}, key=size_key)
        for r in mine if len(sizes) > 1 else ():
            examples = at.get((r["sweep"], r["model"], r["dataset"], r["train_size"]))
            where = {"position": sizes.index(r["train_size"]), "images": examples}
            rows.append({k: r.get(k) for k in SIZES.names} | where)
    rows.sort(key=_order)
    return pa.Table.from_pylist(rows, schema=SIZES)


def size_labels(table: pa.Table) -> list[str]:
    """The sizes in words, by position; of one (sweep, model, data set)."""
    found = {r["position"]: size_text(r["train_size"]) for r in table.to_pylist()}
    return [found[i] for i in sorted(found)]


def _order(r: Row) -> tuple[Any, ...]:
    place = (r["sweep"], r["model"], r["dataset"] is not None, r["dataset"] or "")
    return (*place, style(r["method"]).order, r["method"], r["adapter_params"] or 0, r["position"])
