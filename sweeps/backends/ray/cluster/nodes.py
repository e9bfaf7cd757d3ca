"""Checks that each node of a joined cluster has this package and what trials need, and sees the results folder."""

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
"""The resource that only Ray's head node has. The broker runs there, even if no trials do."""
SEES_GPUS = {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}}
"""Runtime environment in which a task that takes no GPU sees all GPUs of its node. `session` turns that off."""
ANSWER_S = 660.0
"""Seconds to wait for a node's answer: a minute more than Ray allows for installing a job's environment."""
_NOTE_S = 10.0
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_JOB_FOLDER = "working_dir_files"


def examine(token: str, needs: Needs) -> dict[str, Any]:
    """Return facts about this node: host, versions, whether it sees the file `token`, and what it lacks."""
    package: str | None = None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # Ray may have copied it with the job's folder
        package = importlib.metadata.version("randlora-sweeps")
    return {
        "host": socket.gethostname(),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "package": package,
        "sees": os.access(token, os.F_OK),  # also False if its folder may not be entered
        "lacks": tuple(needs.lacking()),
    }


class NodeCheck:
    """Asks nodes whether they can run trials, each by a task that runs there.

    Args:
        storage: a folder inside the results folder.
        needs: what trials need besides this package.
        nodes: the nodes, as `ray.nodes` lists them.
    """

    def __init__(self, storage: Path, needs: Needs, nodes: Sequence[dict[str, Any]]) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.nodes, self._storage, self._begun = nodes, storage, time.monotonic()
        storage.mkdir(parents=True, exist_ok=True)
        self._token = storage / f"seen-{uuid.uuid4().hex}"
        self._token.touch()
        self._here = examine(str(self._token), Needs())
        environment = SEES_GPUS if needs.gpu_bytes else {}
        options = {"num_cpus": 0, "max_retries": 0, "runtime_env": environment}
        task = ray.remote(**options, max_calls=1)(examine)  # its process ends, with all that it imported
        strategies = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        self._asked = [
            task.options(scheduling_strategy=strategy).remote(str(self._token), needs if _trains(node) else Needs())
            for node, strategy in zip(nodes, strategies, strict=True)
        ]

    def wait(self, seconds: float) -> list[dict[str, Any]]:
        """Wait at most `seconds` for the answers. Return the nodes that have not answered."""
        import ray

        late = ray.wait(self._asked, num_returns=len(self._asked), timeout=seconds)[1] if self._asked else []
        return [node for node, answer in zip(self.nodes, self._asked, strict=True) if answer in late]

    @property
    def over(self) -> bool:
        """Return whether all nodes have answered, or `ANSWER_S` seconds have passed."""
        return not self.wait(0) or time.monotonic() - self._begun > ANSWER_S

    def problems(self) -> list[Problem]:
        """Return everything that is wrong with any node. A node that has not answered is a problem."""
        answers = zip(self.nodes, self._asked, strict=True)
        return [problem for node, answer in answers for problem in _problems(node, answer, self._here, self._storage)]

    def close(self) -> None:
        self._token.unlink(missing_ok=True)


