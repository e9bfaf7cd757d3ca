"""Lanes: Ray Train runs that stay up, so that their workers keep cached models while they train trial after trial.

A lane is either several independent workers, each with its own trial, or one data-parallel group that shares a trial.
The workers' code is in `sweeps.backends.ray.lanes.worker`.
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
from sweeps.backends.ray.lanes.controllers import Deaths, IndependentWorkers
from sweeps.backends.ray.lanes.groups import group_config
from sweeps.backends.ray.lanes.worker import lane_loop
from sweeps.backends.resources import LaneShape
from sweeps.errors import reason

LANE_TRIES = 3
"""Failures in a row, without a trial's report between them, after which a lane is down. If all are, the sweep ends."""
PROVEN_S = 600.0
"""Seconds that a lane must be up until its failures are counted from zero again."""
RETRY_S = 60.0
"""Seconds between two starts of a lane that is down, such as when its node is lost and another may replace it."""
CONTROLLER_BYTES, GROUP_CONTROLLER_BYTES = 250 * 2**20, 400 * 2**20
"""Memory of a lane's controller and its helper process, without torch and with it: docs/scale.md."""
_TELLS, _TELL_S = 5, 2.0
"""How often, and with how many seconds between, `Lanes` tries to tell the broker that a lane ended: Ray may refuse."""
_LEAVE_S = 2.0
_END_S = 5.0
"""Seconds that threads of lanes get after their controllers were ended. Ray tells them within a tenth of that."""


class _LaneTrainer(OwnController, TorchTrainer):  # type: ignore[misc]  # Ray's classes carry no types for us
    """A TorchTrainer whose controller `Lanes` places and ends."""


@dataclass
class _Lane:
    """One lane, with its thread and trainer."""

    name: str
    shape: LaneShape
    beside: bool
    """Whether its controller runs on the driver's node, which has memory for it."""
    thread: threading.Thread | None = None
    trainer: _LaneTrainer | None = None
    begun: float = 0.0
    """When it was last started, on the monotonic clock."""
    failures: int = 0
    """Number of failures in a row."""
    over: bool = False
    """Whether it is never started again, since no node has room for it."""

    @property
    def proven(self) -> bool:
        """Return whether it has been up for so long that earlier failures do not count."""
        return time.monotonic() - self.begun > PROVEN_S

    @property
    def down(self) -> bool:
        """Return whether it has ended for good, or has failed too often."""
        return self.over or not self.up or (self.failures >= LANE_TRIES and not self.proven)

    @property
    def controller(self) -> Any:
        return None if self.trainer is None else self.trainer.controller

    @property
    def up(self) -> bool:
        return self.thread is not None and self.thread.is_alive()


