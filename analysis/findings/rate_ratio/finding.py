"""Best learning rates divided by the baseline's: the table, the figure and its sentence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from analysis.drawing.picture import MOST_ROWS, Picture, keys_of, numbered, rows_with_key
from analysis.findings.finding import Finding
from analysis.findings.rate_ratio.numbers import rate_ratios
from analysis.findings.shared import cell_order
from analysis.findings.tuning.finding import MOST_RATE_FIGURES, tuning_place
from analysis.format import Row, plural, quantity
from analysis.sheets.columns import BUDGET, METHOD, columns_of
from analysis.sheets.sheet import Column, Sheet
from analysis.store.store import Store
from analysis.styles import in_order, place_text, style


def ratios_sheet(store: Store) -> Sheet:
    """Return each cell's best learning rate, divided by the baseline's in the same place."""
    rows = sorted(rate_ratios(store).to_pylist(), key=cell_order)
    columns = columns_of(
        rows,
        METHOD,
        BUDGET,
        Column("best learning rate [95 %]", partial(_best_rate, ""), "number"),
        Column("baseline", lambda r: " ".join(filter(None, (style(r["baseline"]).name, r["baseline_reference"])))),
        Column("its best rate [95 %]", partial(_best_rate, "baseline_"), "number"),
        Column("ratio [95 %]", _ratio, "number"),
    )
    legend = (
        "The baseline is full fine-tuning if the sweep has it, else full fine-tuning of the target weights, else LoRA "
        "at the same budget. An interval with ? at an end is open there: the scores do not say how far it goes."
    )
    if any(r["at_edge"] for r in rows):
        legend += " * A best rate lies at an edge of the rates that were tried."
    note = (
        "A best rate is the top of a quadratic in log rate through the validation scores near the best one. Its "
        "interval has the rates at which the slope of that fit does not differ from zero (Fieller). The interval of "
        "the ratio is made of the ends of both (MOVER, Zou and Donner 2008). The noise of a score is that of a run, or "
        "the residual of the fit if that is larger."
    )
    return Sheet("rate_ratio", "Best learning rates against the baseline's", columns, rows, note, legend, folded=True)


def _best_rate(prefix: str, r: Row) -> str:
    return _with_interval(r, f"{prefix}best", f"{prefix}low", f"{prefix}high")


def _ratio(r: Row) -> str:
    return _with_interval(r, "ratio", "ratio_low", "ratio_high") + ("*" if r["at_edge"] else "")


def _with_interval(r: Row, value: str, low: str, high: str) -> str:
    """Write a value with its interval. An open end is a question mark."""
    return f"{quantity(r[value])} [{quantity(r[low]) or '?'}, {quantity(r[high]) or '?'}]"


def rate_ratio_pictures(store: Store) -> list[Picture]:
    """Draw best learning rates over the baseline's, a figure per data set and size."""
    from analysis.findings.rate_ratio.figure import draw_rate_ratios

    table = rate_ratios(store)
    drawn: list[Picture] = []
    for place in keys_of(table, tuning_place)[:MOST_RATE_FIGURES]:
        place_rows, where = rows_with_key(table, tuning_place, [place]), place_text(*place[1:])
        baseline = style(place_rows["baseline"][0].as_py()).name
        label = f"Best learning rate divided by that of {baseline} on {where}, a row per cell with its interval"
        caption = (
            f"Stage TUNE on {where}: the best learning rate of each cell, divided by that of {baseline}. Both are tops "
            "of local fits to validation scores. Bars are 95 % intervals. A bar that ends in an arrow's head is open "
            "there: the scores do not say how far it goes. A pale marker means that one of the two best rates lies at "
            "an end of the rates that were tried. Nothing is corrected for the number of rows."
        )
        if place_rows.num_rows > MOST_ROWS:
            caption += f" The table has all {place_rows.num_rows} rows, the figure the first {MOST_ROWS}."
        figure = draw_rate_ratios(place_rows.slice(0, MOST_ROWS))
        stem = numbered("rate_ratio", len(drawn))
        drawn.append(Picture(stem, figure, label, caption, conclude_rate_ratios(place_rows.to_pylist())))
    return drawn


_MOST_NAMED = 8
"""A sentence on more methods than this names only the lowest and the highest."""


def conclude_rate_ratios(rows: Sequence[Row]) -> str:
    """Say how much larger the best learning rates of each method are than the baseline's.

    Args:
        rows: rows of `rate_ratio.rate_ratios` for one data set and training size; not empty.
    """
    methods = in_order({r["method"] for r in rows})
    ratios = {m: sorted((r for r in rows if r["method"] == m), key=lambda r: r["ratio"]) for m in methods}
    if len(methods) > _MOST_NAMED:
        methods = sorted(methods, key=lambda m: ratios[m][0]["ratio"])
        methods = [methods[0], max(methods, key=lambda m: ratios[m][-1]["ratio"])]
    parts, named = [], list[Row]()
    for method in methods:
        ends = ratios[method] if len(ratios[method]) == 1 else [ratios[method][0], ratios[method][-1]]
        numbers = " to ".join(f"{r['ratio']:.3g}{'*' if r['at_edge'] else ''}" for r in ends)
        parts.append(f"{style(method).name} {numbers}")
        named += ends
    among = f" (the lowest and the highest of {len(ratios)} methods)" if len(ratios) > _MOST_NAMED else ""
    at_edge = any(r["at_edge"] for r in named)
    edge = " * One of the two best rates lies at an end of the rates that were tried." if at_edge else ""
    clear = sum(
        (r["ratio_low"] is not None and r["ratio_low"] > 1) or (r["ratio_high"] is not None and r["ratio_high"] < 1)
        for r in rows
    )
    return (
        f"Best learning rate divided by that of {style(rows[0]['baseline']).name}: {', '.join(parts)}{among}. In "
        f"{clear} of {plural(len(rows), 'cell')} the whole interval lies on one side of 1. Nothing is tested.{edge}"
    )


FINDING = Finding(
    "tuning", ("rate_ratio",), lambda store, _: [ratios_sheet(store)], lambda store, _: rate_ratio_pictures(store)
)
