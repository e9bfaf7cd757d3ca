"""Mean ranks of the methods over data sets, with critical differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pyarrow as pa
from matplotlib.ticker import MaxNLocator

from analysis.figures.drawing import COLUMN_INCHES, INK, STYLE, Chart, dot, legend, panels
from analysis.format import Row
from analysis.styles import budget_order, in_order, size_key, size_text, style

Place = tuple[str, str, str]
APART, SPREAD = 0.11, 0.8
"""How far the methods of a row stand apart so that equal ranks stay readable, and all of them at most, in rows."""


def rank_place(row: Row) -> Place:
    """The panel of a mean rank: (sweep, model, training size)."""
    return row["sweep"], row["model"], row["train_size"]


def rank_places(rows: Sequence[Row]) -> list[Place]:
    """The panels of mean ranks, in order."""
    return sorted({rank_place(r) for r in rows}, key=lambda k: (k[0], k[1], size_key(k[2])))


def draw_mean_ranks(ranks: pa.Table) -> Chart:
    """Mean ranks over data sets, a row per budget; where it is known, the critical difference from the best as a bar.

    Args:
        ranks: from `groups.mean_ranks`; not empty.

    Raises:
        ValueError: no row.
    """
    rows = ranks.to_pylist()
    if not rows:
        raise ValueError("no mean ranks to draw: the table has no row")
    places = rank_places(rows)
    most = max(len({r["reference"] for r in rows if rank_place(r) == p}) for p in places)
    with mpl.rc_context(STYLE):
        figure, spots = panels(
            len(places),
            2,
            (COLUMN_INCHES, 0.42 * most + 0.95),
            extra=(0.0, 0.25),
            margins=(0.62, 0.12, 0.42, 0.55),
            gaps=(0.3, 0.75),
        )
        for place, spot in zip(places, spots, strict=True):
            axes = figure.add_subplot(spot)
            _panel(axes, [r for r in rows if rank_place(r) == place])
            differing = [place[i] for i in (0, 1) if len({p[i] for p in places}) > 1]
            axes.set_title(", ".join([*differing, size_text(place[2])]), loc="left", fontweight="bold")
        legend(figure, in_order({r["method"] for r in rows}))
        return figure


def _panel(axes: Any, rows: Sequence[Row]) -> None:
    budgets = sorted({r["reference"] for r in rows}, key=budget_order)
    methods = in_order({r["method"] for r in rows})
    apart = min(APART, SPREAD / len(methods))
    for level, reference in enumerate(budgets):
        mine = [r for r in rows if r["reference"] == reference]
        best, reach = min(r["mean_rank"] for r in mine), mine[0]["critical_difference"]
        if reach is not None:
            axes.barh(level, reach, left=best, height=0.72, color=INK, alpha=0.09, linewidth=0)
        for r in mine:
            said = (
                f"{style(r['method']).name} at {reference}: mean rank {r['mean_rank']:.2f} of {r['methods']} methods "
                f"over {r['datasets']} data sets"
            )
            aside = apart * (methods.index(r["method"]) - (len(methods) - 1) / 2)
            dot(axes, r["method"], r["mean_rank"], level + aside, said)
    axes.set_yticks(range(len(budgets)), labels=budgets)
    axes.set_ylim(len(budgets) - 0.5, -0.5)  # the smallest budget on top
    axes.set_xlim(0.85, max(r["methods"] for r in rows) + 0.15)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("mean rank over data sets (1 is the best)")