class Lanes:
    """Starts the lanes, each in a thread of the driver, and starts a lane again if its controller died.

    Controllers run on the driver's node, where the loss of another node does not end them, as long as half of its
    memory is enough. Controllers of further lanes run on other nodes.

    Args:
        broker: handle of the broker actor.
        shapes: one for each lane.
        storage: Ray Train's own folder, which all nodes see.

    Attributes:
        refused: ids of nodes on which no lane is started any more.
    """

    def __init__(self, broker: Any, shapes: Sequence[LaneShape], storage: Path) -> None:
        self._broker, self._storage = broker, storage
        self._run = uuid.uuid4().hex[:8]
        self._stopping = threading.Event()
        self._leaving = threading.Event()
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
        """Return the shapes of the lanes that run or wait for room, by name."""
        return {lane.name: lane.shape for lane in self._up() if not lane.over}

    def change(self, start: Sequence[LaneShape], end: Container[str]) -> None:
        """Start lanes of the shapes `start`, and end the lanes named in `end`. The other lanes go on."""
        for lane in self._lanes:
            lane.over = lane.over or lane.name in end
            if lane.over and lane.up and lane.controller is not None:
                ray.kill(lane.controller)  # its thread then ends, and frees its resources
        self._lanes = [lane for lane in self._lanes if lane.up or not lane.over]
        self._make(start)
        self.start()

    def _keep_up(self, lane: _Lane) -> None:
        """Start a lane, and start it again each time it ends. After `LANE_TRIES` failures, wait between two starts."""
        for number in itertools.count():
            if lane.over:
                return
            lane.begun = time.monotonic()
            ended: str | None = None  # no exception is kept: its frames would hold Ray's handles past the session
            try:
                self._run_once(lane, number)
                if not lane.shape.isolated:
                    self._why = "their workers were told to stop"
                    return  # an isolated lane ends after each trial: it is started again for the next one
            except SystemExit:  # Ray ends a thread in this way if it still waits when the session goes down
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
        """Free the resources of a lane that ended by itself, tell the broker, and return whether to start it again.

        Return False if no lane is left, if Ray keeps refusing, or if the sweep is stopping. Once the sweep is stopping,
        Ray is not called any more: without its session it would end this process.
        """
        for _ in range(_TELLS):
            if self._stopping.is_set():
                return False
            try:
                free_room_of(lane.controller)
                final = not lane.over and all(other.down for other in self._lanes)
                answer = self._broker.lane_lost.remote(lane.name, why, final, time.monotonic() - lane.begun)
                while not self._stopping.is_set():  # at the end, do not wait for a broker that starts again or hangs
                    if ray.wait([answer], timeout=0.5)[0]:
                        standing = ray.get(answer)
                        lane.failures = 1 if standing == "worked" else lane.failures
                        return bool(standing != "gone")
            except Exception as error:  # noqa: BLE001  # any error of Ray means that it refuses
                self._why = f"{why}; then it could not be started again: {reason(error)}"
                logging.getLogger("sweeps").warning("%s: %s", lane.name, self._why)
            self._stopping.wait(_TELL_S)
        return False

    def _run_once(self, lane: _Lane, number: int) -> None:
        """Run a lane until it ends. `number`: how often it was started before."""
        shape = lane.shape
        avoids = sorted({*shape.avoids, *self.refused})
        torch_config = group_config(session_folder()) if shape.group else IndependentWorkers()
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
        lane.trainer.place, lane.trainer.leave = _controller_place(lane.beside), self._leaving
        lane.trainer.fit()

    @property
    def down(self) -> str | None:
        """Return why no lane runs any more, though they were not stopped; None if one runs.

        The broker usually knows this too. If the broker could not be told, Tune would wait for ever without this.
        """
        return None if self._stopping.is_set() or self._up() else self._why

    def ending(self) -> None:
        """Start no lane again from now on, because the broker is about to tell the lanes to return."""
        self._stopping.set()

    def stop(self, timeout: float) -> bool:
        """Wait `timeout` seconds for the lanes, which the broker has told to return, and end those that still run.

        Those train, or wait for a node that was lost. Their threads must leave Ray before the session goes down: Ray
        ends the whole process if a thread calls it then.

        Returns:
            Whether all threads have left.
        """
        self.ending()
        self._join(timeout)
        end = time.monotonic() + _END_S
        killed = {}
        while (running := self._up()) and time.monotonic() < end:  # one may just be starting
            for lane in running:
                if lane.controller is not None:
                    ray.kill(lane.controller)
                    killed[lane.name] = lane.controller
            self._join(0.5)
        for controller in killed.values():
            free_room_of(controller)
        return self.leave()

    def leave(self) -> bool:
        """Let the threads of the lanes leave Ray without an answer from it. Return whether all have left."""
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


def _controller_place(beside: bool) -> str:
    """Return the label selector of a controller's node: the driver's node, or any other node that can train.

    Args:
        beside: whether it must be the driver's node.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [] if beside else [n["NodeID"] for n in ray.nodes() if n["Alive"] and {"CPU", "GPU"} & {*n["Resources"]}]
    if here in others:
        others.remove(here)
    return f"in({','.join(others)})" if others else here


def _memory_here() -> float:
    """Return the memory of the driver's node that Ray may use, in bytes."""
    node_id = ray.get_runtime_context().get_node_id()
    return float(next(node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["NodeID"] == node_id))
