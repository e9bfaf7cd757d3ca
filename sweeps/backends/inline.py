"""The backend without Ray: trials one after another in this process, for a debugger, a notebook, a bare machine."""

from __future__ import annotations

import contextlib
import shutil
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sweeps.backends.backend import (
    Backend,
    BackendError,
    Event,
    Facts,
    Failed,
    Finished,
    Lost,
    Order,
    Outcome,
    Reported,
    Setup,
    Stopped,
)
from sweeps.backends.memory import MicroBatch, accelerator_lost
from sweeps.backends.resources import LaneShape
from sweeps.backends.trials import Attempt
from sweeps.errors import Problem, SpecError, reason
from sweeps.packing.sizes import Measured, pack_size
from sweeps.spec.resources import ResourceSection

Events = Generator[list[Event], None, None]


class InlineBackend:
    """Trains one order, or several together, at a time. `events` trains until the next report.

    Args:
        resources: `[resources]` of the sweep.
        pack: trials of a pack, at most.
        measured: a trial's memory on the GPU, if that was measured.
    """

    def __init__(self, resources: ResourceSection, pack: int, measured: Measured | None) -> None:
        shape = LaneShape(1, False, {"CPU": resources.cpus_per_worker})
        provenance: dict[str, Any] = {"lanes": [asdict(shape)], "backend": "inline"}
        if measured is not None:
            provenance["probe"] = asdict(measured)
        self.facts = Facts(workers=1, pack=pack, accelerators=1.0, provenance=provenance)
        self.warm: dict[str, Any] = {}
        self._queue: deque[list[Order]] = deque()
        self._unpacked: dict[str, dict[str, Any]] = {}  # why a trial's pack was given up
        self._open: dict[str, Order] = {}  # trials that run now
        self._trained = False  # whether the last call of `events` trained
        self._over: dict[str, bool] = {}  # of trials that were stopped
        self._stopped: list[Event] = []
        self._training: Events | None = None
        self._threads = torch.get_num_threads()
        torch.set_num_threads(max(1, int(resources.cpus_per_worker)))  # as a lane's worker: sums depend on it

    @property
    def free(self) -> int:
        return 0 if self._queue or self._open else 1

    @property
    def busy(self) -> int:
        return 1 if self._open or self._trained else 0  # the call that ends a trial counts too

    def start(self, orders: Sequence[Order]) -> None:
        self._queue.append(list(orders))

    def events(self, timeout: float) -> list[Event]:
        self._trained = False
        if self._stopped:
            stopped, self._stopped = self._stopped, []
            return stopped
        if self._training is None:
            if not self._queue:
                return []
            orders = self._queue.popleft()
            self._open = {order.trial_id: order for order in orders}
            self._training = self._train(orders)
        events, self._trained = next(self._training, []), True
        for event in events:
            if not isinstance(event, Reported):
                self._open.pop(event.trial_id, None)
        if not self._open:
            self._training.close()
            self._training = None
        return events

    def stop(self, trial_id: str, *, over: bool) -> None:
        self._over[trial_id] = over
        for orders in self._queue:
            if [order.trial_id for order in orders] == [trial_id]:  # given back by its pack
                self._queue.remove(orders)
                self._stopped += [self._end_stopped(orders[0], {}, [])]
                return

    def close(self) -> None:
        if self._training is not None:
            self._training.close()
        torch.set_num_threads(self._threads)

    def _end_stopped(self, order: Order, outcome: Outcome, events: list[dict[str, Any]]) -> Stopped:
        """Return the last event of a trial that was stopped. Remove its folder if the trial never goes on."""
        if self._over.pop(order.trial_id):
            shutil.rmtree(order.directory, ignore_errors=True)
        return Stopped(order.trial_id, self._outcome(order, outcome, events))

    def _outcome(self, order: Order, outcome: Outcome, events: list[dict[str, Any]], packed: int = 1) -> Outcome:
        unpacked = self._unpacked.get(order.trial_id)
        return {"attempt": 1, "packed": packed, "unpacked": unpacked, "events": events, **outcome}

    def _train(self, orders: list[Order]) -> Events:
        """Train one order, or several together. Those that are given back are queued again, one by one."""
        listener = _Listener(self.warm)
        attempt = Attempt(listener, [order.for_worker() for order in orders])
        packed = len(orders)
        try:
            with contextlib.closing(attempt.steps()) as steps:
                for _ in steps:
                    yield self._take_events(listener, packed)
                    stopped = [order for order in self._open.values() if order.trial_id in self._over]
                    listener.stopped |= {order.trial_id for order in stopped}
                    if stopped:
                        outcomes = {order.trial_id: attempt.so_far(order.trial_id) for order in stopped}
                        if len(stopped) == len(self._open):
                            steps.close()  # trials write to their folders until they are closed
                        yield [self._end_stopped(o, outcomes[o.trial_id], listener.events(o.trial_id)) for o in stopped]
        except Exception as error:
            if accelerator_lost(error):
                rule = "this process can't use its accelerator any more"
                raise BackendError(f"{rule}: {reason(error)}") from error
            raise
        last_events = self._take_events(listener, packed)
        if listener.given_back is not None:
            keys, why = listener.given_back
            given_back = [self._open.pop(key) for key in keys if key in self._open]
            self._unpacked |= {order.trial_id: {**why, "packed": packed} for order in given_back}
            self._queue.extendleft([order] for order in reversed(given_back))
        yield last_events

    def _take_events(self, listener: _Listener, packed: int) -> list[Event]:
        """Return what happened to the orders in training since the last call."""
        taken_events: list[Event] = [_reported(key, report) for key, report in listener.reports]
        for key, outcome in listener.ended:
            order = self._open[key]
            taken_events.append(_end(order, self._outcome(order, outcome, listener.events(key), packed)))
        listener.reports, listener.ended = [], []
        return taken_events


