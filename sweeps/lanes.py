"""Lanes: long-lived Ray Train runs whose workers pull trial after trial from the broker, and so stay warm.

A lane is either a number of independent workers, each with its own trial, or one data-parallel group that shares a
trial. What a worker does is in `sweeps.lane_worker`.
"""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.util.placement_group import PlacementGroup, PlacementGroupID

from sweeps.lane_worker import lane_loop
from sweeps.outcomes import reason
from sweeps.resources import LaneShape

LANE_TRIES = 3
"""Failures in a row after which a lane counts as down; when all are, the sweep ends."""
PROVEN_S = 600.0
"""A lane that was up for so long can be kept up: its failures are counted anew."""
RETRY_S = 60.0
"""Between tries of a lane that is down, as when its machine is lost and another may take its place."""
_END_S = 5.0
"""For the threads of lanes whose controllers were ended. Ray itself tells them within a tenth of that."""


class _Independent(TorchConfig):  # type: ignore[misc]  # Ray's classes carry no types for us
    """Torch workers without a process group between them: each runs its own trials."""

    @property
    def backend_cls(self) -> type[Backend]:
        return Backend  # type: ignore[no-any-return]


class _LaneTrainer(TorchTrainer):  # type: ignore[misc]
    """A TorchTrainer without the helpers that a lane has no use for.

    Ray starts a process per lane for data sets (a lane has none) and one that frees placement groups, which works only
    beside a dashboard; `Lanes` frees them itself. Leaving them out halves the start-up on two cores.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = ("DatasetsCallback", "PlacementGroupCleanerCallback")
        return [c for c in super()._create_default_callbacks() if type(c).__name__ not in unused]


class _Deaths(UserCallback):  # type: ignore[misc]
    """Tells the broker which workers died and why, before Ray Train starts their lane again. Runs in its controller."""

    def __init__(self, broker: Any, lane: str, group: bool) -> None:
        self.broker, self.lane, self.group = broker, lane, group

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        causes: dict[int, Exception] = {
            rank: error.health_check_failure
            for rank, error in worker_exceptions.items()
            if isinstance(error, WorkerHealthCheckFailedError)  # what a trial raises is told by its worker
        }
        if causes:
            reasons = {f"{self.lane}/{0 if self.group else rank}": reason(cause) for rank, cause in causes.items()}
            memory = any(_killed_for_memory(cause) for cause in causes.values())
            ray.get(self.broker.died.remote(self.lane, reasons, memory=memory))


class _Known(ControllerCallback):  # type: ignore[misc]
    """Gives the broker the handle of the process that it runs in, a lane's controller: `fit` keeps it to itself."""

    def __init__(self, broker: Any, lane: str) -> None:
        self.broker, self.lane = broker, lane

    def after_controller_start(self, train_run_context: Any) -> None:
        ray.get(self.broker.controlled.remote(self.lane, ray.get_runtime_context().current_actor))

    def after_controller_finish(self, result: Any) -> None:
        ray.get(self.broker.controlled.remote(self.lane, None))


def _killed_for_memory(cause: BaseException) -> bool:
    return isinstance(cause, ray.exceptions.OutOfMemoryError) or "out of memory" in str(cause).lower()


@dataclass
class _Lane:
    name: str
    shape: LaneShape
    thread: threading.Thread | None = None

    @property
    def up(self) -> bool:
        return self.thread is not None and self.thread.is_alive()


class Lanes:
    """Starts the lanes, each in a thread of the driver, and starts a lane again whose controller died.

    Args:
        broker: handle of the broker actor.
        shapes: one a lane.
        storage: Ray Train's own folder, which all nodes see.
    """

    def __init__(self, broker: Any, shapes: Sequence[LaneShape], storage: Path) -> None:
        self._broker, self._storage = broker, storage
        self._run = uuid.uuid4().hex[:8]
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._lanes = [_Lane(f"lane{k}", shape) for k, shape in enumerate(shapes)]
        self._alive = len(self._lanes)
        for lane in self._lanes:
            lane.thread = threading.Thread(target=self._keep_up, args=(lane,), name=lane.name, daemon=True)
            lane.thread.start()

    def _keep_up(self, lane: _Lane) -> None:
        """Start a lane again and again. One that fails right away is tried less often, as long as others work."""
        failures = 0
        for number in itertools.count():
            begun = time.monotonic()
            ended: str | None = None  # no exception is kept: its frames would hold Ray's handles past the session
            try:
                self._fit(lane, number)
                if not lane.shape.isolated:
                    return  # told to stop; an isolated one has done a trial, and the next gets processes of its own
            except SystemExit:  # so Ray ends a thread that still waits when the session goes down
                return
            except Exception as error:  # noqa: BLE001  # Ray raises its own and its actors' errors here
                ended = reason(error)
            with self._lock:
                if ended is None or time.monotonic() - begun > PROVEN_S:
                    self._alive += failures >= LANE_TRIES
                    failures = 0
                if ended is not None:
                    failures += 1
                    self._alive -= failures == LANE_TRIES
                none_left = self._alive == 0
            if ended is not None and not self._lost(lane, ended, none_left):
                return
            if none_left or self._stopping.wait(RETRY_S if failures >= LANE_TRIES else 0.0):
                return

    def _lost(self, lane: _Lane, why: str, final: bool) -> bool:
        """Tell the broker of a lane that ended by itself, and free its placement group; False: the cluster is gone."""
        try:
            group = ray.get(self._broker.lane_lost.remote(lane.name, why, final))
            if group is not None:
                ray.util.remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group)))
        except Exception:  # noqa: BLE001  # whatever Ray raises: so is the lane
            return False
        return True

    def _fit(self, lane: _Lane, number: int) -> None:
        shape = lane.shape
        torch_config = TorchConfig(timeout_s=600) if shape.group else _Independent()
        _LaneTrainer(
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
            ),
            run_config=RunConfig(
                name=f"{lane.name}-{self._run}-{number}",
                storage_path=str(self._storage),
                callbacks=[_Deaths(self._broker, lane.name, shape.group), _Known(self._broker, lane.name)],
                failure_config=FailureConfig(max_failures=-1, controller_failure_limit=3),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        ).fit()

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
        while any(lane.up for lane in self._lanes) and time.monotonic() < end:  # one may just be starting
            try:
                controllers = ray.get(self._broker.controllers.remote(), timeout=_END_S)
            except (ray.exceptions.RayError, TimeoutError):
                return False  # without a broker nobody knows them
            for name in [lane.name for lane in self._lanes if lane.up]:
                if name in controllers:
                    ray.kill(controllers[name])
            self._join(0.5)
        return not any(lane.up for lane in self._lanes)

    def _join(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        for lane in self._lanes:
            if lane.thread is not None:
                lane.thread.join(max(0.05, end - time.monotonic()))
