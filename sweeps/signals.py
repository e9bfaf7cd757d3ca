"""How a sweep is stopped from outside: signals and limits, carried to the broker by a thread."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from sweeps.limits import Meter

if TYPE_CHECKING:
    from sweeps.dispatch import Dispatcher

_EVERY_S = 0.5
_PATIENCE_S = 20.0
"""How long `held` keeps a signal waiting: what it guards takes less, unless it hangs."""


class Stop:
    """Whether a sweep is to end, and why: a signal, or a limit that is reached."""

    def __init__(self, meter: Meter) -> None:
        self.signalled = threading.Event()
        self.limit: str | None = None
        self._meter = meter

    def __bool__(self) -> bool:
        return self.signalled.is_set() or self.limit is not None

    def wait(self) -> bool:
        """Wait a moment for a signal, look at the limits; whether to end."""
        self.signalled.wait(_EVERY_S)
        self._meter.tick()
        if not self.signalled.is_set():
            self.limit = self.limit or self._meter.reached()
        return bool(self)


@contextlib.contextmanager
def watch(stop: Stop, dispatcher: Dispatcher) -> Iterator[None]:
    """Carry a stop to the broker: from a thread, since a handler may have interrupted Ray in the middle of a call."""
    over = threading.Event()

    def carry() -> None:
        while not over.is_set():
            if stop.wait():
                dispatcher.interrupted = True
                dispatcher.broker.interrupt.remote()
                return

    thread = threading.Thread(target=carry, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def signals(stop: threading.Event | None, lost: Callable[[], object] = lambda: None) -> Iterator[None]:
    """SIGINT and SIGTERM set `stop`, for a clean end; without it, or the second time, they end the run at once.

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
    """SIGINT and SIGTERM wait for the end of the block, which is a KeyboardInterrupt then.

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


def handled() -> bool:
    """Whether signals are handled here now."""
    return bool(_depth)


def signalled() -> bool:
    """Whether one has come since they are."""
    return _came.is_set()


@contextlib.contextmanager
def _handled(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return

    def noted(number: int, frame: FrameType | None) -> None:
        _came.set()
        handle(number, frame)

    if not _depth:
        _came.clear()
    before = {number: signal.signal(number, noted) for number in (signal.SIGINT, signal.SIGTERM)}
    _depth.append(None)
    try:
        yield
    finally:
        _depth.pop()
        for number, handler in before.items():
            signal.signal(number, handler)
