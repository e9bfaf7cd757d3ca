"""The cache of a machine: a folder of folders (decoded images, weights of base models) with a limit and with locks.

Its workers share what is in it; a folder that was unused for longest is removed first (`data.images.decoded`,
`models.shared`).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

FOLDER_VARIABLE = "SWEEPS_CACHE"
"""Environment variable naming the cache folder; default ~/.cache/randlora-sweeps/pixels; a word of `OFF` for none."""
OFF = ("off", "none", "no", "false", "0")
LIMIT_VARIABLE = "SWEEPS_CACHE_GB"
LIMIT_GB = 50.0
"""Most the whole cache may take; folders unused for longest go first."""
SPARE_BYTES = 2**30
"""Left free on the cache's disk."""

_USED = "used"  # its time is when the folder was last opened
_NAME = re.compile(r"([a-z]+-)?[0-9a-f]{32}")


def cache_folder(usual: str = "pixels") -> Path | None:
    """Where decoded images are kept; None when the cache is switched off. `usual`: its name where none is given."""
    given = os.environ.get(FOLDER_VARIABLE, "")
    if given.lower() in OFF:
        return None
    return Path(given).expanduser() if given else Path.home() / ".cache" / "randlora-sweeps" / usual


def make_folder(folder: Path) -> None:
    """Make a folder in the cache, and the cache itself, where there is none, for their owner alone.

    Raises:
        OSError: they can't be made, or one of them is another user's, who is not root and may put anything into it.
    """
    cache = folder.parent
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_owner(cache)
    folder.mkdir(mode=0o700, exist_ok=True)
    check_owner(folder)  # in a cache that all may write to, anyone may have made it first
    mark_used(folder)  # before anything else is in it: `make_room` removes what has the mark alone


def check_owner(folder: Path) -> None:
    """Raises OSError where `make_folder` does, of a cache or a folder in it: nothing in it is to be read."""
    for owner in (folder.lstat().st_uid, folder.stat().st_uid):  # a link's owner can point it elsewhere
        if owner not in (os.getuid(), 0):
            rule = f"the cache {folder} is another user's (uid {owner})"
            raise PermissionError(f"{rule}; set {FOLDER_VARIABLE} to a folder of yours, or to 'off'")


@cache
def limit_bytes(given: str) -> float:
    """The size that the cache may have; the usual one, and a warning once, where the variable's value is no size."""
    with contextlib.suppress(ValueError):
        if (size := float(given)) >= 0:
            return size * 2**30
    logging.getLogger("trainables").warning(
        "%s = %r is no size in gigabytes; the cache takes %g at most", LIMIT_VARIABLE, given, LIMIT_GB
    )
    return LIMIT_GB * 2**30


def make_room(cache: Path, size: int, keep: Path) -> bool:
    """Whether `size` more bytes fit into `cache`, after removing other folders, the least recently used first.

    Only folders of `make_folder` are counted and removed; whatever else lies there is its owner's.
    """
    sizes = {folder: _bytes(folder) for folder in cache.iterdir() if folder == keep or _is_ours(folder)}
    total, most = sum(sizes.values()), limit_bytes(os.environ.get(LIMIT_VARIABLE) or str(LIMIT_GB))
    limit = min(most, total + shutil.disk_usage(cache).free - SPARE_BYTES)
    own = sizes.pop(keep, 0)
    if size + own > limit:
        return False
    others = sorted(sizes, key=_last_used)
    while total + size > limit and others:
        oldest = others.pop(0)
        total -= sizes[oldest]
        shutil.rmtree(oldest, ignore_errors=True)  # who has it mapped keeps its pages
    return total + size <= limit


def _is_ours(folder: Path) -> bool:
    """By its mark and its name: the mark's name alone could be anyone's."""
    named = _NAME.fullmatch(folder.name) is not None and not folder.is_symlink()
    return named and (folder / _USED).is_file()


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process tidies up as well
            total += path.stat().st_size if path.is_file() else 0
    return total


def _last_used(folder: Path) -> float:
    for path in (folder / _USED, folder):
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_mtime
    return 0.0


def mark_used(folder: Path) -> None:
    """Say that a folder of the cache is in use now; what is unused for longest is removed first."""
    with contextlib.suppress(OSError):  # of another user, or read-only
        (folder / _USED).touch()


@contextlib.contextmanager
def in_turn(folder: Path, lock: str = ".lock") -> Iterator[None]:
    """Hold a lock of a folder, which ends with the process at the latest. Raises OSError where none can be had."""
    with (folder / lock).open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def draft(folder: Path) -> Iterator[Path]:
    """A new file in a folder of the cache, to be written and renamed; the end of the block removes it otherwise."""
    handle, name = tempfile.mkstemp(suffix=".part", dir=folder)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
