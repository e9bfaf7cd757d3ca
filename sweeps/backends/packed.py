"""Several trials of one cell in one process, on one copy of the base model (`trainables.training.packed`)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sweeps.backends.memory import MicroBatch, accelerator_lost, free_memory, out_of_memory
from sweeps.backends.reports import FORESEEN, facts, failed, keep, load_trial, make_folder, storage_fault
from sweeps.errors import reason
from trainables.config import TrialConfig
from trainables.packing.alike import UnevenTrialsError

Order = dict[str, Any]


class Listener(Protocol):
    """Takes the reports and outcomes of the trials of a pack, each by its key."""

    warm: dict[str, Any]
    """Cache of models and data, which stays from trial to trial."""

    def report(self, reports: Mapping[str, dict[str, Any]]) -> Mapping[str, str]:
        """Take the reports of an epoch. Return a verdict for each key: "go" if the trial is to go on."""

    def finish(self, key: str, last: dict[str, Any] | None, outcome: dict[str, Any]) -> None:
        """Take a trial's outcome, and its last report (None if there is none)."""

    def unpack(self, keys: Sequence[str], reason: str, cause: str) -> None:
        """Take back the trials `keys`, which are to be run one by one."""


def train_together(listener: Listener, orders: Sequence[Order]) -> Generator[None, None, None]:
    """Run a pack from its orders to its outcomes. Yield after every step of its trials.

    If one trial fails, it ends with its own outcome, and the others go on. If the pack as a whole fails (its trials
    can't be packed, memory runs out, or any other error), the trials that have not ended are given back to `listener`.

    Raises:
        Exception: any exception after which `accelerator_lost` is true.
    """
    pack = _Pack(listener, orders)
    why: tuple[str, str] | None = None
    try:
        yield from pack.run()
    except Exception as error:  # whoever is at fault raises it again by itself
        if accelerator_lost(error):
            raise  # the caller's process can train nothing more
        why = reason(error), _cause(error, Path(orders[0]["directory"]))
        if not isinstance(error, FORESEEN):
            listener.warm.clear()  # nothing that such trials touched is trusted
    if why is not None:  # out of the handler: the exception's frames hold tensors
        free_memory()
        listener.unpack([order["key"] for place, order in enumerate(orders) if place in pack.open], *why)


def _cause(error: Exception, directory: Path) -> str:
    if out_of_memory(error):
        return "memory"
    if storage_fault(error, directory) is not None:
        return "storage"
    return "uneven" if isinstance(error, UnevenTrialsError) else "refused"


class _Pack:
    """A pack in training. A trial is named by its index among the orders. `open`: trials that have not ended."""

    def __init__(self, listener: Listener, orders: Sequence[Order]) -> None:
        self.listener, self.orders = listener, orders
        self.open = set(range(len(orders)))
        self.started, self._marked = time.time(), time.perf_counter()
        self._seconds = [0.0] * len(orders)

    def run(self) -> Iterator[None]:
        """Train all trials, and pass reports and outcomes to the listener."""
        directories = [Path(order["directory"]) for order in self.orders]
        for order, directory in zip(self.orders, directories, strict=True):
            make_folder(directory)
            if MicroBatch(directory, order["config"], 1).events:
                raise UnevenTrialsError("one of the trials has smaller micro-batches since memory ran out")
        trials = load_trial(self.orders[0]["together"])(
            [TrialConfig.model_validate(order["config"]) for order in self.orders],
            warm=self.listener.warm,
            directories=directories,
            keep=[order["keep"] is not None for order in self.orders],
        )
        with contextlib.closing(trials):
            yield from self._follow(trials)

    def _follow(self, trials: Generator[dict[int, Any], set[int] | None, None]) -> Iterator[None]:
        stopped: set[int] | None = None
        while self.open:
            try:
                reports = trials.send(stopped)
            except StopIteration:
                raise RuntimeError("the pack ended before all its trials had a last report") from None
            self._charge_time(self.open)
            stopped = self._tell(reports)
            yield

    def _tell(self, reports: dict[int, Any]) -> set[int]:
        """Pass reports and outcomes to the listener. Return the indices of the trials that are to stop."""
        places: dict[str, int] = {}
        for place, report in reports.items():
            key = self.orders[place]["key"]
            if isinstance(report, Exception):
                self._finish(place, None, failed(report, Path(self.orders[place]["directory"])))
            elif report.get("done"):
                self._done(place, dict(report))
            else:
                places[key] = place
        verdicts = self.listener.report({key: reports[place] for key, place in places.items()})
        stopped = {places[key] for key, verdict in verdicts.items() if verdict != "go"}
        self.open -= stopped
        return stopped

    def _done(self, place: int, last: dict[str, Any]) -> None:
        order = self.orders[place]
        outcome: dict[str, Any] = {"status": "finished", "result": last.pop("result")}
        try:
            keep(order, Path(order["directory"]))
        except OSError as error:
            self._finish(place, None, failed(error, Path(order["directory"])))
            return
        self._finish(place, last, outcome)

    def _finish(self, place: int, last: dict[str, Any] | None, outcome: dict[str, Any]) -> None:
        order = self.orders[place]
        micro = MicroBatch(Path(order["directory"]), order["config"], 1)
        more = {"micro_batch_size": micro.size, "memory": micro.events}
        timed_outcome = outcome | facts(self.started, self._seconds[place]) | more
        self.listener.finish(order["key"], last, timed_outcome)
        self.open.discard(place)

    def _charge_time(self, among: Collection[int]) -> None:
        """Add the seconds since the last call to the trials `among`, in equal parts."""
        now = time.perf_counter()
        for place in among:
            self._seconds[place] += (now - self._marked) / len(among)
        self._marked = now
