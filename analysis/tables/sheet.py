"""A table as people read it: columns with headings and cell texts, the same in HTML, Markdown and LaTeX.

The numbers come from a function that returns an Arrow table; a `Sheet` only says how its rows are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from analysis.format import Row, quantity, score_text
from analysis.styles import dataset_text, place_text, size_key, size_text, style

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
        columns: those that have a text in some row.
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
    """A table of the report.

    Attributes:
        name: of its files. title: what it is. columns, rows: what it shows.
        legend: what a reader must know to read it, shown beneath it.
        note: how it was computed, shown on request.
        strong, faint: return whether a row is set off.
        folded: whether the page shows the table on request only.
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
        shown = [c for c in self.columns if c.label or any(c.text(row) for row in self.rows)]
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


def where(row: Mapping[str, Any]) -> str:
    """Name a row's data set and training size; the mean over data sets if it names none."""
    return place_text(_dataset(row), row["train_size"])


def _dataset(row: Mapping[str, Any]) -> str:
    count = row.get("n_datasets")
    several = f"mean of {count} data sets" if count and count > 1 else "all data sets"
    return str(row["dataset"] or several)


PLACE = Column("data", where, label=True, beneath=True)
DATASET = Column("data", lambda r: dataset_text(_dataset(r)), label=True, beneath=True)
METHOD = Column("method", lambda r: style(r["method"]).name if r["method"] else "", "method", label=True)
BUDGET = Column("budget", lambda r: str(r["reference"] or ""), label=True, beneath=True)
PARAMETERS = Column("parameters", lambda r: quantity(r["adapter_params"]), "number", beneath=True)


def origins(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Return the columns of the sweep and the model that differ between rows."""
    names = [name for name in ("sweep", "model") if len({r.get(name) for r in rows}) > 1]
    return [replace(text(name, name), label=True, beneath=True) for name in names]


def columns_of(rows: Sequence[Mapping[str, Any]], *columns: Column) -> list[Column]:
    """Return the columns, and before them those of sweep, model, data set and size that differ between rows."""
    sizes = {r["train_size"] for r in rows}
    place = [PLACE] if len(sizes) > 1 else [DATASET] if len({r["dataset"] for r in rows}) > 1 else []
    return [*origins(rows), *place, *columns]


def pivoted(rows: Iterable[Row], names: Sequence[str], key: str) -> list[Row]:
    """Group rows by `names`. Each group's `by` maps the value of `key` to its row."""
    lines: dict[tuple[Any, ...], Row] = {}
    for r in rows:
        lines.setdefault(tuple(r[k] for k in names), {**r, "by": {}})["by"][r[key]] = r
    return list(lines.values())


def by_size(rows: Iterable[Row], names: Sequence[str]) -> tuple[list[Row], list[Column]]:
    """Group rows by `names`; also return a column of scores for each training size."""
    lines = pivoted(rows, names, "train_size")

    sizes = sorted({size for line in lines for size in line["by"]}, key=size_key)

    def column(size: str) -> Column:
        head = size_text(size) if len(sizes) > 1 else "test score"
        return Column(f"{head}, % [95 %]", lambda r: score_text(r["by"][size]) if size in r["by"] else "", "number")

    return lines, [column(size) for size in sizes]
