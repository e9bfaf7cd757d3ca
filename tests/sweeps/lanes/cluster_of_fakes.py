"""A cluster without Ray: a test says which node joins, which process dies and when; time is the event loop's own.

Pool, lanes, nodes, broker and leases are the real ones. Fake are Ray's functions, its session, and the run of a lane,
which here places the lane's workers and says hello for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import selectors
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.backends.ray.cluster.nodes import HEAD
from sweeps.backends.ray.compat import NODE_LABEL
from sweeps.backends.ray.lanes.broker import Broker
from sweeps.backends.ray.pool import Pool
from sweeps.errors import Problem
from sweeps.spec.resources import ResourceSection

ASKED_S = 5.0
"""Seconds after which a node that joined has answered whether it can run trials."""


class _Jumps(selectors.DefaultSelector):  # type: ignore[misc, valid-type]  # a class that depends on the system
    """Does not wait: the time that a wait would have taken has passed at once."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everything waits, and nothing is left that could happen")
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which seconds cost nothing."""

    def __init__(self) -> None:
        self._jumps = _Jumps()
        super().__init__(self._jumps)

    def time(self) -> float:
        return self._jumps.now


@dataclass(eq=False)
class Process:
    """A worker of a lane.

    Attributes:
        held: the trials that it trains, by their keys: the last epoch, and when it was last heard.
        had: those that it has ended or given back since it asked for the last one.
    """

    name: str
    token: str
    run: LaneRun
    nodes: frozenset[str]
    alive: bool = True
    held: dict[str, SimpleNamespace] = field(default_factory=dict)
    had: list[SimpleNamespace] = field(default_factory=list)


class LaneRun:
    """What Ray Train runs for a lane, and the handle of its controller: from `fit` until `Cluster.end_run`.

    Attributes:
        room: the cores that it holds, by node; None while it waits for room.
        untold: what the broker has not heard yet: names of workers that died, with the reason, None if with a node.
    """

    def __init__(self, cluster: Cluster, *_: Any, train_loop_config: dict[str, Any], **how: Any) -> None:
        self.cluster, self.lane, self.group = cluster, train_loop_config["lane"], train_loop_config["group"]
        scaling = how["scaling_config"]
        self.workers, self.cores = scaling.num_workers, scaling.resources_per_worker["CPU"]
        label = (scaling.label_selector or {}).get(NODE_LABEL, "!in()")
        self.avoids = {*label.removeprefix("!in(").removesuffix(")").split(",")}
        self.controller = self
        self.room: dict[str, float] | None = None
        self.processes: list[Process] = []
        self.untold: dict[str, str | None] = {}
        self._ends: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def fit(self) -> None:
        self.thread = threading.current_thread()
        self.cluster.runs[self.lane] = self
        error = self._ends.get()
        if error is not None:
            raise error

    def end(self, error: Exception | None) -> None:
        """Let `fit` end, and wait until the lane's thread has started the next run or has ended."""
        self._ends.put(error)
        while self.thread.is_alive() and self.cluster.runs[self.lane] is self:
            self.thread.join(0.0005)
        if self.cluster.runs[self.lane] is self:
            del self.cluster.runs[self.lane]


