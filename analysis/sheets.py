"""A table as people read it: columns with headings and cell texts, the same in HTML, Markdown and LaTeX.

The numbers come from a function that returns an Arrow table; a `Sheet` only says how its rows are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from analysis.methods import place_text, style

Row = dict[str, Any]
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
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    note: str = ""
    strong: Callable[[Row], bool] = lambda _: False
    faint: Callable[[Row], bool] = lambda _: False
    folded: bool = False

    @property
    def header(self) -> list[str]:
        """The headings."""
        return [c.head for c in self.columns]

    @property
    def cells(self) -> list[list[str]]:
        """Every row's texts."""
        return [[c.text(row) for c in self.columns] for row in self.rows]

    def shown(self) -> list[tuple[str, list[tuple[Column, str, str]]]]:
        """For the page: per row its class, and per cell column, text and (for a method) the method's key."""
        found = []
        for row in self.rows:
            look = "total" if self.strong(row) else "faint" if self.faint(row) else ""
            found.append((look, [(c, c.text(row), str(row.get("method") or "")) for c in self.columns]))
        return found


def points(fraction: float | None, sign: bool = True) -> str:
    """A score difference in percentage points, '+1.3'; a zero has no sign; nothing for null."""
    if fraction is None:
        return ""
    text = f"{100 * fraction:+.1f}" if sign else f"{100 * fraction:.1f}"
    return "0.0" if text in {"+0.0", "-0.0"} else text.replace("-", "\N{MINUS SIGN}")


def percent(value: float | None) -> str:
    """A fraction in percent, '61.4'."""
    return "" if value is None else f"{100 * value:.1f}"


def signed_percent(value: float | None) -> str:
    """A fraction in percent with its sign, '+0.31 %'."""
    return "" if value is None else f"{100 * value:+.2f} %".replace("-", "\N{MINUS SIGN}")


def whole(value: int | None) -> str:
    """'12,288'."""
    return "" if value is None else f"{value:,}"


def quantity(value: float | None) -> str:
    """A cost: '12,288', or three digits."""
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def short(value: float | None) -> str:
    """Three digits."""
    return "" if value is None else f"{value:.3g}"


def p_text(value: float | None) -> str:
    """A p value."""
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def mib(value: float | None) -> str:
    """Bytes in MiB."""
    return "" if value is None else f"{value / 2**20:,.0f}"


def duration(seconds: float | None) -> str:
    """'4.6 s', '12 min', '3.1 h'."""
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def ranged(value: str, low: str, high: str) -> str:
    """'61.4 [60.9, 61.9]'; without the bracket where there is no interval."""
    return f"{value} [{low}, {high}]" if value and low and high else value


def score(row: Mapping[str, Any], value: str = "mean", low: str = "low", high: str = "high") -> str:
    """A score with its interval, in percent."""
    return ranged(percent(row[value]), percent(row[low]), percent(row[high]))


def change(row: Mapping[str, Any], value: str = "difference", low: str = "low", high: str = "high") -> str:
    """A difference with its interval, in points."""
    return ranged(points(row[value]), points(row[low]), points(row[high]))


def where(row: Mapping[str, Any]) -> str:
    """A row's data set and training size in words; the mean over data sets where it names none."""
    count = row.get("n_datasets")
    several = f"mean of {count} data sets" if count and count > 1 else "all data sets"
    return place_text(row["dataset"] or several, row["train_size"])


def name(row: Mapping[str, Any]) -> str:
    """A row's method in words."""
    return style(row["method"]).name if row["method"] else ""


PLACE = Column("data", where)
METHOD = Column("method", name, "method")
BUDGET = Column("budget", lambda r: r["reference"] or "")


def columns_of(rows: Iterable[Mapping[str, Any]], *columns: Column) -> list[Column]:
    """The columns, led by the place where the rows are of more than one."""
    several = len({(r.get("sweep"), r["dataset"], r["train_size"]) for r in rows}) > 1
    return [PLACE, *columns] if several else list(columns)
