"""Figures of the fits: curves with bands against any cost, Pareto fronts, data-size curves, published curves.

Each draws a table that another function computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
import pyarrow as pa
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from analysis.curves.measured import AXES, size_labels
from analysis.figures.drawing import (
    COLUMN_INCHES,
    MUTED,
    PAPER,
    SMALL,
    STYLE,
    Chart,
    band,
    band_or_bars,
    clip_intervals,
    dot,
    fix_limits,
    has_band,
    legend,
    line_style,
    log_ticks,
    mark_bands,
    padded,
    panels,
    place_title,
    spot,
    spread_apart,
)
from analysis.figures.scaling import MOST_BANDS, limits
from analysis.format import Row, percent, plural, quantity, with_interval
from analysis.styles import budget_order, in_order, place_of, style

SCORE = "test accuracy"
_PUBLISHED = (0, (4, 2))


def draw_fits(points: pa.Table, bands: pa.Table, crossings: pa.Table, *, score: str = SCORE) -> Chart:
    """Draw fitted curves with their bands, the cells' means as markers, and crossings as vertical spans.

    Args:
        points: from `pareto.front` (cost and mean score of every cell), or `measured.point_table`.
        bands: from `readings.band_table`; not empty.
        crossings: from `readings.crossing_table`.
        score: what is measured, in words.

    Raises:
        ValueError: no band.
    """
    if bands.num_rows == 0:
        raise ValueError("no fit to draw: the table has no row")
    rows = clip_intervals(bands.to_pylist(), "score")
    dots = points.to_pylist()
    turns = crossings.to_pylist()
    with mpl.rc_context(STYLE):
        figure, each = _panels(rows, score)
        for axes, place, panel_rows in each:
            for turn in (t for t in turns if place_of(t) == place and t["value"] is not None):
                with figure.parts_of(turn["method"]):
                    _draw_crossing(axes, turn, [r["at"] for r in panel_rows])
            for method in reversed(in_order({r["method"] for r in panel_rows})):
                with figure.parts_of(method):
                    _draw_fit(axes, method, [r for r in panel_rows if r["method"] == method])
            shown = {r["method"] for r in panel_rows}
            _dots(axes, [d for d in dots if place_of(d) == place and d["method"] in shown])
        mark_bands(figure, "simultaneous", given_rates=True)
        return figure


def draw_front(front: pa.Table, *, score: str = SCORE) -> Chart:
    """Draw every cell's score against its cost. A stepped line connects the front, and other cells are pale.

    Cells at a cost of 0 have no place on the log axis; `at_no_cost` names them.

    Raises:
        ValueError: no cell with a positive cost.
    """
    rows = [r for r in front.to_pylist() if r["cost"] > 0]
    if not rows:
        raise ValueError("no front to draw: no cell has a positive cost")
    with mpl.rc_context(STYLE):
        figure, each = _panels(rows, score)
        for axes, _, panel_rows in each:
            best = sorted((r for r in panel_rows if r["on_front"]), key=lambda r: r["cost"])
            beaten = [r for r in panel_rows if not r["on_front"]]
            axes.step([r["cost"] for r in best], [100 * r["score"] for r in best], where="post", color=MUTED, lw=1.0)
            _dots(axes, [*best, *beaten], pale=beaten)
        return figure


def at_no_cost(front: pa.Table) -> str:
    """Return a sentence on the cells at no cost, which `draw_front` cannot show; "" if there are none."""
    free = in_order({r["method"] for r in front.to_pylist() if r["cost"] <= 0})
    named = ", ".join(style(method).name for method in free)
    return f" Not on the logarithmic axis, but compared with: {named}, at a cost of 0." if named else ""


def draw_sizes(table: pa.Table, *, score: str = SCORE) -> Chart:
    """Score against training size, a line per method and budget (paler as it shrinks), the largest with its band.

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
        _log(axes, "adapter_params")
        axes.set_ylabel(f"{score} (%)")
        kinds = [Line2D([], [], color=MUTED), Line2D([], [], color=MUTED, linestyle=_PUBLISHED, linewidth=1.0)]
        axes.legend(kinds, ["this sweep", source], loc="lower right", fontsize=SMALL)
        legend(figure, methods)
        return figure


