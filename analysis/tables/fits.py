"""The report's tables of fits: against a cost, against training examples, fronts, and published numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from analysis.curves import pareto, readings
from analysis.curves.measured import EXAMPLES, axis, size_curves
from analysis.format import Row, change_text, percent, quantity, score_text, with_interval
from analysis.sheets.columns import BUDGET, METHOD, PARAMETERS, by_size, columns_of, origins, pivoted
from analysis.sheets.sheet import Column, Sheet, number, text
from analysis.store.store import Store
from analysis.styles import dataset_text, style
from analysis.tables.console import DIFFERENCE

FITS = ("crossings", "budget_needed", "areas")
"""Names of the tables of `fitted`."""
SIZES = ("data_sizes", "size_crossings", "size_needed", "size_areas")
"""Names of the tables of `sizes`."""


GIVEN = (
    "Intervals and shares of draws are over seeds, given the chosen learning rates. They leave out that another rate "
    "might "
    "have been chosen, so they are somewhat too narrow."
)
"""What the heads of all columns mean that end in 'given the rates'; said once, under the first table."""


def _estimate(r: Row) -> str:
    """Return a cost that was read off a curve with its interval, or why there is none."""
    if r["value"] is None:
        return str(r["note"])
    if r["share"] is None:
        return quantity(r["value"])
    return with_interval(
        quantity(r["value"]), quantity(r["low"]) or "below range", quantity(r["high"]) or "above range"
    )


def _mean(r: Row) -> str:
    return str(r["note"]) if r["value"] is None else score_text(r, "value")


_DATA = Column("data", lambda r: dataset_text(r["dataset"] or "mean over data sets"), label=True, beneath=True)
_COLUMNS: tuple[tuple[Column, ...], ...] = (
    (
        Column("against", lambda r: style(r["baseline"]).name),
        Column("crosses at [95 %, given the rates]", _estimate, "number"),
        number("in range, % of draws", "share", percent),
    ),
    (
        text("goal", "goal"),
        number("score, %", "target", percent),
        Column("needs [95 %, given the rates]", _estimate, "number"),
    ),
    (
        number("from", "from_x"),
        number("to", "to_x"),
        Column("mean score, % [95 %, given the rates]", _mean, "number"),
        Column("less the baseline's, points [95 %, given the rates]", lambda r: change_text(r, *DIFFERENCE), "number"),
    ),
)
"""Of crossings, of costs that a score needs, of areas."""


def fitted(store: Store, x: str) -> list[Sheet]:
    """Return the tables of crossings, needed budgets and areas of the fits against a cost."""
    label = axis(x).label
    tables: tuple[tuple[str, pa.Table], ...] = (
        (f"Where curves cross, in {label}", readings.crossing_table(store, x)),
        (f"What a score costs, in {label}", readings.needed_table(store, x)),
        ("Mean score over the range (area under the curve, log axis)", readings.area_table(store, x)),
    )
    return [
        Sheet(name, title, columns_of(rows := table.to_pylist(), METHOD, *columns), rows, note)
        for name, (title, table), columns, note in zip(FITS, tables, _COLUMNS, (GIVEN, "", ""), strict=True)
    ]


def currencies(store: Store) -> Sheet:
    """Return which of two methods is ahead at equal parameters, memory, operations, bytes and time."""

    def at_equal(x: str) -> Column:
        return Column(f"at equal {_EQUAL[x]}", lambda r: change_text(r["by"].get(x, _NONE), *DIFFERENCE), "number")

    names = ("sweep", "model", "dataset", "train_size", "method", "other", "turns")
    rows = pivoted(readings.currency_table(store).to_pylist(), names, "x")
    shown = [x for x in readings.CURRENCIES if any(x in row["by"] for row in rows)]
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


_EQUAL = {
    "adapter_params": "parameters",
    "step_memory_bytes": "memory",
    "step_flops": "operations",
    "saved_bytes": "saved bytes",
    "seconds_train": "training time",
}
_NONE: Row = dict.fromkeys(("difference", "difference_low", "difference_high"))


def front(store: Store, x: str) -> Sheet:
    """Return the table of the cells on the Pareto front: no other cell has a higher score at a lower cost."""
    rows = [r for r in pareto.front(store, x).to_pylist() if r["on_front"]]
    columns = columns_of(
        rows,
        METHOD,
        BUDGET,
        number(axis(x).label, "cost"),
        number("score, %", "score", percent),
        number("on the front in % of draws, given the rates", "front_share", percent),
    )
    title = "Cells that no other cell beats in both score and cost"
    return Sheet("front", title, columns, rows, folded=len(rows) > 20)


def sizes(store: Store) -> list[Sheet]:
    """Return the tables of scores by training size, and of what the fitted curves say."""
    lines, columns = by_size(size_curves(store).to_pylist(), ("sweep", "model", "dataset", "method", "reference"))
    note, lead = (
        "Each score is a mean over seeds with its 95 % t interval, given the chosen rate.",
        [*origins(lines), _DATA, METHOD, BUDGET],
    )
    score_sheet = Sheet(SIZES[0], "Test score by training size", [*lead, *columns], lines, note, folded=len(lines) > 20)
    tables: tuple[tuple[str, pa.Table], ...] = (
        ("Where curves cross, in training examples", readings.crossing_table(store, EXAMPLES)),
        ("Training examples that a score needs", readings.needed_table(store, EXAMPLES)),
        ("Mean score over the range of training examples", readings.area_table(store, EXAMPLES)),
    )
    return [score_sheet] + [
        Sheet(name, title, [*lead, *group_columns], rows, folded=len(rows) > 20)
        for name, (title, table), group_columns in zip(SIZES[1:], tables, _COLUMNS, strict=True)
        if (rows := table.to_pylist())
    ]


def overlay(ours: Sequence[Row], theirs: Sequence[Row], source: str) -> Sheet:
    """Return the table of this sweep's scores and the published ones."""
    rows = [{**r, "whose": "this sweep"} for r in ours] + [{**r, "whose": source} for r in theirs]
    score = Column("score, % [95 %]", score_text, "number")
    columns = [text("from", "whose"), METHOD, text("setting", "reference"), PARAMETERS, score]
    return Sheet("overlay", "Published numbers beside ours", columns, rows, folded=True)
