"""The user's errors of this package, and how a message finds the nearest valid choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TrainablesError(ValueError):
    """Base class: bad input to a model, a data set or a trial. The message ends with what to do next."""


class DataError(TrainablesError):
    """A data set that is unknown, missing, malformed or too small for what is asked."""


class SplitError(TrainablesError):
    """A split that the stage may not read: the test split in stage TUNE."""


class TrialError(RuntimeError):
    """One trial cannot go on (loss not finite, a combination that is not supported). The sweep can."""


def nearest(name: str, known: Iterable[str], *, most: int = 3) -> str:
    """A phrase naming the known names closest to `name`, or all of them when few, or none when none is known."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=most, cutoff=0.5)
    if close:
        return "nearest: " + ", ".join(repr(n) for n in close)
    if not names:
        return "none is known"
    shown = ", ".join(repr(n) for n in names[:40])
    return f"known: {shown}" + (", ..." if len(names) > 40 else "")
