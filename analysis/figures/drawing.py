"""What all figures share: their look, their panels, markers and legend, and how they are written.

Figures are made without pyplot, so there is no global state.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from analysis.format import Row
from analysis.styles import Place, cut, place_text, short_name, style
from analysis.words.weak import FEW_SEEDS

INK, MUTED, GRID, PAPER = "#1b1f24", "#6b7480", "#e3e7ec", "#ffffff"
COLUMN_INCHES = 3.5
TITLE_WIDTH = 42
"""Characters that fit over one panel."""
_ROW = 0.0225
"""Inches of a legend's row, a point of its type."""
DASHES = (0, (5, 2))
"""Of the lines of methods without a budget."""
FORMATS = ("png", "svg", "pdf")
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "text.parse_math": False,  # a $ in a name is one; so ticks need formats without formulas
    "svg.hashsalt": "randlora",  # the same numbers give the same file
    "pdf.fonttype": 42,
}


class Chart(Figure):
    """A figure drawn by matplotlib's Agg that knows what its markers say on hover.

    Attributes:
        tips: artist id -> text; `dot` fills it.
        parts: artist id -> the method that it shows; `dot` and `of` fill it.
        keys: id of a name in the legend -> its method.
    """

    def __init__(self, width: float, height: float) -> None:
        """An empty one; sizes in inches."""
        super().__init__(figsize=(width, height), facecolor=PAPER)
        self.tips: dict[str, str] = {}
        self.parts: dict[str, str] = {}
        self.keys: dict[str, str] = {}
        FigureCanvasAgg(self)

    @contextlib.contextmanager
    def of(self, method: str) -> Iterator[None]:
        """What the block draws shows this method; the page's legend hides all of it."""
        before = {artist for axes in self.axes for artist in axes.get_children()}
        yield
        for artist in (artist for axes in self.axes for artist in axes.get_children() if artist not in before):
            gid = artist.get_gid() or f"part:{len(self.parts)}"
            artist.set_gid(gid)
            self.parts[gid] = method


