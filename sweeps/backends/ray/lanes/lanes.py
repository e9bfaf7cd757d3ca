"""Lanes: long-lived Ray Train runs whose workers pull trial after trial from the broker, and so stay warm.

A lane is either a number of independent workers, each with its own trial, or one data-parallel group that shares a
trial. What a worker does is in `sweeps.backends.ray.lanes.worker`.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import uuid
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from sweeps.backends.ray.cluster.private import session_folder
from sweeps.backends.ray.compat import NODE_LABEL, OwnController, free_room_of
from sweeps.backends.ray.lanes.controllers import Deaths, Independent
from sweeps.backends.ray.lanes.groups import group_config
from sweeps.backends.ray.lanes.worker import lane_loop
from sweeps.backends.resources import LaneShape
from sweeps.errors import reason

LANE_TRIES = 3
"""Failures in a row, with no trial getting on between them, after which a lane is down; the sweep ends when all are."""
PROVEN_S = 600.0
"""Seconds that a lane must be up for its failures to be counted anew."""
RETRY_S = 60.0
"""Between tries of a lane that is down, as when its machine is lost and another may take its place."""
CONTROLLER_BYTES, GROUP_CONTROLLER_BYTES = 250 * 2**20, 400 * 2**20
"""Memory of a lane's controller with its helper process, without torch and with it: docs/scale.md."""
_TELLS, _TELL_S = 5, 2.0
"""How often, and with how many seconds between, a lane that ended is freed and told of: Ray may refuse for a moment."""
_LEAVE_S = 2.0
_END_S = 5.0
"""For the threads of lanes whose controllers were ended. Ray itself tells them within a tenth of that."""


class _LaneTrainer(OwnController, TorchTrainer):  # type: ignore[misc]  # Ray's classes carry no types for us
    """A TorchTrainer whose controller `Lanes` places and ends."""


@dataclass
class _Lane:
    name: str
    shape: LaneShape
    beside: bool
    """Whether the driver's machine has memory for its controller."""
    thread: threading.Thread | None = None
    trainer: _LaneTrainer | None = None
    begun: float = 0.0
    """When it was last started, on the monotonic clock."""
    failures: int = 0
    """In a row."""
    over: bool = False
    """It is not started again: no node has room for it."""

    @property
    def proven(self) -> bool:
        return time.monotonic() - self.begun > PROVEN_S

    @property
    def down(self) -> bool:
        return self.over or not self.up or (self.failures >= LANE_TRIES and not self.proven)

    @property
    def controller(self) -> Any:
        return None if self.trainer is None else self.trainer.controller

    @property
    def up(self) -> bool:
        return self.thread is not None and self.thread.is_alive()


