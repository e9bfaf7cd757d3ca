"""The figure of stage TUNE: was each method given a range of learning rates that holds its best?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pyarrow as pa
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from analysis.figures.drawing import PAPER, STYLE, Tips, new_figure
from analysis.styles import in_order, style

Row = dict[str, Any]


def draw_rates(rates: pa.Table, *, columns: int = 3, tips: Tips | None = None) -> Figure:
    """Validation score against learning rate, one panel per method, one line per budget (darker is larger).

    Args:
        rates: from `tuning.rates`, of one data set and training size; not empty.
        columns: most panels in a row.
        tips: gets what every marker says.

    Raises:
        ValueError: no row, or several data sets or sizes.
    """
    rows = rates.to_pylist()
    if not rows or len({(r["sweep"], r["dataset"], r["train_size"]) for r in rows}) != 1:
        raise ValueError("rates of exactly one data set and training size can be drawn in one figure")
    tips = Tips() if tips is None else tips
    methods = in_order({r["method"] for r in rows})
    across = min(columns, len(methods))
    down = math.ceil(len(methods) / across)
    height = 1.75 * down + 0.3
    with mpl.rc_context(STYLE):
        figure = new_figure(2.3 * across + 0.4, height)
        all_axes = figure.subplots(down, across, sharey=True, squeeze=False)
        figure.subplots_adjust(
            left=0.45 / (2.3 * across + 0.4),
            right=0.99,
            bottom=0.4 / height,
            top=1 - 0.22 / height,
            wspace=0.08,
            hspace=0.55,
        )
        for i, axes in enumerate(all_axes.flat):
            if i >= len(methods):
                axes.set_visible(False)
                continue
            _rates_panel(axes, methods[i], [r for r in rows if r["method"] == methods[i]], tips)
            if i % across == 0:
                axes.set_ylabel("validation score (%)")
        return figure


def _rates_panel(axes: Any, method: str, rows: Sequence[Row], tips: Tips) -> None:
    look = style(method)
    axes.set_xscale("log")
    axes.set_title(look.name, loc="left", color=look.colour, fontweight="bold", pad=3)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("learning rate")
    low, high = min(r["lr"] for r in rows), max(r["lr"] for r in rows)
    axes.set_xlim(low / 1.6, high * (high / low * 2) ** 0.2)  # room for the names at the right
    cells = sorted({(r["budget"] or 0, r["reference"] or "", r["cell_id"]) for r in rows})
    for k, (_, reference, cell) in enumerate(cells):
        mine = [r for r in rows if r["cell_id"] == cell and r["mean_val"] is not None]
        alpha = 0.35 + 0.65 * (k + 1) / len(cells)
        axes.plot(
            [r["lr"] for r in mine],
            [100 * r["mean_val"] for r in mine],
            color=look.colour,
            alpha=alpha,
            linewidth=1.1,
            gid=f"rates:{cell}",
        )
        for r in mine:
            runs = f"{r['n']} run{'s' * (r['n'] > 1)}{', chosen' * bool(r['chosen'])}"
            said = f"{look.name} {reference}: rate {r['lr']:.2g}, validation {100 * r['mean_val']:.1f} %, {runs}"
            axes.plot(
                [r["lr"]],
                [100 * r["mean_val"]],
                marker="*" if r["chosen"] else ".",
                markersize=7 if r["chosen"] else 4,
                color=look.colour,
                alpha=alpha,
                markeredgecolor=PAPER if r["chosen"] else look.colour,
                markeredgewidth=0.4,
                linestyle="none",
                zorder=3,
                gid=tips.add(said),
            )
        if mine and reference and k in (0, len(cells) - 1):
            axes.annotate(
                reference,
                (mine[-1]["lr"], 100 * mine[-1]["mean_val"]),
                xytext=(2, 0),
                textcoords="offset points",
                fontsize=6,
                color=look.colour,
                alpha=alpha,
                va="center" if len(cells) == 1 else ("bottom" if k else "top"),
                annotation_clip=False,
            )
