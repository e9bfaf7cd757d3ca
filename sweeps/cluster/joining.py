"""Which Ray cluster an address names, and whether it answers: found out before Ray itself waits for minutes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import psutil

from sweeps.cluster.private import PREFIX
from sweeps.cluster.resources import ResourceError
from sweeps.errors import Problem

ANSWER_S = 30.0
_ASK = """
import sys
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._raylet import GcsClient
if sys.argv[2] == "auto":
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
try:
    GcsClient(address=sys.argv[1]).internal_kv_keys(b"sweeps", None)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
"""In a process of its own, since nothing interrupts Ray's calls."""


def find(address: str) -> str:
    """The "HOST:PORT" that an address names.

    "auto" is RAY_ADDRESS, else the cluster that `ray start` has started here last, else one whose raylet runs here;
    never a local session of a sweep, which Ray's own search takes for a cluster.

    Raises:
        ResourceError: there is none.
    """
    if address != "auto":
        return address
    from ray._private.utils import read_ray_address

    found = os.environ.get("RAY_ADDRESS") or read_ray_address() or next(iter(_running()), None)
    if not found or found == "auto":
        rule = "no Ray cluster runs on this machine, and RAY_ADDRESS is not set"
        raise ResourceError([Problem("--address", address, rule, "HOST:PORT, or leave it out to run locally")])
    return str(found)


def _running() -> list[str]:
    """Addresses that raylets of this machine have on their command lines, but for those of private sessions."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline() if process.name() == "raylet" else []
            if not any(f"/{PREFIX}" in word for word in words):
                found += [word.partition("=")[2] for word in words if word.startswith("--gcs-address=")]
    return found


def ask(address: str, asked: str, *, token: bool = True, seconds: float = ANSWER_S) -> str | None:
    """Ask a cluster's control store for something.

    Args:
        address: "HOST:PORT".
        asked: what the user gave; with "auto" Ray takes a token that the user has, unasked.
        token: with the token that Ray finds, if it is to use one; False: without.

    Returns:
        Why it did not answer; None where it did.
    """
    environment = {**os.environ, "RAY_LOG_TO_STDERR": "0", **({} if token else {"RAY_AUTH_MODE": "disabled"})}
    command = [sys.executable, "-c", _ASK, address, asked]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {seconds:g} s"
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no answer"])[-1]