class Lanes:
    """Starts the lanes, each in a thread of the driver, and starts a lane again whose controller died.

    Controllers run beside the driver, where no lost machine ends them, as long as half of its free memory is enough;
    those of further lanes run on other machines that train.

    Args:
        broker: handle of the broker actor.
        shapes: one a lane.
        storage: Ray Train's own folder, which all nodes see.

    Attributes:
        refused: ids of nodes on which no lane is started any more.
    """

    def __init__(self, broker: Any, shapes: Sequence[LaneShape], storage: Path) -> None:
        self._broker, self._storage = broker, storage
        self._run = uuid.uuid4().hex[:8]
        self._stopping, self._leaving = threading.Event(), threading.Event()
        group = any(shape.group for shape in shapes)
        self._beside = _memory_here() // 2 // (GROUP_CONTROLLER_BYTES if group else CONTROLLER_BYTES)
        self._numbers = itertools.count()
        self._lanes: list[_Lane] = []
        self._make(shapes)
        self._why = "they have ended"
        self.refused: frozenset[str] = frozenset()

    def _make(self, shapes: Sequence[LaneShape]) -> None:
        for shape in shapes:
            beside = sum(lane.beside for lane in self._lanes) < self._beside
            self._lanes = [*self._lanes, _Lane(f"lane{next(self._numbers)}", shape, beside)]

    def start(self) -> None:
        """Start the threads of the lanes that have none."""
        for lane in self._lanes:
            if lane.thread is None:
                lane.thread = threading.Thread(target=self._keep_up, args=(lane,), name=lane.name, daemon=True)
                lane.thread.start()

    @property
    def shapes(self) -> dict[str, LaneShape]:
        """The shapes of the lanes that run, or wait for room, by name."""
        return {lane.name: lane.shape for lane in self._up() if not lane.over}

    def change(self, start: Sequence[LaneShape], end: Container[str]) -> None:
        """Start further lanes, and end lanes that no node has room for. The other ones go on as they are."""
        for lane in self._lanes:
            lane.over = lane.over or lane.name in end
            if lane.over and lane.up and lane.controller is not None:
                ray.kill(lane.controller)  # its thread hears of that, and frees what it held
        self._lanes = [lane for lane in self._lanes if lane.up or not lane.over]
        self._make(start)
        self.start()

    def _keep_up(self, lane: _Lane) -> None:
        """Start a lane again and again. One that fails right away is tried less often, as long as others work."""
        for number in itertools.count():
            if lane.over:
                return
            lane.begun = time.monotonic()
            ended: str | None = None  # no exception is kept: its frames would hold Ray's handles past the session
            try:
                self._fit(lane, number)
                if not lane.shape.isolated:
                    self._why = "their workers were told to stop"
                    return  # an isolated one has done a trial, and the next gets processes of its own
            except SystemExit:  # so Ray ends a thread that still waits when the session goes down
                self._why = "Ray has ended their threads"
                return
            except Exception as error:  # noqa: BLE001  # Ray raises its own and its actors' errors here
                ended = self._why = reason(getattr(error, "controller_failure", error))
            if ended is None or lane.proven:
                lane.failures = 0
            if ended is not None:
                lane.failures += 1
                if not self._lost(lane, ended):
                    return
            if self._stopping.wait(RETRY_S if lane.failures >= LANE_TRIES else 0.0):
                return

    def _lost(self, lane: _Lane, why: str) -> bool:
        """Free what a lane held that ended by itself, and tell the broker; returns whether to start it again.

        Not so when no lane is left, Ray refuses for good, or we stop. Then Ray is not called any more: without its
        session it would end the process. A lost session stops us first: the driver's own look at Ray's processes is
        quicker than a second try.
        """
        for _ in range(_TELLS):
            if self._stopping.is_set():
                return False
            try:
                free_room_of(lane.controller)
                final = not lane.over and all(other.down for other in self._lanes)
                told = self._broker.lane_lost.remote(lane.name, why, final, time.monotonic() - lane.begun)
                while not self._stopping.is_set():  # a broker that starts again, or hangs, is not waited for at the end
                    if ray.wait([told], timeout=0.5)[0]:
                        standing = ray.get(told)
                        lane.failures = 1 if standing == "worked" else lane.failures
                        return bool(standing != "gone")
            except Exception as error:  # noqa: BLE001  # whatever Ray raises: so is the lane
                self._why = f"{why}; then it could not be started again: {reason(error)}"
                logging.getLogger("sweeps").warning("%s: %s", lane.name, self._why)
            self._stopping.wait(_TELL_S)
        return False

    def _fit(self, lane: _Lane, number: int) -> None:
        shape = lane.shape
        avoids = sorted({*shape.avoids, *self.refused})
        torch_config = group_config(session_folder()) if shape.group else Independent()
        lane.trainer = _LaneTrainer(
            lane_loop,
            train_loop_config={
                "broker": self._broker,
                "lane": lane.name,
                "group": shape.group,
                "isolated": shape.isolated,
                "threads": max(1, int(shape.per_worker.get("CPU", 1))),
            },
            torch_config=torch_config,
            scaling_config=ScalingConfig(
                num_workers=shape.workers,
                use_gpu=shape.per_worker.get("GPU", 0) > 0,
                resources_per_worker=shape.per_worker,
                placement_strategy="PACK" if shape.group else "STRICT_PACK",
                label_selector={NODE_LABEL: f"!in({','.join(avoids)})"} if avoids else None,
            ),
            run_config=RunConfig(
                name=f"{lane.name}-{self._run}-{number}",
                storage_path=str(self._storage),
                callbacks=[Deaths(self._broker, lane.name, shape.group)],
                failure_config=FailureConfig(max_failures=-1, controller_failure_limit=3),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        lane.trainer.place, lane.trainer.leave = _place(lane.beside), self._leaving
        lane.trainer.fit()

    @property
    def down(self) -> str | None:
        """Why no lane is kept up any more, though nobody stopped them; None while one is.

        A broker that could be told knows it too. This is for when it could not: then Tune would wait for ever.
        """
        return None if self._stopping.is_set() or self._up() else self._why

    def ending(self) -> None:
        """The broker is about to tell the lanes to return: none is started again."""
        self._stopping.set()

    def stop(self, timeout: float) -> bool:
        """Wait for the lanes, which the broker has told to return, and end those that don't within `timeout` seconds.

        Those train, or wait for a machine that was lost. Their threads are in Ray, which ends the whole process if one
        of them calls it while the session goes down, so all must have left before. False when some have not.
        """
        self.ending()
        self._join(timeout)
        end = time.monotonic() + _END_S
        killed = {}
        while (left := self._up()) and time.monotonic() < end:  # one may just be starting
            for lane in left:
                if lane.controller is not None:
                    ray.kill(lane.controller)
                    killed[lane.name] = lane.controller
            self._join(0.5)
        for controller in killed.values():
            free_room_of(controller)
        return self.leave()

    def leave(self) -> bool:
        """Let the lanes' threads leave Ray, where nobody else is left to hear; False when some have not."""
        self.ending()
        self._leaving.set()
        self._join(_LEAVE_S)
        return not self._up()

    def _up(self) -> list[_Lane]:
        return [lane for lane in self._lanes if lane.up]

    def _join(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        for lane in self._lanes:
            if lane.thread is not None:
                lane.thread.join(max(0.05, end - time.monotonic()))


def _place(beside: bool) -> str:
    """The driver's machine, or, where others train, any of these: the label selector of a controller."""
    here = ray.get_runtime_context().get_node_id()
    others = [] if beside else [n["NodeID"] for n in ray.nodes() if n["Alive"] and {"CPU", "GPU"} & {*n["Resources"]}]
    if here in others:
        others.remove(here)
    return f"in({','.join(others)})" if others else here


def _memory_here() -> float:
    """Memory that Ray has of the driver's node, in bytes."""
    here = ray.get_runtime_context().get_node_id()
    return float(next(node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["NodeID"] == here))
