"""Errors in a sweep file or a request. Each names the field, its value, the rule and the nearest valid choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainables.errors import brief, first_line


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        field: dotted path in the sweep file, such as `methods.lora.alpha`, or a flag such as `--address`.
        value: the value of the field; None if it is missing.
        rule: the rule that it breaks.
        nearest: the nearest valid choice; None if there is none.
    """

    field: str
    value: object
    rule: str
    nearest: str | None = None

    def __str__(self) -> str:
        shown = "" if self.value is None else f" = {brief(self.value)}"
        hint = f" Nearest: {self.nearest}." if self.nearest else ""
        stop = "" if self.rule.endswith(":") else "."
        return f"{self.field}{shown}: {self.rule.rstrip('.')}{stop}{hint}"


class SpecError(ValueError):
    """Raised if a sweep can't run. `problems` has every problem, not only the first one."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))

    def __reduce__(self) -> tuple[type[SpecError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


def reason(error: BaseException) -> str:
    """Return an exception in one line: its type and the first line of its message."""
    name = type(error).__name__
    message = first_line(error)
    return name if message == name else f"{name}: {message[:500]}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the name in `known` that is nearest in spelling; None if no name is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown(field: str, value: str, kind: str, known: Iterable[str]) -> Problem:
    """Return the problem of an unknown name. It lists the known names."""
    names = sorted(known)
    return Problem(field, value, f"unknown {kind}; known: {', '.join(names) or 'none'}", nearest(value, names))
