"""Numbers as people read them: one way to write a score, a difference, a count, a p value and a time.

Every function gives an empty text for a null.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
"""One row of a table, by column."""


_HIDDEN = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
_HIDDEN |= dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)
_HIDDEN |= dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)  # a file name that is not UTF-8: no terminal takes it


def visible(text: str) -> str:
    """A text with a picture for every character that moves a cursor, colours a terminal or turns what is read around.

    So have bytes of file names that are not UTF-8, which can't be printed.

    Names, failure texts and file names come from outside; as they are they could rewrite what stands above them.
    """
    return text.translate(_HIDDEN)


def finite(value: Any) -> Any:
    """A copy for JSON: a number that is not finite (a loss may be; JSON has none) is None, bytes are base64 text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list | tuple) else value


def points(fraction: float | None) -> str:
    """A score difference in percentage points, '+1.3'; a zero has no sign."""
    return "" if fraction is None else _signed(f"{100 * fraction:+.1f}")


def end_of_interval(fraction: float | None) -> str:
    """As `points`; an end that would round to zero has a second decimal and keeps its sign: on which side it lies."""
    if fraction is None:
        return ""
    text = f"{100 * fraction:+.1f}"
    return (f"{100 * fraction:+.2f}" if text[1:] == "0.0" else text).replace("-", "\N{MINUS SIGN}")


def percent(value: float | None) -> str:
    """A fraction in percent, '61.4'."""
    return "" if value is None else _signed(f"{100 * value:.1f}")


def _signed(text: str) -> str:
    """A number with a true minus sign, and a zero without any."""
    return "0.0" if text in {"+0.0", "-0.0"} else text.replace("-", "\N{MINUS SIGN}")


def off_budget(value: float | None) -> str:
    """A count's distance from its budget, in percent with its sign, '+0.31 %'."""
    return "" if value is None else f"{100 * value:+.2f} %".replace("-", "\N{MINUS SIGN}")


def quantity(value: float | None) -> str:
    """A count or a cost: '12,288'; three digits below a thousand, '0.00316'."""
    return "" if value is None else f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def bytes_text(count: int | None) -> str:
    """Bytes with their unit: '512 B', '2.30 MiB', '1.31 GiB'."""
    if count is None:
        return ""
    return f"{count:.0f} B" if count < 1000 else _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def operations(count: int | None) -> str:
    """Floating-point operations with their unit: '12.3 GFLOP'."""
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
    """The least and the largest as quantities, '2 to 5'; one where they look alike, '' of none."""
    found = [quantity(value) for value in sorted(values)]
    return " to ".join(dict.fromkeys((*found[:1], *found[-1:])))


def freedom_text(dof: int | None, measured: bool | None, at_most: bool | None) -> str:
    """Degrees of freedom: about that many where they are measured on a small weight, at most where it is a bound."""
    about = "\N{ALMOST EQUAL TO} " if measured else ""
    return "" if dof is None else ("\N{LESS-THAN OR EQUAL TO} " if at_most else about) + quantity(dof)


def plural(count: int, noun: str, several: str | None = None) -> str:
    """'1 trial', '2 trials', '2,700 images'. `several`: the plural of the noun, if it is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"


def listed(names: Sequence[str], last: str = "and") -> str:
    """'A, B and C'."""
    return f" {last} ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def p_text(value: float | None) -> str:
    """A p value."""
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def level_text(level: float) -> str:
    """The level of tests, in percent."""
    return f"{100 * level:.2g} %" if level else "no level, as looks have left none"


def duration(seconds: float | None) -> str:
    """'4.6 s', '12 min', '3.1 h'."""
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def with_interval(value: str, low: str, high: str) -> str:
    """'61.4 [60.9, 61.9]'; without the bracket where there is no interval."""
    return f"{value} [{low}, {high}]" if value and low and high else value


def score_text(row: Mapping[str, Any], value: str = "mean", low: str = "low", high: str = "high") -> str:
    """A score with its interval, in percent."""
    return with_interval(percent(row[value]), percent(row[low]), percent(row[high]))


def change_text(row: Mapping[str, Any], value: str = "difference", low: str = "low", high: str = "high") -> str:
    """A difference with its interval, in points."""
    return with_interval(points(row[value]), end_of_interval(row[low]), end_of_interval(row[high]))
