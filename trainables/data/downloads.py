"""Registered data sets: where downloads go, what the hub gives, and whether what came is what was expected."""

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
"""Environment variable naming the download folder; default ~/.cache/randlora-sweeps/data."""


UNKNOWN = "unknown"
"""The licence of a data set whose makers state none."""


_ALLOWED: ContextVar[bool] = ContextVar("downloads_allowed", default=True)


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Within it nothing is downloaded: a data set that is not on this machine is a DataError."""
    token = _ALLOWED.set(False)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def may_download() -> bool:
    """Whether data sets that are not on this machine may be downloaded: not within `offline`."""
    return _ALLOWED.get()


class DataWarning(UserWarning):
    """A data set that is not quite what it should be, and is used as it is."""


def data_folder() -> Path:
    """Where downloads go."""
    given = os.environ.get(FOLDER_VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "randlora-sweeps" / "data"


@contextlib.contextmanager
def downloading(what: str) -> Iterator[Path]:
    """`data_folder`, while no other process downloads or unpacks `what` in it, or opens it half done.

    Where the folder can't be written, and nothing be downloaded, there is no lock.
    """
    folder = data_folder()
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(in_turn(folder, f".{what}.lock"))
        yield folder


def hub_splits(dataset: str, repository: str, *config: str, instead: str, **where: str) -> dict[str, Any]:
    """The splits of a hub repository by name, downloaded once into the hub's cache.

    `config` and `where` go to `datasets.load_dataset`; `instead` says what to do where it can't be had.
    """
    hub_answers()
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        constants.HF_HUB_OFFLINE = before or not may_download()  # then the client looks into its cache alone
        if "HF_DATASETS_OFFLINE" not in os.environ:  # its copy is of when it was imported, maybe while the hub was away
            datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE
        found = datasets.load_dataset(repository, *config, **where)
    except Exception as error:  # the client raises a dozen kinds; all mean "not to be had", and it is re-raised
        raise DataError(
            f"data set {dataset!r}: the hub gave no {repository!r} ({type(error).__name__}: {error}); {instead}"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = before
    return {str(which): table for which, table in found.items()}


def counted(dataset: D, what: str, pool: int | None, test: int | None, *, verified: bool, unpacked: bool = False) -> D:
    """The same data set, its rows compared with the numbers that are known; those of test when that is opened.

    `what` is what rows are, in the plural: "images".
    """
    differ(dataset.name, f"training {what}", len(dataset.train), pool, verified=verified, unpacked=unpacked)

    @functools.cache
    def open_test() -> Any:
        found = dataset.open_test()
        differ(dataset.name, f"test {what}", len(found), test, verified=verified, unpacked=unpacked)
        return found

    return dataclasses.replace(dataset, open_test=open_test)


def differ(name: str, what: str, found: int, expected: int | None, *, verified: bool, unpacked: bool = False) -> None:
    """Say that a count is not the expected one: an error where that one was verified, a warning elsewhere.

    A smaller one is an error too where the set is `unpacked` in `data_folder`, which may have been cut short.
    """
    if expected is None or found == expected:
        return
    text = f"data set {name!r} has {found:,} {what}, and {expected:,} were expected"
    if verified or (unpacked and found < expected):
        raise DataError(
            f"{text}: its files are incomplete or of another version; remove them from {data_folder()}, and they are "
            "downloaded again"
        )
    warnings.warn(f"{text}; scores are not comparable with published ones", DataWarning, stacklevel=2)
