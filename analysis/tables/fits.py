"""The report's tables of fits: against a cost, against training examples, fronts, and published numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from analysis.curves import pareto, readings
from analysis.curves.measured import EXAMPLES, axis
from analysis.curves.sizes import size_curves
from analysis.format import percent, quantity, ranged, score, whole
from analysis.store.store import Store
from analysis.styles import size_key, size_text, style
from analysis.tables.sheet import BUDGET, METHOD, Column, Sheet, columns_of

Row = dict[str, Any]

SIZES = ("data_sizes", "size_crossings", "size_needed", "size_areas", "size_fits")
"""Names of the tables of `sizes`."""

AGAINST = Column("against", lambda r: style(r["baseline"]).name)


def _estimate(r: Row) -> str:
    """A cost read off a curve with its interval, or why there is none."""
    if r["value"] is None:
        return str(r["note"])
    if r["share"] is None:
        return quantity(r["value"])
    return ranged(quantity(r["value"]), quantity(r["low"]) or "below range", quantity(r["high"]) or "above range")


def _mean(r: Row) -> str:
    return str(r["note"]) if r["value"] is None else score(r, "value")


def _parameters(r: Row) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in json.loads(r["parameters"]).items())


def _share(r: Row) -> str:
    return percent(r["share"])


def _rmse(r: Row) -> str:
    return f"{100 * r['rmse']:.2f}"


def fitted(store: Store, x: str) -> list[Sheet]:
    """Crossings, budgets needed, areas and parameters of the fits against a cost."""
    label = axis(x).label
    tables = [
        (
            "crossings",
            f"Where curves cross, in {label}",
            readings.crossing_table(store, x),
            [
                AGAINST,
                Column("crosses at [95 %]", _estimate, "number"),
                Column("in range, % of resamples", _share, "number"),
            ],
        ),
        (
            "budget_needed",
            f"What a score costs, in {label}",
            readings.needed_table(store, x),
            [
                Column("goal", lambda r: r["goal"]),
                Column("score, %", lambda r: percent(r["target"]), "number"),
                Column("needs [95 %]", _estimate, "number"),
            ],
        ),
        (
            "areas",
            "Mean score over the range (area under the curve, log axis)",
            readings.area_table(store, x),
            _range_columns(),
        ),
        ("fits", "Parameters of the fits", readings.fit_table(store, x), _fit_columns()),
    ]
    return [
        Sheet(name, title, columns_of(rows := table.to_pylist(), METHOD, *columns), rows, folded=name == "fits")
        for name, title, table, columns in tables
    ]


def _range_columns() -> list[Column]:
    return [
        Column("from", lambda r: quantity(r["from_x"]), "number"),
        Column("to", lambda r: quantity(r["to_x"]), "number"),
        Column("mean score, % [95 %]", _mean, "number"),
    ]


def _fit_columns() -> list[Column]:
    return [
        Column("form", lambda r: r["kind"]),
        Column("points", lambda r: str(r["n_points"]), "number"),
        Column("root mean square error, points", _rmse, "number"),
        Column("parameters", _parameters, "long"),
    ]


def front(store: Store, x: str) -> Sheet:
    """The cells on the Pareto front."""
    rows = [r for r in pareto.front(store, x).to_pylist() if r["on_front"]]
    columns = columns_of(
        rows,
        METHOD,
        BUDGET,
        Column(axis(x).label, lambda r: quantity(r["cost"]), "number"),
        Column("score, %", lambda r: percent(r["score"]), "number"),
        Column("on it in resamples, %", lambda r: percent(r["front_share"]), "number"),
    )
    return Sheet("front", "Cells that no other beats", columns, rows, folded=len(rows) > 20)


def sizes(store: Store) -> list[Sheet]:
    """The numbers of the data-size curves, and what is read off their fits."""
    lines: dict[tuple[Any, ...], Row] = {}
    rows = size_curves(store).to_pylist()
    for r in rows:
        key = tuple(r[k] for k in ("sweep", "model", "dataset", "method", "reference"))
        lines.setdefault(key, {**r, "by": {}})["by"][r["train_size"]] = r
    names = sorted({r["train_size"] for r in rows}, key=size_key)

    def cell(size: str) -> Column:
        return Column(
            f"{size_text(size)}, % [95 %]", lambda r: score(r["by"][size]) if size in r["by"] else "", "number"
        )

    whole_table = Sheet(
        "data_sizes",
        "Test score by training size",
        [_DATA, METHOD, BUDGET, *map(cell, names)],
        list(lines.values()),
        "Means over seeds with 95 % t intervals.",
        folded=len(lines) > 20,
    )
    goal = [Column("goal", lambda r: r["goal"]), Column("score, %", lambda r: percent(r["target"]), "number")]
    tables = [
        (
            "size_crossings",
            "Where curves cross, in training examples",
            readings.crossing_table(store, EXAMPLES),
            [
                AGAINST,
                Column("crosses at [95 %]", _estimate, "number"),
                Column("in range, % of resamples", _share, "number"),
            ],
        ),
        (
            "size_needed",
            "Training examples that a score needs",
            readings.needed_table(store, EXAMPLES),
            [*goal, Column("needs [95 %]", _estimate, "number")],
        ),
        (
            "size_areas",
            "Mean score over the range of training examples",
            readings.area_table(store, EXAMPLES),
            _range_columns(),
        ),
        (
            "size_fits",
            "Parameters of the fits against training examples",
            readings.fit_table(store, EXAMPLES),
            _fit_columns(),
        ),
    ]
    return [whole_table] + [
        Sheet(name, title, [_DATA, METHOD, BUDGET, *columns], rows, folded=len(rows) > 20 or name == "size_fits")
        for name, title, table, columns in tables
        if (rows := table.to_pylist())
    ]


_DATA = Column("data", lambda r: r["dataset"] or "mean over data sets")


def overlay(ours: Sequence[Row], theirs: Sequence[Row], source: str) -> Sheet:
    """Our numbers and the published ones, row by row."""
    rows = [{**r, "whose": "this sweep"} for r in ours] + [{**r, "whose": source} for r in theirs]
    columns = [
        Column("from", lambda r: r["whose"]),
        METHOD,
        Column("setting", lambda r: r["reference"] or ""),
        Column("parameters", lambda r: whole(r["adapter_params"]), "number"),
        Column("score, % [95 %]", score, "number"),
    ]
    return Sheet("overlay", "Published numbers beside ours", columns, rows, folded=True)
