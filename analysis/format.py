"""Numbers as people read them: one way to write a score, a difference, a count, a size and a time.

Every function gives an empty text for a null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = dict[str, Any]
"""One row of a table, by column."""


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
