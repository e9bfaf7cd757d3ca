"""Registered data sets: where downloads go, how the hub is read, and whether a set has the expected number of rows."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from trainables.cache import in_turn
from trainables.data.splits import SplitSet
from trainables.errors import DataError
from trainables.hub import hub_answers

D = TypeVar("D", bound=SplitSet[Any])

FOLDER_VARIABLE = "SWEEPS_DATA"
"""The environment variable that names the download folder. Default: ~/.cache/randlora-sweeps/data."""


_ALLOWED: ContextVar[bool] = ContextVar("downloads_allowed", default=True)


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Download nothing inside the block: a data set that is not on this machine is a DataError."""
    token = _ALLOWED.set(False)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def may_download() -> bool:
    """Return whether data sets that are not on this machine may be downloaded. Inside `offline` they may not."""
    return _ALLOWED.get()


class DataWarning(UserWarning):
    """A data set differs a little from what was expected, and is used as it is."""


def data_folder() -> Path:
    """Return the folder to which downloads go."""
    value = os.environ.get(FOLDER_VARIABLE)
    return Path(value).expanduser() if value else Path.home() / ".cache" / "randlora-sweeps" / "data"


@contextlib.contextmanager
def downloading(what: str) -> Iterator[Path]:
    """Yield `data_folder`, while no other process downloads or unpacks `what` in it, or opens it half done.

    There is no lock if the folder cannot be written, because then nothing can be downloaded.
    """
    folder = data_folder()
    with contextlib.ExitStack() as locks:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            locks.enter_context(in_turn(folder, f".{what}.lock"))
        yield folder


def hub_splits(dataset: str, repository: str, *config: str, instead: str, **where: str) -> dict[str, Any]:
    """Return the splits of a hub repository by name. It is downloaded once, into the hub's cache.

    Args:
        dataset: the data set's id, for messages.
        repository: the repository.
        config, where: passed to `datasets.load_dataset`.
        instead: what to do if it cannot be had, for the message.

    Raises:
        DataError: it cannot be had.
    """
    hub_answers()
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        constants.HF_HUB_OFFLINE = before or not may_download()  # the client then uses its cache alone
        if (
            "HF_DATASETS_OFFLINE" not in os.environ
        ):  # the client read this switch at its import, maybe while the hub did not answer
            datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE
        splits = datasets.load_dataset(repository, *config, **where)
    except Exception as error:  # the client raises a dozen types, which all mean that the set cannot be had
        raise DataError(
            f"data set {dataset!r}: the hub gave no {repository!r} ({type(error).__name__}: {error}); {instead}"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = before
    return {str(which): table for which, table in splits.items()}


def check_counts(
    dataset: D, what: str, pool: int | None, test: int | None, *, verified: bool, unpacked: bool = False
) -> D:
    """Return the data set after comparing its number of rows with the known one. The test split is compared when it is
    opened.

    Args:
        dataset: the data set.
        what: what rows are, in the plural: "images".
        pool: the known number of training and validation rows; None if it is not known.
        test: the known number of test rows; None if it is not known.
        verified: whether these numbers were checked against the data. Then a difference is an error, else a warning.
        unpacked: whether the set is unpacked in `data_folder`, which may have been interrupted. Then fewer rows are an
            error.
    """
    report_difference(dataset.name, f"training {what}", len(dataset.train), pool, verified=verified, unpacked=unpacked)

    @functools.cache
    def open_test() -> Any:
        opened = dataset.open_test()
        report_difference(dataset.name, f"test {what}", len(opened), test, verified=verified, unpacked=unpacked)
        return opened

    return dataclasses.replace(dataset, open_test=open_test)


def report_difference(
    name: str, what: str, found: int, expected: int | None, *, verified: bool, unpacked: bool = False
) -> None:
    """Raise DataError, or warn, if a number of rows is not the expected one. The arguments are as in `check_counts`."""
    if expected is None or found == expected:
        return
    text = f"data set {name!r} has {found:,} {what}, and {expected:,} were expected"
    if verified or (unpacked and found < expected):
        raise DataError(
            f"{text}: its files are incomplete or of another version; remove them from {data_folder()}, and they are "
            "downloaded again"
        )
    warnings.warn(f"{text}; scores are not comparable with published ones", DataWarning, stacklevel=2)
