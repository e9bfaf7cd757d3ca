"""What all figures share: their look, their panels, markers and legend, and how they are written.

Figures are made without pyplot, so there is no global state.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from analysis.format import Row, visible
from analysis.styles import Place, cut, short_name, size_text, style, training_text
from analysis.verdict.inference import FEW_SEEDS

INK = "#1b1f24"
MUTED = "#6b7480"
GRID = "#e3e7ec"
PAPER = "#ffffff"
COLUMN_INCHES = 3.3
"""Width of a panel of curves: a paper's column holds one, and its page two beside each other."""
SMALL = 7.0
"""Points of the smallest type in any figure."""
MARKER_POINTS = 5.6
"""Width and height that a marker takes, with some room around it."""
REACH = 20.0
"""Points by which an interval may leave all values of an axis, however near to each other these are."""
TITLE_WIDTH = 42
"""Characters that fit over one panel."""
_ROW = 0.0225 * SMALL
"""Inches of a legend's row."""
_NOTE = 0.13
"""Inches of the line at the bottom that says what the bands are."""
DASHES, DOTS = (0, (5, 2)), (0, (1.2, 1.6))
"""Lines of methods without a budget; zero-shot's is dotted."""
_SIZES = {"*": 1.6, "P": 1.2, "X": 1.2, "d": 1.15, "v": 1.1, "^": 1.1, "<": 1.1, ">": 1.1}
"""How much larger thin markers are drawn, so that all of them look alike in size."""
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
        """Make an empty figure of this size in inches."""
        super().__init__(figsize=(width, height), facecolor=PAPER)
        self.tips: dict[str, str] = {}
        self.parts: dict[str, str] = {}
        self.keys: dict[str, str] = {}
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        """Return the figure as PNG. Notebooks call this, since they only know how to show figures of pyplot."""
        file = io.BytesIO()
        with mpl.rc_context(STYLE):
            self.savefig(file, format="png", dpi=150)
        return file.getvalue()

    @contextlib.contextmanager
    def parts_of(self, method: str) -> Iterator[None]:
        """Register what is drawn in the `with` block as parts of a method, which the page's legend can hide."""
        before = {artist for axes in self.axes for artist in axes.get_children()}
        yield
        for artist in (artist for axes in self.axes for artist in axes.get_children() if artist not in before):
            gid = artist.get_gid() or f"part:{len(self.parts)}"
            artist.set_gid(gid)
            self.parts[gid] = method


