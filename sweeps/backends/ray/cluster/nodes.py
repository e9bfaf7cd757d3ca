"""The machines of a joined cluster: each must import this package, see the results folder and have what trials need."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import logging
import os
import socket
import sys
import time
import uuid
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from sweeps.backends.needs import Needs
from sweeps.backends.resources import Node, ResourceError
from sweeps.errors import Problem

HEAD = "node:__internal_head__"
"""What Ray's head has beside CPUs and GPUs; the broker runs there even where trials don't."""
SEES_GPUS = {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}}
"""A task that takes no GPU sees all of its node's with this, which sessions else keep from it (`session`)."""
ANSWER_S = 660.0
"""A minute more than Ray gives a machine to install a job's environment, with torch in it."""
_NOTE_S = 10.0
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_JOB_FOLDER = "working_dir_files"


def look(token: str, needs: Needs) -> dict[str, Any]:
    """Runs on a machine: who it is, what it runs, whether it sees the driver's file, and what it lacks."""
    package: str | None = None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # it may have come with the job's folder
        package = importlib.metadata.version("randlora-sweeps")
    return {
        "host": socket.gethostname(),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "package": package,
        "sees": os.access(token, os.F_OK),  # False too where its folder may not be entered
        "lacks": tuple(needs.lacking()),
    }


class NodeCheck:
    """Asks nodes whether they can run trials, each by a task that runs there.

    Args:
        storage: a folder inside the results folder.
        needs: of the trials, beside this package.
        nodes: as `ray.nodes` lists them.
    """

    def __init__(self, storage: Path, needs: Needs, nodes: Sequence[dict[str, Any]]) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.nodes, self._storage, self._begun = nodes, storage, time.monotonic()
        storage.mkdir(parents=True, exist_ok=True)
        self._token = storage / f"seen-{uuid.uuid4().hex}"
        self._token.touch()
        self._here = look(str(self._token), Needs())
        environment = SEES_GPUS if needs.gpu_bytes else {}
        options = {"num_cpus": 0, "max_retries": 0, "runtime_env": environment}
        task = ray.remote(**options, max_calls=1)(look)  # its process ends, with all that it imported
        there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        self._asked = [
            task.options(scheduling_strategy=strategy).remote(str(self._token), needs if _trains(node) else Needs())
            for node, strategy in zip(nodes, there, strict=True)
        ]

    def wait(self, seconds: float) -> list[dict[str, Any]]:
        """Wait for the answers; return the nodes that have not answered."""
        import ray

        late = ray.wait(self._asked, num_returns=len(self._asked), timeout=seconds)[1] if self._asked else []
        return [node for node, answer in zip(self.nodes, self._asked, strict=True) if answer in late]

    @property
    def over(self) -> bool:
        """Whether all nodes have answered, or had `ANSWER_S` to do so."""
        return not self.wait(0) or time.monotonic() - self._begun > ANSWER_S

    def problems(self) -> list[Problem]:
        """Return everything that is wrong with any node; one that has not answered is a problem."""
        answers = zip(self.nodes, self._asked, strict=True)
        return [problem for node, answer in answers for problem in _problems(node, answer, self._here, self._storage)]

    def close(self) -> None:
        self._token.unlink(missing_ok=True)


def check_nodes(storage: Path, needs: Needs = Needs(), known: Container[str] = ()) -> list[str]:
    """Ask every node of the joined cluster that trials may run on, and the head, as long as Ray may install there.

    Args:
        storage: a folder inside the results folder.
        needs: of the trials, beside this package.
        known: ids of nodes that need not be asked.

    Returns:
        The ids of the nodes that were asked.

    Raises:
        ResourceError: everything that is wrong with any node: it does not answer, lacks this package, has another
            version of it or of Python, does not see the results folder, or lacks what trials need; or the folder is
            one that Ray deletes with the job.
    """
    import ray

    check_lasting(storage)
    nodes = [n for n in ray.nodes() if n["Alive"] and (_trains(n) or n["Resources"].get(HEAD))]
    check = NodeCheck(storage, needs, [node for node in nodes if node["NodeID"] not in known])
    try:
        late = check.wait(_NOTE_S)
        if late:
            names = ", ".join(_name(node) for node in late)
            note = "waiting %g minutes at most for %s: Ray may be installing the job's environment there"
            logging.getLogger("sweeps").warning(note, ANSWER_S / 60, names)
            check.wait(ANSWER_S - _NOTE_S)
        wrong = check.problems()
    finally:
        check.close()
    if wrong:
        raise ResourceError(wrong)
    return [node["NodeID"] for node in check.nodes]


