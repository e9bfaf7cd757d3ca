"""Score against the rank of the update, at equal trainable parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pyarrow as pa
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis.drawing.charts import (
    COLUMN_INCHES,
    MUTED,
    STYLE,
    Chart,
    clip_intervals,
    dot,
    fit_range,
    legend,
    mark_bands,
    mark_cut_ends,
    padded,
    panels,
    place_title,
    spot,
    spread_apart,
)
from analysis.format import Row, plural, quantity, score_text
from analysis.styles import in_order, place_of, style


def draw_ranks(table: pa.Table, *, score: str = "test accuracy") -> Chart:
    """Score against the largest rank of the update, one panel per data set and training size.

    Args:
        table: from `rank.numbers.scores_by_rank`; not empty.
        score: what is measured, in words.

    Raises:
        ValueError: no row.
    """
    rows = clip_intervals(table.to_pylist())
    if not rows:
        raise ValueError("no rank to draw: the table has no row")
    places = list(dict.fromkeys(place_of(r) for r in rows))
    bases = in_order({r["base"] for r in rows})
    with mpl.rc_context(STYLE):
        figure, grid = panels(
            len(places),
            2,
            (COLUMN_INCHES, 2.3),
            extra=(0.0, 0.3),
            margins=(0.56, 0.12, 0.42, 0.44),
            gaps=(0.24, 0.42),
        )
        for place, cell in zip(places, grid, strict=True):
            axes = figure.add_subplot(cell)
            _panel(axes, [r for r in rows if place_of(r) == place])
            axes.set_title(place_title(place, places), loc="left", fontweight="bold")
            if cell.is_first_col():
                axes.set_ylabel(f"{score} (%)")
        budgets = _budgets(rows)
        faded = [(Line2D([], [], alpha=a, color=MUTED, marker="o", ls="none"), name) for name, a in budgets.items()]
        legend(figure, bases, faded if len(budgets) > 1 else [])
        mark_bands(figure, "pointwise", "intervals", given_rates=True)
        return figure


def _panel(axes: Any, rows: Sequence[Row]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=10))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("largest rank of the update")
    ranks, bases = [r["update_rank"] for r in rows], {r["base"] for r in rows}
    axes.set_xlim(min(ranks) / 1.4, max(ranks) * 1.4)
    ends = [(100 * r["low"], 100 * r["high"]) for r in rows if r["low"] is not None]
    axes.set_ylim(*padded(*fit_range([100 * r["mean"] for r in rows], ends)))
    ordered = sorted(rows, key=lambda r: (in_order(bases).index(r["base"]), r["budget"]))
    places = spread_apart(axes, [spot(r["update_rank"], r["mean"], r) for r in ordered])
    for reference, alpha in _budgets(rows).items():
        for base in reversed(in_order(bases)):
            cell = base, reference
            line_points = [(x, r) for x, r in zip(places, ordered, strict=True) if (r["base"], r["reference"]) == cell]
            with axes.figure.parts_of(base):
                _line(axes, sorted(line_points, key=lambda each: each[1]["update_rank"]), alpha)


def _budgets(rows: Sequence[Row]) -> dict[str, float]:
    """Return the opacity of each budget's markers. The smallest budget is the palest."""
    names = list(dict.fromkeys(r["reference"] for r in sorted(rows, key=lambda r: r["budget"])))
    return {name: 0.35 + 0.65 * (k + 1) / len(names) for k, name in enumerate(names)}


def _line(axes: Any, points: Sequence[tuple[float, Row]], alpha: float) -> None:
    """Draw the variants of one method at one budget; a point is its place on the axis and its row."""
    if not points:
        return
    look = style(points[0][1]["base"])
    line = [x for x, _ in points], [100 * r["mean"] for _, r in points]
    axes.plot(*line, color=look.colour, alpha=alpha, linewidth=1.2)
    for x, r in points:
        if r["low"] is not None:
            axes.vlines(x, 100 * r["low"], 100 * r["high"], color=look.colour, linewidth=1.0, alpha=0.6 * alpha)
            mark_cut_ends(axes, x, r["low"], r["high"], look.colour)
        tip = (
            f"{style(r['method']).name} at {r['reference']}: rank {quantity(r['update_rank'])}, "
            f"{quantity(r['adapter_params'])} parameters, {score_text(r)} %, {plural(r['n'], 'seed')}"
        )
        dot(axes, r["base"], x, 100 * r["mean"], tip, alpha=alpha)
