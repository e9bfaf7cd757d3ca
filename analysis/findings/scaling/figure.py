"""Score against trainable parameters: the figure that the report begins with.

Log parameter axis, pointwise 95 % bands, one colour and marker per method everywhere, readable at the width of a
paper's column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pyarrow as pa
from matplotlib.ticker import MaxNLocator, NullLocator

from analysis.drawing.charts import (
    MUTED,
    PAPER,
    SMALL,
    STYLE,
    Chart,
    band_or_bars,
    clip_intervals,
    curve_panels,
    dot,
    fit_range,
    has_band,
    legend,
    line_style,
    log_ticks,
    mark_bands,
    padded,
    place_title,
    spot,
    spread_apart,
)
from analysis.format import Row, percent, plural
from analysis.styles import in_order, place_of, places, style
from analysis.verdict.inference import FEW_SEEDS

NEAR = 0.5
"""A method without a budget is drawn as a line if it is this near to the others, in parts of their range."""
MOST_BANDS = 5
"""Most curves of a panel whose intervals are shaded; of more they are bars, as bands would hide each other."""
ARROW_INCHES = 0.13
"""Height of an arrow with its score."""


def draw_scaling(curve: pa.Table, *, columns: int = 3, score: str = "test accuracy") -> Chart:
    """Draw score against trainable parameters, a panel per data set and training size.

    A marker that would cover another one stands beside it. A method without a budget whose score is far from the
    curves is an arrow with its score at the edge.

    Args:
        curve: from `scaling.curve`; not empty.
        columns: most panels in a row.
        score: what is measured, in words.

    Lines carry the id 'PANEL:METHOD' and the numbers of the table in percent; points the id 'point:PANEL:METHOD:INDEX'.
    Raises ValueError: no row.
    """
    if curve.num_rows == 0:
        raise ValueError("no curve to draw: the table has no row")
    rows, panel_places = clip_intervals(curve.to_pylist()), places(curve)
    with mpl.rc_context(STYLE):
        ranked = any(_lora_ranks([r for r in rows if place_of(r) == place]) for place in panel_places)
        figure, grid = curve_panels(len(panel_places), columns, over=0.4 if ranked else 0.22)
        named: set[str] = set()
        for index, (place, cell) in enumerate(zip(panel_places, grid, strict=True)):
            panel_rows = [r for r in rows if place_of(r) == place]
            axes = figure.add_subplot(cell)
            named |= _panel(axes, index, panel_rows)
            if cell.is_first_col():
                axes.set_ylabel(f"{score} (%)")
            axes.set_title(place_title(place, panel_places), loc="left", pad=16 if ranked else 6, fontweight="bold")
        legend(figure, in_order(named), bare_lines=True)
        mark_bands(figure, "pointwise", given_rates=True)
        return figure


def _panel(axes: Any, index: int, rows: Sequence[Row]) -> set[str]:
    """Draw one panel; returns the methods that its legend has to name."""
    lines, curves = ([r for r in rows if r["kind"] == kind] for kind in ("line", "curve"))
    low, high, near = limits_with_lines(curves, lines)
    below = [r for r in lines if r not in near and 100 * r["mean"] < low]
    above = [r for r in lines if r not in near and r not in below]
    _limit(axes, low, high, len(below), len(above))
    axes.set_xscale("log")
    axes.set_xlim(*_span(curves))
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel("trainable adapter parameters")
    for row in near:
        with axes.figure.parts_of(row["method"]):
            _line(axes, index, row)
    for far, edge in ((below, 0), (above, 1)):
        for k, row in enumerate(sorted(far, key=lambda r: r["mean"], reverse=edge == 1)):
            with axes.figure.parts_of(row["method"]):
                _arrow(axes, row, edge, k)
    _curves(axes, index, curves)
    log_ticks(axes.xaxis, *axes.get_xlim())
    _ranks(axes, curves)
    return {r["method"] for r in [*curves, *near]}


def limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Return the limits of the y axis, in percent. An interval much wider than the others is cut off."""
    ends = [(100 * r["low"], 100 * r["high"]) for r in rows if r["low"] is not None and r["n"] >= FEW_SEEDS]
    low, high = fit_range([100 * r["mean"] for r in rows], ends)
    return (low, high) if high > low else (low - 1, high + 1)


def limits_with_lines(curves: Sequence[Row], lines: Sequence[Row]) -> tuple[float, float, list[Row]]:
    """Return the limits of the y axis in percent, and the methods without a budget that lie within."""
    low, high = limits(curves or lines)
    room = NEAR * max(high - low, 2.0)
    near = [r for r in lines if low - room <= 100 * r["mean"] <= high + room]
    levels = [100 * r["mean"] for r in near]
    return min([low, *levels]), max([high, *levels]), near


