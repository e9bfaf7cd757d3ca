"""What a sweep asks of the machines, checked against what they have, and cut into lanes. No Ray."""

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
    """CPUs and GPUs of one machine, and its id in the cluster; "" where that is not known."""

    cpus: float
    gpus: float
    name: str = ""


def local_node() -> Node:
    """CPUs that this process may use, and CUDA devices."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Node(float(usable), float(torch.cuda.device_count()))


@dataclass(frozen=True)
class LaneShape:
    """One lane.

    Attributes:
        workers: its processes.
        group: they share one trial, data-parallel; otherwise each runs its own.
        per_worker: Ray resources of a worker.
        isolated: it is started anew for every trial.
        avoids: ids of machines with more room than the one it is for: larger lanes fit nowhere else.
    """

    workers: int
    group: bool
    per_worker: dict[str, float] = field(default_factory=dict)
    isolated: bool = False
    avoids: tuple[str, ...] = ()

    @property
    def trials(self) -> int:
        """Trials that it runs at once."""
        return 1 if self.group else self.workers


def plan_lanes(asked: ResourceSection, nodes: Sequence[Node], share: float = 1.0) -> list[LaneShape]:
    """Lanes for a request: one a machine with independent workers, or one a data-parallel group or isolated trial.

    Args:
        asked: `[resources]`. "auto": `share` of a GPU a worker where there are any, and as many trials at once as fit.
        nodes: the machines.
        share: of a GPU, as `sweeps.backends.packs.gpu_share` has it; a data-parallel group takes whole ones.

    Raises:
        ResourceError: naming what was asked, what there is, and the nearest choice that fits.
    """
    gpus = sum(node.gpus for node in nodes)
    gpu = asked.gpus_per_worker
    if gpu == "auto":
        gpu = 0.0 if gpus < 1 else 1.0 if asked.workers > 1 else share
    cpu = asked.cpus_per_worker
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
    if asked.workers > 1 and 0 < gpu < 1:
        rule = "a data-parallel group (workers > 1) takes whole GPUs"
        problems.append(Problem("resources.gpus_per_worker", gpu, rule, "workers = 1, or gpus_per_worker = 1"))
    if problems:
        raise ResourceError(problems)
    fits = [_fit(node, cpu, gpu) for node in nodes]
    total = sum(fits)
    each = f"{cpu:g} CPU(s)" + (f" and {gpu:g} GPU(s)" if gpu else "")
    if asked.workers > total:
        rule = f"{total} worker(s) of {each} fit on {len(nodes)} machine(s)"
        raise ResourceError([Problem("resources.workers", asked.workers, rule, f"workers = {total}")])
    most = total // asked.workers
    rule = f"{most} trial(s) of {asked.workers} worker(s) with {each} fit at once on {len(nodes)} machine(s)"
    for name, least in (("concurrent", asked.concurrent), ("min_concurrent", asked.min_concurrent)):
        if isinstance(least, int) and least > most:
            raise ResourceError([Problem(f"resources.{name}", least, rule, f"{name} = {most}")])
    per_worker = {"CPU": float(cpu)} | ({"GPU": float(gpu)} if gpu else {})
    room = [(node.name, fit) for node, fit in zip(nodes, fits, strict=True)]
    return _fill(asked, per_worker, room, asked.most)


def _fit(node: Node, cpu: float, gpu: float) -> int:
    by_cpu = math.floor(node.cpus / cpu + 1e-9)
    if not gpu:
        return by_cpu
    per_gpu = math.floor(1 / gpu + 1e-9) if gpu < 1 else 0
    by_gpu = math.floor(node.gpus) * per_gpu if gpu < 1 else math.floor(node.gpus / gpu + 1e-9)
    return min(by_cpu, by_gpu)


def _fill(
    asked: ResourceSection, per_worker: Mapping[str, float], room: Sequence[tuple[str, int]], most: float
) -> list[LaneShape]:
    """Return lanes for the nodes that have room.

    Args:
        room: the id of each node, "" if that is not known, and the number of workers that fit there.
        most: trials at a time of all these lanes together, at most.
    """
    if asked.workers > 1 or asked.isolated:  # an isolated trial is a lane of its own: it comes and goes alone
        count = int(min(sum(fit for _, fit in room) // asked.workers, most))
        return [LaneShape(asked.workers, asked.workers > 1, dict(per_worker), asked.isolated) for _ in range(count)]
    lanes: list[LaneShape] = []
    for fit in sorted((fit for _, fit in room), reverse=True):
        here = int(min(fit, most))
        if here > 0:
            larger = tuple(name for name, other in room if other > fit and name)
            lanes.append(LaneShape(here, False, dict(per_worker), avoids=larger))
        most -= here
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
    asked: ResourceSection,
    nodes: Sequence[Node],
    lanes: Mapping[str, LaneShape],
    at: Mapping[str, str],
    late: Container[str] = (),
) -> LaneChange:
    """Return which lanes to start, and which have no node to run on. Lanes that run stay as they are.

    A worker takes what the workers of the first lanes take. A lane without a node gets the smallest room that is large
    enough for it, before a new lane is started there.

    Args:
        asked: `[resources]`.
        nodes: the nodes that are there now.
        lanes: the shapes of the lanes that run or wait for room, by name; one at least.
        at: the id of the node that a lane's workers are on, by name of the lane, those that came last at the end.
            Lanes that never had a node are left out. A lane that lost its room and waits again may still be here: then
            other lanes may have taken the room on the node that is named.
        late: names of lanes that have waited for long enough: if they still fit nowhere, others take their trials.
    """
    per_worker = next(iter(lanes.values())).per_worker
    room = {node.name: _fit(node, per_worker["CPU"], per_worker.get("GPU", 0.0)) for node in nodes}
    there = [(name, node) for name, node in at.items() if name in lanes and node in room]
    if asked.workers > 1:  # a group may lie on several nodes
        room, there = {"": sum(room.values())}, [(name, "") for name, _ in there]
    waiting = set(lanes)
    for name, node in reversed(there):
        if room[node] >= lanes[name].workers:
            room[node] -= lanes[name].workers
            waiting.remove(name)
    unplaced = []
    for name in sorted(waiting, key=lambda name: (-lanes[name].workers, name)):
        lane = lanes[name]
        fits = [node for node, left in room.items() if left >= lane.workers and node not in lane.avoids]
        if fits:
            room[min(fits, key=lambda node: room[node])] -= lane.workers
        else:
            unplaced.append(name)
    given_up = [name for name in unplaced if name in late]
    trials = sum(lane.trials for name, lane in lanes.items() if name not in given_up)
    left_over = [(node, left) for node, left in room.items() if left > 0]
    return LaneChange(_fill(asked, per_worker, left_over, asked.most - trials), unplaced)


def workers_that_fit(shape: LaneShape, free: Mapping[str, Mapping[str, float]]) -> int:
    """Workers of a lane that there is room for, on one machine, or for a group on all together.

    Args:
        free: Ray resources that nobody has taken, by the machine's id.
    """
    here = [
        min(math.floor(has.get(name, 0.0) / each + 1e-9) for name, each in shape.per_worker.items())
        for node, has in free.items()
        if node not in shape.avoids
    ]
    return sum(here) if shape.group else max(here, default=0)


def accelerators(shapes: Sequence[LaneShape]) -> float:
    """Accelerators that one trial holds: its GPUs, or its workers where they take none."""
    if not shapes:
        return 1.0
    shape = shapes[0]
    workers = shape.workers if shape.group else 1
    return workers * (shape.per_worker.get("GPU", 0.0) or 1.0)
