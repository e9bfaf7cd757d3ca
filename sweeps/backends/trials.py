"""Runs orders in a worker's process, from their configurations to their outcomes.

Orders that come together train on one copy of the base model (`trainables.packing`). If anything stops them as a whole,
they are given back, to run one by one. An order by itself gets smaller micro-batches if memory runs out.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sweeps.backends.memory import MicroBatch, accelerator_lost, free_memory, out_of_memory
from sweeps.backends.reports import FORESEEN, facts, failed, keep, load_trial, make_folder, storage_fault
from sweeps.errors import reason
from trainables.config import TrialConfig
from trainables.packing.alike import UnevenTrialsError

Steps = Generator[dict[int, Any], set[int] | None, None]
"""Yields reports, or the errors of failed trials, by the places of their orders. It is sent the places to stop."""


class GroupError(RuntimeError):
    """The workers that share a trial must end, since some of them may wait for others for ever."""


class GroupOutOfMemoryError(GroupError):
    """A trial that several workers share ran out of memory: all of them must start it again together."""


class Listener(Protocol):
    """Takes the reports and outcomes of orders, each by its key."""

    warm: dict[str, Any]
    """Cache of models and data, which stays from trial to trial."""

    def micro_batch(self, order: Mapping[str, Any]) -> MicroBatch:
        """Return the micro-batch with which a trial begins. Raises TrialError if it can't be small enough."""

    def report(self, reports: Mapping[str, dict[str, Any]]) -> Mapping[str, str]:
        """Take the reports of an epoch. Return a verdict for each key: "go" if the trial is to go on.

        A report that has `done` comes again in `finish` if the verdict is "go".
        """

    def finish(
        self, key: str, last: dict[str, Any] | None, outcome: dict[str, Any], error: Exception | None = None
    ) -> None:
        """Take a trial's outcome, its last report (None if there is none) and the error with which it failed."""

    def unpack(self, keys: Sequence[str], reason: str, cause: str) -> None:
        """Take back the trials `keys`, which are to be run one by one."""


