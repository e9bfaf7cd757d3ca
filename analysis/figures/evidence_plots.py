"""Mean ranks over data sets, and what tuning was expected to bring, rate by rate: two figures and their scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pyarrow as pa
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.drawing import COLUMN_INCHES, INK, PAPER, STYLE, Tips, new_figure
from analysis.figures.fits import legend
from analysis.styles import budget_order, in_order, size_key, size_text, style

Row = dict[str, Any]
Place = tuple[str, str, str]
APART = 0.11
"""How far the methods of a row stand apart, in rows, so that equal ranks stay readable."""


def rank_places(rows: Sequence[Row]) -> list[Place]:
    """The panels of mean ranks: (sweep, model, training size)."""
    keys = {(r["sweep"], r["model"], r["train_size"]) for r in rows}
    return sorted(keys, key=lambda k: (k[0], k[1], size_key(k[2])))


def rank_title(place: Place, places: Sequence[Place]) -> str:
    """A panel in words: what is not the same for all."""
    shown = [place[i] for i in (0, 1) if len({p[i] for p in places}) > 1]
    return ", ".join([*shown, size_text(place[2])])


def draw_ranks(ranks: pa.Table, *, columns: int = 2, tips: Tips | None = None) -> Figure:
    """Mean ranks over data sets, a row per budget; where it is known, the critical difference from the best as a bar.

    Args:
        ranks: from `groups.mean_ranks`; not empty.
        columns: most panels in a row.
        tips: gets what every marker says.

    Raises:
        ValueError: no row.
    """
    rows = ranks.to_pylist()
    if not rows:
        raise ValueError("no mean ranks to draw: the table has no row")
    tips = Tips() if tips is None else tips
    places = rank_places(rows)
    across = min(columns, len(places))
    down = math.ceil(len(places) / across)
    most = max(len({r["reference"] for r in rows if _place(r) == p}) for p in places)
    width, height = COLUMN_INCHES * across, (0.42 * most + 0.95) * down + 0.25
    with mpl.rc_context(STYLE):
        figure = new_figure(width, height)
        margins = {"left": 0.62 / width, "right": 1 - 0.12 / width, "bottom": 0.42 / height, "top": 1 - 0.55 / height}
        grid = figure.add_gridspec(down, across, hspace=0.75, wspace=0.3, **margins)
        for index, place in enumerate(places):
            axes = figure.add_subplot(grid[index // across, index % across])
            _rank_panel(axes, [r for r in rows if _place(r) == place], tips)
            axes.set_title(rank_title(place, places), loc="left", fontweight="bold")
        legend(figure, in_order({r["method"] for r in rows}))
        return figure


def _rank_panel(axes: Any, rows: Sequence[Row], tips: Tips) -> None:
    budgets = sorted({r["reference"] for r in rows}, key=budget_order)
    methods = in_order({r["method"] for r in rows})
    for level, reference in enumerate(budgets):
        mine = [r for r in rows if r["reference"] == reference]
        best, reach = min(r["mean_rank"] for r in mine), mine[0]["critical_difference"]
        if reach is not None:
            axes.barh(level, reach, left=best, height=0.72, color=INK, alpha=0.09, linewidth=0)
        for r in mine:
            look = style(r["method"])
            axes.plot(
                [r["mean_rank"]],
                [level + APART * (methods.index(r["method"]) - (len(methods) - 1) / 2)],
                marker=look.marker or "o",
                color=look.colour,
                markeredgecolor=PAPER,
                markeredgewidth=0.6,
                linestyle="none",
                zorder=3,
                gid=tips.add(
                    f"{look.name} at {reference}: mean rank {r['mean_rank']:.2f} of {r['methods']} methods over "
                    f"{r['datasets']} data sets"
                ),
            )
    axes.set_yticks(range(len(budgets)), labels=budgets)
    axes.set_ylim(len(budgets) - 0.5, -0.5)  # the smallest budget on top
    axes.set_xlim(0.85, max(r["methods"] for r in rows) + 0.15)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("mean rank over data sets (1 is the best)")


def _place(row: Row) -> Place:
    return row["sweep"], row["model"], row["train_size"]


def draw_expected(expected: pa.Table, *, columns: int = 3, tips: Tips | None = None) -> Figure:
    """Expected best validation score against the learning rates tried: a panel per budget, a line per method.

    Args:
        expected: from `tuning.best_of_n`, of one data set and training size; not empty. Methods without a budget are
            drawn dashed in every panel.
        columns: most panels in a row.
        tips: gets what every marker says.

    Raises:
        ValueError: no row, or several data sets or sizes.
    """
    rows = expected.to_pylist()
    if not rows or len({(r["sweep"], r["dataset"], r["train_size"]) for r in rows}) != 1:
        raise ValueError("expected bests of exactly one data set and training size can be drawn in one figure")
    tips = Tips() if tips is None else tips
    panels = budgets_of(rows)
    across = min(columns, len(panels))
    down = math.ceil(len(panels) / across)
    width, height = 2.3 * across + 0.4, 1.85 * down + 0.35
    with mpl.rc_context(STYLE):
        figure = new_figure(width, height)
        all_axes = figure.subplots(down, across, sharey=True, squeeze=False)
        figure.subplots_adjust(
            left=0.45 / width, right=0.99, bottom=0.4 / height, top=1 - 0.5 / height, wspace=0.08, hspace=0.6
        )
        for i, axes in enumerate(all_axes.flat):
            if i >= len(panels):
                axes.set_visible(False)
                continue
            mine = [r for r in rows if r["reference"] in (panels[i], None)]
            for method in reversed(in_order({r["method"] for r in mine})):
                _expected_line(axes, [r for r in mine if r["method"] == method], tips)
            axes.set_title(panels[i] or "", loc="left", fontweight="bold", pad=3)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel("learning rates tried")
            if i % across == 0:
                axes.set_ylabel("expected best validation (%)")
        legend(figure, in_order({r["method"] for r in rows}))
        return figure


def budgets_of(rows: Sequence[Row]) -> list[str | None]:
    """The panels of expected bests: budgets by size; one without a name where no method has a budget."""
    found = {r["reference"]: r["budget"] for r in rows if r["reference"] is not None}
    return sorted(found, key=lambda k: (found[k] or 0, k)) or [None]


def _expected_line(axes: Any, rows: Sequence[Row], tips: Tips) -> None:
    look = style(rows[0]["method"])
    rows = sorted(rows, key=lambda r: r["n"])
    dashes = "-" if look.marker else (0, (5, 2))
    axes.plot([r["n"] for r in rows], [100 * r["expected"] for r in rows], color=look.colour, linestyle=dashes, lw=1.1)
    for r in rows:
        where = f" at {r['reference']}" if r["reference"] else ""
        said = f"{look.name}{where}: {100 * r['expected']:.1f} % expected of the best of {r['n']} rates"
        axes.plot(
            [r["n"]],
            [100 * r["expected"]],
            marker=look.marker or "o",
            markersize=3.6,
            color=look.colour,
            markerfacecolor=look.colour if look.marker else PAPER,
            markeredgecolor=PAPER if look.marker else look.colour,
            markeredgewidth=0.5,
            linestyle="none",
            zorder=3,
            gid=tips.add(said),
        )
