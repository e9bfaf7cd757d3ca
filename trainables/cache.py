"""The cache of a machine: a folder of folders (decoded images, weights of base models) with a size limit and locks.

The machine's workers share its content. If it is full, the folder that was unused for longest is removed first
(`data.images.decoded`, `models.shared`).
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
"""The environment variable that names the cache folder. Default: ~/.cache/randlora-sweeps/pixels. A word of `OFF`: no
cache."""
OFF = ("off", "none", "no", "false", "0")
LIMIT_VARIABLE = "SWEEPS_CACHE_GB"
LIMIT_GB = 50.0
"""The largest size of the whole cache. Folders that were unused for longest are removed first."""
SPARE_BYTES = 2**30
"""Bytes that stay free on the cache's disk."""

_USED = "used"  # its time is when the folder was last opened
_NAME = re.compile(r"([a-z]+-)?[0-9a-f]{32}")


def cache_folder(usual: str = "pixels") -> Path | None:
    """Return the cache folder; None if the cache is switched off. `usual` is its name if the environment names none."""
    value = os.environ.get(FOLDER_VARIABLE, "")
    if value.lower() in OFF:
        return None
    return Path(value).expanduser() if value else Path.home() / ".cache" / "randlora-sweeps" / usual


def make_folder(folder: Path) -> None:
    """Make a folder in the cache, and the cache itself, if they are missing. Only their owner can access them.

    Raises:
        OSError: they cannot be made, or one of them belongs to another user (not root), who may put anything into it.
    """
    cache = folder.parent
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_owner(cache)
    folder.mkdir(mode=0o700, exist_ok=True)
    check_owner(folder)  # if all may write to the cache, anyone may have made the folder first
    mark_used(folder)  # before anything else is in it, because `make_room` only removes folders with this file


def check_owner(folder: Path) -> None:
    """Raise OSError, as `make_folder` does, if the cache or a folder in it belongs to another user: nothing in it may
    be read."""
    for owner in (folder.lstat().st_uid, folder.stat().st_uid):  # a link's owner can point it elsewhere
        if owner not in (os.getuid(), 0):
            rule = f"the cache {folder} is another user's (uid {owner})"
            raise PermissionError(f"{rule}; set {FOLDER_VARIABLE} to a folder of yours, or to 'off'")


@cache
def limit_bytes(given: str) -> float:
    """Return the largest size of the cache. If the variable's value is not a size, return the default and warn once."""
    with contextlib.suppress(ValueError):
        if (size := float(given)) >= 0:
            return size * 2**30
    logging.getLogger("trainables").warning(
        "%s = %r is no size in gigabytes; the cache takes %g at most", LIMIT_VARIABLE, given, LIMIT_GB
    )
    return LIMIT_GB * 2**30


def make_room(cache: Path, size: int, keep: Path) -> bool:
    """Return whether `size` more bytes fit into `cache`, after removing other folders, the least recently used first.

    Only folders that `make_folder` made are counted and removed. Anything else there belongs to its owner.
    """
    sizes = {folder: _bytes(folder) for folder in cache.iterdir() if folder == keep or _is_ours(folder)}
    total, most = sum(sizes.values()), limit_bytes(os.environ.get(LIMIT_VARIABLE) or str(LIMIT_GB))
    limit = min(most, total + shutil.disk_usage(cache).free - SPARE_BYTES)
    kept_size = sizes.pop(keep, 0)
    if size + kept_size > limit:
        return False
    others = sorted(sizes, key=_last_used)
    while total + size > limit and others:
        oldest = others.pop(0)
        total -= sizes[oldest]
        shutil.rmtree(oldest, ignore_errors=True)  # a process that has mapped it keeps its pages
    return total + size <= limit


def _is_ours(folder: Path) -> bool:
    """Return whether `make_folder` made this folder, by its marker file and its name. The file alone could be
    anyone's."""
    has_cache_name = _NAME.fullmatch(folder.name) is not None and not folder.is_symlink()
    return has_cache_name and (folder / _USED).is_file()


def _bytes(folder: Path) -> int:
    """Return the bytes of the files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process tidies up as well
            total += path.stat().st_size if path.is_file() else 0
    return total


def _last_used(folder: Path) -> float:
    """Return when a folder of the cache was last used."""
    for path in (folder / _USED, folder):
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_mtime
    return 0.0


def mark_used(folder: Path) -> None:
    """Record that a folder of the cache is in use now. Folders that were unused for longest are removed first."""
    with contextlib.suppress(OSError):  # the folder is another user's, or read-only
        (folder / _USED).touch()


@contextlib.contextmanager
def in_turn(folder: Path, lock: str = ".lock") -> Iterator[None]:
    """Hold a lock of a folder during the block. It ends with the process at the latest. Raises OSError if there is none
    to be had."""
    with (folder / lock).open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def draft(folder: Path) -> Iterator[Path]:
    """Yield a new file in a folder of the cache, to be written and renamed. If it was not renamed, the block's end
    removes it."""
    handle, name = tempfile.mkstemp(suffix=".part", dir=folder)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
