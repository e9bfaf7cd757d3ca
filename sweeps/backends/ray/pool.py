"""The Ray session of a sweep: started on loopback, or joined; with its broker and lanes; shut down without a trace."""

from __future__ import annotations

import importlib
import logging
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from sweeps.backends.needs import Needs
from sweeps.backends.packs import Measured, least_share, pack_size, smallest_gpu, worker_share
from sweeps.backends.ray.cluster.nodes import HEAD, SEES_GPUS, ClusterNodes, nodes_there
from sweeps.backends.ray.cluster.session import Session
from sweeps.backends.ray.compat import free_resources
from sweeps.backends.resources import (
    LaneShape,
    Node,
    ResourceError,
    change_lanes,
    local_node,
    plan_lanes,
    workers_that_fit,
)
from sweeps.backends.signals import held
from sweeps.errors import Problem
from sweeps.spec.resources import ResourceSection

ROOM_S = 60.0
"""How long we wait for room that others have: a sweep that has just ended gives its own back within seconds."""
FOLLOW_S = 10.0
"""How often we look whether nodes have joined or left a cluster."""
UNPLACED_S = 30.0
"""How long a lane that fits on no node waits before it is ended. Ray and the broker hear of losses at two times."""
_LOOK_S, _SAY_S = 0.5, 60.0
_ANSWER_S = 120.0
_STOP_S = 2.5  # idle lanes return at once; one in the middle of an epoch has its last checkpoint


