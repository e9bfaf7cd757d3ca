"""Digests of files, over every byte. A digest is kept, and a file is read again only if the system says it changed.

Kept digests lie in the machine's cache (`trainables.cache`) with what the system says of each file: its size, the times
at which its content and its inode changed (mtime, ctime), its inode and its device. `tar`, `rsync -t` and zip set
mtime, so files that they replace can agree in size and mtime. No program sets ctime: it shows that they were replaced.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from trainables.cache import cache_folder, check_owner, draft, in_turn, make_folder, mark_used

DIGEST_SIZE = 16
new_digest = functools.partial(hashlib.blake2b, digest_size=DIGEST_SIZE)
SETTLED_S = 2.0
"""A file that changed less than this many seconds before it was read is read again next time.

Clocks of file systems are coarse, so another change soon after could leave the same times.
"""

Display = Callable[[int], AbstractContextManager[Callable[[int], object]]]
"""Takes the number of bytes to read. Its context gives a function that is called with the size of each piece read."""

_READERS = 8
_FILE = "digests"
_RECORD = struct.Struct(f"<QqqQQ{DIGEST_SIZE}s")
_CANNOT_BE_READ = bytes(DIGEST_SIZE)


class FileState(NamedTuple):
    """What the system says of a file: it differs if the file was changed or replaced."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """Return what a `stat` says."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)

    @classmethod
    def at(cls, path: Path) -> FileState | None:
        """Return the state of a file, or None if there is no regular file: reading a device or pipe might not end."""
        try:
            status = path.stat()
        except OSError:
            return None
        return cls.of(status) if stat.S_ISREG(status.st_mode) else None


def content_digest(paths: Sequence[Path]) -> str:
    """Return one digest of what all files hold, in order, whatever they are called."""
    total = new_digest()
    for digest in file_digests(paths):
        total.update(digest or _CANNOT_BE_READ)
    return total.hexdigest()


def content_as_opened(paths: Sequence[Path]) -> Callable[[], str | None]:
    """Return what gives `content_digest` of files that are read now; it gives None once one of them has changed."""
    opened = [FileState.at(path) for path in paths]
    return lambda: content_digest(paths) if opened == [FileState.at(path) for path in paths] else None


def file_digests(paths: Sequence[Path], display: Display | None = None) -> list[bytes | None]:
    """Return a digest of every byte of each file; None for one that can't be read.

    Processes that ask for the same files at once wait for the first one. `display` shows how far reading is; it is
    used only if a file has to be read.
    """
    unique = list(dict.fromkeys(paths))
    states = [FileState.at(path) for path in unique]
    folder = _folder(unique, states)
    with contextlib.ExitStack() as stack:
        digests = _kept(folder, states)
        if folder is not None and None in digests:
            with contextlib.suppress(OSError):  # the cache is read-only, full or another user's
                make_folder(folder)
                stack.enter_context(in_turn(folder))
                digests = _kept(folder, states)
        missing = [k for k, state in enumerate(states) if state is not None and digests[k] is None]
        if missing:
            size = sum(state.size for k in missing if (state := states[k]) is not None)
            with (display or _no_display)(size) as advance, ThreadPoolExecutor(min(_READERS, len(missing))) as pool:
                read = pool.map(lambda k: _read(unique[k], advance), missing)
                for k, entry in zip(missing, read, strict=True):
                    states[k], digests[k] = entry
            if folder is not None:
                _keep(folder, states, digests)
    by_path = dict(zip(unique, digests, strict=True))
    return [by_path[path] for path in paths]


class _Counted(io.FileIO):
    """A file that tells the size of each piece that is read of it."""

    def __init__(self, path: Path, advance: Callable[[int], object]) -> None:
        super().__init__(path)
        self._advance = advance

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        size = super().readinto(buffer) or 0
        self._advance(size)
        return size


def _read(path: Path, advance: Callable[[int], object]) -> tuple[FileState | None, bytes | None]:
    """Return a file's digest, and its state if the digest may be kept under it."""
    begun = time.time()
    try:
        with _Counted(path, advance) as file:
            before = FileState.of(os.fstat(file.fileno()))
            digest = hashlib.file_digest(file, new_digest).digest()
            after = FileState.of(os.fstat(file.fileno()))
    except OSError:
        return None, None
    settled = before == after and before.ctime_ns < (begun - SETTLED_S) * 1e9
    return before if settled else None, digest


def _folder(paths: Sequence[Path], states: Sequence[FileState | None]) -> Path | None:
    """Return where digests of these files are kept, or None without a cache.

    Machines that share a cache and mount other disks at the same place have folders of their own.
    """
    cache = cache_folder()
    if cache is None:
        return None
    digest_of_disks = hashlib.sha256(repr(sorted({state.device for state in states if state is not None})).encode())
    for path in paths:
        digest_of_disks.update(os.fsencode(path.absolute()) + b"\0")
    return cache / f"files-{digest_of_disks.hexdigest()[:32]}"


def _kept(folder: Path | None, states: Sequence[FileState | None]) -> list[bytes | None]:
    """Return the digests that are kept for files in these states; None for others."""
    nothing: list[bytes | None] = [None] * len(states)
    if folder is None:
        return nothing
    try:
        check_owner(folder.parent)
        check_owner(folder)
        checksum, body = (stored := (folder / _FILE).read_bytes())[:DIGEST_SIZE], stored[DIGEST_SIZE:]
    except OSError:  # there are none, or another user may have put them there
        return nothing
    if len(body) != _RECORD.size * len(states) or new_digest(body).digest() != checksum:
        return nothing
    mark_used(folder)
    records = _RECORD.iter_unpack(body)
    return [digest if state == tuple(was) else None for state, (*was, digest) in zip(states, records, strict=True)]


def _keep(folder: Path, states: Sequence[FileState | None], digests: Sequence[bytes | None]) -> None:
    nobody = FileState(0, 0, 0, 0, 0)
    body = b"".join(_RECORD.pack(*(s or nobody), d or b"") for s, d in zip(states, digests, strict=True))
    with contextlib.suppress(OSError), draft(folder) as file:  # the cache is full or cannot be written
        file.write_bytes(new_digest(body).digest() + body)
        file.replace(folder / _FILE)


@contextlib.contextmanager
def _no_display(_: int) -> Iterator[Callable[[int], object]]:
    yield lambda _: None
