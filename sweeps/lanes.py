"""Lanes: long-lived Ray Train runs whose workers pull trial after trial from the broker, and so stay warm.

A lane is either a number of independent workers, each with its own trial, or one data-parallel group that shares a
trial.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.placement_group import PlacementGroup, PlacementGroupID

from sweeps.resources import LaneShape

NEXT_S = 5.0  # a group's other ranks wait in a collective meanwhile, so this stays far below its timeout
LANE_TRIES = 3
PEER_DEATH_S = 3.0
"""An error in a group may be the echo of a peer's death: Ray Train then ends this process before it tells a failure."""


def load_trial(name: str) -> Callable[..., Generator[dict[str, Any], None, None]]:
    """The trial function of a name "package.module:function"."""
    module, _, function = name.partition(":")
    found: Callable[..., Generator[dict[str, Any], None, None]] = getattr(importlib.import_module(module), function)
    return found


def lane_loop(config: dict[str, Any]) -> int:
    """Runs on every worker of a lane: lease, train, report, until told to stop. Returns the number of trials."""
    context = ray.train.get_context()
    rank, world = (context.get_world_rank(), context.get_world_size()) if config["group"] else (0, 1)
    torch.set_num_threads(config["threads"])
    number = 0 if config["group"] else context.get_world_rank()
    worker = _Worker(config["broker"], f"{config['lane']}/{number}", rank, world)
    worker.hello()
    done = 0
    while True:
        order = worker.everyone(worker.next)
        if order == "stop":
            return done
        if order is not None:
            worker.run(order)
            done += 1


class _Worker:
    """One process of a lane. In a group only rank 0 talks to the broker, and tells the others."""

    def __init__(self, broker: Any, name: str, rank: int, world: int) -> None:
        self.broker, self.name = broker, name
        self.rank, self.world = rank, world
        self.token = self.everyone(lambda: uuid.uuid4().hex)
        self.warm: dict[str, Any] = {}

    def everyone(self, decide: Callable[[], Any]) -> Any:
        """Rank 0's decision, heard by all ranks."""
        box = [decide() if self.rank == 0 else None]
        if self.world > 1:
            torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def hello(self) -> None:
        if self.rank == 0:
            group = ray.util.get_current_placement_group()
            group_id = None if group is None else group.id.hex()
            ray.get(self.broker.hello.remote(self.name, self.token, os.getpid(), group_id))

    def next(self) -> Any:
        return ray.get(self.broker.next.remote(self.name, self.token, NEXT_S))

    def run(self, order: dict[str, Any]) -> None:
        """One trial, from lease to outcome."""
        started, clock = time.time(), time.perf_counter()
        directory = Path(order["directory"])
        trial: Generator[dict[str, Any], None, None] | None = None
        last: dict[str, Any] | None = None
        outcome: dict[str, Any] = {"status": "finished"}
        failure: Exception | None = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            run_trial = load_trial(order["trial"])
            trial = run_trial(
                order["config"],
                warm=self.warm,
                directory=directory,
                keep=order["keep"] is not None,
                rank=self.rank,
                world=self.world,
            )
            with contextlib.closing(trial):
                last = self._follow(order, trial)
            if last is None:
                return  # told to stop
            outcome["result"] = last.pop("result")
            self._keep(order, directory)
        except Exception as error:  # noqa: BLE001  # whatever a trial raises is that trial's row
            failure = error
            last = None
            outcome = {"status": "failed", "reason": reason(error), "traceback": traceback.format_exc()[-4000:]}
            if type(error).__name__ != "TrialError":
                self.warm.clear()  # an error that the trial did not foresee: nothing it touched is trusted
        outcome |= {
            "host": socket.gethostname(),
            "started": started,
            "ended": time.time(),
            "seconds_total": time.perf_counter() - clock,
        }
        if failure is not None and self.world > 1:
            time.sleep(PEER_DEATH_S)
        if self.rank == 0 or failure is not None:  # an error on one rank alone is told by that rank
            ray.get(self.broker.finish.remote(self.name, self.token, order["key"], last, outcome))
        if failure is not None and self.world > 1:
            # the other ranks may sit in a collective: Ray Train starts the group anew
            raise RuntimeError(f"trial {order['key']} failed in a data-parallel group") from failure

    def _follow(self, order: dict[str, Any], trial: Generator[dict[str, Any], None, None]) -> dict[str, Any] | None:
        """Send reports until the trial is done (returns its last report) or is to stop (returns None)."""
        before: Any = None
        for event in trial:
            if event.get("done"):
                # async actors may run calls out of order, so the report before must have arrived
                return None if before is not None and ray.get(before) == "stop" else dict(event)
            if self.world == 1 and order["ahead"]:
                # nobody judges this trial by epoch, so the answer to the report before is soon enough
                verdict = None if before is None else ray.get(before)
                before = self._report(order, event)
            else:
                verdict = self.everyone(functools.partial(self._verdict, order, event))
            if verdict == "stop":
                return None
        raise RuntimeError("the trial function returned without a report that has done = True")

    def _report(self, order: dict[str, Any], event: dict[str, Any]) -> Any:
        return self.broker.report.remote(self.name, self.token, order["key"], event)

    def _verdict(self, order: dict[str, Any], event: dict[str, Any]) -> Any:
        return ray.get(self._report(order, event))

    def _keep(self, order: dict[str, Any], directory: Path) -> None:
        """Move the trained adapter out of the trial's working folder."""
        made = directory / "adapter"
        if self.rank == 0 and order["keep"] is not None and made.exists():
            kept = Path(order["keep"])
            kept.parent.mkdir(parents=True, exist_ok=True)
            if not kept.exists():
                made.rename(kept)


def reason(error: BaseException) -> str:
    """An exception in one line: its type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:500]}" if lines else type(error).__name__


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


@dataclass
class _Lane:
    name: str
    shape: LaneShape
    thread: threading.Thread | None = None
    error: BaseException | None = None


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
        for attempt in range(LANE_TRIES):
            try:
                self._fit(lane, attempt)
                return  # told to stop
            except Exception as error:  # noqa: BLE001  # Ray raises its own and its actors' errors here
                if self._stopping.is_set():
                    return
                lane.error = error
            with self._lock:
                final = attempt == LANE_TRIES - 1
                self._alive -= final
                none_left = self._alive == 0
            try:
                group = ray.get(self._broker.lane_lost.remote(lane.name, reason(lane.error), none_left))
                if group is not None:
                    ray.util.remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group)))
            except Exception as error:  # noqa: BLE001  # the cluster is gone: so is the lane
                lane.error = error
                return

    def _fit(self, lane: _Lane, attempt: int) -> None:
        shape = lane.shape
        torch_config = TorchConfig(timeout_s=600) if shape.group else _Independent()
        _LaneTrainer(
            lane_loop,
            train_loop_config={
                "broker": self._broker,
                "lane": lane.name,
                "group": shape.group,
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
                name=f"{lane.name}-{self._run}-{attempt}",
                storage_path=str(self._storage),
                failure_config=FailureConfig(max_failures=-1, controller_failure_limit=3),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        ).fit()

    def stop(self, timeout: float) -> bool:
        """Wait for the lanes, which the broker has told to return; False when some still train after `timeout` s."""
        self._stopping.set()
        end = time.monotonic() + timeout
        for lane in self._lanes:
            if lane.thread is not None:
                lane.thread.join(max(0.05, end - time.monotonic()))
        return not any(lane.thread is not None and lane.thread.is_alive() for lane in self._lanes)
