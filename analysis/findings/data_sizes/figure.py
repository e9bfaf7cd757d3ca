"""Score against the number of training examples, a line per method and budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pyarrow as pa
from matplotlib.ticker import NullLocator

from analysis.drawing.charts import (
    COLUMN_INCHES,
    STYLE,
    Chart,
    band_or_bars,
    clip_intervals,
    dot,
    has_band,
    legend,
    line_style,
    mark_bands,
    padded,
    place_title,
    spot,
    spread_apart,
)
from analysis.findings.fits.figure import SCORE, marker_text
from analysis.findings.fits.measured import size_labels
from analysis.findings.scaling.figure import MOST_BANDS, limits
from analysis.format import Row
from analysis.styles import budget_order, in_order, place_of, style


def draw_sizes(table: pa.Table, *, score: str = SCORE) -> Chart:
    """Draw score against training size, a line per method and budget.

    Lines of smaller budgets are paler, and the largest budget has a band.

    Args:
        table: from `measured.size_curves`, of one (sweep, model, data set); not empty. The axis is the logarithm of the
            number of training examples where it is known for all sizes, else their order.
        score: what is measured, in words.
    """
    rows, labels = clip_intervals(table.to_pylist()), size_labels(table)
    at = {r["position"]: r["images"] for r in rows if r["images"]}
    counts_known = set(at) == {r["position"] for r in rows} and len(set(at.values())) == len(at)
    ticks = [at[i] if counts_known else i for i in range(len(labels))]
    shown = [r for r in rows if r["method"] != "zero-shot"] or rows  # far below, it would flatten the curves
    methods = in_order({r["method"] for r in shown})
    with mpl.rc_context(STYLE):
        figure = Chart(COLUMN_INCHES, 2.6)
        axes = figure.add_axes((0.17, 0.2, 0.79, 0.6))
        axes.set_ylim(*padded(*limits(shown)))
        if counts_known:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
            labels = [f"{label.removesuffix(' of the data')}\n{at[i]:,.0f}" for i, label in enumerate(labels)]
        edge = 0.05 * (ticks[-1] - ticks[0]) if not counts_known else 1.0
        axes.set_xlim(*((ticks[0] / 1.2, ticks[-1] * 1.2) if counts_known else (ticks[0] - edge, ticks[-1] + edge)))
        places = spread_apart(axes, [spot(ticks[r["position"]], r["mean"], r, bar=False) for r in shown])
        for method in methods:
            with figure.parts_of(method):
                method_points = [(x, r) for x, r in zip(places, shown, strict=True) if r["method"] == method]
                _size_lines(axes, method, method_points, labels, banded=len(methods) <= MOST_BANDS)
        axes.grid(axis="x", visible=False)
        axes.set_xticks(ticks, labels=labels)
        axes.set_xlabel("training examples")
        axes.set_ylabel(f"{score} (%)")
        axes.set_title(place_title((*place_of(rows[0])[:3], "")), loc="left", weight="bold")
        legend(figure, methods)
        mark_bands(figure, "pointwise", given_rates=True)
        return figure


def _size_lines(
    axes: Any, method: str, points: Sequence[tuple[float, Row]], labels: Sequence[str], *, banded: bool
) -> None:
    """Draw a method's lines, one for each budget, and the band or bars of the largest one."""
    look = style(method)
    # by name: cells off their budgets may have one count at several
    counts = {r["reference"]: r["adapter_params"] or 0 for _, r in points}
    budgets = sorted(counts, key=lambda name: (counts[name], budget_order(name or "")))
    for k, budget in enumerate(budgets):
        line = sorted((each for each in points if each[1]["reference"] == budget), key=lambda each: each[1]["position"])
        x, rows = [at for at, _ in line], [r for _, r in line]
        fade = 1.0 if len(budgets) == 1 else 0.25 + 0.75 * k / (len(budgets) - 1)
        axes.plot(x, [100 * r["mean"] for r in rows], color=look.colour, alpha=fade, linestyle=line_style(method))
        for at, r in line:
            tip = marker_text(r, f"{r['reference'] or ''}, {labels[r['position']]}")
            dot(axes, method, at, 100 * r["mean"], tip, markersize=4.5 if look.marker else 3.5, alpha=fade, zorder=2)
        if k == len(budgets) - 1:
            band_or_bars(axes, x, rows, look.colour, banded=banded and has_band(rows))
