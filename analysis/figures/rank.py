"""Score against the rank of the update: the figure, its sentence, and the table of what a doubling brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pyarrow as pa
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis.figures import vega
from analysis.figures.drawing import COLUMN_INCHES, PAPER, STYLE, Tips, new_figure
from analysis.figures.fits import legend
from analysis.figures.picture import Picture, few_panels, panel_of, place_of, width_of
from analysis.figures.scaling import place_title
from analysis.format import percent, quantity, ranged
from analysis.statistics import scaling
from analysis.statistics.rank_effects import effects, points
from analysis.store.store import Store
from analysis.styles import in_order, style
from analysis.words.ranks import conclude

Row = dict[str, Any]

LEAST_RANKS = 3
"""Ranks at one budget from which there is a figure: two are the comparison of two methods, which the report has."""


def picture(store: Store) -> list[Picture]:
    """The figure of the panels with enough ranks at one budget; none where no panel has."""
    found = points(store)
    rows = [r for place in _places(found) for r in found.to_pylist() if place_of(r) == place]
    if not rows:
        return []
    shown, tips = few_panels(pa.Table.from_pylist(rows, schema=found.schema)), Tips()
    score = scaling.score_name(store)
    says = conclude(effects(store).to_pylist())
    chart = vega.chart(
        [
            vega.point(
                panel_of(r),
                r["base"],
                r["update_rank"],
                r["mean"],
                low=r["low"],
                high=r["high"],
                reference=r["reference"],
                seeds=r["n"],
                line=r["reference"],
                note=r["method"] if r["method"] != r["base"] else None,
            )
            for r in shown.to_pylist()
        ],
        title="Score against the rank of the update",
        description=says,
        x="largest rank of the update",
        y=f"{score} (%)",
        band=False,
    )
    caption = (
        "At equal trainable parameters (paler: fewer). The axis is the largest rank that the update of a weight can "
        "have, mean over the target weights; bars are 95 % t intervals over seeds, lines join variants of one method "
        "at one budget."
    )
    label = f"{score.capitalize()} against the rank of the update, at equal trainable parameters"
    figure = draw_ranks(shown, tips=tips, score=score)
    return [Picture("rank", "rank", figure, label, caption, says, tips, chart, width_of(shown))]


def _places(found: pa.Table) -> list[tuple[str, str, str | None, str]]:
    """Panels in which some budget has `LEAST_RANKS` ranks."""
    ranks: dict[tuple[Any, ...], set[float]] = {}
    for r in found.to_pylist():
        ranks.setdefault((*place_of(r), r["reference"]), set()).add(r["update_rank"])
    return list(dict.fromkeys(key[:4] for key, values in ranks.items() if len(values) >= LEAST_RANKS))


def draw_ranks(table: pa.Table, *, columns: int = 2, tips: Tips | None = None, score: str = "test accuracy") -> Figure:
    """Score against the largest rank of the update, one panel per data set and training size.

    Args:
        table: from `rank_effects.points`; not empty.
        columns: most panels in a row.
        tips: gets what every marker says.
        score: what is measured, in words.

    Raises:
        ValueError: no row.
    """
    rows = table.to_pylist()
    if not rows:
        raise ValueError("no rank to draw: the table has no row")
    tips = Tips() if tips is None else tips
    places = list(dict.fromkeys(place_of(r) for r in rows))
    across = min(columns, len(places))
    down = -(-len(places) // across)
    bases = in_order({r["base"] for r in rows})
    named = 0.17 * -(-len(bases) // (4 * across))  # inches of the legend
    with mpl.rc_context(STYLE):
        width, height = COLUMN_INCHES * across, 2.3 * down + named + 0.25
        figure = new_figure(width, height)
        grid = figure.subplots(down, across, squeeze=False)
        figure.subplots_adjust(
            left=0.5 / width,
            right=1 - 0.12 / width,
            bottom=0.42 / height,
            top=1 - (named + 0.35) / height,
            wspace=0.2,
            hspace=0.5,
        )
        for index, axes in enumerate(grid.flat):
            if index >= len(places):
                axes.set_visible(False)
                continue
            _panel(axes, [r for r in rows if place_of(r) == places[index]], tips)
            axes.set_title(place_title(places[index][2] or "", places[index][3]), loc="left", fontweight="bold")
            if index % across == 0:
                axes.set_ylabel(f"{score} (%)")
        legend(figure, bases, 4 * across)
        return figure


def _panel(axes: Any, rows: Sequence[Row], tips: Tips) -> None:
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
            _line(axes, [r for r in mine if r["base"] == base], alpha, tips)


def _line(axes: Any, rows: Sequence[Row], alpha: float, tips: Tips) -> None:
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
        spread = ranged(percent(r["mean"]), percent(r["low"]), percent(r["high"]))
        said = (
            f"{style(r['method']).name} at {r['reference']}: rank {quantity(r['update_rank'])}, "
            f"{quantity(r['adapter_params'])} parameters, {spread} %, {r['n']} seed{'s' * (r['n'] > 1)}"
        )
        axes.plot(
            [x],
            [y],
            marker=look.marker or "o",
            color=look.colour,
            alpha=alpha,
            markeredgecolor=PAPER,
            markeredgewidth=0.5,
            linestyle="none",
            zorder=3,
            gid=tips.add(said),
        )
