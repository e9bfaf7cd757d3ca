"""The paired difference to a baseline against the budget: the figure of the claim, beside the scaling curve."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pyarrow as pa
from matplotlib.ticker import MaxNLocator

from analysis.drawing.charts import (
    MUTED,
    STYLE,
    Chart,
    band_or_bars,
    curve_panels,
    dot,
    fit_range,
    has_band,
    legend,
    log_ticks,
    mark_bands,
    padded,
    place_title,
    spot,
    spread_apart,
)
from analysis.format import Row, change_text, plural
from analysis.store.columns import limited
from analysis.styles import in_order, place_of, places, style
from analysis.verdict.inference import FEW_SEEDS

MARGIN = "margin"
"""End of the id of the strip of equivalence."""


def draw_differences(table: pa.Table, *, score: str, focus: str | None = None, margin: float | None = None) -> Chart:
    """Draw differences from the baseline over the budgets, a panel per place.

    The baseline is the zero line. A marker or bar that would cover another one stands beside it.

    Args:
        table: from `numbers.difference_curves`; not empty, of budgets above 0.
        score: what is measured, in words.
        focus: the method with the band.
        margin: differences within it count as none; a strip.

    Raises:
        ValueError: no row.
    """
    rows = table.to_pylist()
    if not rows:
        raise ValueError("no difference to draw: the table has no row")
    methods = in_order({r[arm] for r in rows for arm in ("method", "baseline")})
    with mpl.rc_context(STYLE):
        panel_places = places(table)
        figure, grid = curve_panels(len(panel_places), 2, over=0.22)
        for index, (place, cell) in enumerate(zip(panel_places, grid, strict=True)):
            axes = figure.add_subplot(cell)
            panel_rows = [r for r in rows if place_of(r) == place]
            _panel(axes, index, panel_rows, focus, margin)
            axes.set_title(place_title(place, panel_places), loc="left", fontweight="bold")
            if cell.is_first_col():
                axes.set_ylabel(from_baseline(score, panel_rows[0]["baseline"]))
        legend(figure, methods)
        mark_bands(figure, "simultaneous")
        return figure


def _panel(axes: Any, index: int, rows: Sequence[Row], focus: str | None, margin: float | None) -> None:
    budgets = sorted({r["budget"] for r in rows})
    methods = in_order({r["method"] for r in rows})
    edge = (budgets[-1] / budgets[0]) ** 0.06 if len(budgets) > 1 else 2.0
    axes.set_xscale("log")
    axes.set_xlim(budgets[0] / edge, budgets[-1] * edge)
    axes.set_ylim(*limits(rows))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="x", visible=False)
    axes.set_xlabel(limited(r["reference"] for r in rows).replace("trainable", "trainable adapter"))
    if margin is not None:
        axes.axhspan(-100 * margin, 100 * margin, color=MUTED, alpha=0.13, linewidth=0, gid=f"{index}:{MARGIN}")
    with axes.figure.parts_of(rows[0]["baseline"]):
        axes.axhline(0.0, color=style(rows[0]["baseline"]).colour, linewidth=1.2, gid=f"{index}:zero")
    each = {method: [r for r in rows if r["method"] == method] for method in methods}
    banded = {method: method == focus and has_band(line) for method, line in each.items()}
    spots = [spot(r["budget"], r["difference"], r, bar=not banded[m]) for m, line in each.items() for r in line]
    asides = iter(spread_apart(axes, spots))
    x = {method: [next(asides) for _ in line] for method, line in each.items()}
    log_ticks(axes.xaxis, *axes.get_xlim())
    for method in reversed(methods):  # the first method ends on top
        look, line = style(method), each[method]
        with axes.figure.parts_of(method):
            axes.plot(x[method], [100 * r["difference"] for r in line], color=look.colour, gid=f"{index}:{method}")
            band_or_bars(axes, x[method], line, look.colour, banded=banded[method])
            for at, r in zip(x[method], line, strict=True):
                dot(axes, method, at, 100 * r["difference"], difference_text(r))


def from_baseline(score: str, baseline: str) -> str:
    """Return the label of an axis of differences: 'test accuracy minus LoRA's (points)', on two lines if long."""
    return textwrap.fill(f"{score} minus {style(baseline).name}'s (points)", 42)


def zero_line(axes: Any, index: int, baseline: str, margin: float | None) -> None:
    """Draw the baseline as an upright line of a panel by rows, and the strip of the margin of equivalence."""
    if margin is not None:
        ends = -100 * margin, 100 * margin
        axes.axvspan(*ends, color=MUTED, alpha=0.13, linewidth=0, gid=f"{index}:{MARGIN}")
    axes.axvline(0.0, color=style(baseline).colour, linewidth=1.2)


def difference_text(row: Row) -> str:
    """Return the text of a method's marker: budget, difference, band, pairs and verdict."""
    band_text = f"95 % band {row['band']}" if row["band"] else "no 95 % band: one seed, or no spread"
    verdict = row["verdict"] or "a mean over data sets; verdicts on means are in the tables"
    at = f"{style(row['method']).name} at {row['reference']}"
    return f"{at}: {change_text(row)} points, {plural(row['n'], 'pair')}, {band_text}; {verdict}"


def limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Return the limits of the axis, in points. An interval much wider than the others is cut off."""
    ends = [(100 * r["low"], 100 * r["high"]) for r in rows if r["low"] is not None and r["n"] >= FEW_SEEDS]
    return padded(*fit_range([0.0, *(100 * r["difference"] for r in rows)], ends))
