"""A table as people read it: columns with headings and cell texts. Every form of a table is written from a `Sheet`.

The numbers come from a function that returns rows; a `Sheet` only says how they are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal

from analysis.format import Row, quantity

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["text", "number", "method", "verdict", "long", "code"]
SIDE_BY_SIDE = 4
"""Columns that a phone shows side by side."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        head: its heading.
        text: returns the text of a row's cell.
        kind: how the cell is set. 'number' is aligned right. 'method' has the method's colour beside it. 'verdict' is
            green if the method of the row is better ("higher") and red if it is worse ("lower"). 'long' is a sentence.
            'code' has a fixed width.
        group: the heading of the second table that has this column, which the page shows on request. Empty if the main
            table has it.
        label: whether the column says what the row is about. Every second table repeats it.
        beneath: whether a phone shows the text beneath the method's name, which saves a column.
    """

    head: str
    text: Callable[[Row], str]
    kind: Kind = "text"
    group: str = ""
    label: bool = False
    beneath: bool = False


@dataclass(frozen=True)
class Part:
    """A table as the page shows it: some of the columns of a sheet, with all its rows.

    Attributes:
        id: its id in the page.
        heading: what its columns are about; empty for the main table.
        columns: those that have a text in some row, or all if the sheet keeps empty ones.
        beneath: those whose text a phone shows beneath the method's name.
        rows: for each row its class, its text beneath the method's name, and its cells: column, text, method.
    """

    id: str
    heading: str
    columns: Sequence[Column]
    beneath: Sequence[Column]
    rows: Sequence[tuple[str, str, Sequence[tuple[Column, str, str]]]]

    @property
    def narrow(self) -> bool:
        """Whether a phone has room for the columns side by side; else it shows each row as a list."""
        beside = [c for c in self.columns if c not in self.beneath]
        return len(beside) <= SIDE_BY_SIDE and all(c.kind in ("number", "method", "verdict") for c in beside)


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        name: of its files. title: what it is. columns, rows: what it shows. If all headings are empty, it has no head.
        legend: what a reader must know to read it, shown beneath it.
        note: how it was computed, shown on request.
        strong, faint: return whether a row is set off.
        folded: whether the page shows the table on request only.
        keep_empty: whether a column without a text in any row is shown.
        mark: what Markdown and LaTeX also say of it, such as data that is left out.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    note: str = ""
    legend: str = ""
    strong: Callable[[Row], bool] = lambda _: False
    faint: Callable[[Row], bool] = lambda _: False
    folded: bool = False
    keep_empty: bool = False
    mark: str = ""

    @property
    def header(self) -> list[str]:
        """The headings."""
        return [c.head for c in self.columns]

    @property
    def cells(self) -> list[list[str]]:
        """The texts of every row."""
        return [[c.text(row) for c in self.columns] for row in self.rows]

    @property
    def main(self) -> Part:
        """The table that the page shows."""
        return self._part("", f"table-{self.name}")

    @property
    def further(self) -> list[Part]:
        """The tables that the page shows on request, one for each group of columns."""
        groups = dict.fromkeys(c.group for c in self.columns if c.group)
        parts = [self._part(group, f"table-{self.name}-{number}") for number, group in enumerate(groups, 1)]
        return [part for part in parts if not all(c.label for c in part.columns)]

    def _part(self, group: str, name: str) -> Part:
        shown = [c for c in self.columns if self.keep_empty or c.label or any(c.text(row) for row in self.rows)]
        columns = [c for c in shown if c.group == group or (c.label and group)]
        named = any(c.kind == "method" for c in columns)
        beneath = [c for c in columns if c.beneath and named]
        rows = []
        for row in self.rows:
            look = "total" if self.strong(row) else "faint" if self.faint(row) else ""
            also = ", ".join(_beneath(c, row) for c in beneath if c.text(row))
            rows.append((look, also, [(c, c.text(row), str(row.get("method") or "")) for c in columns]))
        return Part(name, group, columns, beneath, rows)


def _beneath(column: Column, row: Row) -> str:
    text = column.text(row)
    return f"{text} {column.head}" if column.kind == "number" else text


def number(head: str, key: str, form: Callable[[Any], str] = quantity, group: str = "") -> Column:
    """Make a column of one value of the rows, as a number."""
    return Column(head, lambda r: form(r[key]), "number", group)


def text(head: str, key: str, kind: Kind = "text", group: str = "") -> Column:
    """Make a column of one value of the rows, as it is; null is empty."""
    return Column(head, lambda r: str(r[key] or ""), kind, group)


def sheet_of(heads: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> Sheet:
    """Make a sheet of values, with a column for each heading. Columns whose texts are all numbers are aligned right."""
    texts = [[value_text(value) for value in row] for row in rows]
    columns = []
    for i, name in enumerate(heads):
        numeric = bool(texts) and all(_is_number(row[i]) for row in texts)
        columns.append(Column(name, itemgetter(str(i)), "number" if numeric else "text"))
    # keyed by position, because two columns may share a heading
    lines = [{str(i): text for i, text in enumerate(row)} for row in texts]
    return Sheet("", title, columns, lines, keep_empty=True)


def sheet_of_arrow(table: pa.Table, most: int, title: str = "") -> Sheet:
    """Make a sheet of the first `most` rows of an Arrow table."""
    first = table.slice(0, most)  # by columns, and not as dictionaries, because two columns may share a name
    return sheet_of(table.column_names, zip(*(column.to_pylist() for column in first.columns), strict=True), title)


def value_text(value: object) -> str:
    """Return a value of a table as a short text; "" for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


def _is_number(text: str) -> bool:
    return (
        text == ""
        or text.replace(",", "").lstrip("+-\N{MINUS SIGN}\N{ALMOST EQUAL TO}\N{LESS-THAN OR EQUAL TO} ")[:1].isdigit()
    )
