"""Checks the resources that a sweep asks for against those of the nodes, and divides them into lanes. No Ray."""

from __future__ import annotations

import math
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

from sweeps.errors import Problem, SpecError
from sweeps.spec.resources import ResourceSection


class ResourceError(SpecError):
    """The sweep asks for more than the machines hold."""


@dataclass(frozen=True)
class Node:
    """Numbers of CPUs and GPUs of one node, and its id in the cluster ("" if that is not known)."""

    cpus: float
    gpus: float
    name: str = ""


def local_node() -> Node:
    """Return this machine as a node: the CPUs that this process may use, and the CUDA devices that it sees."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Node(float(usable), float(torch.cuda.device_count()))


@dataclass(frozen=True)
class LaneShape:
    """The shape of one lane.

    Attributes:
        workers: number of its processes.
        group: whether its workers share one trial (data-parallel). Otherwise each worker runs its own trials.
        per_worker: Ray resources of a worker.
        isolated: whether it is started anew for every trial.
        avoids: ids of nodes that are kept free for larger lanes.
    """

    workers: int
    group: bool
    per_worker: dict[str, float] = field(default_factory=dict)
    isolated: bool = False
    avoids: tuple[str, ...] = ()

    @property
    def trials(self) -> int:
        """Return the number of trials that it runs at once."""
        return 1 if self.group else self.workers


def plan_lanes(request: ResourceSection, nodes: Sequence[Node], share: float = 1.0) -> list[LaneShape]:
    """Return the lanes for a request: one for each node, each data-parallel group or each isolated trial.

    Args:
        request: `[resources]`. "auto" gives a worker `share` of a GPU if there are GPUs, and as many trials at once as
            fit.
        nodes: the nodes.
        share: the fraction of a GPU that a worker gets (`sweeps.packing.sizes.gpu_share`). A data-parallel group
            takes whole GPUs.

    Raises:
        ResourceError: the nodes do not hold what is asked. It names the nearest choice that fits.
    """
    gpus = sum(node.gpus for node in nodes)
    gpu = request.gpus_per_worker
    if gpu == "auto":
        gpu = 0.0 if gpus < 1 else 1.0 if request.workers > 1 else share
    cpu = request.cpus_per_worker
    where = "this machine has" if len(nodes) == 1 else f"the largest of {len(nodes)} machines has"
    problems = []
    most_cpus = max((node.cpus for node in nodes), default=0)
    most_gpus = max((node.gpus for node in nodes), default=0)
    if cpu > most_cpus:
        rule = f"{where} {most_cpus:g} CPU(s)"
        problems.append(Problem("resources.cpus_per_worker", cpu, rule, f"cpus_per_worker = {most_cpus:g}"))
    if gpu > most_gpus:
        rule = f"{where} {most_gpus:g} GPU(s)"
        problems.append(Problem("resources.gpus_per_worker", gpu, rule, f"gpus_per_worker = {most_gpus:g}"))
    if gpu > 1 and gpu != int(gpu):
        rule = "more than one GPU must be a whole number of them"
        problems.append(Problem("resources.gpus_per_worker", gpu, rule, f"gpus_per_worker = {math.floor(gpu)}"))
    if request.workers > 1 and 0 < gpu < 1:
        rule = "a data-parallel group (workers > 1) takes whole GPUs"
        problems.append(Problem("resources.gpus_per_worker", gpu, rule, "workers = 1, or gpus_per_worker = 1"))
    if problems:
        raise ResourceError(problems)
    fits = [_fit(node, cpu, gpu) for node in nodes]
    total = sum(fits)
    each = f"{cpu:g} CPU(s)" + (f" and {gpu:g} GPU(s)" if gpu else "")
    if not total:  # only with GPUs: no machine has both
        beside = max(node.cpus for node in nodes if node.gpus >= gpu)
        rule = f"no machine has {each}"
        problem = Problem(
            "resources.cpus_per_worker", cpu, rule, f"cpus_per_worker = {beside:g}, or gpus_per_worker = 0"
        )
        raise ResourceError([problem])
    if request.workers > total:
        rule = f"{total} worker(s) of {each} fit on {len(nodes)} machine(s)"
        raise ResourceError([Problem("resources.workers", request.workers, rule, f"workers = {total}")])
    most = total // request.workers
    rule = f"{most} trial(s) of {request.workers} worker(s) with {each} fit at once on {len(nodes)} machine(s)"
    for name, least in (("concurrent", request.concurrent), ("min_concurrent", request.min_concurrent)):
        if isinstance(least, int) and least > most:
            raise ResourceError([Problem(f"resources.{name}", least, rule, f"{name} = {most}")])
    per_worker = {"CPU": float(cpu)} | ({"GPU": float(gpu)} if gpu else {})
    room = [(node.name, fit) for node, fit in zip(nodes, fits, strict=True)]
    return _fill(request, per_worker, room, request.most)


def _fit(node: Node, cpu: float, gpu: float) -> int:
    """Return how many workers with `cpu` CPUs and `gpu` GPUs each fit on a node."""
    by_cpu = math.floor(node.cpus / cpu + 1e-9)
    if not gpu:
        return by_cpu
    per_gpu = math.floor(1 / gpu + 1e-9) if gpu < 1 else 0
    by_gpu = math.floor(node.gpus) * per_gpu if gpu < 1 else math.floor(node.gpus / gpu + 1e-9)
    return min(by_cpu, by_gpu)


def _fill(
    request: ResourceSection, per_worker: Mapping[str, float], room: Sequence[tuple[str, int]], most: float
) -> list[LaneShape]:
    """Return lanes for the nodes that have room.

    Args:
        room: the id of each node, "" if that is not known, and the number of workers that fit there.
        most: the largest number of trials at a time, over all these lanes.
    """
    if request.workers > 1 or request.isolated:  # an isolated lane is started anew for each trial
        count = int(min(sum(fit for _, fit in room) // request.workers, most))
        return [
            LaneShape(request.workers, request.workers > 1, dict(per_worker), request.isolated) for _ in range(count)
        ]
    lanes: list[LaneShape] = []
    for fit in sorted((fit for _, fit in room), reverse=True):
        workers = int(min(fit, most))
        if workers > 0:
            larger = tuple(name for name, other in room if other > fit and name)
            lanes.append(LaneShape(workers, False, dict(per_worker), avoids=larger))
        most -= workers
    return lanes


@dataclass(frozen=True)
class LaneChange:
    """How the lanes of a sweep change after nodes have joined or left.

    Attributes:
        start: lanes to start, for room that no lane has.
        unplaced: names of lanes whose node has left the cluster, if no other node has room for them.
    """

    start: list[LaneShape]
    unplaced: list[str]


def change_lanes(
    request: ResourceSection,
    nodes: Sequence[Node],
    lanes: Mapping[str, LaneShape],
    at: Mapping[str, str],
    late: Container[str] = (),
) -> LaneChange:
    """Return which lanes to start, and which have no node to run on. Lanes that run stay as they are.

    A worker takes the same resources as the workers of the first lane. A lane without a node gets the node with the
    least room that is enough for it. New lanes are started in what is then free.

    Args:
        request: `[resources]`.
        nodes: the nodes of the cluster now.
        lanes: the shapes of the lanes that run or wait for room, by name; at least one.
        at: the id of the node of each lane's workers, by name of the lane. Lanes that came last are at the end. Lanes
            that never had a node are missing. A lane that lost its room and waits again may still be listed: then other
            lanes may have taken the room on that node.
        late: names of lanes that have waited for too long. If they still fit nowhere, new lanes may take their trials.
    """
    per_worker = next(iter(lanes.values())).per_worker
    room = {node.name: _fit(node, per_worker["CPU"], per_worker.get("GPU", 0.0)) for node in nodes}
    placed = [(name, node) for name, node in at.items() if name in lanes and node in room]
    if request.workers > 1:  # a group may lie on several nodes
        room, placed = {"": sum(room.values())}, [(name, "") for name, _ in placed]
    waiting = set(lanes)
    for name, node in reversed(placed):
        if room[node] >= lanes[name].workers:
            room[node] -= lanes[name].workers
            waiting.remove(name)
    unplaced = []
    for name in sorted(waiting, key=lambda name: (-lanes[name].workers, name)):
        lane = lanes[name]
        fits = [node for node, free in room.items() if free >= lane.workers and node not in lane.avoids]
        if fits:
            room[min(fits, key=lambda node: room[node])] -= lane.workers
        else:
            unplaced.append(name)
    given_up = [name for name in unplaced if name in late]
    trials = sum(lane.trials for name, lane in lanes.items() if name not in given_up)
    left_over = [(node, free) for node, free in room.items() if free > 0]
    return LaneChange(_fill(request, per_worker, left_over, request.most - trials), unplaced)


def workers_that_fit(shape: LaneShape, free: Mapping[str, Mapping[str, float]]) -> int:
    """Return how many workers of a lane fit into free resources: on one node, or for a group on all nodes together.

    Args:
        shape: the lane.
        free: Ray resources that are free, by the node's id.
    """
    by_node = [
        min(math.floor(resources.get(name, 0.0) / each + 1e-9) for name, each in shape.per_worker.items())
        for node, resources in free.items()
        if node not in shape.avoids
    ]
    return sum(by_node) if shape.group else max(by_node, default=0)


def accelerators(shapes: Sequence[LaneShape]) -> float:
    """Return the number of accelerators that one trial holds: its GPUs, or its workers if these take no GPU."""
    if not shapes:
        return 1.0
    shape = shapes[0]
    workers = shape.workers if shape.group else 1
    return workers * (shape.per_worker.get("GPU", 0.0) or 1.0)
