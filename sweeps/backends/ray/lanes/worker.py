"""Runs on the workers of a lane: leases a trial, trains it and reports, until it is told to stop."""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch

from sweeps.backends.memory import MicroBatch, end_if_lost
from sweeps.backends.packed import train_together
from sweeps.backends.ray.lanes.leases import KILLED_FOR_MEMORY
from sweeps.backends.ray.lanes.line import Line
from sweeps.backends.reports import FORESEEN, facts, failed, keep, make_folder, place
from sweeps.backends.trials import GroupOutOfMemoryError, ended_early, train
from trainables.errors import TrialError
from trainables.runtime import broadcast

NEXT_S = 5.0  # a group's other ranks wait in a collective meanwhile, so this stays far below its timeout
PEER_DEATH_S = 3.0
"""Seconds to wait after an error in a group. If a peer's death caused it, Ray Train ends this process meanwhile."""


class _StartAgainError(RuntimeError):
    """Raised to end a data-parallel group whose trial is to be started again."""


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
        order = worker.broadcast(lambda: worker.ask("next", NEXT_S))
        if order == "stop":
            return done
        if order == "hello":
            worker.hello()
        elif isinstance(order, list):
            try:
                for _ in train_together(worker, order):
                    pass
            except Exception as error:
                end_if_lost(error)
                raise
            worker.pause_after_storage_failure()
            done += len(order)
        elif order is not None:
            worker.run(order)
            worker.pause_after_storage_failure()
            done += 1
            if config["isolated"]:
                return done


class _Worker(Line):
    """One process of a lane. In a group, rank 0 talks to the broker, and tells the other ranks."""

    def __init__(self, broker: Any, name: str, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
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

    def run(self, order: dict[str, Any]) -> None:
        """Run one trial, from its order to its outcome."""
        started, clock = time.time(), time.perf_counter()
        directory = Path(order["directory"])
        last: dict[str, Any] | None = None
        outcome: dict[str, Any] = {"status": "finished"}
        failure: Exception | None = None
        micro: MicroBatch | None = None
        try:
            make_folder(directory)
            micro = self._micro_batch(order, directory)
            last = self._train(order, micro)
            if last is None:
                return  # the broker stopped it
            outcome["result"] = last.pop("result")
            if self.rank == 0:
                keep(order, directory)
        except _StartAgainError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever a trial raises is that trial's row
            end_if_lost(error)
            failure = error
            last = None
            outcome = failed(error, directory)
            if not isinstance(error, FORESEEN):
                self.warm.clear()  # nothing that such a trial touched is trusted
        outcome |= facts(started, time.perf_counter() - clock)
        if micro is not None:
            outcome |= {"micro_batch_size": micro.size, "memory": micro.events}
        together = failure is None or self._together(order, failure)
        if self.rank == 0 or not together:  # an error on one rank alone is told by that rank
            self.finish(order["key"], last, outcome)
        if not together:
            self.pause_after_storage_failure()
            # the other ranks may sit in a collective: Ray Train starts the group anew
            raise RuntimeError(f"trial {order['key']} failed in a data-parallel group") from failure

    def _micro_batch(self, order: dict[str, Any], directory: Path) -> MicroBatch:
        """Return the micro-batch to train with, the same on all ranks."""

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

    def _together(self, order: dict[str, Any], failure: Exception) -> bool:
        """Return whether every rank leaves the trial with an expected error, so that the group can go on."""
        if self.world == 1:
            return True
        if isinstance(failure, FORESEEN):
            return bool(self.ask("leave_together", order["key"], self.rank, self.world, PEER_DEATH_S))
        time.sleep(PEER_DEATH_S)
        return False

    def _train(self, order: dict[str, Any], micro: MicroBatch) -> dict[str, Any] | None:
        """Train a trial, and return its last report; None if it was told to stop."""
        with contextlib.closing(train(order, self.warm, micro, self.rank, self.world)) as trial:
            try:
                return self._follow(order, trial)
            except GroupOutOfMemoryError as error:  # Ray Train starts the group anew
                self.ask("again", order["key"], str(error))
                raise _StartAgainError(f"trial {order['key']} ran out of memory: {error}") from None

    def _verdict(self, what: str, *arguments: Any) -> str:
        """Ask the broker whether to continue, and tell all ranks. It polls, so that no rank blocks in a collective."""
        while (verdict := self.broadcast(functools.partial(self.ask, what, *arguments))) == "wait":
            pass
        return str(verdict)

    def _follow(self, order: dict[str, Any], trial: Generator[dict[str, Any], None, None]) -> dict[str, Any] | None:
        """Send the reports of a trial. Return its last report; None if it was told to stop."""
        pending_verdict: Any = None
        for event in trial:
            if event.get("done"):
                # async actors may run calls out of order, so the previous report must have arrived
                verdict = "go" if pending_verdict is None else ray.get(pending_verdict)
                if not order["ahead"]:  # the engine may stop the trial after the previous epoch
                    verdict = self._verdict("judged", order["key"], event["epoch"])
            elif self.world == 1 and order["ahead"]:
                # the engine does not judge this trial by epoch, so the answer to the previous report is enough
                verdict = "go" if pending_verdict is None else ray.get(pending_verdict)
                pending_verdict = self.send("report", order["key"], event)
            else:
                verdict = self._verdict("report", order["key"], event)
            if verdict == "over" and self.rank == 0:  # the driver removed its folder, and a checkpoint came after that
                shutil.rmtree(order["directory"], ignore_errors=True)
            if verdict != "go":
                return None
            if event.get("done"):
                return dict(event)
        raise ended_early()
