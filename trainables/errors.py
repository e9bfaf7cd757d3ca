"""The user's errors of this package; `nearest`, randlora's, names the valid choices in their messages."""

from __future__ import annotations

from pathlib import Path

from randlora.errors import nearest

__all__ = ["DataError", "SplitError", "TrainablesError", "TrialError", "nearest", "no_folder"]


class TrainablesError(ValueError):
    """Base class: bad input to a model, a data set or a trial. The message ends with what to do next."""


class DataError(TrainablesError):
    """A data set that is unknown, missing, malformed or too small for what is asked."""


class SplitError(TrainablesError):
    """A split that the stage may not read: the test split in stage TUNE."""


class TrialError(RuntimeError):
    """One trial cannot go on (loss not finite, a combination that is not supported). The sweep can."""


def no_folder(name: str, folder: Path) -> DataError:
    """The error for a data set whose folder is not there: where it was looked for, and what is beside it."""
    if folder.is_file():
        return DataError(f"data set {name!r}: {folder} is a file; give the folder that it is in")
    beside = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
    looked = "" if folder.is_absolute() else f" in {Path.cwd()}, where this was started"
    near = f"; {nearest(folder.name, beside)}" if beside else ""
    return DataError(f"data set {name!r}: no folder {folder}{looked}{near}")