def check_nodes(storage: Path, needs: Needs = Needs(), known: Container[str] = ()) -> list[str]:
    """Ask every node that trials may run on, and the head node, and wait as long as Ray may install there.

    Args:
        storage: a folder inside the results folder.
        needs: what trials need besides this package.
        known: ids of nodes that need not be asked.

    Returns:
        The ids of the nodes that were asked.

    Raises:
        ResourceError: it lists everything that is wrong with any node: it does not answer, lacks this package, has
            another version of it or of Python, does not see the results folder, or lacks what trials need. Also if
            the results folder is one that Ray deletes with the job.
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
        problems = check.problems()
    finally:
        check.close()
    if problems:
        raise ResourceError(problems)
    return [node["NodeID"] for node in check.nodes]


class ClusterNodes:
    """The nodes of a joined cluster that trials may run on, as nodes join and leave.

    Args:
        storage: a folder inside the results folder.
        needs: what trials need besides this package.
    """

    def __init__(self, storage: Path, needs: Needs) -> None:
        self._storage, self.needs = storage, needs
        self._usable: set[str] = set()
        self._asked: dict[str, NodeCheck] = {}
        self.refused: dict[str, str] = {}
        """What is wrong with nodes that joined and are left out, by their ids."""

    def check(self) -> list[Node]:
        """Ask every node and wait for the answers. Return the usable nodes.

        Raises:
            ResourceError: a node is not usable, as `check_nodes` says.
        """
        self._usable |= {*check_nodes(self._storage, self.needs, self._usable)}
        return [node for node in session_nodes() if node.name in self._usable]

    def usable_nodes(self) -> list[Node]:
        """Return the nodes that are known to be usable now. Ask nodes that have joined, without waiting for them."""
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


def session_nodes() -> list[Node]:
    """Return the nodes that are alive in this process's Ray session."""
    import ray

    return [_as_node(node) for node in ray.nodes() if node["Alive"]]


def _as_node(node: dict[str, Any]) -> Node:
    resources = node["Resources"]
    return Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0), node["NodeID"])


def _trains(node: dict[str, Any]) -> bool:
    """Return whether a node has CPUs or GPUs, so that trials may run there."""
    return bool(node["Resources"].get("CPU") or node["Resources"].get("GPU"))


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} {node['NodeManagerAddress']}"


def _problems(node: dict[str, Any], answer: Any, drivers: dict[str, Any], storage: Path) -> Iterator[Problem]:
    """Yield everything that is wrong with a node, by its answer and the driver's own facts."""
    import ray

    name = _name(node)
    try:
        facts = ray.get(answer, timeout=0.1)
    except ray.exceptions.GetTimeoutError:
        rule = f"gave no answer within {ANSWER_S:g} s"
        yield Problem("--address", name, rule, "install this package there beforehand, or take the machine out")
        return
    except ray.exceptions.RayError as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        rule = f"can't run this package ({last[:300]})"
        yield Problem("--address", name, rule, "install it on every machine, or `ray job submit --working-dir`")
        return
    for what, name_of_it in (("python", "Python"), ("package", "this package")):
        if None not in (facts[what], drivers[what]) and facts[what] != drivers[what]:
            rule = f"has {name_of_it} {facts[what]}, and the driver {drivers[what]}"
            yield Problem("--address", name, rule, "the same version on every machine")
    if not _trains(node):  # only the broker runs there, and it touches no file
        return
    if not facts["sees"]:
        yield Problem("output", str(storage.parents[1]), f"is not seen by {name}", "a folder that all machines share")
    if facts["lacks"]:
        rule = f"lacks {', '.join(facts['lacks'])}"
        yield Problem("--address", name, rule, "models, data and packages at the same place on every machine")


def check_lasting(folder: Path) -> None:
    """Check that a results folder is not inside the copy of a job's working directory, which Ray deletes with the job.

    Raises:
        ResourceError: it is inside that copy.
    """
    if _JOB_FOLDER in folder.parts and "runtime_resources" in folder.parts:
        rule = "lies in the job's copy of its working directory, which Ray deletes"
        raise ResourceError([Problem("output", str(folder), rule, "--set output=/a/shared/folder")])


def job_variables() -> dict[str, str]:
    """Return the variables that a submitted job's runtime environment sets. Ray forbids setting them twice."""
    with contextlib.suppress(json.JSONDecodeError, AttributeError):
        variables = json.loads(os.environ.get(JOB_CONFIG, "{}")).get("runtime_env", {}).get("env_vars", {})
        return {str(k): str(v) for k, v in variables.items()}
    return {}


def paths_outside_python(paths: str) -> str:
    """Return an import path without the folders of this Python: other nodes have their own Python."""
    prefixes = {Path(p).resolve() for p in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    kept = [p for p in paths.split(os.pathsep) if p and not any(Path(p).resolve().is_relative_to(x) for x in prefixes)]
    return os.pathsep.join(kept)
