"""A figure with its caption and its sentence, and what the figures of several findings share.

This file does not import matplotlib, so that a finding's tables need no drawing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from analysis.format import Row
from analysis.styles import place_of

if TYPE_CHECKING:
    from analysis.drawing.charts import Chart


@dataclass(frozen=True)
class Picture:
    """One figure.

    Attributes:
        stem: of its files.
        figure: drawn by matplotlib.
        label: what it shows, for a screen reader.
        caption: how to read it. says: its one-sentence conclusion.
    """

    stem: str
    figure: Chart
    label: str
    caption: str
    says: str

    @property
    def across(self) -> int:
        """Panels beside each other; the page gives a figure of several its whole width."""
        spots = [axes.get_subplotspec() for axes in self.figure.axes]
        return max((s.get_topmost_subplotspec().get_gridspec().ncols for s in spots if s is not None), default=1)

    @property
    def svg(self) -> str:
        """Markup for the page."""
        from analysis.drawing.svg import inline_svg

        return inline_svg(self.figure, f"fig-{self.stem}", f"{self.label}. {self.says}")


K = TypeVar("K")
MOST_PANELS = 8
MOST_ROWS = 60
"""The largest numbers of panels and of rows in a figure. The tables below it have all of them."""
BESIDE = " A marker that would cover another one stands beside it."


def save_pictures(drawn: Iterable[Picture], folder: Path) -> dict[str, Path]:
    """Write figures into a results folder's `figures/`: PNG, SVG and PDF; returns file name -> path."""
    from analysis.drawing.charts import save

    paths: dict[str, Path] = {}
    for picture in drawn:
        paths |= save(picture.figure, folder / "figures", picture.stem)
    return paths


def first_panels(table: pa.Table) -> pa.Table:
    """Return the rows of the first panels. The tables below a figure have all rows."""
    keys = sorted(keys_of(table, place_of), key=lambda k: (k[0], k[1], k[2] is not None))  # the means first, as drawn
    return rows_with_key(table, place_of, keys[:MOST_PANELS])


def keys_of(table: pa.Table, key: Callable[[Row], K]) -> list[K]:
    """Return the rows' keys in order of first appearance."""
    return list(dict.fromkeys(map(key, table.to_pylist())))


def rows_with_key(table: pa.Table, key: Callable[[Row], K], among: Collection[K]) -> pa.Table:
    """Return the rows whose key is one of `among`."""
    return table.filter(pa.array([key(r) in among for r in table.to_pylist()], pa.bool_()))


def margin_text(margin: float | None) -> str:
    """Return the sentence that explains the grey strip of a figure of differences; empty if the sweep has no margin."""
    if margin is None:
        return ""
    return f" Differences in the grey strip are smaller than the margin of {100 * margin:g} points and count as none."


def numbered(stem: str, before: int) -> str:
    """Return the stem of one of several figures, numbered from the second on."""
    return f"{stem}_{before + 1}" if before else stem
