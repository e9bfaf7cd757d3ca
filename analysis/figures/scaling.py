"""Score against trainable parameters: the figure that the report begins with.

Log parameter axis, pointwise 95 % bands, one colour and marker per method everywhere, readable at the width of a
paper's column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pyarrow as pa
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from analysis.figures.drawing import (
    DASHES,
    MUTED,
    STYLE,
    Chart,
    band_or_bars,
    curve_panels,
    dot,
    log_ticks,
    mark_bands,
    place_title,
)
from analysis.format import Row, percent
from analysis.styles import in_order, place_of, places, style
from analysis.words.weak import FEW_SEEDS


def draw_scaling(curve: pa.Table, *, columns: int = 3, score: str = "test accuracy") -> Chart:
    """Score against trainable parameters: one panel per data set and training size.

    Args:
        curve: from `scaling.curve`; not empty.
        columns: most panels in a row.
        score: what is measured, in words.

    Lines carry the id 'PANEL:METHOD' and the numbers of the table in percent; points the id 'point:PANEL:METHOD:INDEX'.
    Raises ValueError: no row.
    """
    if curve.num_rows == 0:
        raise ValueError("no curve to draw: the table has no row")
    rows = curve.to_pylist()
    methods = in_order({r["method"] for r in rows if r["kind"] == "curve"})
    with mpl.rc_context(STYLE):
        found = places(curve)
        figure, spots = curve_panels(len(found), columns, methods)
        for index, (place, spot) in enumerate(zip(found, spots, strict=True)):
            mine = [r for r in rows if place_of(r) == place]
            axes = _panel(figure, spot, index, mine)
            if spot.is_first_col():
                axes.set_ylabel(f"{score} (%)")
            where = f"mean of {mine[0]['n_datasets']} data sets" if place[2] is None else place[2]
            pad = 16 if _lora_ranks(mine) else 6
            axes.set_title(place_title((*place[:2], where, place[3]), found), loc="left", pad=pad, fontweight="bold")
        mark_bands(figure, "pointwise")
        return figure


def _panel(figure: Chart, spot: Any, index: int, rows: Sequence[Row]) -> Any:
    """Draw one panel; returns its axes, the upper ones where a line far below breaks them."""
    lines = [r for r in rows if r["kind"] == "line"]
    curves = [r for r in rows if r["kind"] == "curve"]
    low, high = limits(curves + [r for r in lines if r["method"] != "zero-shot"] or lines)
    far = [r for r in lines if 100 * r["mean"] < low - 0.45 * (high - low)]
    high = max([high, *(100 * r["mean"] for r in lines)])
    pad = max(0.06 * (high - low), 0.3)
    if far and len(far) < len(rows):  # a line far below would flatten the curves: break the axis
        upper, lower = spot.subgridspec(2, 1, height_ratios=(7, 1), hspace=0.09)
        axes, foot = figure.add_subplot(upper), figure.add_subplot(lower)
        _foot(axes, foot, far)
        shown = [r for r in lines if r not in far]
    else:
        axes, foot, shown = figure.add_subplot(spot), None, lines
        low = min([low, *(100 * r["mean"] for r in shown)])
    axes.set_ylim(low - pad, high + 1.6 * pad)
    base = foot or axes
    for ax in filter(None, (axes, foot)):
        ax.set_xscale("log")
        ax.set_xlim(*_span(curves))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.grid(axis="x", visible=False)
    log_ticks(base.xaxis, *_span(curves))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    base.set_xlabel("trainable adapter parameters")
    for row in shown:
        with figure.of(row["method"]):
            _line(axes, index, row, *_clear_place(axes, row, curves))
    for row in far:
        with figure.of(row["method"]):
            _line(foot, index, row, "left", "bottom")
    for method in reversed(in_order({r["method"] for r in curves})):  # the first method ends on top
        with figure.of(method):
            _curve(axes, index, method, [r for r in curves if r["method"] == method])
    _ranks(axes, curves)
    return axes


def limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Least and largest value to show, in percent; an interval wider than the picture may run out of it."""
    means = [100 * r["mean"] for r in rows]
    reach = 1.5 * max(max(means) - min(means), 2.0)
    ends = [100 * v for r in rows for v in (r["low"], r["high"]) if v is not None and r["n"] >= FEW_SEEDS]
    low = max(min([*means, *ends]), min(means) - reach)
    high = min(max([*means, *ends]), max(means) + reach)
    low, high = low if min(means) < 0 else max(low, 0.0), min(high, 100.0)  # a correlation may be negative
    return (low, high) if high > low else (low - 1, high + 1)


def _span(curves: Sequence[Row]) -> tuple[float, float]:
    counts = [r["adapter_params"] for r in curves if r["adapter_params"]]
    if not counts:
        return 1.0, 10.0
    edge = (max(counts) / min(counts)) ** 0.06 if max(counts) > min(counts) else 2.0
    return min(counts) / edge, max(counts) * edge


