"""The machines of a joined cluster: each must import this package and see the results folder."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import socket
import sys
import uuid
from pathlib import Path
from typing import Any

from sweeps.cluster.resources import ResourceError
from sweeps.errors import Problem

ANSWER_S = 120.0
"""A runtime environment may have to be unpacked first."""
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_JOB_FOLDER = "working_dir_files"


def look(token: str) -> dict[str, Any]:
    """Runs on a machine: who it is, what it runs, and whether it sees the driver's file."""
    package: str | None = None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # it may have come with the job's folder
        package = importlib.metadata.version("randlora-sweeps")
    return {
        "host": socket.gethostname(),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "package": package,
        "sees": Path(token).exists(),
    }


def check_nodes(storage: Path) -> None:
    """Ask every machine of the joined cluster that trials may run on.

    Args:
        storage: a folder inside the results folder.

    Raises:
        ResourceError: one problem per machine: it does not answer, lacks this package, has another version of it or of
            Python, or does not see the results folder; or the folder is one that Ray deletes with the job.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    check_lasting(storage)
    storage.mkdir(parents=True, exist_ok=True)
    token = storage / f"seen-{uuid.uuid4().hex}"
    token.touch()
    mine = look(str(token))
    nodes = [n for n in ray.nodes() if n["Alive"] and (n["Resources"].get("CPU") or n["Resources"].get("GPU"))]
    task = ray.remote(num_cpus=0, max_retries=0)(look)
    try:
        there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        asked = [task.options(scheduling_strategy=strategy).remote(str(token)) for strategy in there]
        ray.wait(asked, num_returns=len(asked), timeout=ANSWER_S)
        found = [_problem(node, answer, mine, storage) for node, answer in zip(nodes, asked, strict=True)]
    finally:
        token.unlink(missing_ok=True)
    if wrong := [problem for problem in found if problem is not None]:
        raise ResourceError(wrong)


def _problem(node: dict[str, Any], answer: Any, mine: dict[str, Any], storage: Path) -> Problem | None:
    """What is wrong with a machine: its answer against the driver's own."""
    import ray

    name = node["NodeManagerHostname"] + " " + node["NodeManagerAddress"]
    try:
        found = ray.get(answer, timeout=0.1)
    except (ray.exceptions.RayError, TimeoutError) as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        rule = f"can't run this package ({last[:300]})"
        remedy = "install it on every machine, or `ray job submit --working-dir`"
        return Problem("--address", name, rule, remedy)
    for what in ("python", "package"):
        if None not in (found[what], mine[what]) and found[what] != mine[what]:
            of = "Python" if what == "python" else "this package"
            rule = f"has {of} {found[what]}, and the driver {mine[what]}"
            return Problem("--address", name, rule, "the same version on every machine")
    if not found["sees"]:
        folder = storage.parents[1]
        return Problem("output", str(folder), f"is not seen by {name}", "a folder that all machines share")
    return None


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
