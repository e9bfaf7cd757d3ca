"""Starts or joins a Ray session, starts a broker and lanes on it, and ends all of these."""

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
from sweeps.backends.ray.cluster.nodes import HEAD, SEES_GPUS, ClusterNodes, session_nodes
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
from sweeps.backends.signals import delay_signals
from sweeps.errors import Problem
from sweeps.packing.sizes import Measured, least_share, pack_size, smallest_gpu, worker_share
from sweeps.spec.resources import ResourceSection

ROOM_S = 60.0
"""Seconds to wait for resources that others use. A sweep that has just ended frees its own within seconds."""
FOLLOW_S = 10.0
"""Seconds between two looks at whether nodes have joined or left a cluster."""
UNPLACED_S = 30.0
"""Seconds that a lane waits if it fits on no node, before it is ended: Ray and the broker hear of losses separately."""
_LOOK_S, _SAY_S = 0.5, 60.0
_ANSWER_S = 120.0
_STOP_S = 2.5  # idle lanes return at once; one in the middle of an epoch has its last checkpoint


class Pool:
    """A Ray session with its broker and lanes.

    One pool can run several sweeps one after another. Its workers keep their cached models in between. On a joined
    cluster, `follow_nodes` adapts the lanes to nodes that join or leave.

    Args:
        resources: `[resources]` of the sweep: what a trial takes, and how many run at once.
        storage: a folder for Ray's own files, which all nodes see.
        address: the cluster to join. None starts a local session, or uses the one that this process already has and
            leaves it running.
        measure: measures a trial's memory on a GPU. With `gpus_per_worker = "auto"`, trials share GPUs by this memory.
            None: each trial gets a whole GPU.
        note: shows a line to the user: which cluster is joined, and what is waited for.
        needs: what every node of a joined cluster must have.

    Raises:
        ResourceError: the nodes do not hold what is asked (a local session was not started then), or no lane fits
            beside what others run.
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
        self._status: Any = None  # reference to an answer of the broker that has not come yet
        self._broker_status: dict[str, Any] = {"busy": 0, "nodes": {}}  # the broker's last answer
        self._cluster = None if address is None else ClusterNodes(storage, needs)
        self._looked = 0.0
        self._unplaced: dict[str, float] = {}  # since when lanes fit on no node, by name
        self._requested = False
        self._session = Session(address, note)

    @property
    def trials(self) -> int:
        """Return the number of trials that run at once."""
        return sum(shape.trials for shape in self.shapes)

    @property
    def busy(self) -> int:
        """Return the number of workers or groups that have a trial or a pack, by the broker's last answer.

        This asks the broker again, and does not wait for the answer.
        """
        import ray

        if self.lost is None:  # without its session Ray would end the process
            with suppress(Exception):  # the broker starts again or was ended: the last answer holds
                if self._status is not None and ray.wait([self._status], timeout=0)[0]:
                    answer, self._status = self._status, None
                    self._broker_status = ray.get(answer)
                self._status = self._status or self.broker.status.remote()
        busy: int = self._broker_status["busy"]
        return busy

    @property
    def lost(self) -> str | None:
        """Return, in words, which of Ray's own processes died; None if all run."""
        return self._session.check_processes()

    @property
    def down(self) -> str | None:
        """Return why no lane runs any more; None if one runs, or if none was started yet."""
        why: str | None = None if self._lanes is None else self._lanes.down
        return why

    def convert_lost_errors(self) -> AbstractContextManager[None]:
        """Turn errors of the block into a `RayLostError` if Ray's own processes have died."""
        return self._session.convert_lost_errors()

    def pack(self, resources: ResourceSection) -> int:
        """Return the largest number of trials in a pack on these lanes."""
        gpu = self.shapes[0].per_worker.get("GPU", 0.0) if self.shapes else 0.0
        return pack_size(resources, self.measured, gpu)

    def __enter__(self) -> Self:
        self._session.__enter__()
        try:
            with self.convert_lost_errors():
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
        from sweeps.backends.ray.lanes.broker import BrokerActor
        from sweeps.backends.ray.lanes.lanes import Lanes

        # on the head node, without which nothing runs anyway: other nodes may be lost
        options = {
            "num_cpus": 0,
            "resources": {HEAD: 0.001},
            "max_restarts": -1,
            "max_task_retries": -1,
            "max_concurrency": 100_000,  # each trial and each worker has a call that waits
        }
        self.broker = ray.remote(**options)(BrokerActor).options(name=self.broker_name).remote()
        self._lanes = Lanes(self.broker, self.shapes, self.storage)
        self._lanes.start()  # `close` already knows the lanes, if this is interrupted

    def _plan(self) -> list[LaneShape]:
        """Return the lanes, after waiting for the nodes that `resources.min_concurrent` asks for.

        The fraction of a GPU that a worker takes may be known only after a measurement. Then the nodes are checked
        again.
        """
        self._request_nodes()
        share = 1.0 if self._measure is None else least_share(self.resources)
        end = time.monotonic() + self.resources.start_timeout
        while True:
            self._wait_for_nodes(share, end)
            nodes = session_nodes() if self._cluster is None else self._cluster.check()
            measured = self._gpu_share(nodes)
            if self._cluster is None or self.resources.min_concurrent is None or measured == share:
                return plan_lanes(self.resources, nodes, measured)
            share = measured

    def _request_nodes(self) -> None:
        """Ask the cluster's autoscaler for nodes, if `[resources]` names how many trials are to run at a time.

        A cluster without an autoscaler takes no notice. One that has an autoscaler starts nodes only if it is asked.
        """
        resources = self.resources
        trials = resources.max_concurrent or resources.min_concurrent
        if self._cluster is None or trials is None:
            return
        from ray.autoscaler.sdk import request_resources

        gpus = 0 if resources.gpus_per_worker == "auto" else resources.gpus_per_worker
        worker = {"CPU": resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
        request_resources(bundles=[worker] * (trials * resources.workers))
        self._requested = True

    def withdraw_request(self) -> None:
        """Tell the cluster's autoscaler that the nodes that this pool asked for are no longer needed."""
        if self._requested and self.lost is None:
            from ray.autoscaler.sdk import request_resources

            with suppress(Exception):  # the control store is ending, and the request ends with it
                request_resources(bundles=[])

    def _wait_for_nodes(self, share: float, end: float) -> None:
        """Wait for nodes with room for `resources.min_concurrent` trials at a time, until `end`.

        Raises:
            ResourceError: they did not come.
        """
        resources = self.resources
        noted = ""
        if self._cluster is None or resources.min_concurrent is None:
            return
        while True:
            try:
                plan_lanes(resources, session_nodes(), share)
                return
            except ResourceError as error:
                (problem, *_) = error.problems
                shortage = problem.rule
                if time.monotonic() > end:
                    rule = f"not enough nodes came within {resources.start_timeout:g} s (start_timeout): {shortage}"
                    late = Problem("resources.min_concurrent", resources.min_concurrent, rule, problem.nearest)
                    raise ResourceError([late]) from error
            if shortage != noted:
                self._note(
                    f"waiting {resources.start_timeout:g} s at most for room for {resources.min_concurrent} trials "
                    f"at a time (resources.min_concurrent). Now: {shortage}"
                )
                noted = shortage
            time.sleep(_LOOK_S)

    def follow_nodes(self) -> None:
        """Start lanes on nodes that have joined the cluster, and end lanes that fit on no node any more.

        Lanes that run go on. This looks at the nodes once in `FOLLOW_S` seconds, however often it is called.
        """
        if self._cluster is None or self._lanes is None or time.monotonic() - self._looked < FOLLOW_S:
            return
        self._looked = now = time.monotonic()
        nodes, lanes = self._cluster.usable_nodes(), self._lanes.shapes
        if not lanes:
            return
        self._lanes.refused = frozenset(self._cluster.refused)
        late = {name for name, since in self._unplaced.items() if now - since > UNPLACED_S}
        change = change_lanes(self.resources, nodes, lanes, self._broker_status["nodes"], late)
        self._unplaced = {name: self._unplaced.get(name, now) for name in change.unplaced}
        end = [name for name in change.unplaced if name in late]
        end = end[: len(lanes) + len(change.start) - 1]  # at least one stays: it tells that no node comes any more
        self._lanes.change(change.start, end)
        before, self.shapes = self.trials, [*self._lanes.shapes.values()]
        if change.start or end:
            train = sum(bool(node.cpus or node.gpus) for node in nodes)
            self._note(f"nodes that can train: {train}; trials at a time: {self.trials} (before: {before})")

    def _gpu_share(self, nodes: list[Node]) -> float:
        """Measure a trial if needed, and return the fraction of a GPU that a worker gets."""
        resources = self.resources
        with_gpus = [node for node in nodes if node.gpus >= 1]
        shared = resources.gpus_per_worker == "auto" and resources.workers == 1
        packed = resources.pack == "auto" and resources.gpus_per_worker != 0 and not resources.isolated
        if not with_gpus or resources.workers > 1 or self._measure is None or not (shared or packed):
            return 1.0
        self.measured = self.measured or self._measured(self._measure)
        if self.measured is None:
            return 1.0
        self.measured = replace(self.measured, device=min([self.measured.device, *self._memories(with_gpus)]))
        if self._cluster is not None:  # nodes that join later need GPUs as large as these
            self._cluster.needs = replace(self._cluster.needs, gpu_bytes=self.measured.device)
        return worker_share(resources, self.measured, min(n.cpus / n.gpus for n in with_gpus))

    def _measured(self, measure: Callable[[], Measured]) -> Measured | None:
        import ray

        def on_a_gpu() -> Measured:  # Ray takes nothing but functions
            return measure()

        # max_calls: its process ends, and with it what it holds on the GPU
        cpus = self.resources.cpus_per_worker
        self._wait_for_room([LaneShape(1, False, {"CPU": cpus, "GPU": 1.0})])
        probe = ray.remote(num_gpus=1, num_cpus=cpus, max_calls=1, max_retries=0)(on_a_gpu).remote()
        while not ray.wait([probe], timeout=_SAY_S)[0]:  # another program may have taken the GPU first
            self._note(f"the memory probe runs on a GPU, or waits for one ({_resources_in_use()})")
        try:
            measured: Measured = ray.get(probe)
        except ray.exceptions.RayError as error:  # trials will tell what is wrong with them
            logging.getLogger("sweeps").warning("each trial gets a whole GPU: the memory probe failed (%s)", error)
            return None
        return measured

    def _memories(self, nodes: list[Node]) -> list[int]:
        """Return the bytes of the smallest GPU of each node; [] if there is only one GPU, or a node does not answer."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if sum(node.gpus for node in nodes) <= 1:
            return []
        task = ray.remote(num_cpus=0, max_calls=1, max_retries=0, runtime_env=SEES_GPUS)(smallest_gpu)
        strategies = [NodeAffinitySchedulingStrategy(node.name, soft=False) for node in nodes]
        answers = [task.options(scheduling_strategy=strategy).remote() for strategy in strategies]
        try:
            memories: list[int] = ray.get(answers, timeout=_ANSWER_S)
        except ray.exceptions.RayError as error:
            logging.getLogger("sweeps").warning("all GPUs are assumed to be as large as the probed one (%s)", error)
            return []
        return memories

    def _wait_for_room(self, shapes: list[LaneShape]) -> None:
        """Wait until one of the lanes `shapes` fits beside what others run.

        Raises:
            ResourceError: none fits within `ROOM_S` seconds.
        """
        if self._session.owned and self.address is None:  # nobody else uses this session
            return
        begun = time.monotonic()
        noted = False
        free = free_resources()
        while not any(workers_that_fit(shape, free) >= shape.workers for shape in shapes):
            if time.monotonic() - begun > ROOM_S:
                most = max(workers_that_fit(shape, free) for shape in shapes)
                remedy = "the same command when they are done"
                if most and not shapes[0].group:
                    remedy = f"resources.concurrent = {most}, or {remedy}"
                rule = f"no lane fits beside what others run ({_resources_in_use()})"
                raise ResourceError([Problem("resources", None, rule, remedy)])
            if not noted:
                self._note(f"waiting for room beside what others run ({_resources_in_use()})")
                noted = True
            time.sleep(_LOOK_S)
            free = free_resources()

    def close(self) -> None:
        """Stop the lanes and the broker. End the Ray session if this pool started or joined it."""
        import ray

        with delay_signals():
            try:
                if ray.is_initialized() and self._lanes is not None:
                    self._lanes.ending()
                    if self.lost is None:
                        self._lanes.stop(_STOP_S if self._tell_to_return() else 0.0)
                    else:
                        self._lanes.leave()
                    if not self._session.owned:
                        ray.kill(self.broker)
                self.withdraw_request()
            finally:
                if self._cluster is not None:
                    self._cluster.close()
                self._session.__exit__(None, None, None)

    def _tell_to_return(self) -> bool:
        """Tell the lanes, through the broker, to return. Return False if the broker is gone or hangs."""
        import ray

        try:
            ray.get(self.broker.shutdown.remote(), timeout=_STOP_S)
        except (ray.exceptions.RayError, TimeoutError):
            return False
        return True


def _resources_in_use() -> str:
    """Return how many GPUs and CPUs of the cluster are in use, in words."""
    import ray

    total = ray.cluster_resources()
    free = ray.available_resources()
    names = [name for name in ("GPU", "CPU") if name in total]
    return ", ".join(f"{total[n] - free.get(n, 0.0):g} of {total[n]:g} {n}(s) are taken" for n in names)
