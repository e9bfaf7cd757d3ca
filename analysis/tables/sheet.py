"""A table as people read it: columns with headings and cell texts, the same in HTML, Markdown and LaTeX.

The numbers come from a function that returns an Arrow table; a `Sheet` only says how its rows are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from analysis.format import Row, quantity, score_text
from analysis.styles import place_text, size_key, size_text, style

Kind = Literal["text", "number", "method", "verdict", "long", "code"]


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        head: its heading.
        text: a row's cell.
        kind: 'number' is set right; 'method' has the method's colour beside it; 'verdict' is coloured by its words;
            'long' may wrap; 'code' is set in a fixed width.
    """

    head: str
    text: Callable[[Row], str]
    kind: Kind = "text"


@dataclass(frozen=True)
class Sheet:
    """A table of the report.

    Attributes:
        name: of its files. title: what it is. columns, rows: what it shows. note: how to read it, under the table.
        strong, faint: rows to set off.
        folded: closed until asked for, in the page.
        mark: what Markdown and LaTeX say of it too: data that is left out.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    note: str = ""
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
        """Every row's texts."""
        return [[c.text(row) for c in self.columns] for row in self.rows]

    @property
    def joined(self) -> list[Column]:
        """Columns that on a phone stand in the method's cell, so that what was measured comes next."""
        named = any(c.kind == "method" for c in self.columns)
        return [c for c in self.columns if named and c.head in ("data", "budget", "size")]

    def shown(self) -> list[tuple[str, str, list[tuple[Column, str, str]]]]:
        """For the page: per row its class, what `joined` says of it, and per cell column, text and the method's key."""
        found = []
        for row in self.rows:
            look = "total" if self.strong(row) else "faint" if self.faint(row) else ""
            also = ", ".join(filter(None, (c.text(row) for c in self.joined)))
            found.append((look, also, [(c, c.text(row), str(row.get("method") or "")) for c in self.columns]))
        return found


def number(head: str, key: str, form: Callable[[Any], str] = quantity) -> Column:
    """A column of one value of the rows, as a number."""
    return Column(head, lambda r: form(r[key]), "number")


def text(head: str, key: str, kind: Kind = "text") -> Column:
    """A column of one value of the rows, as it is; empty for null."""
    return Column(head, lambda r: str(r[key] or ""), kind)


def where(row: Mapping[str, Any]) -> str:
    """A row's data set and training size in words; the mean over data sets where it names none."""
    count = row.get("n_datasets")
    several = f"mean of {count} data sets" if count and count > 1 else "all data sets"
    return place_text(row["dataset"] or several, row["train_size"])


PLACE = Column("data", where)
METHOD = Column("method", lambda r: style(r["method"]).name if r["method"] else "", "method")
BUDGET = text("budget", "reference")
PARAMETERS = number("parameters", "adapter_params")


def origins(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Columns of the sweep and the model, where the rows are of several."""
    return [text(name, name) for name in ("sweep", "model") if len({r.get(name) for r in rows}) > 1]


def columns_of(rows: Sequence[Mapping[str, Any]], *columns: Column) -> list[Column]:
    """The columns, led by the sweep, the model and the place where the rows are of more than one."""
    several = len({(r["dataset"], r["train_size"]) for r in rows}) > 1
    return [*origins(rows), *([PLACE] if several else []), *columns]


def pivoted(rows: Iterable[Row], names: Sequence[str], key: str) -> list[Row]:
    """Rows that agree in the columns `names` as one, whose `by` has each of them by its value of `key`."""
    lines: dict[tuple[Any, ...], Row] = {}
    for r in rows:
        lines.setdefault(tuple(r[k] for k in names), {**r, "by": {}})["by"][r[key]] = r
    return list(lines.values())


def by_size(rows: Iterable[Row], names: Sequence[str]) -> tuple[list[Row], list[Column]]:
    """Rows that agree in the columns `names` as one, and a column of scores for each training size."""
    lines = pivoted(rows, names, "train_size")

    def column(size: str) -> Column:
        return Column(
            f"{size_text(size)}, % [95 %]", lambda r: score_text(r["by"][size]) if size in r["by"] else "", "number"
        )

    return lines, [column(size) for size in sorted({size for line in lines for size in line["by"]}, key=size_key)]
