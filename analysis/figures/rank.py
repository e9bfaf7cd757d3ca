"""Score against the rank of the update, at equal trainable parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pyarrow as pa
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis.figures.drawing import COLUMN_INCHES, STYLE, Chart, dot, legend, panels, place_title
from analysis.format import Row, quantity, score_text
from analysis.styles import in_order, place_of, style


def draw_ranks(table: pa.Table, *, score: str = "test accuracy") -> Chart:
    """Score against the largest rank of the update, one panel per data set and training size.

    Args:
        table: from `rank_effects.points`; not empty.
        score: what is measured, in words.

    Raises:
        ValueError: no row.
    """
    rows = table.to_pylist()
    if not rows:
        raise ValueError("no rank to draw: the table has no row")
    places = list(dict.fromkeys(place_of(r) for r in rows))
    bases = in_order({r["base"] for r in rows})
    with mpl.rc_context(STYLE):
        figure, spots = panels(
            len(places),
            2,
            (COLUMN_INCHES, 2.3),
            extra=(0.0, 0.42),
            margins=(0.5, 0.12, 0.42, 0.52),
            gaps=(0.2, 0.5),
        )
        for place, spot in zip(places, spots, strict=True):
            axes = figure.add_subplot(spot)
            _panel(axes, [r for r in rows if place_of(r) == place])
            axes.set_title(place_title(place, places), loc="left", fontweight="bold")
            if spot.is_first_col():
                axes.set_ylabel(f"{score} (%)")
        legend(figure, bases)
        return figure


def _panel(axes: Any, rows: Sequence[Row]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=10))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("largest rank of the update")
    ranks = [r["update_rank"] for r in rows]
    axes.set_xlim(min(ranks) / 2.1, max(ranks) * 1.35)  # room for the budgets' names
    references = list(dict.fromkeys(r["reference"] for r in sorted(rows, key=lambda r: r["budget"])))
    for k, reference in enumerate(references):
        alpha = 0.35 + 0.65 * (k + 1) / len(references)
        mine = [r for r in rows if r["reference"] == reference]
        for base in reversed(in_order({r["base"] for r in mine})):
            with axes.figure.of(base):
                _line(axes, [r for r in mine if r["base"] == base], alpha)


def _line(axes: Any, rows: Sequence[Row], alpha: float) -> None:
    """The variants of one method at one budget."""
    look = style(rows[0]["base"])
    rows = sorted(rows, key=lambda r: r["update_rank"])
    if len(rows) > 1:
        x, y = [r["update_rank"] for r in rows], [100 * r["mean"] for r in rows]
        axes.plot(x, y, color=look.colour, alpha=alpha, linewidth=1.2)
        axes.annotate(
            rows[0]["reference"],
            (x[0], y[0]),
            xytext=(-4, 0),
            textcoords="offset points",
            fontsize=6,
            color=look.colour,
            alpha=alpha,
            ha="right",
            va="center",
        )
    for r in rows:
        x, y = r["update_rank"], 100 * r["mean"]
        if r["low"] is not None:
            axes.vlines(x, 100 * r["low"], 100 * r["high"], color=look.colour, linewidth=1.0, alpha=0.6 * alpha)
        said = (
            f"{style(r['method']).name} at {r['reference']}: rank {quantity(r['update_rank'])}, "
            f"{quantity(r['adapter_params'])} parameters, {score_text(r)} %, {r['n']} seed{'s' * (r['n'] > 1)}"
        )
        dot(axes, r["base"], x, y, said, alpha=alpha, markeredgewidth=0.5)
