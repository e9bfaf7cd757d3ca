"""All methods at one budget, a row each, the best first: where a curve would be a single point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa

from analysis.drawing.charts import (
    PAPER,
    SMALL,
    STYLE,
    Chart,
    clip_intervals,
    dot,
    horizontal_bar,
    mark_bands,
    padded,
    panels,
    place_title,
)
from analysis.findings.comparisons.figure import difference_text, from_baseline, limits, zero_line
from analysis.findings.scaling.figure import limits_with_lines, point_text
from analysis.format import Row
from analysis.styles import place_of, places, style

ROW = 0.165
LABELS = 1.4
PANEL = 2.6
"""Inches: the height of a row, the width of the methods' names, and of a panel."""
FEW_ROWS, SPREAD = 8, 0.01
"""Of fewer methods all are within the panel; the least range of the quartiles, a fraction."""


def draw_ranking(
    curve: pa.Table, compared: pa.Table, *, score: str = "test accuracy", margin: float | None = None
) -> Chart:
    """Draw scores of the methods, and beside them the paired differences from the baseline; two panels per place.

    Args:
        curve: from `scaling.curve`, at one budget; not empty.
        compared: from `comparisons.numbers.difference_curves`; where it is empty, the second panels are left out.
        score: what is measured, in words.
        margin: differences within it count as none; a strip.

    Raises:
        ValueError: no row.
    """
    rows, gaps = clip_intervals(curve.to_pylist()), compared.to_pylist()
    if not rows:
        raise ValueError("no method to draw: the table has no row")
    panel_places, across = places(curve), 2 if gaps else 1
    most_rows = max(sum(place_of(r) == place for r in rows) for place in panel_places)
    with mpl.rc_context(STYLE):
        figure, spots = panels(
            across * len(panel_places),
            across,
            (PANEL, ROW * most_rows + (0.7 if len(panel_places) > 1 else 0.6)),
            extra=(LABELS, 0.1),
            margins=(LABELS, 0.12, 0.42, 0.28),
            gaps=(0.08, 0.6 / (ROW * most_rows)),
        )
        for k, place in enumerate(panel_places):
            panel_rows = sorted((r for r in rows if place_of(r) == place), key=lambda r: -r["mean"])
            left = figure.add_subplot(spots[across * k])
            _scores(left, panel_rows, score)
            left.set_title(place_title(place, panel_places), loc="left", fontweight="bold")
            if gaps:
                order = [(r["method"], r["reference"]) for r in panel_rows]
                gap_rows = [r for r in gaps if place_of(r) == place and (r["method"], r["reference"]) in order]
                right = figure.add_subplot(spots[across * k + 1], sharey=left)
                right.tick_params(axis="y", labelleft=False, length=0)
                _differences(right, k, order, gap_rows, score, margin)
                if place != panel_places[-1]:
                    right.set_xlabel("")
            if place != panel_places[-1]:  # the same for all
                left.set_xlabel("")
        mark_bands(figure, "left pointwise, right simultaneous" if gaps else "pointwise")
        return figure


def _scores(axes: Any, rows: Sequence[Row], score: str) -> None:
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), labels=[style(r["method"]).name for r in rows])
    axes.tick_params(axis="y", length=0)
    curves, lines = ([r for r in rows if r["kind"] == kind] for kind in ("curve", "line"))
    low, high, _ = limits_with_lines(_near(curves, "mean"), lines)
    axes.set_xlim(*padded(low, high))
    axes.set_xlabel(f"{score} (%)")
    for level, r in enumerate(rows):
        _mark(axes, r, "mean", level, point_text(r))


def _differences(
    axes: Any,
    index: int,
    order: Sequence[tuple[str, str | None]],
    rows: Sequence[Row],
    score: str,
    margin: float | None,
) -> None:
    if not rows:
        axes.set_axis_off()
        return
    axes.set_xlim(*limits(_near(rows, "difference")))
    axes.set_xlabel(from_baseline(score, rows[0]["baseline"]))
    zero_line(axes, index, rows[0]["baseline"], margin)
    for r in rows:
        _mark(axes, r, "difference", order.index((r["method"], r["reference"])), difference_text(r))


def _near(rows: Sequence[Row], value: str) -> Sequence[Row]:
    """Return the rows that set a panel's width. Rows far behind (three quartile ranges) are left out."""
    if len(rows) < FEW_ROWS:
        return rows
    low, high = np.quantile([r[value] for r in rows], (0.25, 0.75))
    least = low - 3 * max(high - low, SPREAD)
    return [r for r in rows if r[value] >= least]


def _mark(axes: Any, row: Row, value: str, level: int, says: str) -> None:
    """Draw a method's value with its interval. A value outside of the panel is written at its edge."""
    at, (low, high) = 100 * row[value], axes.get_xlim()
    look = style(row["method"])
    if not low <= at <= high:
        side, arrow = (0.01, "\N{LEFTWARDS ARROW}") if at < low else (0.99, "\N{RIGHTWARDS ARROW}")
        where = axes.get_yaxis_transform()
        axes.text(side, level, f"{arrow} {at:.1f}", transform=where, fontsize=SMALL, color=look.colour, va="center",
                  ha="left" if at < low else "right")  # fmt: skip
        return
    horizontal_bar(axes, level, row, look.colour)
    hollow = {"markerfacecolor": PAPER, "markeredgecolor": look.colour} if row.get("kind") == "line" else {}
    dot(axes, row["method"], at, level, says, **hollow)
