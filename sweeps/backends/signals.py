"""SIGINT, SIGTERM and SIGHUP: a clean end, or one that waits while a Ray session starts or ends."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

_PATIENCE_S = 20.0
"""How long `held` keeps a signal waiting: what it guards takes less, unless it hangs."""


@contextlib.contextmanager
def signals(stop: threading.Event | None, lost: Callable[[], object] = lambda: None) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP set `stop`, for a clean end; without it, or the second time, they end the run at once.

    So do they where nothing can be ended cleanly, since Ray is `lost`.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if stop is None or stop.is_set() or lost():
            raise KeyboardInterrupt
        stop.set()

    with _handled(handle):
        yield


@contextlib.contextmanager
def held() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP wait for the end of the block, which is a KeyboardInterrupt then.

    For what must not be left half done: a process ends with an error when Ray's session goes down around its threads.
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


def received() -> int | None:
    """The number of the last signal that was handled here; None if there was none."""
    return _numbers[-1] if _numbers else None


def handled() -> bool:
    """Whether signals are handled here now."""
    return bool(_depth)


def signalled() -> bool:
    """Whether one has come since they are, also where the main thread is in a call and has not heard of it yet."""
    if _heard is not None:
        with contextlib.suppress(BlockingIOError):
            if os.read(_heard, 64):
                _came.set()
    return _came.is_set()


_heard: int | None = None
"""Where Python writes a byte for every signal at once, whatever the main thread does."""


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
