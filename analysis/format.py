"""How numbers are written in texts: scores, differences, counts, p values, times.

Every function returns "" for None.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

Row = dict[str, Any]
"""One row of a table, by column."""

EVERY_METHOD = "all"
"""The value of `confirm.question` that puts every method in question."""


_HIDDEN = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
_HIDDEN |= dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)
_HIDDEN |= dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)  # a file name that is not UTF-8: no terminal takes it


def visible(text: str) -> str:
    """Return a text with a visible sign for each character that controls a terminal or the direction of text.

    Bytes of file names that are not UTF-8 are replaced as well, because they cannot be printed. Names, failure texts
    and file names come from outside. Without this they could rewrite what is printed above them.
    """
    return text.translate(_HIDDEN)


def one_line(text: str) -> str:
    """Return a text as `visible`, on one line, with single spaces between its words."""
    return visible(" ".join(text.split()))


def finite(value: Any) -> Any:
    """Return a copy for JSON, in which numbers that are not finite are None, and bytes are base64 text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list | tuple) else value


def points(fraction: float | None) -> str:
    """Return a difference of scores in percentage points, such as '+1.3'. Zero has no sign."""
    return "" if fraction is None else _signed(f"{100 * fraction:+.1f}")


def end_of_interval(fraction: float | None) -> str:
    """Return the end of an interval as `points`. If it rounds to zero it keeps its sign, with a second decimal."""
    if fraction is None:
        return ""
    text = f"{100 * fraction:+.1f}"
    return (f"{100 * fraction:+.2f}" if text[1:] == "0.0" else text).replace("-", "\N{MINUS SIGN}")


def percent(value: float | None) -> str:
    """Return a fraction in percent, such as '61.4'."""
    return "" if value is None else _signed(f"{100 * value:.1f}")


def _signed(text: str) -> str:
    """Return a number with a typographic minus sign. Zero has no sign."""
    return "0.0" if text in {"+0.0", "-0.0"} else text.replace("-", "\N{MINUS SIGN}")


def off_budget(value: float | None) -> str:
    """Return a count's relative distance from its budget, such as '+0.31 %'."""
    return "" if value is None else f"{100 * value:+.2f} %".replace("-", "\N{MINUS SIGN}")


def quantity(value: float | None) -> str:
    """Return a count or a cost, such as '12,288', or with three digits below a thousand, such as '0.00316'."""
    return "" if value is None else f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def bytes_text(count: int | None) -> str:
    """Return a number of bytes with its unit: '512 B', '2.30 MiB', '1.31 GiB'."""
    if count is None:
        return ""
    return f"{count:.0f} B" if count < 1000 else _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def operations(count: int | None) -> str:
    """Return a number of floating-point operations with its unit, such as '12.3 GFLOP'."""
    if count is None:
        return ""
    return _scaled(count, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def _scaled(count: int, step: int, units: Sequence[str]) -> str:
    """Write a count with three digits in the first unit that keeps it below a thousand. Each is `step` of the last."""
    value, power = float(count), 0
    while value >= 999.5 and power < len(units) - 1:
        value, power = value / step, power + 1
    return f"{value:#.3g} {units[power]}".replace(". ", " ")


AMOUNTS = {"memory": bytes_text, "bytes": bytes_text, "flops": operations}
"""The function that writes an amount, by the first word of the budget's name. Other budgets are plain numbers."""


def amount(value: int | None, reference: str | None) -> str:
    """Write a budget, or what a method takes of it, in the unit of the budget `reference`."""
    return AMOUNTS.get((reference or "").partition("-")[0], quantity)(value)


def range_text(values: Iterable[float]) -> str:
    """Return the smallest and the largest value as '2 to 5', one if they look the same, "" if there is none."""
    texts = [quantity(value) for value in sorted(values)]
    return " to ".join(dict.fromkeys((*texts[:1], *texts[-1:])))


def freedom_text(dof: int | None, measured: bool | None, at_most: bool | None) -> str:
    """Return degrees of freedom, with a sign if they were measured on a small weight (about) or are a bound."""
    about = "\N{ALMOST EQUAL TO} " if measured else ""
    return "" if dof is None else ("\N{LESS-THAN OR EQUAL TO} " if at_most else about) + quantity(dof)


def plural(count: int, noun: str, several: str | None = None) -> str:
    """Return a count with its noun: '1 trial', '2,700 images'. `several` is the plural if it is not the noun with s."""
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"


def listed(names: Sequence[str], last: str = "and") -> str:
    """Return a list such as 'A, B and C'."""
    return f" {last} ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def first_listed(names: Sequence[str], most: int) -> str:
    """Return a list of the first `most` names, in which the others are counted: 'A, B and 3 more'."""
    return listed([*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])])


def p_text(value: float | None) -> str:
    """Return a p value with three decimals, or '<0.001'."""
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def level_text(level: float) -> str:
    """Return the level of tests in percent, or a phrase if none is left."""
    return f"{100 * level:.2g} %" if level else "no level, as looks have left none"


def duration(seconds: float | None) -> str:
    """Return a duration such as '4.6 s', '12 min' or '3.1 h'."""
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def with_interval(value: str, low: str, high: str) -> str:
    """Return a value with its interval, '61.4 [60.9, 61.9]', without the bracket if there is none."""
    return f"{value} [{low}, {high}]" if value and low and high else value


def score_text(row: Mapping[str, Any], value: str = "mean", low: str = "low", high: str = "high") -> str:
    """Return a score with its interval, in percent."""
    return with_interval(percent(row[value]), percent(row[low]), percent(row[high]))


def change_text(row: Mapping[str, Any], value: str = "difference", low: str = "low", high: str = "high") -> str:
    """Return a difference with its interval, in points."""
    return with_interval(points(row[value]), end_of_interval(row[low]), end_of_interval(row[high]))


def moment(value: datetime | None) -> str:
    """Return a time such as '2026-11-27 00:50 UTC', or "" for None."""
    return "" if value is None else f"{value:%Y-%m-%d %H:%M} UTC"
