"""Runs on the workers of a lane: leases orders, trains them and reports, until it is told to stop."""

from __future__ import annotations

import functools
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch

from sweeps.backends.memory import MicroBatch, end_if_lost
from sweeps.backends.ray.lanes.leases import KILLED_FOR_MEMORY
from sweeps.backends.ray.lanes.line import Line
from sweeps.backends.reports import FORESEEN, place
from sweeps.backends.trials import Attempt, GroupError, GroupOutOfMemoryError
from trainables.errors import TrialError
from trainables.runtime import broadcast

NEXT_S = 5.0  # a group's other ranks wait in a collective meanwhile, so this stays far below its timeout
PEER_DEATH_S = 3.0
"""Seconds to wait after an error in a group. If a peer's death caused it, Ray Train ends this process meanwhile."""


def lane_loop(config: dict[str, Any]) -> int:
    """Lease, train and report trials until told to stop. Return the number of trials.

    Every worker of a lane runs this. With `config["isolated"]` it returns after one trial, so that the next one gets a
    new process.
    """
    context = ray.train.get_context()
    rank, world = (context.get_world_rank(), context.get_world_size()) if config["group"] else (0, 1)
    torch.set_num_threads(config["threads"])
    number = 0 if config["group"] else context.get_world_rank()
    worker = _Worker(config["broker"], f"{config['lane']}/{number}", rank, world)
    worker.hello()
    done = 0
    while True:
        orders = worker.broadcast(lambda: worker.ask("next", NEXT_S))
        if orders == "stop":
            return done
        if orders == "hello":
            worker.hello()
        elif orders:
            worker.run(orders)
            worker.pause_after_storage_failure()
            done += len(orders)
            if config["isolated"]:
                return done


class _Worker(Line):
    """One process of a lane. In a group, rank 0 talks to the broker, and tells the other ranks."""

    def __init__(self, broker: Any, name: str, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self._orders: dict[str, dict[str, Any]] = {}
        self._answers: dict[str, Any] = {}  # references to the broker's answers to the last reports
        super().__init__(broker, name, self.broadcast(lambda: uuid.uuid4().hex))

    def broadcast(self, decide: Callable[[], Any]) -> Any:
        """Call `decide` on rank 0, and return its result on all ranks."""
        decision = decide() if self.rank == 0 else None
        return decision if self.world == 1 else broadcast(decision)

    def hello(self) -> None:
        if self.rank == 0:
            context = ray.get_runtime_context()
            me = context.current_actor  # for the broker to end this process when it hangs
            self.ask("hello", me, place(), context.get_node_id())

    def run(self, orders: list[dict[str, Any]]) -> None:
        """Run one order, or several together, to their outcomes."""
        self._orders = {order["key"]: order for order in orders}
        self._answers = {}
        try:
            for _ in Attempt(self, orders, self.rank, self.world).steps():
                pass
        except GroupOutOfMemoryError as error:  # Ray Train starts the group anew
            self.ask("again", orders[0]["key"], str(error))
            raise GroupError(f"trial {orders[0]['key']} ran out of memory: {error}") from None
        except Exception as error:
            end_if_lost(error)
            raise

    def micro_batch(self, order: Mapping[str, Any]) -> MicroBatch:
        """Return the micro-batch to train with, the same on all ranks."""
        directory = Path(order["directory"])

        def decide() -> tuple[list[dict[str, Any]], str | None]:
            micro = MicroBatch(directory, order["config"], self.world)
            try:
                if order["shrink"] is not None:
                    micro.shrink(order["shrink"])
            except TrialError as error:
                # Ray may have ended the worker because of another process: a trial that can't shrink just tries again
                return micro.events, None if order["shrink"] == KILLED_FOR_MEMORY else str(error)
            return micro.events, None

        events, problem = self.broadcast(decide)
        if problem is not None:
            raise TrialError(problem)
        return MicroBatch(directory, order["config"], self.world, events)

    def report(self, reports: Mapping[str, dict[str, Any]]) -> dict[str, str]:
        """Send the reports of trials, by their keys. Return the verdict on each."""
        verdicts = {key: self._judge(self._orders[key], report) for key, report in reports.items()}
        for key, verdict in verdicts.items():
            if verdict == "over" and self.rank == 0:  # the driver removed its folder, and a checkpoint came after that
                shutil.rmtree(self._orders[key]["directory"], ignore_errors=True)
        return verdicts

    def _judge(self, order: Mapping[str, Any], report: dict[str, Any]) -> str:
        key = order["key"]
        if order["ahead"] and (self.world == 1 or report.get("done")):
            # the engine does not judge this trial by epoch, so the answer to the previous report is enough
            verdict = self._answer(key)
            if not report.get("done"):
                self._answers[key] = self.send("report", key, report)
            return verdict
        if report.get("done"):  # the engine may stop the trial after the previous epoch
            return self._verdict("judged", key, report["epoch"])
        return self._verdict("report", key, report)

    def _answer(self, key: str) -> str:
        """Return the verdict on the last report of a trial that is not judged; "go" if there is none to wait for."""
        answer = self._answers.pop(key, None)
        return "go" if answer is None else str(ray.get(answer))

    def _verdict(self, what: str, *arguments: Any) -> str:
        """Ask the broker whether to continue, and tell all ranks. It polls, so that no rank blocks in a collective."""
        while (verdict := self.broadcast(functools.partial(self.ask, what, *arguments))) == "wait":
            pass
        return str(verdict)

    def finish(
        self, key: str, last: dict[str, Any] | None, outcome: dict[str, Any], error: Exception | None = None
    ) -> None:
        """Send a trial's end. In a group, end this process if an error may have left other ranks in a collective."""
        self._answer(key)  # async actors may run calls out of order, so the last report must have arrived
        together = error is None or self._leaves_together(key, error)
        if self.rank == 0 or not together:  # an error on one rank alone is told by that rank
            super().finish(key, last, outcome)
        if not together:
            self.pause_after_storage_failure()
            # the other ranks may sit in a collective: Ray Train starts the group anew
            raise GroupError(f"trial {key} failed in a data-parallel group") from error

    def _leaves_together(self, key: str, error: Exception) -> bool:
        """Return whether every rank leaves the trial with an expected error, so that the group can go on."""
        if self.world == 1:
            return True
        if isinstance(error, FORESEEN):
            return bool(self.ask("leave_together", key, self.rank, self.world, PEER_DEATH_S))
        time.sleep(PEER_DEATH_S)
        return False
