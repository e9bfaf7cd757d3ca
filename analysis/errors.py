"""The errors of this package that users may see."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class StoreError(ValueError):
    """A results folder that cannot be read or written: missing, damaged, or rows that do not fit the schema."""


class ForeignPartError(StoreError):
    """A part file lies in the folder of one table but has rows of another."""


class QueryError(StoreError):
    """SQL that is wrong or not allowed; the message lists the names that are known."""


@dataclass(frozen=True)
class DamagedPart:
    """A part file that cannot be read.

    Attributes:
        path: the file.
        table: the table it belongs to.
        reason: what the reader said.
    """

    path: Path
    table: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: damaged part of table {self.table!r} ({self.reason})"


def nearest(name: str, known: Iterable[str], most: int = 60) -> str:
    """Return a phrase with the closest known names, or with up to `most` known names if none is close."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close or not names:
        return f"nearest: {', '.join(close)}" if close else "known: none"
    uncounted = f" and {len(names) - most} more" if len(names) > most else ""
    return f"known: {', '.join(names[:most])}{uncounted}"
