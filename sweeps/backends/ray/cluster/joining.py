"""Finds the Ray cluster that an address names, and checks that it answers and has the same release of Ray.

This takes seconds, where Ray itself would wait for minutes.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess

import psutil

from sweeps.backends.ray.cluster.private import PREFIX
from sweeps.backends.ray.compat import COMMAND, NEWEST, OLDEST, supported
from sweeps.backends.resources import ResourceError
from sweeps.errors import Problem

ANSWER_S = 60.0


def find(address: str) -> str:
    """Return the "HOST:PORT" that an address names.

    "auto" is RAY_ADDRESS, else the cluster whose raylet runs on this machine. Local sessions of sweeps do not count
    (Ray's own search would count them).

    Raises:
        ResourceError: "auto" finds no cluster, or several.
    """
    if address != "auto":
        return address
    variable = os.environ.get("RAY_ADDRESS")
    if variable and variable != "auto":
        return variable
    running = _running()
    if len(running) == 1:
        return running[0]
    rule = "no Ray cluster runs on this machine, and RAY_ADDRESS is not set"
    nearest = "HOST:PORT, or leave it out to run locally"
    if running:
        rule = f"{len(running)} Ray clusters run on this machine, and RAY_ADDRESS is not set"
        nearest = " or ".join(running)
    raise ResourceError([Problem("--address", address, rule, nearest)])


def _running() -> list[str]:
    """Return the addresses of the clusters whose raylets run on this machine, without local sessions of sweeps."""
    addresses = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline() if process.name() == "raylet" else []
            if not any(f"/{PREFIX}" in word for word in words):
                addresses += [word.partition("=")[2] for word in words if word.startswith("--gcs-address=")]
    return list(dict.fromkeys(addresses))


def ask(address: str, *, token: bool = True, seconds: float = ANSWER_S) -> str | None:
    """Ask a cluster's control store for its status, by `ray status`.

    `ray status` runs in a separate process, since Ray's calls cannot be interrupted.

    Args:
        address: "HOST:PORT".
        token: whether to use the token that Ray finds.
        seconds: seconds that the answer may take.

    Returns:
        Why it did not answer, or Ray's message that its release is another one (`other_release`); None if it answered.
    """
    variables = {"RAY_LOG_TO_STDERR": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    environment = {**os.environ, **variables, **({} if token else {"RAY_AUTH_MODE": "disabled"})}
    command = [*COMMAND, "status", "--address", address]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {seconds:g} s"
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no answer"])[-1]


def other_release(asked: str, message: str | None) -> Problem | None:
    """Return what is wrong if Ray's `message` says that versions differ; None if it does not say so.

    `ray status` names the releases of Ray, and `ray.init` those of Python too.
    """
    versions = (message or "").rpartition("ersion mismatch")[2]
    rays = re.findall(r"\bRay(?::| version| version is) (\d\S*)", versions)
    pythons = re.findall(r"\bPython: (\S+)", versions) or ["", ""]
    if len(rays) != 2 or len(pythons) != 2:
        return None
    theirs, ours = (
        f"Ray {ray} on Python {python}" if python else f"Ray {ray}" for ray, python in zip(rays, pythons, strict=True)
    )
    rule = f"runs {theirs}, and this machine has {ours}"
    if rays[0] == rays[1]:
        return Problem("--address", asked, rule, f"Python {'.'.join(pythons[0].split('.')[:2])} here")
    if supported(rays[0]):
        return Problem("--address", asked, rule, f"pip install 'ray[tune,train]=={rays[0]}'")
    rule += f"; this package needs Ray {OLDEST} to {NEWEST}"
    return Problem("--address", asked, rule, f"a cluster with Ray {rays[1]}")


def unsupported_ray(asked: str) -> Problem | None:
    """Return what is wrong if this process has a Ray that this package was not tested with; None if it was."""
    import ray

    if supported(ray.__version__):
        return None
    rule = f"Ray {ray.__version__} is installed here, and this package needs Ray {OLDEST} to {NEWEST}"
    return Problem("--address", asked, rule, f"pip install 'ray[tune,train]=={NEWEST}.*' here and on the cluster")