class _Listener:
    """Holds the reports and outcomes of orders until the engine takes them."""

    def __init__(self, warm: dict[str, Any]) -> None:
        self.warm = warm
        self.stopped: set[str] = set()
        self.reports: list[tuple[str, dict[str, Any]]] = []
        self.ended: list[tuple[str, Outcome]] = []
        self.given_back: tuple[list[str], dict[str, Any]] | None = None
        self._all: dict[str, dict[int, dict[str, Any]]] = {}

    def micro_batch(self, order: Mapping[str, Any]) -> MicroBatch:
        return MicroBatch(Path(order["directory"]), order["config"], 1)

    def report(self, reports: Mapping[str, dict[str, Any]]) -> dict[str, str]:
        for key, report in reports.items():
            if not report.get("done"):
                self._add(key, report)
        return {key: "stop" if key in self.stopped else "go" for key in reports}

    def finish(self, key: str, last: dict[str, Any] | None, outcome: Outcome, error: Exception | None = None) -> None:
        if last is not None:
            self._add(key, last)
        self.ended.append((key, outcome))

    def unpack(self, keys: Sequence[str], reason: str, cause: str) -> None:
        self.given_back = list(keys), {"reason": reason, "cause": cause}

    def events(self, key: str) -> list[dict[str, Any]]:
        """Return the reports of a trial in the order of their epochs."""
        return [report for _, report in sorted(self._all.get(key, {}).items())]

    def _add(self, key: str, report: dict[str, Any]) -> None:
        self.reports.append((key, report))
        # a trial that starts again repeats what its checkpoint has
        self._all.setdefault(key, {}).setdefault(int(report["epoch"]), dict(report))


def _reported(trial_id: str, report: Mapping[str, Any]) -> Reported:
    seconds = (report.get("seconds") or 0.0) + (report.get("seconds_eval") or 0.0)
    return Reported(trial_id, int(report["epoch"]), report.get("train_loss"), report.get("val_score"), seconds)


def _end(order: Order, outcome: Outcome) -> Event:
    """Return a trial's last event: `Lost` if storage failed, as that is not the trial's fault; else by its status."""
    if outcome.get("storage") is not None:
        fault = OSError(outcome["storage"], f"{outcome['reason']} (on host {outcome['host']})")
        return Lost(order.trial_id, outcome, fault, elsewhere=False)
    kind = Failed if outcome["status"] == "failed" else Finished
    return kind(order.trial_id, outcome)


def open_inline(setup: Setup) -> Backend:
    """Open the backend that trains in this process.

    Raises:
        SpecError: the request needs other processes or a cluster.
    """
    resources = setup.resources
    problems = []
    if setup.address is not None:
        rule = "the inline backend trains in this process and joins no cluster"
        problems.append(Problem("--address", setup.address, rule, "--backend ray"))
    if resources.workers > 1:
        rule = "the inline backend trains each trial in one process"
        problems.append(Problem("resources.workers", resources.workers, rule, "workers = 1, or --backend ray"))
    if resources.isolated:
        rule = "the inline backend starts no process"
        problems.append(Problem("resources.isolated", True, rule, "isolated = false, or --backend ray"))
    gpu = torch.cuda.is_available()
    if gpu and resources.gpus_per_worker == 0:
        rule = "this process has a GPU, which the inline backend would use"
        problems.append(Problem("resources.gpus_per_worker", 0, rule, "CUDA_VISIBLE_DEVICES='', or --backend ray"))
    if not gpu and resources.gpus_per_worker not in ("auto", 0):
        rule = "this process has no GPU"
        problems.append(
            Problem("resources.gpus_per_worker", resources.gpus_per_worker, rule, "gpus_per_worker = 'auto'")
        )
    if problems:
        raise SpecError(problems)
    for name, is_set, why in (
        ("concurrent", resources.concurrent not in ("auto", 1), "trials run one after another"),
        ("min_concurrent", resources.min_concurrent not in (None, 1), "trials run one after another"),
        ("trial_timeout", resources.trial_timeout is not None, "a trial that hangs is not ended"),
        ("attempts", "attempts" in resources.model_fields_set, "a trial that kills its process ends the run"),
    ):
        if is_set:
            setup.note(f"resources.{name} has no effect with the inline backend: {why}")
    measured = None
    if gpu and resources.pack == "auto" and setup.measure is not None:
        measured = setup.measure()
    return InlineBackend(resources, pack_size(resources, measured), measured)