class Cluster:
    """Nodes, and a pool whose lanes run on them.

    Args:
        cores: of each node that is there from the start.
        asked: `[resources]`.
        killed: called with a process before the broker ends it.
        lane_lost: called with the name of a lane as soon as the broker knows that the lane has ended.

    Attributes:
        replaced: processes that are dead, and whose lane has new ones.
    """

    def __init__(
        self,
        folder: Path,
        cores: list[int],
        asked: ResourceSection,
        killed: Callable[[Process], None],
        lane_lost: Callable[[str], None],
    ) -> None:
        self.loop = VirtualLoop()
        self.nodes: dict[str, float] = {}
        self.unfit: set[str] = set()
        self.runs: dict[str, LaneRun] = {}
        self.replaced: list[Process] = []
        self._placed: list[LaneRun] = []  # also those whose controller has died: their room is freed by name
        self._latest: dict[str, list[Process]] = {}
        self._numbers = itertools.count()
        self._killed, self._lane_lost = killed, lane_lost
        self._patch = pytest.MonkeyPatch()
        self._replace_ray()
        for each in cores:
            self.join(each)
        self.broker = Broker(kill=self.kill)
        self.pool = Pool(asked, folder, address="a cluster of fakes")
        self.pool.__enter__()
        self.await_runs()

    def _replace_ray(self) -> None:
        import ray
        import ray.autoscaler.sdk

        from sweeps.backends.ray import pool
        from sweeps.backends.ray.cluster import nodes
        from sweeps.backends.ray.lanes import broker, lanes, leases

        put = self._patch.setattr
        clock = SimpleNamespace(monotonic=self.loop.time, time=self.loop.time, sleep=self.sleep)
        for module in (broker, lanes, leases, nodes, pool):
            put(module, "time", clock)
        put(ray, "is_initialized", lambda: True)
        put(ray, "get", lambda answer, **_: answer)
        put(ray, "wait", lambda answers, **_: (answers, []))
        put(ray, "kill", self.kill)
        put(ray, "nodes", self._listed)
        actor = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self.handle))
        put(ray, "remote", lambda **_: lambda _: actor)
        put(ray.autoscaler.sdk, "request_resources", lambda **_: None)
        put(pool, "Session", _Session)
        put(pool, "free_resources", lambda: {name: {"CPU": free} for name, free in self.free().items()})
        put(nodes, "NodeCheck", lambda storage, needs, asked: _Check(self, asked))
        put(lanes, "_LaneTrainer", lambda *arguments, **how: LaneRun(self, *arguments, **how))
        put(lanes, "_memory_here", lambda: 2.0**40)
        put(lanes, "_controller_place", lambda beside: "the driver's node")
        put(lanes, "free_room_of", _free_room)
        put(lanes, "RETRY_S", 0.0)

    def close(self) -> None:
        for run in [*self.runs.values()]:
            run.end(None)
        self.pool.close()
        self._cancel()
        self.loop.close()
        self._patch.undo()

    # The clock, and calls of the broker

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def sleep(self, seconds: float) -> None:
        self.do(asyncio.sleep(seconds))

    def handle(self) -> Any:
        """Return what takes the place of the broker actor's handle: each call is answered before it returns."""

        class Handle:
            def __getattr__(_, name: str) -> Any:
                return SimpleNamespace(remote=lambda *arguments, **more: self._call(name, *arguments, **more))

        return Handle()

    def _call(self, name: str, *arguments: Any, **more: Any) -> Any:
        answer = self.do(getattr(self.broker, name)(*arguments, **more))
        if name == "lane_lost":
            self._lane_lost(arguments[0])
        return answer

    def _cancel(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.do(asyncio.sleep(0))

    # Nodes

    def join(self, cores: float, fit: bool = True) -> None:
        name = f"node{next(self._numbers)}"
        self.nodes[name] = float(cores)
        if not fit:
            self.unfit.add(name)

    def leave(self, name: str) -> None:
        """A node is lost, with the processes on it. The broker has not heard of that."""
        del self.nodes[name]
        for run in self.runs.values():
            for process in run.processes:
                if process.alive and name in process.nodes:
                    process.alive = False
                    run.untold[process.name] = None

    def free(self) -> dict[str, float]:
        """Return the cores of each node that no lane holds."""
        free = dict(self.nodes)
        for run in self._placed:
            for name, cores in (run.room or {}).items():
                if name in free:
                    free[name] -= cores
        return free

    def _listed(self) -> list[dict[str, Any]]:
        has = {name: {"CPU": cores} for name, cores in self.nodes.items()} | {"head": {HEAD: 1.0}}
        same = {"Alive": True, "NodeManagerHostname": "host", "NodeManagerAddress": "address"}
        return [{"NodeID": name, "Resources": resources, **same} for name, resources in has.items()]

    # Lanes

    @property
    def processes(self) -> list[Process]:
        return [process for _, run in sorted(self.runs.items()) for process in run.processes if process.alive]

    def await_runs(self) -> None:
        """Wait until the thread of every lane is where it waits for Ray."""
        for lane in self.pool._lanes._up():
            while lane.up and (lane.name not in self.runs or self.runs[lane.name] is not lane.trainer):
                lane.thread.join(0.0005)

    def place(self) -> None:
        """Start the workers of all lanes that wait and that there is room for."""
        for _, run in sorted(self.runs.items()):
            if run.room is None and (room := self._room(run)) is not None:
                run.room, token = room, f"t{next(self._numbers)}"
                self._placed = [*dict.fromkeys([*self._placed, run])]
                names = [f"{run.lane}/{number}" for number in range(1 if run.group else run.workers)]
                self.replaced += self._latest.get(run.lane, [])
                self._latest[run.lane] = run.processes = [Process(name, token, run, frozenset(room)) for name in names]
                for process in run.processes:
                    self.hello(process)

    def _room(self, run: LaneRun) -> dict[str, float] | None:
        """Return the cores that a lane gets, by node: on one node, or for a group wherever there are some."""
        left, room = run.workers, dict[str, float]()
        for name, free in self.free().items():
            here = 0 if name in run.avoids else min(left, int(free // run.cores))
            if here and (run.group or here == run.workers):
                room[name] = here * run.cores
                left -= here
        return None if left else room

    def hello(self, process: Process) -> None:
        self.do(self.broker.hello(process.name, process.token, process, {"host": "h"}, min(process.nodes)))

    def tell(self, run: LaneRun, told: dict[str, str | None]) -> None:
        """Ray Train tells the broker which workers of a lane died, and ends the others, to start the lane again."""
        self.do(self.broker.died(run.lane, told))
        self.end_workers(run)

    def end_workers(self, run: LaneRun) -> None:
        for process in run.processes:
            process.alive = False
        run.room = None
        run.untold = {}

    def kill(self, handle: Process | LaneRun, **_: Any) -> None:
        if isinstance(handle, LaneRun):
            self.end_run(handle)
        elif isinstance(handle, Process):
            self._killed(handle)
            handle.run.untold.setdefault(handle.name, "killed")
            for process in handle.run.processes:
                process.alive = False

    def end_run(self, run: LaneRun) -> None:
        """A lane's controller dies, and with it the lane's workers."""
        if self.runs.get(run.lane) is run:
            for process in run.processes:
                process.alive = False
            run.end(RuntimeError("its controller died"))

    def restart_broker(self) -> None:
        """The broker dies, with what it was about to do, and comes back empty."""
        self._cancel()
        self.broker = Broker(kill=self.kill)


def _free_room(run: LaneRun | None) -> None:
    if run is not None:
        run.room = None


class _Check:
    """A node's answer whether it can run trials, which comes after `ASKED_S`."""

    def __init__(self, cluster: Cluster, nodes: list[dict[str, Any]]) -> None:
        self.nodes, self._cluster, self._begun = nodes, cluster, cluster.loop.time()

    @property
    def over(self) -> bool:
        return self._cluster.loop.time() - self._begun >= ASKED_S

    def wait(self, seconds: float) -> list[dict[str, Any]]:
        return []

    def problems(self) -> list[Problem]:
        unfit = [node["NodeID"] for node in self.nodes if node["NodeID"] in self._cluster.unfit]
        return [Problem("--address", name, "lacks a module", "install it there") for name in unfit]

    def close(self) -> None:
        pass


class _Session:
    owned = False

    def __init__(self, address: str | None, note: object) -> None:
        pass

    def __enter__(self) -> _Session:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def connect(self) -> None:
        pass

    def check_processes(self) -> None:
        return None

    def convert_lost_errors(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()
