"""The errors of this package that a user can cause, and functions for their messages."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

DIGITS = 100
"""A text with this many digits or more is not read as the number of a class, because Python refuses to convert
thousands."""
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 3
_BRIEF.maxlong = 80
_BRIEF.maxstring = _BRIEF.maxother = 250  # a path of usual length is shown whole


def brief(value: object) -> str:
    """Return a value as messages show it: the first of many items, and both ends of a long text or number."""
    return _BRIEF.repr(value)


def first_repeated(names: Iterable[str]) -> str | None:
    """Return the first name that stands there more than once; None if each stands there once."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def both_ends(text: str, most: int) -> str:
    """Return a text without its middle if it has more than `most` characters."""
    if len(text) <= most:
        return text
    last = most // 4
    return f"{text[: most - last - 5]} ... {text[-last:]}"


class TrainablesError(ValueError):
    """Base class: a model, a data set or a trial got bad input. The message ends with what to do next.

    Values appear as they stand in a file, so a message could be a megabyte long. The middle of long lines is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(both_ends("\n".join(both_ends(line, 1000) for line in message.split("\n")), 4000))


class DataError(TrainablesError):
    """A data set is unknown, missing, malformed, or too small for what is asked."""


class MissingDataError(DataError):
    """The folder of a data set is missing."""


class SplitError(TrainablesError):
    """The stage may not read this split: the test split is closed in stage TUNE."""


class TrialError(RuntimeError):
    """One trial cannot go on (a loss that is not finite, an unsupported combination). The sweep can."""


def first_line(error: BaseException | str) -> str:
    """Return the first line of an error's message; the error's type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def folder_of(name: str, text: str) -> Path:
    """Return the folder that a data set's id names.

    Args:
        name: the id, for the message.
        text: the path in it.

    Raises:
        MissingDataError: the folder is missing; the message says where it was looked for and what is there.
        DataError: the path is a file.
    """
    from randlora.errors import nearest  # imported here because it loads torch, and reading a sweep file must not

    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise DataError(f"data set {name!r}: {folder} is a file; give the folder that it is in")
    beside = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
    looked = "" if folder.is_absolute() else f" in {Path.cwd()}, where this was started"
    near = f"; {nearest(folder.name, beside)}" if beside else ""
    raise MissingDataError(f"data set {name!r}: no folder {folder}{looked}{near}")