class Pool:
    """Broker and lanes of a Ray session. One pool can run one sweep after another and keeps its workers warm.

    On a joined cluster the lanes follow the nodes: `follow`.

    Args:
        resources: `[resources]` of the sweep: what a trial takes and how many run at once.
        storage: a folder for Ray's own files, seen by all machines.
        address: the cluster to join; None starts a local one, unless this process has a session already, which is used
            and left running.
        measure: run on a GPU for `gpus_per_worker = "auto"`, so that trials share GPUs by the memory they take; None:
            a GPU each.
        note: is told which cluster is joined, and what is waited for.
        needs: of the trials, which every machine of a joined cluster must have.

    Raises:
        ResourceError: the machines can't hold what is asked, and nothing was started for a local session; or others
            have taken so much of them that no lane fits.
    """

    def __init__(
        self,
        resources: ResourceSection,
        storage: Path,
        *,
        address: str | None = None,
        measure: Callable[[], Measured] | None = None,
        note: Callable[[str], None] = lambda _: None,
        needs: Needs = Needs(),
    ) -> None:
        self.resources, self.storage, self.address = resources, storage, address
        self.measured: Measured | None = None
        self._measure, self._note = measure, note
        self.shapes: list[LaneShape] = []
        self.broker: Any = None
        self.broker_name = f"sweeps-broker-{uuid.uuid4().hex[:8]}"
        self._lanes: Any = None
        self._status: Any = None  # what the broker was asked and has not answered yet
        self._said: dict[str, Any] = {"busy": 0, "nodes": {}}  # its last answer
        self._cluster = None if address is None else ClusterNodes(storage, needs)
        self._looked = 0.0
        self._unplaced: dict[str, float] = {}  # since when lanes fit on no node, by name
        self._requested = False
        self._session = Session(address, note)

    @property
    def trials(self) -> int:
        """Trials that run at once."""
        return sum(shape.trials for shape in self.shapes)

    @property
    def busy(self) -> int:
        """Workers, or groups of them, that have a trial or a pack, as the broker last said; it is not waited for."""
        import ray

        if self.lost is None:  # without its session Ray would end the process
            with suppress(Exception):  # of a broker that starts again or was ended: the last answer holds
                if self._status is not None and ray.wait([self._status], timeout=0)[0]:
                    asked, self._status = self._status, None
                    self._said = ray.get(asked)
                self._status = self._status or self.broker.status.remote()
        busy: int = self._said["busy"]
        return busy

    @property
    def lost(self) -> str | None:
        """Which of Ray's own processes died, in words, if one has."""
        return self._session.look()

    @property
    def down(self) -> str | None:
        """Why no lane is kept up any more; None while one is, or before the first."""
        found: str | None = None if self._lanes is None else self._lanes.down
        return found

    def minded(self) -> AbstractContextManager[None]:
        """Errors of the block are a `RayLostError` where Ray's own processes have died."""
        return self._session.minded()

    def pack(self, asked: ResourceSection) -> int:
        """Trials that a worker trains at once at most; 1 where trials have several workers, or one each."""
        if asked.workers > 1 or asked.isolated:
            return 1
        gpu = self.shapes[0].per_worker.get("GPU", 0.0) if self.shapes else 0.0
        return pack_size(asked.pack, self.measured if gpu else None, min(1.0, gpu))

    def __enter__(self) -> Self:
        self._session.__enter__()
        try:
            with self.minded():
                self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        import ray

        if not ray.is_initialized() and self.address is None:
            plan_lanes(self.resources, [local_node()], 1.0 if self._measure is None else least_share(self.resources))
        imports = threading.Thread(
            target=importlib.import_module, args=("sweeps.backends.ray.lanes.lanes",), daemon=True
        )
        imports.start()  # while Ray's processes come up
        self._session.connect()
        self.shapes = self._plan()
        imports.join()
        self._wait_for_room(self.shapes)
        from sweeps.backends.ray.lanes.broker import Broker
        from sweeps.backends.ray.lanes.lanes import Lanes

        # on the head, which all depends on anyway: other machines may be lost
        options = {
            "num_cpus": 0,
            "resources": {HEAD: 0.001},
            "max_restarts": -1,
            "max_task_retries": -1,
            "max_concurrency": 100_000,  # each trial and each worker has a call that waits
        }
        self.broker = ray.remote(**options)(Broker).options(name=self.broker_name).remote()
        self._lanes = Lanes(self.broker, self.shapes, self.storage)
        self._lanes.start()  # known by now to `close`, should this be interrupted

    def _plan(self) -> list[LaneShape]:
        """Plan the lanes, once there is the room that `resources.min_concurrent` asks for.

        What a worker takes of a GPU may be known only after a measurement on one. Then the room is looked at again.
        """
        self._request_nodes()
        share = 1.0 if self._measure is None else least_share(self.resources)
        end = time.monotonic() + self.resources.start_timeout
        while True:
            self._wait_for_nodes(share, end)
            nodes = nodes_there() if self._cluster is None else self._cluster.check()
            measured = self._share(nodes)
            if self._cluster is None or self.resources.min_concurrent is None or measured == share:
                return plan_lanes(self.resources, nodes, measured)
            share = measured

    def _request_nodes(self) -> None:
        """Ask the cluster's autoscaler for nodes, if `[resources]` names how many trials are to run at a time.

        A cluster without an autoscaler takes no notice. One that has an autoscaler starts nodes only if it is asked.
        """
        asked = self.resources
        trials = asked.max_concurrent or asked.min_concurrent
        if self._cluster is None or trials is None:
            return
        from ray.autoscaler.sdk import request_resources

        gpus = 0 if asked.gpus_per_worker == "auto" else asked.gpus_per_worker
        worker = {"CPU": asked.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
        request_resources(bundles=[worker] * (trials * asked.workers))
        self._requested = True

    def _withdraw_request(self) -> None:
        if self._requested and self.lost is None:
            from ray.autoscaler.sdk import request_resources

            with suppress(Exception):  # of a control store that goes away right now: what it was asked goes with it
                request_resources(bundles=[])

    def _wait_for_nodes(self, share: float, end: float) -> None:
        """Wait for nodes with room for `resources.min_concurrent` trials at a time, until `end`.

        Raises:
            ResourceError: they did not come.
        """
        asked, said = self.resources, ""
        if self._cluster is None or asked.min_concurrent is None:
            return
        while True:
            try:
                plan_lanes(asked, nodes_there(), share)
                return
            except ResourceError as error:
                (problem, *_) = error.problems
                now = problem.rule
                if time.monotonic() > end:
                    rule = f"nodes for them did not come within {asked.start_timeout:g} s (start_timeout): {now}"
                    late = Problem("resources.min_concurrent", asked.min_concurrent, rule, problem.nearest)
                    raise ResourceError([late]) from error
            if now != said:
                self._note(
                    f"waiting {asked.start_timeout:g} s at most for room for {asked.min_concurrent} trials at a time "
                    f"(resources.min_concurrent). Now: {now}"
                )
                said = now
            time.sleep(_LOOK_S)

    def follow(self) -> None:
        """Start lanes on nodes that have joined the cluster, and end lanes whose node has left and that fit nowhere.

        Lanes that run go on. It looks once in `FOLLOW_S` seconds, however often it is called.
        """
        if self._cluster is None or self._lanes is None or time.monotonic() - self._looked < FOLLOW_S:
            return
        self._looked = now = time.monotonic()
        nodes, lanes = self._cluster.look(), self._lanes.shapes
        if not lanes:
            return
        self._lanes.refused = frozenset(self._cluster.refused)
        late = {name for name, since in self._unplaced.items() if now - since > UNPLACED_S}
        change = change_lanes(self.resources, nodes, lanes, self._said["nodes"], late)
        self._unplaced = {name: self._unplaced.get(name, now) for name in change.unplaced}
        end = [name for name in change.unplaced if name in late]
        end = end[: len(lanes) + len(change.start) - 1]  # one at least stays: it tells when no node comes any more
        self._lanes.change(change.start, end)
        before, self.shapes = self.trials, [*self._lanes.shapes.values()]
        if change.start or end:
            train = sum(bool(node.cpus or node.gpus) for node in nodes)
            self._note(f"nodes that can train: {train}; trials at a time: {self.trials} (before: {before})")

    def _share(self, nodes: list[Node]) -> float:
        """The part of a GPU that a worker gets where that is left to us."""
        asked = self.resources
        with_gpus = [node for node in nodes if node.gpus >= 1]
        shared = asked.gpus_per_worker == "auto" and asked.workers == 1
        packed = asked.pack == "auto" and asked.gpus_per_worker != 0 and not asked.isolated
        if not with_gpus or asked.workers > 1 or self._measure is None or not (shared or packed):
            return 1.0
        self.measured = self.measured or self._measured(self._measure)
        if self.measured is None:
            return 1.0
        self.measured = replace(self.measured, device=min([self.measured.device, *self._memories(with_gpus)]))
        if self._cluster is not None:  # of nodes that join
            self._cluster.needs = replace(self._cluster.needs, gpu_bytes=self.measured.device)
        return worker_share(asked, self.measured, min(n.cpus / n.gpus for n in with_gpus))

    def _measured(self, measure: Callable[[], Measured]) -> Measured | None:
        import ray

        def on_a_gpu() -> Measured:  # Ray takes nothing but functions
            return measure()

        # max_calls: its process ends, and with it what it holds on the GPU
        cpus = self.resources.cpus_per_worker
        self._wait_for_room([LaneShape(1, False, {"CPU": cpus, "GPU": 1.0})])
        asked = ray.remote(num_gpus=1, num_cpus=cpus, max_calls=1, max_retries=0)(on_a_gpu).remote()
        while not ray.wait([asked], timeout=_SAY_S)[0]:  # another may have been quicker
            self._note(f"the probe of a GPU runs, or waits for one ({_taken()})")
        try:
            found: Measured = ray.get(asked)
        except ray.exceptions.RayError as error:  # trials will tell what is wrong with them
            logging.getLogger("sweeps").warning("a GPU for every trial: the probe failed (%s)", error)
            return None
        return found

    def _memories(self, nodes: list[Node]) -> list[int]:
        """Bytes of the smallest GPU of each machine; none where one GPU is all there is, or a machine can't say."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if sum(node.gpus for node in nodes) <= 1:
            return []
        task = ray.remote(num_cpus=0, max_calls=1, max_retries=0, runtime_env=SEES_GPUS)(smallest_gpu)
        there = [NodeAffinitySchedulingStrategy(node.name, soft=False) for node in nodes]
        asked = [task.options(scheduling_strategy=strategy).remote() for strategy in there]
        try:
            found: list[int] = ray.get(asked, timeout=_ANSWER_S)
        except ray.exceptions.RayError as error:
            logging.getLogger("sweeps").warning("all GPUs are taken to be as large as the probed one (%s)", error)
            return []
        return found

    def _wait_for_room(self, shapes: list[LaneShape]) -> None:
        """Wait until one of some lanes fits beside what others run. Raises ResourceError: none does within `ROOM_S`."""
        if self._session.owned and self.address is None:  # nobody else is there
            return
        begun, said, free = time.monotonic(), False, free_resources()
        while not any(workers_that_fit(shape, free) >= shape.workers for shape in shapes):
            if time.monotonic() - begun > ROOM_S:
                most = max(workers_that_fit(shape, free) for shape in shapes)
                remedy = "the same command when they are done"
                if most and not shapes[0].group:
                    remedy = f"resources.concurrent = {most}, or {remedy}"
                rule = f"no lane fits beside what others run ({_taken()})"
                raise ResourceError([Problem("resources", None, rule, remedy)])
            if not said:
                self._note(f"waiting for room beside what others run ({_taken()})")
                said = True
            time.sleep(_LOOK_S)
            free = free_resources()

    def close(self) -> None:
        """Stop lanes and broker; end the Ray session if it is ours."""
        import ray

        with held():
            try:
                if ray.is_initialized() and self._lanes is not None:
                    self._lanes.ending()
                    if self.lost is None:
                        self._lanes.stop(_STOP_S if self._told() else 0.0)
                    else:
                        self._lanes.leave()
                    if not self._session.owned:
                        ray.kill(self.broker)
                self._withdraw_request()
            finally:
                if self._cluster is not None:
                    self._cluster.close()
                self._session.__exit__(None, None, None)

    def _told(self) -> bool:
        """Tell the lanes to return; False where the broker, which they ask, is gone or hangs."""
        import ray

        try:
            ray.get(self.broker.shutdown.remote(), timeout=_STOP_S)
        except (ray.exceptions.RayError, TimeoutError):
            return False
        return True


def _taken() -> str:
    """How much of the machines is taken, in words."""
    import ray

    has, free = ray.cluster_resources(), ray.available_resources()
    parts = {name: (has[name] - free.get(name, 0.0), has[name]) for name in ("GPU", "CPU") if name in has}
    return ", ".join(f"{taken:g} of {there:g} {name}(s) are taken" for name, (taken, there) in parts.items())