def _foot(axes: Any, foot: Any, far: Sequence[Row]) -> None:
    """The small part of a broken axis, around the lines far below."""
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", which="both", bottom=False, labelbottom=False)
    values = [100 * r["mean"] for r in far]
    foot.set_ylim(min(values) - 3, max(values) + 3)
    foot.yaxis.set_major_locator(FixedLocator(values))
    foot.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0f}"))
    foot.grid(visible=False)
    marks = {
        "marker": [(-1, -0.6), (1, 0.6)],
        "markersize": 6,
        "linestyle": "none",
        "color": MUTED,
        "clip_on": False,
        "mew": 0.8,
    }
    axes.plot([0], [0], transform=axes.transAxes, **marks)
    foot.plot([0], [1], transform=foot.transAxes, **marks)


def _clear_place(axes: Any, line: Row, curves: Sequence[Row]) -> tuple[str, str]:
    """The end of a horizontal line, and the side of it, where no curve comes near its name."""
    low, high = axes.get_ylim()
    height = 0.07 * (high - low)  # of a name, in a panel of the usual height
    counts = [r["adapter_params"] for r in curves]
    room = {}
    for place, middle in (("bottom", 100 * line["mean"] + height / 2), ("top", 100 * line["mean"] - height / 2)):
        for side, end in (("left", min(counts, default=1)), ("right", max(counts, default=1))):
            near = [abs(100 * r["mean"] - middle) for r in curves if end / 2 <= r["adapter_params"] <= end * 2]
            room[side, place] = min([*near, 2 * height])  # farther is no clearer
    return max(room, key=lambda place: room[place])


def _line(axes: Any, index: int, row: Row, side: str, place: str) -> None:
    """A method without a budget: a dashed line at its score, named at one end of it, on or under it."""
    look = style(row["method"])
    level = 100 * row["mean"]
    dashes = (0, (1.2, 1.6)) if row["method"] == "zero-shot" else DASHES
    if row["low"] is not None:
        axes.axhspan(100 * row["low"], 100 * row["high"], color=look.colour, alpha=0.08, linewidth=0)
    axes.axhline(level, color=look.colour, linewidth=1.1, linestyle=dashes, gid=f"{index}:{row['method']}")
    axes.annotate(
        f"{look.name} {level:.1f}",
        (0.01 if side == "left" else 0.99, level),
        xycoords=("axes fraction", "data"),
        xytext=(0, 1.5 if place == "bottom" else -1.5),
        textcoords="offset points",
        color=look.colour,
        fontsize=6.8,
        va=place,
        ha=side,
    )


def _curve(axes: Any, index: int, method: str, rows: Sequence[Row]) -> None:
    look = style(method)
    rows = sorted(rows, key=lambda r: r["adapter_params"])
    x = [r["adapter_params"] for r in rows]
    y = [100 * r["mean"] for r in rows]
    band_or_bars(axes, x, rows, look.colour)
    axes.plot(x, y, color=look.colour, gid=f"{index}:{method}", solid_capstyle="round")
    for i, r in enumerate(rows):
        dot(axes, method, x[i], y[i], point_text(r), f"point:{index}:{method}:{i}")


def point_text(row: Row) -> str:
    """What a method's marker says: budget, parameters, score, interval and seeds."""
    interval = "" if row["low"] is None else f" [{percent(row['low'])}, {percent(row['high'])}]"
    of = f" at {row['reference']}: {row['adapter_params']:,} parameters," if row["kind"] == "curve" else ":"
    return f"{style(row['method']).name}{of} {percent(row['mean'])} %{interval}, {row['n']} seed{'s' * (row['n'] != 1)}"


def _lora_ranks(curves: Sequence[Row]) -> dict[str, int]:
    """Rank label -> budget, where budgets are LoRA ranks; empty where any is not."""
    found = {r["reference"]: r["budget"] for r in curves if r["kind"] == "curve"}
    if not all(name and name.startswith("lora-") for name in found):
        return {}
    return {name.removeprefix("lora-"): budget for name, budget in found.items()}


def _ranks(axes: Any, curves: Sequence[Row]) -> None:
    """A second axis on top: the LoRA ranks that define the budgets."""
    ranks = _lora_ranks(curves)
    if not ranks:
        return
    top = axes.secondary_xaxis("top")
    top.set_xticks(list(ranks.values()), labels=list(ranks))
    top.xaxis.set_minor_locator(NullLocator())
    top.spines["top"].set_visible(False)
    top.tick_params(length=2, pad=1, labelcolor=MUTED, labelsize=6.5)
    axes.annotate(
        "LoRA rank",
        (0, 1),
        xycoords="axes fraction",
        xytext=(-3, 4),
        textcoords="offset points",
        ha="right",
        fontsize=6.5,
        color=MUTED,
    )
