"""Fitted curves with bands against any cost, and what figures against a cost share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
import pyarrow as pa
from matplotlib.ticker import MaxNLocator

from analysis.drawing.charts import (
    COLUMN_INCHES,
    STYLE,
    Chart,
    band,
    clip_intervals,
    dot,
    fix_limits,
    legend,
    log_ticks,
    mark_bands,
    panels,
    place_title,
    spot,
    spread_apart,
)
from analysis.findings.fits.measured import axis_label
from analysis.format import Row, percent, plural, quantity, with_interval
from analysis.styles import in_order, place_of, style

SCORE = "test accuracy"


def draw_fits(points: pa.Table, bands: pa.Table, crossings: pa.Table, *, score: str = SCORE) -> Chart:
    """Draw fitted curves with their bands, the cells' means as markers, and crossings as vertical spans.

    Args:
        points: from `pareto.pareto_front` (cost and mean score of every cell), or `measured.point_table`.
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
        figure, each = cost_panels(rows, score)
        for axes, place, panel_rows in each:
            for turn in (t for t in turns if place_of(t) == place and t["value"] is not None):
                with figure.parts_of(turn["method"]):
                    _draw_crossing(axes, turn, [r["at"] for r in panel_rows])
            for method in reversed(in_order({r["method"] for r in panel_rows})):
                with figure.parts_of(method):
                    _draw_fit(axes, method, [r for r in panel_rows if r["method"] == method])
            shown = {r["method"] for r in panel_rows}
            draw_cells(axes, [d for d in dots if place_of(d) == place and d["method"] in shown])
        mark_bands(figure, "simultaneous", given_rates=True)
        return figure


def cost_panels(rows: Sequence[Row], measured: str) -> tuple[Chart, Iterator[tuple[Any, Any, list[Row]]]]:
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
            log_axis(axes, rows[0]["x"])
            axes.set_title(place_title(place, places), loc="left", fontweight="bold")
            if cell.is_first_col():
                axes.set_ylabel(f"{measured} (%)")
        legend(figure, in_order({r["method"] for r in rows}))

    return figure, each()


def marker_text(row: Row, where: str, cost: float | None = None, unit: str = "") -> str:
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


def draw_cells(axes: Any, rows: Sequence[Row], pale: Sequence[Row] = ()) -> None:
    """Draw the cells of a panel; one that would cover a cell before it stands beside it."""
    axes.set_xscale("log")
    spots = [spot(r["cost"], r["score"], r, bar=False) for r in rows]
    fix_limits(axes, spots)
    places = spread_apart(axes, spots)
    for at, row in zip(places, rows, strict=True):
        tip = marker_text(row, row.get("reference") or "", row["cost"], axis_label(row["x"]))
        dot(axes, row["method"], at, 100 * row["score"], tip, alpha=0.4 if row in pale else 1.0)


def _draw_crossing(axes: Any, turn: Row, at: Sequence[float]) -> None:
    low = turn["low"] if turn["low"] is not None else min(at)
    high = turn["high"] if turn["high"] is not None else max(at)
    colour = style(turn["method"]).colour
    if turn["share"] is not None:
        axes.axvspan(low, high, color=colour, alpha=0.07, linewidth=0)
    axes.axvline(turn["value"], color=colour, linewidth=0.8, linestyle=(0, (1, 1.5)))


def log_axis(axes: Any, x: str) -> None:
    axes.set_xscale("log")
    log_ticks(axes.xaxis, *axes.get_xlim())
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="x", visible=False)
    axes.set_xlabel(axis_label(x))
