"""What is wrong with a sweep, said so that it can be mended: field, value, rule, nearest valid choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainables.errors import brief, first_line


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        field: dotted path in the sweep file, `methods.lora.alpha`.
        value: what stands there; None where the field is absent.
        rule: what must hold.
        nearest: the closest valid choice, where there is one.
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
    """A sweep that can't run; carries every problem found, not the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))

    def __reduce__(self) -> tuple[type[SpecError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


def reason(error: BaseException) -> str:
    """An exception in one line: its type and the first line of its message."""
    name, said = type(error).__name__, first_line(error)
    return name if said == name else f"{name}: {said[:500]}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest in spelling, or None when nothing is close."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return found[0] if found else None


def unknown(field: str, value: str, kind: str, known: Iterable[str]) -> Problem:
    """An unknown name, with the known ones."""
    names = sorted(known)
    return Problem(field, value, f"unknown {kind}; known: {', '.join(names) or 'none'}", nearest(value, names))
