"""Tables on the terminal, drawn by rich, and a console that shows names from outside as they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from analysis.format import visible
from analysis.sheets.sheet import Column, Part, Sheet
from analysis.styles import style

_WIDTH = 80
"""Width in characters if the console's width is not known. It is also rich's default."""
_ANY_WIDTH = 10_000
"""Width in characters of a terminal that cuts no cell."""
_VERDICTS = {"higher": "bold green", "lower": "bold red", "holds": "", "the": "", "noted": "yellow"}
_VERDICTS |= {"FAILS": "bold red", "NOT": "bold red"}
"""Style of a verdict by its first word; others are dim."""
_METHODS = 90
"""Methods without a place of their own in the order of methods have no colour of their own."""


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


def print_sheet(sheet: Sheet, console: Console) -> None:
    """Print a sheet: its main columns, a table for each group of further columns, and how to read it.

    No cell is cut: a terminal that is too narrow wraps the lines of a table, which loses nothing.
    """
    for part in (sheet.main, *sheet.further):
        title = f"{sheet.title}: {part.heading}" if part.heading else sheet.title
        console.print(_Whole(_table(part, title)), crop=False)
    for text in filter(None, (sheet.legend, sheet.note)):
        console.print(text, style="dim")


def _table(part: Part, title: str) -> Table:
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="bold",
        show_header=any(column.head for column in part.columns),
    )
    for column in part.columns:
        table.add_column(column.head, justify="right" if column.kind == "number" else "left", no_wrap=True)
    for _, _, cells in part.rows:
        table.add_row(*(_cell(column, text, method) for column, text, method in cells))
    return table


def _cell(column: Column, text: str, method: str) -> Text:
    if column.kind == "method" and method:
        look = style(method)
        return Text(text, look.dark if look.order < _METHODS else "")
    return Text(text, _VERDICTS.get(text.partition(" ")[0], "dim") if column.kind == "verdict" else "")


class _Whole:
    """A table in its full width, even if the console is narrower. Its lines have no spaces at their ends."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = Measurement.get(console, options.update(max_width=_ANY_WIDTH), self._table).maximum
        width = max(needed, options.max_width)
        for line in console.render_lines(self._table, options.update(width=width), pad=False):
            while line and not line[-1].text.rstrip():
                line.pop()
            yield from line[:-1]
            yield from (Segment(segment.text.rstrip(), segment.style) for segment in line[-1:])
            yield Segment.line()