class ClusterNodes:
    """The nodes of a joined cluster that trials may run on, as nodes join and leave.

    Args:
        storage: a folder inside the results folder.
        needs: of the trials, beside this package.
    """

    def __init__(self, storage: Path, needs: Needs) -> None:
        self._storage, self.needs = storage, needs
        self._usable: set[str] = set()
        self._asked: dict[str, NodeCheck] = {}
        self.refused: dict[str, str] = {}
        """What is wrong with nodes that joined and are left out, by their ids."""

    def check(self) -> list[Node]:
        """Return the nodes that are there, after every one of them was asked. Raises ResourceError as `check_nodes`."""
        self._usable |= {*check_nodes(self._storage, self.needs, self._usable)}
        return [node for node in nodes_there() if node.name in self._usable]

    def look(self) -> list[Node]:
        """Return the nodes that are there and can run trials. Nodes that have joined are asked, and not waited for."""
        import ray

        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        for name, node in alive.items():
            if _trains(node) and not (name in self._usable or name in self._asked or name in self.refused):
                self._asked[name] = NodeCheck(self._storage, self.needs, [node])
        for name, check in [*self._asked.items()]:
            if name in alive and not check.over:
                continue
            problems = check.problems() if name in alive else []
            check.close()
            del self._asked[name]
            if problems:
                self.refused[name] = "; ".join(map(str, problems))
                logging.getLogger("sweeps").warning(
                    "the node %s has joined the cluster and gets no trials: %s", _name(alive[name]), self.refused[name]
                )
            elif name in alive:
                self._usable.add(name)
        return [_as_node(node) for name, node in alive.items() if name in self._usable]

    def close(self) -> None:
        for check in self._asked.values():
            check.close()


def nodes_there() -> list[Node]:
    """Return the nodes of this session."""
    import ray

    return [_as_node(node) for node in ray.nodes() if node["Alive"]]


def _as_node(node: dict[str, Any]) -> Node:
    has = node["Resources"]
    return Node(has.get("CPU", 0.0), has.get("GPU", 0.0), node["NodeID"])


def _trains(node: dict[str, Any]) -> bool:
    return bool(node["Resources"].get("CPU") or node["Resources"].get("GPU"))


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} {node['NodeManagerAddress']}"


def _problems(node: dict[str, Any], answer: Any, mine: dict[str, Any], storage: Path) -> Iterator[Problem]:
    """What is wrong with a machine: its answer against the driver's own."""
    import ray

    name = _name(node)
    try:
        found = ray.get(answer, timeout=0.1)
    except ray.exceptions.GetTimeoutError:
        rule = f"gave no answer within {ANSWER_S:g} s"
        yield Problem("--address", name, rule, "install this package there beforehand, or take the machine out")
        return
    except ray.exceptions.RayError as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        rule = f"can't run this package ({last[:300]})"
        yield Problem("--address", name, rule, "install it on every machine, or `ray job submit --working-dir`")
        return
    for what, of in (("python", "Python"), ("package", "this package")):
        if None not in (found[what], mine[what]) and found[what] != mine[what]:
            rule = f"has {of} {found[what]}, and the driver {mine[what]}"
            yield Problem("--address", name, rule, "the same version on every machine")
    if not _trains(node):  # nothing but the broker runs there, which touches no file
        return
    if not found["sees"]:
        yield Problem("output", str(storage.parents[1]), f"is not seen by {name}", "a folder that all machines share")
    if found["lacks"]:
        rule = f"lacks {', '.join(found['lacks'])}"
        yield Problem("--address", name, rule, "models, data and packages at the same place on every machine")


def check_lasting(folder: Path) -> None:
    """Refuse a results folder inside the copy of a job's working directory: Ray deletes it with the job."""
    if _JOB_FOLDER in folder.parts and "runtime_resources" in folder.parts:
        rule = "lies in the job's copy of its working directory, which Ray deletes"
        raise ResourceError([Problem("output", str(folder), rule, "--set output=/a/shared/folder")])


def job_variables() -> dict[str, str]:
    """Environment variables that a submitted job's runtime environment sets; Ray refuses to have them set twice."""
    with contextlib.suppress(json.JSONDecodeError, AttributeError):
        found = json.loads(os.environ.get(JOB_CONFIG, "{}")).get("runtime_env", {}).get("env_vars", {})
        return {str(k): str(v) for k, v in found.items()}
    return {}


def own_paths(paths: str) -> str:
    """The part of an import path that is not Python's own: other machines have theirs."""
    prefixes = {Path(p).resolve() for p in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    kept = [p for p in paths.split(os.pathsep) if p and not any(Path(p).resolve().is_relative_to(x) for x in prefixes)]
    return os.pathsep.join(kept)
