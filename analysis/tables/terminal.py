"""A console of rich that shows names from outside as they are, and tables with no cell cut."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table

from analysis.format import visible

_WIDTH = 80
"""Width in characters if the console's width is not known. It is also rich's default."""


class _Visible(Console):
    """A console that prints texts as `visible`; the escapes of rich's own styles are made after `render`."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def safe_console(*, stderr: bool = False, soft_wrap: bool = False, file: IO[str] | None = None) -> Console:
    """Return a console that prints texts as they are: no markup, and no escape sequences from texts."""
    console = _Visible(file=file, stderr=stderr, soft_wrap=soft_wrap, highlight=False, markup=False, emoji=False)
    if console.width < 1:  # COLUMNS=0, as some containers have it: rich would print no text at all
        console.width = _WIDTH
    return console


def print_whole(table: Table, console: Console) -> None:
    """Print a table with no cell cut: a terminal that is too narrow wraps its lines, which loses nothing."""
    needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    if needed <= console.width:
        console.print(table)
        return
    width, console.width = console.width, needed
    try:
        console.print(table)
    finally:
        console.width = width
