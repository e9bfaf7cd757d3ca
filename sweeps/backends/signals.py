"""Handles SIGINT, SIGTERM and SIGHUP: they end a sweep cleanly, or wait while a Ray session starts or ends."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

_PATIENCE_S = 20.0
"""The seconds for which `delay_signals` holds a signal back. Its block takes less, unless it hangs."""


@contextlib.contextmanager
def stop_on_signals(stop: threading.Event | None, lost: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP in the block set `stop`, so that the run ends cleanly.

    They raise KeyboardInterrupt at once if `stop` is None, if it is set already (a second signal), or if `lost()` is
    true: then Ray is gone, and nothing can be ended cleanly.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if stop is None or stop.is_set() or lost():
            raise KeyboardInterrupt
        stop.set()

    with _handled(handle):
        yield


@contextlib.contextmanager
def delay_signals() -> Iterator[None]:
    """Hold SIGINT, SIGTERM and SIGHUP back until the end of the block, and raise KeyboardInterrupt there.

    This is for a block that must not be left half done. A signal that comes after `_PATIENCE_S` interrupts the block.
    """
    begun = time.monotonic()
    came = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if time.monotonic() - begun > _PATIENCE_S:
            raise KeyboardInterrupt
        came.set()

    with _handled(handle):
        yield
    if came.is_set():
        raise KeyboardInterrupt


_depth: list[None] = []
_came = threading.Event()
_numbers: list[int] = []


def last_signal() -> int | None:
    """Return the number of the last signal that was handled here; None if there was none."""
    return _numbers[-1] if _numbers else None


def signals_handled() -> bool:
    """Return whether one of the two context managers handles signals now."""
    return bool(_depth)


def signal_came() -> bool:
    """Return whether a signal has come since signals are handled.

    This is also true if the main thread is in a call, so that its handler has not run yet.
    """
    if _heard is not None:
        with contextlib.suppress(BlockingIOError):
            if os.read(_heard, 64):
                _came.set()
    return _came.is_set()


_heard: int | None = None
"""The read end of a pipe. Python writes a byte into it for every signal at once, whatever the main thread does."""


@contextlib.contextmanager
def _listening() -> Iterator[None]:
    global _heard
    _heard, writes = os.pipe()
    os.set_blocking(_heard, False)
    os.set_blocking(writes, False)
    before = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        read, _heard = _heard, None
        os.close(read)
        os.close(writes)


@contextlib.contextmanager
def _handled(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return

    def noted(number: int, frame: FrameType | None) -> None:
        _numbers.append(number)
        _came.set()
        handle(number, frame)

    if not _depth:
        _came.clear()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, noted) for number in numbers}
    outermost = not _depth
    _depth.append(None)
    try:
        with _listening() if outermost else contextlib.nullcontext():
            yield
    finally:
        _depth.pop()
        for number, handler in before.items():
            signal.signal(number, handler)