class Attempt:
    """One attempt at training an order, or several together, in one worker's process.

    Args:
        listener: takes what happens.
        orders: the orders, as a backend passes them to its workers (`Order.for_worker`).
        rank: index of this worker among those that share the trial.
        world: number of workers that share the trial.
    """

    def __init__(self, listener: Listener, orders: Sequence[Mapping[str, Any]], rank: int = 0, world: int = 1) -> None:
        self._listener, self._orders, self._rank, self._world = listener, orders, rank, world
        self._open = set(range(len(orders)))  # places of trials that have not ended
        self._started, self._marked = time.time(), time.perf_counter()
        self._seconds = [0.0] * len(orders)
        self._micro: dict[int, MicroBatch] = {}
        self._telling = False  # whether the listener is taking an outcome

    def steps(self) -> Generator[None, None, None]:
        """Train all orders to their outcomes. Yield after every epoch.

        If a trial fails, it ends with its own outcome. If several trials fail together (they can't be packed, memory
        runs out, or any other error), those that have not ended are given back to the listener. An error after the
        last outcome takes no outcome back.

        Raises:
            GroupError: the workers that share the trial must end.
            Exception: any exception after which `accelerator_lost` is true, and those of the listener's `finish`.
        """
        given_back: tuple[str, str] | None = None
        try:
            yield from self._follow()
        except Exception as error:
            if self._telling or isinstance(error, GroupError) or accelerator_lost(error):
                raise
            if not isinstance(error, FORESEEN):
                self._listener.warm.clear()  # nothing that such trials touched is trusted
            if not self._open:  # every outcome is told: an error at the end of the trials takes none back
                return
            if len(self._orders) == 1:  # whatever a trial raises is that trial's row
                self._fail(0, error)
            else:  # whoever is at fault raises it again by itself
                given_back = reason(error), _cause(error, Path(self._orders[0]["directory"]))
        if given_back is not None:  # out of the handler: the exception's frames hold tensors
            free_memory()
            self._listener.unpack([self._orders[place]["key"] for place in sorted(self._open)], *given_back)

    def so_far(self, key: str) -> dict[str, Any]:
        """Return where and when a trial ran, and its micro-batch, as its outcome has it."""
        place = [order["key"] for order in self._orders].index(key)
        self._charge_time()
        return facts(self._started, self._seconds[place], self._micro.get(place))

    def _follow(self) -> Generator[None, None, None]:
        for place, order in enumerate(self._orders):
            make_folder(Path(order["directory"]))
            self._micro[place] = self._listener.micro_batch(order)
        with contextlib.closing(self._alone() if len(self._orders) == 1 else self._together()) as trials:
            stopped: set[int] | None = None
            while self._open:
                try:
                    reports = trials.send(stopped)
                except StopIteration:
                    rule = "the trial function returned without a report that has done = True"
                    raise RuntimeError(rule) from None
                self._charge_time()
                stopped = self._tell(reports)
                yield

    def _alone(self) -> Steps:
        """Train one order. It is closed before its last report is told, and fails if an error comes at its end."""
        (order,) = self._orders
        reports = train(order, self._listener.warm, self._micro[0], self._rank, self._world)
        with contextlib.closing(reports):
            for report in reports:
                if report.get("done"):
                    break
                yield {0: report}
            else:
                return
        yield {0: report}

    def _together(self) -> Steps:
        if any(micro.events for micro in self._micro.values()):
            raise UnevenTrialsError("one of the trials has smaller micro-batches since memory ran out")
        return load_trial(self._orders[0]["together"])(
            [TrialConfig.model_validate(order["config"]) for order in self._orders],
            warm=self._listener.warm,
            directories=[Path(order["directory"]) for order in self._orders],
            keep=[order["keep"] is not None for order in self._orders],
        )

    def _tell(self, reports: Mapping[int, Any]) -> set[int]:
        """Pass reports and outcomes to the listener. Return the places of the trials that are to stop."""
        places = {self._orders[place]["key"]: place for place in reports}
        for place, report in reports.items():
            if isinstance(report, Exception):
                self._fail(place, report)
        verdicts = self._listener.report({key: reports[place] for key, place in places.items() if place in self._open})
        stopped = {places[key] for key, verdict in verdicts.items() if verdict != "go"}
        self._open -= stopped
        for place in [place for place in reports if place in self._open and reports[place].get("done")]:
            self._finish(place, dict(reports[place]))
        return stopped

    def _finish(self, place: int, last: dict[str, Any]) -> None:
        outcome = {"status": "finished", "result": last.pop("result")}
        if self._rank == 0:
            try:
                keep(self._orders[place], Path(self._orders[place]["directory"]))
            except OSError as error:
                self._fail(place, error)
                return
        self._end(place, last, outcome)

    def _fail(self, place: int, error: Exception) -> None:
        self._end(place, None, failed(error, Path(self._orders[place]["directory"])), error)

    def _end(
        self, place: int, last: dict[str, Any] | None, outcome: dict[str, Any], error: Exception | None = None
    ) -> None:
        key = self._orders[place]["key"]
        outcome |= self.so_far(key)
        self._open.discard(place)
        self._telling = True
        self._listener.finish(key, last, outcome, error)
        self._telling = False

    def _charge_time(self) -> None:
        """Add the seconds since the last call to the trials that have not ended, in equal parts."""
        now = time.perf_counter()
        for place in self._open:
            self._seconds[place] += (now - self._marked) / len(self._open)
        self._marked = now


def _cause(error: Exception, directory: Path) -> str:
    if out_of_memory(error):
        return "memory"
    if storage_fault(error, directory) is not None:
        return "storage"
    return "uneven" if isinstance(error, UnevenTrialsError) else "refused"


def train(
    order: Mapping[str, Any], warm: dict[str, Any], micro: MicroBatch, rank: int = 0, world: int = 1
) -> Generator[dict[str, Any], None, None]:
    """Yield the reports of a trial. If it runs out of memory, it starts again with half the micro-batch.

    Args:
        order: the order, as a backend passes it to its workers (`Order.for_worker`).
        warm: cache of models and data, which stays from trial to trial.
        micro: the number of examples that pass through the model at once.
        rank: index of this worker among those that share the trial.
        world: number of workers that share the trial.

    Raises:
        GroupOutOfMemoryError: memory ran out, and the trial has several workers.
        TrialError: the micro-batch can't be smaller.
        Exception: any error that the trial raises.
    """
    function, config = load_trial(order["trial"]), TrialConfig.model_validate(order["config"])
    while True:
        more = {} if micro.smaller is None else {"micro_batch_size": micro.smaller}
        try:
            trial = function(
                config,
                warm=warm,
                directory=Path(order["directory"]),
                keep=order["keep"] is not None,
                rank=rank,
                world=world,
                **more,
            )
            with contextlib.closing(trial):
                yield from trial
            return
        except Exception as error:
            if not out_of_memory(error):
                raise
            why = reason(error)
        # out of the handler: the exception's frames hold tensors
        warm.clear()
        free_memory()
        if world > 1:  # the other ranks may sit in a collective
            raise GroupOutOfMemoryError(why)
        micro.shrink(why)
