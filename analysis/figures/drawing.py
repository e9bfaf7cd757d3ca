"""What all figures share: their look, how they are made without pyplot (no global state), and how they are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

INK, MUTED, GRID, PAPER = "#1b1f24", "#6b7480", "#e3e7ec", "#ffffff"
COLUMN_INCHES = 3.5
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
    "svg.hashsalt": "randlora",  # the same numbers give the same file
    "pdf.fonttype": 42,
}


class Tips(dict[str, str]):
    """Artist id -> what it says on hover; a drawing function fills it."""

    def add(self, text: str) -> str:
        """A new id for an artist that says `text`."""
        name = f"tip:{len(self)}"
        self[name] = text
        return name


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


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, drawn by matplotlib's Agg."""
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, folder: Path, stem: str, formats: Sequence[str] = FORMATS) -> dict[str, Path]:
    """Write a figure in several formats; returns 'STEM.FORMAT' -> path. The bytes depend on the numbers only."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with mpl.rc_context(STYLE):
        for kind in formats:
            path = folder / f"{stem}.{kind}"
            figure.savefig(path, dpi=300, metadata=dates.get(kind))
            paths[path.name] = path
    return paths
