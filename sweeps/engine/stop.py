"""How a sweep is stopped from outside: a signal or a limit, carried to the broker by a thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from sweeps.engine.limits import Meter
from sweeps.lanes.tune import Dispatcher

_EVERY_S = 0.5


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
