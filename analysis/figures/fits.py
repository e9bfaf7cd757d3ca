"""Figures of the fits: curves with bands against any cost, Pareto fronts, data-size curves, published curves.

Like `plots`: each draws a table that another function computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pyarrow as pa
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from analysis.curves.measured import AXES
from analysis.curves.sizes import size_labels
from analysis.figures.drawing import COLUMN_INCHES, MUTED, PAPER, STYLE, Tips, log_ticks, new_figure
from analysis.format import percent, quantity, ranged
from analysis.styles import in_order, place_text, style

Row = dict[str, Any]
SCORE = "test accuracy"
Place = tuple[str, str, str | None, str]


def draw_fits(
    points: pa.Table,
    bands: pa.Table,
    crossings: pa.Table,
    *,
    columns: int = 2,
    tips: Tips | None = None,
    score: str = SCORE,
) -> Figure:
    """Fitted curves with bootstrap bands, the cells' means as markers, crossings as vertical spans.

    Args:
        points: from `pareto.front` (cost and mean score of every cell), or `measured.point_table`.
        bands: from `readings.band_table`; not empty.
        crossings: from `readings.crossing_table`.
        columns: most panels in a row.
        tips: gets what every marker says.
        score: what is measured, in words.

    Raises:
        ValueError: no band.
    """
    if bands.num_rows == 0:
        raise ValueError("no fit to draw: the table has no row")
    rows, dots, turns = bands.to_pylist(), points.to_pylist(), crossings.to_pylist()
    tips = Tips() if tips is None else tips
    places = list(dict.fromkeys(_place(r) for r in rows))
    with mpl.rc_context(STYLE):
        figure, grid = _grid(len(places), columns)
        for index, place in enumerate(places):
            axes = figure.add_subplot(grid[index // columns, index % columns] if len(places) > 1 else grid[0, 0])
            mine = [r for r in rows if _place(r) == place]
            methods = in_order({r["method"] for r in mine})
            for turn in (t for t in turns if _place(t) == place and t["value"] is not None):
                _turn(axes, turn, [r["at"] for r in mine])
            for method in reversed(methods):
                _fitted(axes, method, [r for r in mine if r["method"] == method])
                _dots(axes, [d for d in dots if _place(d) == place and d["method"] == method], tips)
            _log(axes, rows[0]["x"])
            axes.set_title(_title(place), loc="left", fontweight="bold")
            if index % columns == 0:
                axes.set_ylabel(f"{score} (%)")
        legend(figure, in_order({r["method"] for r in rows}))
        return figure


def draw_front(front: pa.Table, *, columns: int = 2, tips: Tips | None = None, score: str = SCORE) -> Figure:
    """Every cell's score against its cost; the front joined by a stepped line, cells off it pale.

    Raises:
        ValueError: no cell with a positive cost.
    """
    rows = [r for r in front.to_pylist() if r["cost"] > 0]
    if not rows:
        raise ValueError("no front to draw: no cell has a positive cost")
    tips = Tips() if tips is None else tips
    places = list(dict.fromkeys(_place(r) for r in rows))
    with mpl.rc_context(STYLE):
        figure, grid = _grid(len(places), columns)
        for index, place in enumerate(places):
            axes = figure.add_subplot(grid[index // columns, index % columns] if len(places) > 1 else grid[0, 0])
            mine = [r for r in rows if _place(r) == place]
            best = sorted((r for r in mine if r["on_front"]), key=lambda r: r["cost"])
            axes.step([r["cost"] for r in best], [100 * r["score"] for r in best], where="post", color=MUTED, lw=1.0)
            _dots(axes, [r for r in mine if not r["on_front"]], tips, alpha=0.4)
            _dots(axes, best, tips)
            _log(axes, rows[0]["x"])
            axes.set_title(_title(place), loc="left", fontweight="bold")
            if index % columns == 0:
                axes.set_ylabel(f"{score} (%)")
        legend(figure, in_order({r["method"] for r in rows}))
        return figure


def draw_sizes(table: pa.Table, *, tips: Tips | None = None, score: str = SCORE) -> Figure:
    """Score against training size, a line per method and budget (paler as it shrinks), the largest with its band.

    Args:
        table: from `sizes.size_curves`, of one (sweep, model, data set); not empty. The axis is the logarithm of the
            number of training examples where it is known for all sizes, else their order.
        tips: gets what every marker says.
        score: what is measured, in words.
    """
    rows, labels = table.to_pylist(), size_labels(table)
    tips = Tips() if tips is None else tips
    at = {r["position"]: r["images"] for r in rows if r["images"]}
    known = set(at) == {r["position"] for r in rows} and len(set(at.values())) == len(at)
    with mpl.rc_context(STYLE):
        figure = new_figure(COLUMN_INCHES * 1.25, 2.9)
        axes = figure.add_axes((0.13, 0.19, 0.85, 0.65))
        shown = [r for r in rows if r["method"] != "zero-shot"] or rows  # far below, it would flatten the curves
        for method in in_order({r["method"] for r in shown}):
            look = style(method)
            mine = [r for r in shown if r["method"] == method]
            counts = sorted({r["adapter_params"] or 0 for r in mine})
            for k, count in enumerate(counts):
                line = sorted((r for r in mine if (r["adapter_params"] or 0) == count), key=lambda r: r["position"])
                x = [at[r["position"]] if known else r["position"] for r in line]
                y = [100 * r["mean"] for r in line]
                fade = 1.0 if len(counts) == 1 else 0.25 + 0.75 * k / (len(counts) - 1)
                axes.plot(x, y, color=look.colour, alpha=fade, linestyle="-" if look.marker else (0, (5, 2)))
                for point, row in zip(zip(x, y, strict=True), line, strict=True):
                    gid = tips.add(_said(row, row["mean"], f"{row['reference'] or ''}, {labels[row['position']]}"))
                    face = look.colour if look.marker else PAPER
                    axes.plot(
                        *([v] for v in point),
                        marker=look.marker or "o",
                        markersize=4.5 if look.marker else 3.5,
                        color=look.colour,
                        markerfacecolor=face,
                        markeredgecolor=PAPER if look.marker else look.colour,
                        markeredgewidth=0.6,
                        linestyle="none",
                        alpha=fade,
                        gid=gid,
                    )
                if k == len(counts) - 1 and all(r["low"] is not None for r in line):
                    ends = [100 * r["low"] for r in line], [100 * r["high"] for r in line]
                    axes.fill_between(x, *ends, color=look.colour, alpha=0.12, linewidth=0)
        if known:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
            named = [f"{label.removesuffix(' of the data')}\n{at[i]:,.0f}" for i, label in enumerate(labels)]
            axes.set_xticks([at[i] for i in range(len(labels))], labels=named)
        else:
            axes.set_xticks(range(len(labels)), labels=labels)
        axes.set_xlabel("training examples")
        axes.set_ylabel(f"{score} (%)")
        axes.set_title(_title((rows[0]["sweep"], rows[0]["model"], rows[0]["dataset"], "")), loc="left", weight="bold")
        legend(figure, in_order({r["method"] for r in shown}))
        return figure


def draw_overlay(
    ours: pa.Table, theirs: pa.Table, source: str, *, tips: Tips | None = None, score: str = SCORE
) -> Figure:
    """Published curves beside measured ones, on one pair of axes: ours with filled markers, theirs dashed and hollow.

    Args:
        ours, theirs: from `scaling.curve`, each of one place; `theirs` is only drawn, never tested against.
        source: named in the legend.
        tips: gets what every marker says.
        score: what is measured, in words.
    """
    tips = Tips() if tips is None else tips
    with mpl.rc_context(STYLE):
        figure = new_figure(COLUMN_INCHES * 1.35, 3.0)
        axes = figure.add_axes((0.12, 0.15, 0.85, 0.68))
        methods: set[str] = set()
        for table, published in ((ours, False), (theirs, True)):
            rows = [r for r in table.to_pylist() if r["adapter_params"] and r["kind"] == "curve"]
            for method in in_order({r["method"] for r in rows}):
                look = style(method)
                mine = sorted((r for r in rows if r["method"] == method), key=lambda r: r["adapter_params"])
                methods.add(method)
                axes.plot(
                    [r["adapter_params"] for r in mine],
                    [100 * r["mean"] for r in mine],
                    color=look.colour,
                    linestyle=(0, (4, 2)) if published else "-",
                    linewidth=1.0 if published else 1.5,
                    gid=f"{'published' if published else 'ours'}:{method}",
                )
                for row in mine:
                    whose = f"{row['reference'] or ''}, {'published' if published else 'this sweep'}"
                    axes.plot(
                        [row["adapter_params"]],
                        [100 * row["mean"]],
                        color=look.colour,
                        marker=look.marker or "o",
                        markerfacecolor=PAPER if published else look.colour,
                        markeredgecolor=look.colour if published else PAPER,
                        markeredgewidth=0.9 if published else 0.6,
                        linestyle="none",
                        gid=tips.add(_said(row, row["mean"], whose, row["adapter_params"], "parameters")),
                    )
        _log(axes, "adapter_params")
        axes.set_ylabel(f"{score} (%)")
        kinds = [Line2D([], [], color=MUTED), Line2D([], [], color=MUTED, linestyle=(0, (4, 2)), linewidth=1.0)]
        axes.legend(kinds, ["this sweep", source], loc="lower right", fontsize=6.5)
        legend(figure, in_order(methods))
        return figure


def _grid(panels: int, columns: int) -> tuple[Figure, Any]:
    across = min(columns, panels)
    down = math.ceil(panels / across)
    width, height = COLUMN_INCHES * across, 2.4 * down + 0.35
    figure = new_figure(width, height)
    margins = {"left": 0.56 / width, "right": 1 - 0.12 / width, "bottom": 0.45 / height, "top": 1 - 0.52 / height}
    return figure, figure.add_gridspec(down, across, hspace=0.55, wspace=0.24, **margins)


def _place(row: Row) -> Place:
    """A panel: of data-size curves it is a data set and a budget."""
    return row["sweep"], row["model"], row["dataset"], row["train_size"] if "train_size" in row else row["reference"]


def _title(place: Place) -> str:
    name = (place[2] or "mean over data sets").rpartition("/")[2].rpartition(":")[2]
    return place_text(name, place[3]) if place[3] else name


def _said(row: Row, score: float, where: str, cost: float | None = None, unit: str = "") -> str:
    """What a marker says: method, setting, cost, score with its interval, seeds."""
    setting = where.strip(", ")
    shown = ranged(percent(score), percent(row.get("low")), percent(row.get("high")))
    words = [f"{style(row['method']).name}{' at ' * bool(setting)}{setting}: {shown} %"]
    if cost is not None:
        words.append(f"{quantity(cost)} {unit}".strip())
    if row.get("n"):
        words.append(f"{row['n']} seed{'s' * (row['n'] > 1)}")
    return ", ".join(words)


def _fitted(axes: Any, method: str, rows: Sequence[Row]) -> None:
    look = style(method)
    at = [r["at"] for r in rows]
    axes.plot(at, [100 * r["score"] for r in rows], color=look.colour)
    if all(r["low"] is not None for r in rows):
        ends = [100 * r["low"] for r in rows], [100 * r["high"] for r in rows]
        axes.fill_between(at, *ends, color=look.colour, alpha=0.16, linewidth=0)


def _dots(axes: Any, rows: Sequence[Row], tips: Tips, alpha: float = 1.0) -> None:
    for row in rows:
        look = style(row["method"])
        where = row.get("reference") or ""
        unit = axis_label(row.get("x"))
        face = look.colour if look.marker else PAPER
        axes.plot(
            [row["cost"]],
            [100 * row["score"]],
            marker=look.marker or "o",
            color=look.colour,
            markerfacecolor=face,
            markeredgecolor=PAPER if look.marker else look.colour,
            markeredgewidth=0.6,
            linestyle="none",
            alpha=alpha,
            zorder=3,
            gid=tips.add(_said(row, row["score"], where, row["cost"], unit)),
        )


def _turn(axes: Any, turn: Row, at: Sequence[float]) -> None:
    low = turn["low"] if turn["low"] is not None else min(at)
    high = turn["high"] if turn["high"] is not None else max(at)
    colour = style(turn["method"]).colour
    if turn["share"] is not None:
        axes.axvspan(low, high, color=colour, alpha=0.07, linewidth=0)
    axes.axvline(turn["value"], color=colour, linewidth=0.8, linestyle=(0, (1, 1.5)))


def _log(axes: Any, x: str) -> None:
    axes.set_xscale("log")
    log_ticks(axes.xaxis, *axes.get_xlim())
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="x", visible=False)
    axes.set_xlabel(axis_label(x))


def axis_label(x: str | None) -> str:
    """A cost in words: of `measured.AXES`, or the number of training examples."""
    return AXES[x].label.split(" (")[0] if x in AXES else "training examples"


def legend(figure: Figure, methods: Sequence[str], columns: int = 6) -> None:
    """Methods over the panels, in their colours, at most `columns` in a row; those without a budget dashed."""
    handles = [
        Line2D(
            [],
            [],
            color=style(m).colour,
            marker=style(m).marker or "None",
            markeredgecolor=PAPER,
            linestyle="-" if style(m).marker else (0, (5, 2)),
        )
        for m in methods
    ]
    names = [style(m).name for m in methods]
    many = len(methods) > 4
    place = {"loc": "upper left", "bbox_to_anchor": (0.0, 1.0), "ncols": min(len(methods), columns)}
    place |= {"fontsize": 5.8 if many else 7.5, "handlelength": 1.2 if many else 1.6}
    figure.legend(handles, names, columnspacing=0.8, handletextpad=0.4, borderaxespad=0.3, **place)
