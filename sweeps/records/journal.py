"""The journal: an append-only file of events, with one JSON object in each line. It is the truth about a sweep.

`analysis.store.journal` reads it, and lists the kinds of events.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from analysis.store.journal import journal_line, line_digest, read_journal
from analysis.store.tables import sync_folder


class Journal:
    """Appends events to a file. Every event is on disk before `write` returns, unless `sync` is False.

    Args:
        path: the file. It is made, with its folder, if it is missing. A last line that a crash cut short is removed.

    Attributes:
        events: the events that the journal had when it was opened.
        torn: the unfinished last line that was removed; None if there was none.

    Raises:
        StoreError: a line before the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        content = read_journal(path)
        self.events = content.events
        self.torn = content.torn
        self._tip = content.tip
        fresh = not path.exists()
        if content.torn is not None:
            os.truncate(path, content.size)  # before anything is appended to it
        self._file = path.open("a+b", buffering=0)
        self._end = self._file.seek(0, os.SEEK_END)
        self._lock = threading.Lock()
        self._lost: OSError | None = None
        if fresh:
            sync_folder(path.parent)

    def write(self, event: Mapping[str, Any], *, sync: bool = True) -> None:
        """Append one event.

        Args:
            event: the event as JSON values, with its kind under "ev".
            sync: whether to wait for the disk. Reports do not wait: a lost one is trained or reported again.

        Raises:
            OSError: the disk is full or read-only. The half-written line is removed, so the journal stays whole. Also
                if `check` finds that the file is gone, or if another process has written to it, such as a driver on
                another machine that took over the folder while this process was suspended.
        """
        line = journal_line(event, self._tip)
        start = self._file.seek(0, os.SEEK_END)
        if start != self._end and self._lost is None:
            what = "another process has written to the journal, so this run stops; what it finished before is kept"
            self._lost = OSError(errno.ESTALE, what, str(self.path))
        if self._lost is not None:
            raise self._lost
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
            self._end = start + len(line)
            if sync:
                os.fsync(self._file.fileno())
        except BaseException as error:
            if isinstance(error, OSError) or self._end == start:  # else it was interrupted in fsync: the line is whole
                self._file.truncate(start)
                self._end = start
            else:
                self._tip = line_digest(line)
            raise
        self._tip = line_digest(line)
        if sync:
            self.check()

    def check(self) -> None:
        """Check that the file at the journal's path is still the one that is written. May be called from any thread.

        If the file was removed, its content would be lost with this process. So it is first written again: at the same
        path, or beside the file that is there now.

        Raises:
            OSError: the file was moved, removed or replaced. The message says where the events are. Every later call
                raises it too.
        """
        with self._lock:
            if self._lost is None:
                self._lost = self._missing()
            if self._lost is not None:
                raise self._lost

    def _missing(self) -> OSError | None:
        """Return the error if the journal is not at its path any more; None if it is. Save events of a removed file."""
        open_file = os.fstat(self._file.fileno())
        place = self.path
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(open_file, place.stat()):
                return None
        again = "run the same command again"
        if open_file.st_nlink > 0 or not place.parent.is_dir():
            what = (
                f"the results folder, or its journal, was moved or removed while the sweep ran; put it back and {again}"
            )
            return OSError(errno.ESTALE, what, str(place))
        saved = place.with_name(f"journal-{os.getpid()}-saved.jsonl") if place.exists() else place
        draft = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        with draft.open("wb") as file:
            while part := os.pread(self._file.fileno(), 1 << 20, file.tell()):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(saved)
        sync_folder(place.parent)
        what = f"the journal was removed while the sweep ran, and is written again ({saved.name}); {again}"
        return OSError(errno.ESTALE, what, str(place))

    def close(self) -> None:
        """Flush to disk and close."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by a new text, or leave it as it is if anything goes wrong. Its folder must exist."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)