def _limit(axes: Any, low: float, high: float, below: int, above: int) -> None:
    """Set the limits of the y axis, with room for so many arrows at either edge."""
    low, high = padded(low, high)
    inches = axes.bbox.height / axes.figure.dpi
    under, over = (ARROW_INCHES * count / inches for count in (below, above))
    unit = (high - low) / max(1 - under - over, 0.3)
    axes.set_ylim(low - under * unit, high + over * unit)


def _span(curves: Sequence[Row]) -> tuple[float, float]:
    counts = [r["adapter_params"] for r in curves if r["adapter_params"]]
    if not counts:
        return 1.0, 10.0
    edge = (max(counts) / min(counts)) ** 0.06 if max(counts) > min(counts) else 2.0
    return min(counts) / edge, max(counts) * edge


def _line(axes: Any, index: int, row: Row) -> None:
    """Draw a method without a budget as a dashed line at its score."""
    look, gid = style(row["method"]), f"{index}:{row['method']}"
    if row["low"] is not None:
        axes.axhspan(100 * row["low"], 100 * row["high"], color=look.colour, alpha=0.08, linewidth=0)
    axes.axhline(100 * row["mean"], color=look.colour, linewidth=1.1, linestyle=line_style(row["method"]), gid=gid)
    axes.figure.tips[gid] = point_text(row)


def _arrow(axes: Any, row: Row, edge: int, before: int) -> None:
    """Draw an arrow with the score of a method far from the curves, at the lower (0) or upper edge (1)."""
    head, side = ("\N{DOWNWARDS ARROW}", 1) if edge == 0 else ("\N{UPWARDS ARROW}", -1)
    look, gid = style(row["method"]), f"far:{len(axes.figure.tips)}"
    axes.annotate(
        f"{head} {look.name} {100 * row['mean']:.1f}",
        (0.01, edge),
        xycoords="axes fraction",
        xytext=(0, side * (1.5 + 72 * ARROW_INCHES * before)),
        textcoords="offset points",
        color=look.colour,
        fontsize=SMALL,
        va="bottom" if edge == 0 else "top",
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.3},  # over the grid
        gid=gid,
    )
    axes.figure.tips[gid] = point_text(row)


def _curves(axes: Any, index: int, curves: Sequence[Row]) -> None:
    """Draw every method's curve. A marker that would cover another method's stands beside it."""
    methods = in_order({r["method"] for r in curves})
    each = {m: sorted((r for r in curves if r["method"] == m), key=lambda r: r["adapter_params"]) for m in methods}
    banded = {m: has_band(line) and len(methods) <= MOST_BANDS for m, line in each.items()}
    spots = [spot(r["adapter_params"], r["mean"], r, bar=not banded[m]) for m, line in each.items() for r in line]
    asides = iter(spread_apart(axes, spots))
    x = {m: [next(asides) for _ in line] for m, line in each.items()}
    for method in reversed(methods):  # the first method ends on top
        look, line = style(method), each[method]
        y = [100 * r["mean"] for r in line]
        with axes.figure.parts_of(method):
            band_or_bars(axes, x[method], line, look.colour, banded=banded[method])
            axes.plot(x[method], y, color=look.colour, gid=f"{index}:{method}", solid_capstyle="round")
            for i, r in enumerate(line):
                dot(axes, method, x[method][i], y[i], point_text(r), f"point:{index}:{method}:{i}")


def point_text(row: Row) -> str:
    """Return the text of a method's marker: budget, parameters, score, interval and seeds."""
    interval = "" if row["low"] is None else f" [{percent(row['low'])}, {percent(row['high'])}]"
    of = f" at {row['reference']}: {row['adapter_params']:,} parameters," if row["kind"] == "curve" else ":"
    return f"{style(row['method']).name}{of} {percent(row['mean'])} %{interval}, {plural(row['n'], 'seed')}"


def _lora_ranks(curves: Sequence[Row]) -> dict[str, int]:
    """Return the budget of each LoRA rank, or {} if any budget is not defined by a LoRA rank."""
    budget_by_name = {r["reference"]: r["budget"] for r in curves if r["kind"] == "curve"}
    if not all(name and name.startswith("lora-") for name in budget_by_name):
        return {}
    return {name.removeprefix("lora-"): budget for name, budget in budget_by_name.items()}


def _ranks(axes: Any, curves: Sequence[Row]) -> None:
    """Draw a second axis on top with the LoRA ranks that define the budgets."""
    ranks = _lora_ranks(curves)
    if not ranks:
        return
    top = axes.secondary_xaxis("top")
    top.set_xticks(list(ranks.values()), labels=list(ranks))
    top.xaxis.set_minor_locator(NullLocator())
    top.spines["top"].set_visible(False)
    top.tick_params(length=2, pad=1, labelcolor=MUTED, labelsize=SMALL)
    axes.annotate(
        "LoRA rank",
        (0, 1),
        xycoords="axes fraction",
        xytext=(-3, 4),
        textcoords="offset points",
        ha="right",
        fontsize=SMALL,
        color=MUTED,
    )
