"""Standard streams that go on if nobody reads them: a closed pipe or terminal, or a full disk, must not end a sweep."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
"""The errors of a stream that nobody reads any more."""


class Lasting:
    """A stream that drops all text from the first error on.

    Attributes:
        lost: that error, if a reader may still wait for the text, such as on a full disk; else None.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None

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
        except (OSError, ValueError) as error:  # ValueError: this process closed it
            if isinstance(error, UnicodeError):
                raise
            if isinstance(error, OSError) and error.errno not in _GONE:
                self.lost = self.lost or error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            # the stream's buffer is written at the end, so it must go to the null device too
            with contextlib.suppress(OSError, ValueError):
                os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def keep_streams() -> None:
    """Let standard output and error drop text that can't be written, and escape characters that they can't encode."""
    sys.stdout, sys.stderr = lasting(_tolerant(sys.stdout)), lasting(_tolerant(sys.stderr))


def _tolerant(stream: TextIO | None) -> TextIO:
    """Return a stream that escapes characters which it can't encode; the null device if the stream is closed."""
    if stream is None:  # closed by the caller: `>&-`
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123  # for as long as the process
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="backslashreplace")  # not "replace": a minus sign must not become a question mark
    return stream


def lost_output() -> OSError | None:
    """Return the error because of which standard output lacks text; None if it lacks nothing."""
    sys.stdout.flush()
    return getattr(sys.stdout, "lost", None)


def lasting(stream: TextIO) -> TextIO:
    """The same stream, which drops what can't be written."""
    return stream if isinstance(stream, Lasting) else cast("TextIO", Lasting(stream))
