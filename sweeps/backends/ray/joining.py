"""Which Ray cluster an address names, whether it answers, and whether its Ray is this one's.

This is found out before Ray itself waits for minutes.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys

import psutil

from sweeps.backends.ray.compat import COMMAND, NEWEST, OLDEST, supported
from sweeps.backends.ray.private import PREFIX, users_token
from sweeps.backends.resources import ResourceError
from sweeps.errors import Problem

ANSWER_S = 30.0


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
    """Ask a cluster's control store for something, by `ray status`.

    Args:
        address: "HOST:PORT".
        token: with the token that Ray finds, if it is to use one; False: without.
        seconds: that the answer may take.

    Returns:
        Why it did not answer; None if it did.
    """
    failure = _run([*COMMAND, "status", "--address", address], {} if token else {"RAY_AUTH_MODE": "disabled"}, seconds)
    return failure.splitlines()[-1] if failure else None


def try_release(address: str, *, seconds: float = ANSWER_S) -> Problem | None:
    """Connect to a cluster in a process of its own; returns what is wrong with its release of Ray, None if nothing is.

    A cluster that can't be joined from here for other reasons, such as a driver without a raylet, is no problem.
    """
    join = f"import ray; ray.init(address={address!r}, log_to_driver=False)"
    with users_token():
        return other_release(address, _run([sys.executable, "-c", join], {}, seconds) or "")


def other_release(asked: str, message: str) -> Problem | None:
    """Return what is wrong if Ray's `message` says that versions differ; None if it does not say so."""
    said = message.rpartition("Version mismatch")[2]
    rays, pythons = re.findall(r"\bRay: (\S+)", said), re.findall(r"\bPython: (\S+)", said)
    if len(rays) != 2 or len(pythons) != 2:
        return None
    (theirs, ours), (their_python, our_python) = rays, pythons
    rule = f"runs Ray {theirs} on Python {their_python}, and here are Ray {ours} and Python {our_python}"
    nearest = f"Python {'.'.join(their_python.split('.')[:2])} here"
    if theirs != ours:
        nearest = f"pip install 'ray[tune,train]=={theirs}'"
        if not supported(theirs):
            rule += f"; this package needs Ray {OLDEST} to {NEWEST}"
            nearest = f"a cluster with Ray {ours}"
    return Problem("--address", asked, rule, nearest)


def unsupported(asked: str) -> Problem | None:
    """Return what is wrong if this process has a Ray that this package was not tested with; None if it was."""
    import ray

    if supported(ray.__version__):
        return None
    rule = f"Ray {ray.__version__} is installed here, and this package needs Ray {OLDEST} to {NEWEST}"
    return Problem("--address", asked, rule, f"pip install 'ray[tune,train]=={NEWEST}.*' here and on the cluster")


def _run(command: list[str], variables: dict[str, str], seconds: float) -> str | None:
    """Run a program that talks to a cluster, since nothing interrupts Ray's calls; returns its errors, None if none."""
    environment = {**os.environ, "RAY_LOG_TO_STDERR": "0", "RAY_USAGE_STATS_ENABLED": "0", **variables}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {seconds:g} s"
    return None if done.returncode == 0 else done.stderr.strip() or "no answer"
