"""Standard streams that outlive their reader: a closed pipe or terminal, or a full disk, must not end a sweep."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


class Lasting:
    """A stream that drops what can't be written, from the first error on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._dropped():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropped():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropped(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: it is closed here
            if isinstance(error, UnicodeError):
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            with contextlib.suppress(OSError, ValueError):  # what is still in its buffer is written at the end too
                os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def keep_streams() -> None:
    """Standard output and standard error drop from now on what can't be written."""
    sys.stdout, sys.stderr = lasting(sys.stdout), lasting(sys.stderr)


def lasting(stream: TextIO) -> TextIO:
    """The same stream, which drops what can't be written."""
    return stream if isinstance(stream, Lasting) else cast("TextIO", Lasting(stream))