def _panels(rows: Sequence[Row], measured: str) -> tuple[Chart, Iterator[tuple[Any, Any, list[Row]]]]:
    """Return a figure of score against a cost, and an iterator of its panels: axes, place, and the place's rows.

    A panel's axes are named and scaled when the next one is asked for, the legend is added after the last.
    """
    places = list(dict.fromkeys(place_of(r) for r in rows))
    figure, grid = panels(
        len(places), 2, (COLUMN_INCHES, 2.4), extra=(0.0, 0.35), margins=(0.56, 0.12, 0.45, 0.52), gaps=(0.24, 0.55)
    )

    def each() -> Iterator[tuple[Any, Any, list[Row]]]:
        for place, cell in zip(places, grid, strict=True):
            axes = figure.add_subplot(cell)
            yield axes, place, [r for r in rows if place_of(r) == place]
            _log(axes, rows[0]["x"])
            axes.set_title(place_title(place, places), loc="left", fontweight="bold")
            if cell.is_first_col():
                axes.set_ylabel(f"{measured} (%)")
        legend(figure, in_order({r["method"] for r in rows}))

    return figure, each()


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
            tip = _marker_text(r, f"{r['reference'] or ''}, {labels[r['position']]}")
            dot(axes, method, at, 100 * r["mean"], tip, markersize=4.5 if look.marker else 3.5, alpha=fade, zorder=2)
        if k == len(budgets) - 1:
            band_or_bars(axes, x, rows, look.colour, banded=banded and has_band(rows))


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
        tip = _marker_text(r, whose, r["adapter_params"], "parameters")
        dot(axes, method, x, 100 * r["mean"], tip, zorder=2, **hollow)


def _marker_text(row: Row, where: str, cost: float | None = None, unit: str = "") -> str:
    """Return the text of a marker: method, setting, cost, score with its interval, seeds."""
    setting = where.strip(", ")
    value = row["mean"] if "mean" in row else row["score"]
    shown = with_interval(percent(value), percent(row.get("low")), percent(row.get("high")))
    at = f" at {setting}" if setting else ""
    words = [f"{style(row['method']).name}{at}: {shown} %"]
    if cost is not None:
        words.append(f"{quantity(cost)} {unit}".strip())
    if row.get("n"):
        words.append(plural(row["n"], "seed"))
    return ", ".join(words)


def _draw_fit(axes: Any, method: str, rows: Sequence[Row]) -> None:
    colour = style(method).colour
    at = [r["at"] for r in rows]
    axes.plot(at, [100 * r["score"] for r in rows], color=colour)
    if all(r["low"] is not None for r in rows):
        band(axes, at, [r["low"] for r in rows], [r["high"] for r in rows], colour, 0.16)


def _dots(axes: Any, rows: Sequence[Row], pale: Sequence[Row] = ()) -> None:
    """Draw the cells of a panel; one that would cover a cell before it stands beside it."""
    axes.set_xscale("log")
    spots = [spot(r["cost"], r["score"], r, bar=False) for r in rows]
    fix_limits(axes, spots)
    places = spread_apart(axes, spots)
    for at, row in zip(places, rows, strict=True):
        tip = _marker_text(row, row.get("reference") or "", row["cost"], axis_label(row.get("x")))
        dot(axes, row["method"], at, 100 * row["score"], tip, alpha=0.4 if row in pale else 1.0)


def _draw_crossing(axes: Any, turn: Row, at: Sequence[float]) -> None:
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
    """Return the name of a cost of `measured.AXES`, or 'training examples'."""
    return AXES[x].label.split(" (")[0] if x in AXES else "training examples"
