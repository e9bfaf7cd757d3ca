"""Several trials of one cell in one lane worker, on one copy of the base model (`trainables.training.packed`)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Generator, Sequence
from pathlib import Path
from typing import Any

import ray

from sweeps.errors import reason
from sweeps.lanes.memory import MicroBatch, end_if_lost, free_memory, out_of_memory
from sweeps.lanes.reports import FORESEEN, Line, facts, failed, keep, load_trial, make_folder, storage_fault
from trainables.config import TrialConfig, UnevenTrialsError

Order = dict[str, Any]


def run_together(worker: Line, orders: Sequence[Order]) -> None:
    """A pack, from lease to outcomes.

    A trial that fails by itself is its own row. What goes wrong with the pack as a whole (trials that can't be packed,
    memory, any other error) gives the trials that are not over back, to be run one by one.
    """
    pack = _Pack(worker, orders)
    why: tuple[str, str] | None = None
    try:
        pack.run()
    except Exception as error:  # noqa: BLE001  # whoever is at fault raises it again by itself
        end_if_lost(error)
        why = reason(error), _cause(error, Path(orders[0]["directory"]))
        if not isinstance(error, FORESEEN):
            worker.warm.clear()  # nothing that such trials touched is trusted
    if why is not None:  # out of the handler: the exception's frames hold tensors
        free_memory()
        left = [order["key"] for place, order in enumerate(orders) if place in pack.open]
        worker.ask("unpack", left, *why)


def _cause(error: Exception, directory: Path) -> str:
    if out_of_memory(error):
        return "memory"
    if storage_fault(error, directory) is not None:
        return "storage"
    return "uneven" if isinstance(error, UnevenTrialsError) else "refused"


class _Pack:
    """A pack in training. Trials go by their place among the orders; `open` are those that are not over."""

    def __init__(self, worker: Line, orders: Sequence[Order]) -> None:
        self.worker, self.orders = worker, orders
        self.open = set(range(len(orders)))
        self.started, self._marked = time.time(), time.perf_counter()
        self._seconds = [0.0] * len(orders)

    def run(self) -> None:
        """Train, report, tell outcomes."""
        directories = [Path(order["directory"]) for order in self.orders]
        for order, directory in zip(self.orders, directories, strict=True):
            make_folder(directory)
            if MicroBatch(directory, order["config"], 1).events:
                raise UnevenTrialsError("one of the trials has smaller micro-batches since memory ran out")
        trials = load_trial(self.orders[0]["together"])(
            [TrialConfig.model_validate(order["config"]) for order in self.orders],
            warm=self.worker.warm,
            directories=directories,
            keep=[order["keep"] is not None for order in self.orders],
        )
        with contextlib.closing(trials):
            self._follow(trials)

    def _follow(self, trials: Generator[dict[int, Any], set[int] | None, None]) -> None:
        stopped: set[int] | None = None
        while self.open:
            try:
                reports = trials.send(stopped)
            except StopIteration:
                raise RuntimeError("the pack ended before all its trials had a last report") from None
            self._share(self.open)
            stopped = self._tell(reports)

    def _tell(self, reports: dict[int, Any]) -> set[int]:
        """Pass reports and outcomes on; returns the places of trials that are to stop."""
        asked: dict[int, Any] = {}
        for place, report in reports.items():
            key = self.orders[place]["key"]
            if isinstance(report, Exception):
                self._finish(place, None, failed(report, Path(self.orders[place]["directory"])))
            elif report.get("done"):
                self._done(place, dict(report))
            else:
                asked[place] = self.worker.send("report", key, report)
        verdicts = zip(asked, ray.get(list(asked.values())), strict=True)
        stopped = {place for place, verdict in verdicts if verdict != "go"}
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
        whole = outcome | facts(self.started, self._seconds[place]) | more
        self.worker.finish(order["key"], last, whole)
        self.open.discard(place)

    def _share(self, among: Collection[int]) -> None:
        """Charge the time since the last call to trials in equal parts."""
        now = time.perf_counter()
        for place in among:
            self._seconds[place] += (now - self._marked) / len(among)
        self._marked = now