def count_text(value: float, _: int | None = None) -> str:
    """A parameter count for an axis: '12k', '1.5M'."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def log_ticks(axis: Any, low: float, high: float) -> None:
    """Ticks of a logarithmic axis of counts: 1, 2 and 5; of a range too short for these a few even ones."""
    short = high / low < 3
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_locator(MaxNLocator(3) if short else LogLocator(base=10, subs=(1, 2, 5), numticks=8))
    axis.set_major_formatter(FuncFormatter(_fine_text if short else count_text))


def _fine_text(value: float, _: int | None = None) -> str:
    return count_text(value) if float(f"{value:.3g}") == value else f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"


def panels(
    count: int,
    columns: int,
    size: tuple[float, float],
    *,
    extra: tuple[float, float],
    margins: tuple[float, float, float, float],
    gaps: tuple[float, float],
) -> tuple[Chart, list[Any]]:
    """A figure with room for panels, and the places (matplotlib's SubplotSpec) of the panels in it.

    Args:
        count: of panels.
        columns: most panels in a row.
        size: width and height of a panel, in inches.
        extra: width and height of the figure beyond its panels, in inches.
        margins: around all panels, in inches: left, right, bottom, top.
        gaps: between panels, as parts of a panel's width and height.
    """
    across = min(columns, count)
    down = math.ceil(count / across)
    width, height = size[0] * across + extra[0], size[1] * down + extra[1]
    left, right, bottom, top = margins
    figure = Chart(width, height)
    grid = figure.add_gridspec(
        down,
        across,
        wspace=gaps[0],
        hspace=gaps[1],
        left=left / width,
        right=1 - right / width,
        bottom=bottom / height,
        top=1 - top / height,
    )
    return figure, [grid[i // across, i % across] for i in range(count)]


def curve_panels(count: int, columns: int, methods: Sequence[str]) -> tuple[Chart, list[Any]]:
    """`panels` of curves, at most `columns` in a row, under a legend of the methods in as many rows as it needs."""
    across = _across(methods, COLUMN_INCHES * min(columns, count), 7.5)
    more = _ROW * 7.5 * (math.ceil(len(methods) / max(1, across)) - 1)
    figure, spots = panels(
        count,
        columns,
        (COLUMN_INCHES, 2.55),
        extra=(0.0, 0.2 + more),
        margins=(0.56, 0.12, 0.42, 0.6 + more),
        gaps=(0.24, 0.5),
    )
    legend(figure, methods, across, edge=0.6, fontsize=7.5, handlelength=1.6, columnspacing=1.1)
    return figure, spots


def padded(low: float, high: float) -> tuple[float, float]:
    """Ends of an axis of scores or differences in percent, with some room around what it shows."""
    pad = max(0.06 * (high - low), 0.3)
    return low - pad, high + pad


def place_title(place: Place, among: Collection[Place] = ()) -> str:
    """The title of a panel: the data set by its name alone (its source is in the tables), and the training size.

    The model and the sweep have lines of their own where those of `among` are of several.
    """
    short = short_name(place[2] or "mean over data sets")
    apart = [str(place[i]) for i in (1, 0) if len({other[i] for other in among}) > 1]
    apart = [name.partition(":")[2] if name.startswith("open_clip:") else name.rpartition("/")[2] for name in apart]
    named = place_text(short, place[3]) if place[3] else short
    return "\n".join(cut(part, TITLE_WIDTH) for part in (named, *apart))


def dot(axes: Any, method: str, x: float, y: float, says: str, gid: str | None = None, **look: Any) -> None:
    """A method's marker at one point, hollow for a method without a budget, and what it says on hover."""
    tips = axes.figure.tips
    gid = gid or f"tip:{len(tips)}"
    tips[gid] = says
    axes.figure.parts[gid] = method
    mine = style(method)
    solid = mine.marker is not None
    drawn: dict[str, Any] = {
        "marker": mine.marker or "o",
        "color": mine.colour,
        "markerfacecolor": mine.colour if solid else PAPER,
        "markeredgecolor": PAPER if solid else mine.colour,
        "markeredgewidth": 0.6,
        "linestyle": "none",
        "zorder": 3,
    }
    axes.plot([x], [y], gid=gid, **drawn | look)


def band(axes: Any, x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str, alpha: float) -> None:
    """Shade between two lines of fractions, in percent."""
    ends = [100 * v for v in low], [100 * v for v in high]
    axes.fill_between(x, *ends, color=colour, alpha=alpha, linewidth=0)


def band_or_bars(axes: Any, x: Sequence[float], rows: Sequence[Row], colour: str, *, banded: bool = True) -> None:
    """The intervals of a curve's points (`low`, `high`, `n`): a band where all have one of `FEW_SEEDS` or more.

    Else bars: a band would say something of a point in between that has no interval.
    """
    known = [(at, r) for at, r in zip(x, rows, strict=True) if r["low"] is not None]
    at, low, high = [at for at, _ in known], [r["low"] for _, r in known], [r["high"] for _, r in known]
    if banded and len(known) == len(rows) > 1 and all(r["n"] >= FEW_SEEDS for r in rows):
        band(axes, at, low, high, colour, 0.16)
    elif known:
        axes.vlines(at, [100 * v for v in low], [100 * v for v in high], color=colour, linewidth=1.1, alpha=0.7)


def _across(methods: Sequence[str], inches: float, size: float) -> int:
    """How many methods fit into a row of a legend so wide, in type of `size` points."""
    widths = [size * (0.05 + 0.0073 * len(style(m).name)) for m in methods]
    return len(methods) if sum(widths) <= inches else max(1, int(inches / max(widths)))


def _raise(figure: Chart, inches: float) -> None:
    """Room on top; what is drawn stays as large, and as far from the bottom."""
    before = figure.get_figheight()
    figure.set_figheight(before + inches)
    kept = before / (before + inches)
    for axes in figure.axes:
        left, low, width, height = axes.get_position(original=True).bounds
        axes.set_position((left, kept * low, width, kept * height))


def legend(
    figure: Chart, methods: Sequence[str], columns: int | None = None, *, edge: float = 1.0, **look: Any
) -> None:
    """Methods over the panels, in their colours; those without a budget dashed.

    Args:
        columns: methods in a row, for which there is room; None: what the figure, complete but for this, has in its
            width, and room for further rows is made.
    """
    handles = [
        Line2D(
            [],
            [],
            color=style(m).colour,
            marker=style(m).marker or "None",
            markeredgecolor=PAPER,
            markeredgewidth=edge,
            linestyle="-" if style(m).marker else DASHES,
        )
        for m in methods
    ]
    many = len(methods) > 4
    size = 5.8 if many else 7.5
    if columns is None:
        columns = _across(methods, figure.get_figwidth(), size)
        _raise(figure, _ROW * size * (math.ceil(len(methods) / max(1, columns)) - 1))
    shown: dict[str, Any] = {
        "loc": "upper left",
        "bbox_to_anchor": (0.0, 1.0),
        "ncols": columns,
        "fontsize": size,
        "handlelength": 1.2 if many else 1.6,
        "columnspacing": 0.8,
        "handletextpad": 0.4,
        "borderaxespad": 0.3,
    }
    drawn = figure.legend(handles, [style(m).name for m in methods], **shown | look)
    for i, (method, name) in enumerate(zip(methods, drawn.get_texts(), strict=True)):
        name.set_gid(f"key:{i}")
        figure.keys[f"key:{i}"] = method


def mark_bands(
    figure: Figure, kind: Literal["pointwise", "simultaneous", "left pointwise, right simultaneous"]
) -> None:
    """Say in a corner what the figure's bands hold: each point for itself, or all at once."""
    figure.text(0.005, 0.008, f"bands: 95 %, {kind}", ha="left", va="bottom", fontsize=5.5, color=MUTED)


def save(figure: Figure, folder: Path, stem: str, formats: Sequence[str] = FORMATS) -> dict[str, Path]:
    """Write a figure in several formats; returns 'STEM.FORMAT' -> path. The bytes depend on the numbers only."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with mpl.rc_context(STYLE):
        for kind in formats:
            path = folder / f"{stem}.{kind}"
            temporary = path.with_name(f".{path.name}.tmp")  # a report may read the folder at any time
            figure.savefig(temporary, format=kind, dpi=300, metadata=dates.get(kind))
            temporary.replace(path)
            paths[path.name] = path
    return paths
