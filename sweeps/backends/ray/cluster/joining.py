"""Which Ray cluster an address names, whether it answers, and whether its Ray is this one's.

This is found out before Ray itself waits for minutes.
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

    "auto" is RAY_ADDRESS, else the cluster whose raylet runs on this machine. A local session of a sweep is none, which
    Ray's own search takes for a cluster.

    Raises:
        ResourceError: there is none, or there are several.
    """
    if address != "auto":
        return address
    given = os.environ.get("RAY_ADDRESS")
    if given and given != "auto":
        return given
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
    """Return the addresses that raylets of this machine have on their command lines, without private sessions."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline() if process.name() == "raylet" else []
            if not any(f"/{PREFIX}" in word for word in words):
                found += [word.partition("=")[2] for word in words if word.startswith("--gcs-address=")]
    return list(dict.fromkeys(found))


def ask(address: str, *, token: bool = True, seconds: float = ANSWER_S) -> str | None:
    """Ask a cluster's control store for its status, by `ray status`.

    That is a process of its own, since nothing interrupts Ray's calls.

    Args:
        address: "HOST:PORT".
        token: with the token that Ray finds, if it is to use one; False: without.
        seconds: that the answer may take.

    Returns:
        Why it did not answer, or that its release of Ray is another one (`other_release`); None if all is well.
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
    said = (message or "").rpartition("ersion mismatch")[2]
    rays = re.findall(r"\bRay(?::| version| version is) (\d\S*)", said)
    pythons = re.findall(r"\bPython: (\S+)", said) or ["", ""]
    if len(rays) != 2 or len(pythons) != 2:
        return None
    theirs, ours = (
        f"Ray {ray} on Python {python}" if python else f"Ray {ray}" for ray, python in zip(rays, pythons, strict=True)
    )
    rule = f"runs {theirs}, and here is {ours}"
    if rays[0] == rays[1]:
        return Problem("--address", asked, rule, f"Python {'.'.join(pythons[0].split('.')[:2])} here")
    if supported(rays[0]):
        return Problem("--address", asked, rule, f"pip install 'ray[tune,train]=={rays[0]}'")
    rule += f"; this package needs Ray {OLDEST} to {NEWEST}"
    return Problem("--address", asked, rule, f"a cluster with Ray {rays[1]}")


def unsupported(asked: str) -> Problem | None:
    """Return what is wrong if this process has a Ray that this package was not tested with; None if it was."""
    import ray

    if supported(ray.__version__):
        return None
    rule = f"Ray {ray.__version__} is installed here, and this package needs Ray {OLDEST} to {NEWEST}"
    return Problem("--address", asked, rule, f"pip install 'ray[tune,train]=={NEWEST}.*' here and on the cluster")