def count_text(value: float, _: int | None = None) -> str:
    """Return a parameter count for an axis: '12k', '1.5M'."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def log_ticks(axis: Any, low: float, high: float) -> None:
    """Set few ticks on a logarithmic axis of counts: 1, 2 and 5, fewer on a long axis, even ones on a short one."""
    span = high / low
    short = span < 3
    subs = (1, 2, 5) if span < 100 else (1, 3) if span < 1e4 else (1,)
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_locator(MaxNLocator(3) if short else LogLocator(base=10, subs=subs, numticks=8))
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
    """Return a figure with room for panels, and the places (matplotlib's SubplotSpec) of the panels in it.

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


def curve_panels(count: int, columns: int, over: float) -> tuple[Chart, list[Any]]:
    """Return `panels` of curves, with room for a legend of one row.

    Args:
        count, columns: as of `panels`.
        over: height of the title of a panel, and of its second axis if it has one, in inches.
    """
    size, margins = (COLUMN_INCHES, 2.2 + over), (0.56, 0.12, 0.42, over + 0.22)
    return panels(count, columns, size, extra=(0.0, 0.2), margins=margins, gaps=(0.24, (0.5 + over) / 1.7))


def padded(low: float, high: float) -> tuple[float, float]:
    """Return the ends of an axis of scores or differences in percent, with some room around what it shows."""
    pad = max(0.06 * (high - low), 0.3)
    return low - pad, high + pad


def fit_range(values: Sequence[float], ends: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the range of an axis, in percent or points, that shows all values and most of their intervals.

    An interval may leave the values by two of the wider half widths (the upper quartile), but by no more than 2.5
    times the range of the values, or `REACH` if that is more: the values have to be seen apart.
    """
    low, high = min(values), max(values)
    if ends:
        wide = 2 * float(np.quantile([(above - below) / 2 for below, above in ends], 0.75))
        reach = min(wide, max(2.5 * (high - low), REACH))
        low = min(low, max(min(below for below, _ in ends), low - reach))
        high = max(high, min(max(above for _, above in ends), high + reach))
    return low, high


def clip_intervals(rows: Sequence[Row], value: str = "mean", low: str = "low", high: str = "high") -> list[Row]:
    """Return rows of scores with intervals cut at 0 and 100 %, or at -100 % if a score is negative."""
    least = -1.0 if any((r[value] or 0.0) < 0 for r in rows) else 0.0
    return [r | {end: None if r[end] is None else min(max(r[end], least), 1.0) for end in (low, high)} for r in rows]


def fix_limits(axes: Any, spots: Sequence[Spot]) -> None:
    """Set the limits of both axes so that these spots and all that is drawn are seen; they stay."""
    axes.update_datalim([(each.x, end) for each in spots for end in (each.low, each.high)])
    axes.autoscale_view()
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())


class Spot(NamedTuple):
    """A marker and its bar, where they would stand: in the units of the axes, or in points.

    Attributes:
        x, y: of the marker. low, high: the ends of its bar; those of a marker without one are `y`.
    """

    x: float
    y: float
    low: float
    high: float


def spot(x: float, value: float, row: Row, *, bar: bool = True) -> Spot:
    """Return the spot of a row with a `value` and an interval (`low`, `high`). Fractions become percent."""
    bare = not bar or row["low"] is None
    return Spot(x, *(100 * v for v in ((value, value, value) if bare else (value, row["low"], row["high"]))))


def spread_apart(axes: Any, spots: Sequence[Spot]) -> list[float]:
    """Return x positions at which no marker covers an earlier one. Markers move as little as possible.

    Both axes need their limits before. Those of x are widened if markers at an edge have no room, and markers move
    closer together if even that is not enough.

    Args:
        axes: linear or logarithmic.
        spots: in the units of the axes.
    """
    if axes.get_xscale() == "log" and any(each.x <= 0 for each in spots):  # no marker of these is seen
        places_shown = iter(spread_apart(axes, [each for each in spots if each.x > 0]))
        return [next(places_shown) if each.x > 0 else each.x for each in spots]
    limits = axes.get_xlim()
    room = axes.bbox.width * 72 / axes.figure.dpi
    half = MARKER_POINTS / 2
    for apart in (1.0, 0.75, 0.5, 0.3):
        axes.set_xlim(limits)
        for _ in range(4):
            places = _places(axes, spots, apart)
            least, most = min(places, default=room), max(places, default=0.0)
            if least >= half - 0.01 and most <= room - half + 0.01:
                return list(_from_points(axes, places))
            ends = min(0.0, least - half), max(room, most + half)
            axes.set_xlim(*_from_points(axes, ends))
    return list(_from_points(axes, _places(axes, spots, apart)))


def _places(axes: Any, spots: Sequence[Spot], apart: float) -> list[float]:
    """Return each spot's position in points from the left end of the axis. `apart` scales the free room around it."""
    if not spots:
        return []
    scale, coordinates = 72 / axes.figure.dpi, np.asarray(spots)
    ends = [scale * axes.transData.transform(coordinates[:, (0, column)]) for column in (1, 2, 3)]
    positions = np.column_stack([ends[0][:, 0] - scale * axes.bbox.x0, *(each[:, 1] for each in ends)])
    for k in range(1, len(positions)):
        at, room = positions[:k, 0], apart * _clearances(positions[k], positions[:k])
        asides = np.concatenate([positions[k : k + 1, 0], at + room, at - room])
        free = asides[(np.abs(asides[:, None] - at) > room - 1e-6).all(axis=1)]
        positions[k, 0] = free[np.argmin(np.abs(free - positions[k, 0]))]
    return [float(x) for x in positions[:, 0]]


def _clearances(one: Any, others: Any) -> Any:
    """Return the distance in points that a spot needs from each of the others, so that both are visible."""
    (_, y, low, high), (_, ys, lows, highs) = one, others.T
    half = MARKER_POINTS / 2
    on_bar = ((lows - half < y) & (y < highs + half)) | ((low - half < ys) & (ys < high + half))
    bars = (low < highs) & (lows < high)
    return MARKER_POINTS * np.select([np.abs(y - ys) < MARKER_POINTS, on_bar, bars], [1.0, 0.7, 0.4], 0.0)


def _from_points(axes: Any, places: Sequence[float]) -> Any:
    """Return the values on the x axis at these distances (in points) from its left end."""
    pixels = [(axes.bbox.x0 + place * axes.figure.dpi / 72, axes.bbox.y0) for place in places]
    return axes.transData.inverted().transform(pixels)[:, 0] if pixels else []


def place_title(place: Place, among: Collection[Place] = ()) -> str:
    """Return the title of a panel: the short name of the data set (its source is in the tables), and the size.

    A mean over data sets has the training size only if those of `among` differ in it. The model and the sweep have
    lines of their own if those of `among` differ in them.
    """
    train_size, dataset = place[3], place[2]
    if dataset:
        alike = {other[2] for other in among if other[2] and short_name(other[2]) == short_name(dataset)}
        name = dataset if len(alike) > 1 else short_name(dataset)
        size = "" if size_text(train_size) == "all data" else training_text(dataset, train_size)
    else:
        name = "mean over data sets" if dataset is None else ""
        size = size_text(train_size) if not name or len({other[3] for other in among}) > 1 else ""
    named = ", ".join(filter(None, (name, size)))
    apart = [str(place[i]) for i in (1, 0) if len({other[i] for other in among}) > 1]
    apart = [name.partition(":")[2] if name.startswith("open_clip:") else name.rpartition("/")[2] for name in apart]
    return "\n".join(cut(part, TITLE_WIDTH) for part in (named, *apart))


def dot(axes: Any, method: str, x: float, y: float, says: str, gid: str | None = None, **look: Any) -> None:
    """Draw a method's marker at one point, hollow for a method without a budget; `says` is shown on hover."""
    tips = axes.figure.tips
    gid = gid or f"tip:{len(tips)}"
    tips[gid] = says
    axes.figure.parts[gid] = method
    look_of_method = style(method)
    solid = look_of_method.marker is not None
    drawn: dict[str, Any] = {
        "marker": look_of_method.marker or "o",
        "color": look_of_method.colour,
        "markerfacecolor": look_of_method.colour if solid else PAPER,
        "markeredgecolor": PAPER if solid else look_of_method.colour,
        "markeredgewidth": 0.5,
        "markersize": mpl.rcParams["lines.markersize"],
        "linestyle": "none",
        "zorder": 3,
    } | look
    drawn["markersize"] *= _SIZES.get(drawn["marker"], 1.0)
    axes.plot([x], [y], gid=gid, **drawn)


def band(axes: Any, x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str, alpha: float) -> None:
    """Shade between two lines of fractions, in percent."""
    ends = [100 * v for v in low], [100 * v for v in high]
    axes.fill_between(x, *ends, color=colour, alpha=alpha, linewidth=0)


def has_band(rows: Sequence[Row]) -> bool:
    """Whether a curve's intervals may be shaded: every point has one, of `FEW_SEEDS` or more."""
    return len(rows) > 1 and all(r["low"] is not None and r["n"] >= FEW_SEEDS for r in rows)


def band_or_bars(axes: Any, x: Sequence[float], rows: Sequence[Row], colour: str, *, banded: bool) -> None:
    """Draw the intervals (`low`, `high`) of a curve's points, as a band or as a bar for each point."""
    with_interval_rows = [(at, r) for at, r in zip(x, rows, strict=True) if r["low"] is not None]
    at = [at for at, _ in with_interval_rows]
    low = [r["low"] for _, r in with_interval_rows]
    high = [r["high"] for _, r in with_interval_rows]
    if banded:
        band(axes, at, low, high, colour, 0.16)
    elif with_interval_rows:
        axes.vlines(at, [100 * v for v in low], [100 * v for v in high], color=colour, linewidth=1.1, alpha=0.7)
        for place, ends in zip(at, zip(low, high, strict=True), strict=True):
            mark_cut_ends(axes, place, *ends, colour)


def horizontal_bar(axes: Any, level: float, row: Row, colour: str, width: float = 1.1) -> None:
    """Draw the interval of a row (`low`, `high`) as a horizontal bar; nothing if it has none."""
    if row["low"] is not None:
        axes.hlines(level, 100 * row["low"], 100 * row["high"], color=colour, linewidth=width, alpha=0.7)
        mark_cut_ends(axes, level, row["low"], row["high"], colour, upright=False)


def mark_cut_ends(axes: Any, at: float, low: float, high: float, colour: str, *, upright: bool = True) -> None:
    """Draw an arrow's head at the edge of the axes for each end of a bar, in fractions, that lies beyond it."""
    edges = axes.get_ylim() if upright else axes.get_xlim()
    for beyond, edge, head in ((100 * low < edges[0], edges[0], "v<"), (100 * high > edges[1], edges[1], "^>")):
        if beyond:
            place = (at, edge) if upright else (edge, at)
            axes.plot(*place, marker=head[not upright], markersize=3.2, color=colour, clip_on=False, linestyle="none")


def line_style(method: str) -> Any:
    """Return the line style of a method: dashed without a budget, dotted if nothing is trained."""
    return "-" if style(method).marker else DOTS if method == "zero-shot" else DASHES


def _across(names: Sequence[str], inches: float) -> int:
    """Return the number of columns of a legend that fit into a width. A column is as wide as its longest name."""
    widths = [SMALL * (0.05 + 0.0073 * len(name)) for name in names]
    fits = (k for k in range(len(names), 1, -1) if sum(max(part) for part in np.array_split(widths, k)) <= inches)
    return next(fits, 1)


def _add_room(figure: Chart, top: float = 0.0, bottom: float = 0.0) -> None:
    """Make a figure higher, in inches; what is drawn stays as large."""
    before = figure.get_figheight()
    after = before + top + bottom
    figure.set_figheight(after)
    for axes in figure.axes:
        left, low, width, height = axes.get_position(original=True).bounds
        axes.set_position((left, (low * before + bottom) / after, width, height * before / after))


def legend(
    figure: Chart, methods: Sequence[str], further: Sequence[tuple[Any, str]] = (), *, bare_lines: bool = False
) -> None:
    """Name the methods over the panels, with their colours, markers and lines; the figure grows by a row for each.

    Args:
        figure: complete but for this and `mark_bands`; it has room for one row.
        methods: in order.
        further: of entries that are no methods the artist and its name.
        bare_lines: methods without a budget are lines without markers.
    """
    handles = [
        Line2D(
            [],
            [],
            color=style(m).colour,
            marker=style(m).marker or ("None" if bare_lines else "o"),
            markersize=mpl.rcParams["lines.markersize"] * _SIZES.get(style(m).marker or "", 1.0),
            markerfacecolor=style(m).colour if style(m).marker else PAPER,
            markeredgecolor=PAPER if style(m).marker else style(m).colour,
            markeredgewidth=0.5,
            linestyle=line_style(m),
            linewidth=mpl.rcParams["lines.linewidth"] if style(m).marker else 1.1,
        )
        for m in methods
    ]
    names = [*(style(m).name for m in methods), *(name for _, name in further)]
    columns = _across(names, figure.get_figwidth())
    added_height = _ROW * (math.ceil(len(names) / columns) - 1)
    _add_room(figure, top=added_height)
    drawn = figure.legend(
        [*handles, *(artist for artist, _ in further)],
        names,
        loc="upper left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        fontsize=SMALL,
        handlelength=2.0,
        columnspacing=0.9,
        handletextpad=0.4,
        borderaxespad=0.3,
    )
    for i, (method, name) in enumerate(zip(methods, drawn.get_texts(), strict=False)):
        name.set_gid(f"key:{i}")
        figure.keys[f"key:{i}"] = method


def mark_bands(
    figure: Chart,
    kind: Literal["pointwise", "simultaneous", "left pointwise, right simultaneous", "corrected"],
    what: Literal["bands", "intervals"] = "bands",
    *,
    given_rates: bool = False,
) -> None:
    """Say at the bottom what the bands hold for, such as each point alone or all at once; the figure grows.

    Args:
        given_rates: whether the bands leave out that another learning rate might have been chosen.
    """
    _add_room(figure, bottom=_NOTE)
    level = "" if kind == "corrected" else "95 %, "  # corrected rows have different levels
    where = (0.04 / figure.get_figwidth(), 0.03 / figure.get_figheight())
    figure.text(
        *where,
        f"{what}: {level}{kind}{', given the chosen rates' if given_rates else ''}",
        ha="left",
        va="bottom",
        fontsize=SMALL,
        color=MUTED,
    )


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
            if kind == "svg":  # its texts may be names from outside
                temporary.write_text(visible(temporary.read_text(encoding="utf-8")), encoding="utf-8")
            temporary.replace(path)
            paths[path.name] = path
    return paths
