"""Who watches a sweep beside its display: a mirror for optuna-dashboard, experiment trackers.

Observers are told what happens after it is in the journal, from a thread of their own, and are never asked: a slow one
does not hold the sweep up, and one that fails is named once and left out from then on.
"""

from __future__ import annotations

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
"""How long the end of a sweep waits for observers to catch up."""


@dataclass(frozen=True)
class Seen:
    """A trial that an earlier run asked: its row where it is over, and its validation scores by epoch."""

    cell: Cell
    slot: Slot
    row: TrialRow | None
    curve: Mapping[int, float] = field(default_factory=dict)


class Observer(Protocol):
    """What an observer is told. All calls come from one thread, in the order in which things happened."""

    @property
    def name(self) -> str: ...
    def start(self, seen: Sequence[Seen]) -> None: ...
    def asked(self, cell: Cell, slot: Slot) -> None: ...
    def reported(self, slot: Slot, values: Mapping[str, Any]) -> None: ...
    def finished(self, slot: Slot, row: TrialRow) -> None: ...
    def close(self) -> None: ...


def tell(observer: Observer, seen: Seen) -> None:
    """Tell an observer of a trial that is over as if it had watched."""
    if seen.row is not None:
        observer.asked(seen.cell, seen.slot)
        for epoch, score in sorted(seen.curve.items()):
            observer.reported(seen.slot, {"epoch": epoch, "val_score": score})
        observer.finished(seen.slot, seen.row)


def seen_in(state: SweepState) -> list[Seen]:
    """Every trial that a state knows, by cell and in the order asked."""
    return [
        Seen(cell.cell, slot, cell.rows.get(slot.trial_id), cell.curves.get(slot.trial_id, {}))
        for cell in state.cells.values()
        for slot in cell.asked.values()
    ]


class Observers:
    """Passes events on to observers.

    Args:
        observers: told in this order; none is fine.
        warn: takes one line for an observer that failed.
    """

    def __init__(self, observers: Sequence[Observer] = (), warn: Callable[[str], None] = lambda _: None) -> None:
        self._alive = list(observers)
        self._warn = warn
        self._events: queue.SimpleQueue[Callable[[Observer], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, state: SweepState) -> None:
        """Tell what is known already, and begin."""
        if self._alive:
            seen = seen_in(state)
            self._thread = threading.Thread(target=self._run, name="observers", daemon=True)
            self._thread.start()
            self._events.put(lambda o: o.start(seen))

    def asked(self, cell: Cell, slot: Slot) -> None:
        """A trial is about to run, for the first time or again."""
        self._put(lambda o: o.asked(cell, slot))

    def reported(self, slot: Slot, values: Mapping[str, Any]) -> None:
        """An epoch of a trial: `epoch`, `train_loss`, `val_score`."""
        self._put(lambda o: o.reported(slot, values))

    def finished(self, slot: Slot, row: TrialRow) -> None:
        """A trial is over."""
        self._put(lambda o: o.finished(slot, row))

    def close(self) -> None:
        """Let observers catch up, for a while, and end them."""
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
                except Exception as error:  # noqa: BLE001  # someone else's code, beside the sweep
                    self._alive.remove(observer)
                    why = reason(error)
                    self._warn(f"{observer.name} is left out from here on ({why}); the sweep goes on")
