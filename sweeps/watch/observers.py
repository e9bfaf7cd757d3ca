"""Tells observers what happens in a sweep. Observers are the mirror for optuna-dashboard and experiment trackers.

Observers are told of an event after it is in the journal, in a separate thread. They decide nothing. So a slow observer
does not delay the sweep. An observer that fails is left out from then on, with one warning.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from analysis.store.rows import TrialRow
from sweeps.errors import reason
from sweeps.search.slots import Slot
from sweeps.search.stages import SweepState
from sweeps.spec.cell import Cell

CLOSE_S = 30.0
"""Seconds that the end of a sweep waits for observers that are behind."""


@dataclass(frozen=True)
class Seen:
    """A trial of an earlier run.

    Attributes:
        cell: its cell.
        slot: its slot.
        row: its row; None if it has not ended.
        curve: its validation scores by epoch.
    """

    cell: Cell
    slot: Slot
    row: TrialRow | None
    curve: Mapping[int, float] = field(default_factory=dict)


class Observer(Protocol):
    """An observer of a sweep. All calls come from one thread, in the order of the events."""

    @property
    def name(self) -> str: ...
    def start(self, seen: Sequence[Seen]) -> None: ...
    def asked(self, cell: Cell, slot: Slot) -> None: ...
    def reported(self, slot: Slot, values: Mapping[str, Any]) -> None: ...
    def finished(self, slot: Slot, row: TrialRow) -> None: ...
    def close(self) -> None: ...


def tell(observer: Observer, seen: Seen) -> None:
    """Tell an observer all events of an ended trial of an earlier run."""
    if seen.row is not None:
        observer.asked(seen.cell, seen.slot)
        for epoch, score in sorted(seen.curve.items()):
            observer.reported(seen.slot, {"epoch": epoch, "val_score": score})
        observer.finished(seen.slot, seen.row)


def seen_in(state: SweepState) -> list[Seen]:
    """Return every trial that a state knows, by cell and in the order in which they were asked."""
    return [
        Seen(cell.cell, slot, cell.rows.get(slot.trial_id), cell.curves.get(slot.trial_id, {}))
        for cell in state.cells.values()
        for slot in cell.asked.values()
    ]


class Observers:
    """Passes events to observers, in a separate thread.

    Args:
        observers: the observers, which are told in this order.
        warn: called with one line if an observer failed.
    """

    def __init__(self, observers: Sequence[Observer] = (), warn: Callable[[str], None] = lambda _: None) -> None:
        self._alive = list(observers)
        self._warn = warn
        self._events: queue.SimpleQueue[Callable[[Observer], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, state: SweepState) -> None:
        """Start the thread, and tell the observers about the trials of earlier runs."""
        if self._alive:
            seen = seen_in(state)
            self._thread = threading.Thread(target=self._run, name="observers", daemon=True)
            self._thread.start()
            self._events.put(lambda o: o.start(seen))

    def asked(self, cell: Cell, slot: Slot) -> None:
        """Tell that a trial is about to run, for the first time or again."""
        self._put(lambda o: o.asked(cell, slot))

    def reported(self, slot: Slot, values: Mapping[str, Any]) -> None:
        """Tell the report of one epoch of a trial: `epoch`, `train_loss`, `val_score`."""
        self._put(lambda o: o.reported(slot, values))

    def finished(self, slot: Slot, row: TrialRow) -> None:
        """Tell that a trial has ended."""
        self._put(lambda o: o.finished(slot, row))

    def close(self) -> None:
        """Wait at most `CLOSE_S` seconds for observers that are behind, and end the thread."""
        if self._thread is None:
            return
        self._events.put(lambda o: o.close())
        self._events.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            names = ", ".join(o.name for o in self._alive)
            self._warn(f"{names} did not catch up within {CLOSE_S:.0f} s; what is missing is in the results folder")
        self._thread = None

    def _put(self, event: Callable[[Observer], None]) -> None:
        if self._thread is not None:
            self._events.put(event)

    def _run(self) -> None:
        while (event := self._events.get()) is not None:
            for observer in list(self._alive):
                try:
                    event(observer)
                except Exception as error:  # noqa: BLE001  # other people's code must not end the sweep
                    self._alive.remove(observer)
                    with contextlib.suppress(Exception):
                        observer.close()
                    why = reason(error)
                    self._warn(f"{observer.name} is left out from here on ({why}); the sweep goes on")
