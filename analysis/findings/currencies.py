"""Which of two methods is ahead at equal parameters, memory, operations, bytes and time."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import pyarrow as pa

from analysis.findings.finding import Finding
from analysis.findings.fits.measured import line_columns
from analysis.findings.fits.readings import area_difference, by_line, readings_table
from analysis.findings.shared import DIFFERENCE
from analysis.format import Row, change_text
from analysis.sheets.columns import METHOD, columns_of, pivoted
from analysis.sheets.sheet import Column, Sheet
from analysis.store.columns import FLAG, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import style

CURRENCIES = {
    "adapter_params": "parameters",
    "step_memory_bytes": "memory",
    "step_flops": "operations",
    "saved_bytes": "saved bytes",
    "seconds_train": "training time",
}
"""The costs in which `currency_table` compares methods, with their words: all that a budget can limit, and the training
time."""
PAIR = [*typed(TEXT, "method", "other", "x"), *typed(REAL, "from_x", "to_x")]
PAIR += typed(REAL, "difference", "difference_low", "difference_high")
"""Columns of the tables after `measured.line_columns`."""


@remembered
def pair_table(store: Store, x: str = "adapter_params") -> pa.Table:
    """Compare every two methods of a line at equal cost; columns `PAIR`.

    `difference` is the mean score of `method` minus that of `other`. The mean is over the logarithm of the cost, in the
    range that both curves cover. Differences are paired over the seeds that both have.
    """
    rows = []
    for curves_of_line in by_line(store, x).values():
        for (named, first), (named_other, second) in itertools.combinations(curves_of_line, 2):
            low = float(max(first.curve.x[0], second.curve.x[0]))
            high = float(min(first.curve.x[-1], second.curve.x[-1]))
            if low < high:
                row = named | {"other": named_other["method"], "from_x": low, "to_x": high}
                rows.append(row | area_difference(first, second, low, high))
    return readings_table(rows, x, PAIR)


def currency_table(store: Store) -> pa.Table:
    """Return the rows of `pair_table` for each of `CURRENCIES`: which of two methods is ahead in which currency.

    `turns` says whether the two change their order: one is clearly ahead in one currency and clearly behind in another.
    "Clearly" means that the 95 % interval of the difference excludes zero.
    """
    rows = [row for x in CURRENCIES for row in pair_table(store, x).to_pylist()]
    cost = next(iter(CURRENCIES))  # lines have the same columns for every cost

    def pair(row: Row) -> tuple[Any, ...]:
        return tuple(row[column] for column in (*line_columns(cost), "method", "other"))

    ahead: dict[tuple[Any, ...], set[bool]] = defaultdict(set)
    for row in rows:
        if row["difference_low"] is not None and row["difference_low"] * row["difference_high"] > 0:
            ahead[pair(row)].add(row["difference"] > 0)
    turning = [row | {"turns": len(ahead[pair(row)]) == 2} for row in rows]
    return readings_table(turning, cost, [*PAIR, ("turns", FLAG)])


def currencies_sheet(store: Store) -> Sheet:
    """Return which of two methods is ahead at equal parameters, memory, operations, bytes and time."""

    def at_equal(x: str) -> Column:
        return Column(f"at equal {CURRENCIES[x]}", lambda r: change_text(r["by"].get(x, _NONE), *DIFFERENCE), "number")

    names = ("sweep", "model", "dataset", "train_size", "method", "other", "turns")
    rows = pivoted(currency_table(store).to_pylist(), names, "x")
    shown = [x for x in CURRENCIES if any(x in row["by"] for row in rows)]
    legend = (
        "Difference in points [95 %, given the rates]: the mean score of the method less that of the other, over the "
        "range of the cost that both have, on a logarithmic scale. The order changes if one is clearly ahead in one "
        "currency and clearly behind in another. Time is measured, so it depends on the machine."
    )
    return Sheet(
        "currencies",
        "Who is ahead in which currency",
        columns_of(
            rows,
            METHOD,
            Column("against", lambda r: style(r["other"]).name),
            *map(at_equal, shown),
            Column("order changes", lambda r: "yes" if r["turns"] else ""),
        ),
        rows if len(shown) > 1 else [],
        legend=legend,
        folded=len(rows) > 20,
    )


_NONE: Row = dict.fromkeys(DIFFERENCE)
FINDING = Finding(None, ("currencies",), lambda store, _: [currencies_sheet(store)])
