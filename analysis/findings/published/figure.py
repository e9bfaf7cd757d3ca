"""Published curves, dashed, beside measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pyarrow as pa
from matplotlib.lines import Line2D

from analysis.drawing.charts import (
    COLUMN_INCHES,
    MUTED,
    PAPER,
    SMALL,
    STYLE,
    Chart,
    dot,
    fix_limits,
    legend,
    spot,
    spread_apart,
)
from analysis.findings.fits.figure import SCORE, log_axis, marker_text
from analysis.format import Row
from analysis.styles import in_order, style

_PUBLISHED = (0, (4, 2))


def draw_overlay(ours: pa.Table, theirs: pa.Table, source: str, *, score: str = SCORE) -> Chart:
    """Draw published curves (dashed, hollow markers) beside measured ones (filled markers).

    Args:
        ours, theirs: from `scaling.curve`, each of one place; `theirs` is only drawn, never tested against.
        source: named in the legend.
        score: what is measured, in words.
    """
    with mpl.rc_context(STYLE):
        figure = Chart(COLUMN_INCHES * 1.35, 3.0)
        axes = figure.add_axes((0.12, 0.15, 0.85, 0.68))
        axes.set_xscale("log")
        curve_points = [
            (published, r)
            for published, table in ((False, ours), (True, theirs))
            for r in sorted(table.to_pylist(), key=lambda r: r["adapter_params"] or 0)
            if r["adapter_params"] and r["kind"] == "curve"
        ]
        spots = [spot(r["adapter_params"], r["mean"], r, bar=False) for _, r in curve_points]
        fix_limits(axes, spots)
        placed = list(zip(spread_apart(axes, spots), curve_points, strict=True))
        methods = in_order({r["method"] for _, r in curve_points})
        for whose in (False, True):
            for method in methods:
                method_points = [(x, r) for x, (published, r) in placed if (published, r["method"]) == (whose, method)]
                with figure.parts_of(method):
                    _overlaid(axes, method, method_points, whose)
        log_axis(axes, "adapter_params")
        axes.set_ylabel(f"{score} (%)")
        kinds = [Line2D([], [], color=MUTED), Line2D([], [], color=MUTED, linestyle=_PUBLISHED, linewidth=1.0)]
        axes.legend(kinds, ["this sweep", source], loc="lower right", fontsize=SMALL)
        legend(figure, methods)
        return figure


def _overlaid(axes: Any, method: str, points: Sequence[tuple[float, Row]], published: bool) -> None:
    """Draw one method's curve, ours or a published one. A point is its position on the axis and its row."""
    if not points:
        return
    colour = style(method).colour
    axes.plot(
        [x for x, _ in points],
        [100 * r["mean"] for _, r in points],
        color=colour,
        linestyle=_PUBLISHED if published else "-",
        linewidth=1.0 if published else 1.5,
        gid=f"{'published' if published else 'ours'}:{method}",
    )
    hollow: dict[str, Any] = (
        {"markerfacecolor": PAPER, "markeredgecolor": colour, "markeredgewidth": 0.9} if published else {}
    )
    for x, r in points:
        whose = f"{r['reference'] or ''}, {'published' if published else 'this sweep'}"
        tip = marker_text(r, whose, r["adapter_params"], "parameters")
        dot(axes, method, x, 100 * r["mean"], tip, zorder=2, **hollow)
