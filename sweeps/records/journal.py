"""The journal: an append-only file of events, one JSON object a line, and the truth about a sweep.

`analysis.store.journal` reads it, and says which events there are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from analysis.store.journal import read_journal
from analysis.store.tables import sync_folder


class Journal:
    """Appends events; every event is on disk before `write` returns, unless `sync` is False.

    Args:
        path: the file, made with its folder when absent. A last line that a crash cut short is removed first.

    Attributes:
        events: what the journal held when it was opened.
        torn: the unfinished last line that was removed; None when there was none.

    Raises:
        StoreError: a line before the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        found = read_journal(path)
        self.events = found.events
        self.torn = found.torn
        fresh = not path.exists()
        if found.torn is not None:
            os.truncate(path, found.size)  # before anything is appended to it
        self._file = path.open("ab", buffering=0)
        if fresh:
            sync_folder(path.parent)

    def write(self, event: Mapping[str, Any], *, sync: bool = True) -> None:
        """Append one event.

        Args:
            event: JSON-able, with its kind under "ev".
            sync: wait for the disk. Reports need not: a lost one is trained again or reported again.

        Raises:
            OSError: disk full or read-only; the half-written line is taken back, so the journal stays whole.
        """
        line = json.dumps(event, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        start = self._file.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
            if sync:
                os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(start)
            raise

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
    """Replace a file by its new text: never half of it, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)
