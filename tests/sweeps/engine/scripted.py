"""The engine's loop on a backend that says what a test wants it to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sweeps.backends.backend import Event, Facts, Order
from sweeps.engine.loop import Loop, Stop
from sweeps.records.journal import Journal
from sweeps.records.ledger import Ledger
from sweeps.records.sealing import Sealer
from sweeps.search.stages import SweepState
from tests.fakes import TRIAL, FakePlan

NO_LIMIT: Any = SimpleNamespace(tick=lambda: None, reached=lambda: None)


class Scripted:
    """A backend of `workers` workers. `says`: gives the events that follow the start of some orders."""

    def __init__(self, says: Callable[[Sequence[Order]], list[Event]], workers: int = 1) -> None:
        self.facts = Facts(workers=workers, pack=1, accelerators=1.0, provenance={})
        self.says, self.busy = says, 0
        self.news: list[Event] = []
        self.tried: list[str] = []
        self.stopped: list[tuple[str, bool]] = []
        self._open = 0

    @property
    def free(self) -> int:
        return self.facts.workers - self._open

    def start(self, orders: Sequence[Order]) -> None:
        self._open += 1
        self.tried += [order.trial_id for order in orders]
        self.news += self.says(orders)

    def events(self, timeout: float) -> list[Event]:
        found, self.news = self.news[:1], self.news[1:]
        self._open -= sum(type(event).__name__ != "Reported" for event in found)
        return found

    def stop(self, trial_id: str, *, over: bool) -> None:
        self.stopped.append((trial_id, over))

    def close(self) -> None: ...


def loop_of(
    plan: FakePlan, folder: Path, backend: Scripted, changed: Callable[[], None] = lambda: None
) -> Iterator[tuple[Loop, Ledger]]:
    """The loop of a plan, and its ledger; for a `with` by `contextlib.contextmanager`."""
    state = SweepState(plan.feasible, plan.spec)
    with Journal(folder / "journal.jsonl") as journal:
        ledger = Ledger(state, journal, Sealer(folder), folder, "none")
        yield Loop(ledger, backend, TRIAL, changed, Stop(threading.Event(), NO_LIMIT, lambda: None)), ledger
