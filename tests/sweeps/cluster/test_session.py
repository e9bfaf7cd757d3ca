"""What workers see of a machine; Ray that does not come up: once more, then an error, with nothing left."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from sweeps.backends.ray.cluster import session
from sweeps.backends.ray.cluster.session import RayStartError, Session
from tests.support import gone


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "[::1]")])
def test_a_control_store_is_knocked_at_by_its_address(family: socket.AddressFamily, host: str) -> None:
    with socket.socket(family) as there:
        try:
            there.bind((host.strip("[]"), 0))
        except OSError as error:
            pytest.skip(f"no loopback of this family ({error})")
        there.listen()
        address = f"{host}:{there.getsockname()[1]}"
        session._knock(address)
    with pytest.raises(ConnectionRefusedError):
        session._knock(address)


def test_workers_without_a_gpu_see_none(pool: object) -> None:
    """Unless they ask to see what is there."""

    def seen() -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"]

    there = {"CUDA_VISIBLE_DEVICES": "0"}
    variables = [there, there | {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}]
    asked = [ray.remote(num_cpus=0, runtime_env={"env_vars": more})(seen).remote() for more in variables]
    assert ray.get(asked) == ["", "0"]


def test_workers_get_as_much_of_the_processor_as_other_programs(pool: object) -> None:
    """Ray's own default is a niceness of 15: beside a busy program a lane would hardly get on."""

    def niceness() -> int:  # Ray takes no built-in function
        return os.nice(0)

    assert ray.get(ray.remote(num_cpus=0)(niceness).remote()) == niceness()


@pytest.mark.parametrize("asked", ["runs", "_knock"])
@pytest.mark.parametrize("over", [True, False])
def test_what_ends_with_the_session_has_not_died(monkeypatch: pytest.MonkeyPatch, asked: str, over: bool) -> None:
    """The session may end between a look's beginning and its answers."""
    looked, here = Session(), psutil.Process()
    looked._store, looked._heard = "127.0.0.1:1", -math.inf
    if asked == "runs":
        looked._own = {"raylet": here}
    usual = getattr(session, asked)

    def gone_by_now(what: object) -> object:
        if what not in (here, looked._store):  # the thread that watches the tests' own session asks too
            return usual(what)
        if over:
            looked._over.set()
        if asked == "_knock":
            raise ConnectionRefusedError
        return False

    monkeypatch.setattr(session, asked, gone_by_now)
    assert (looked.check_processes() is None) == over


def test_ray_that_does_not_come_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    tried: list[tuple[Path, subprocess.Popen[bytes], psutil.Process]] = []

    def init(*, _temp_dir: str, **_: Any) -> None:
        sleep = [sys.executable, "-S", "-c", "import time; time.sleep(60)", f"--temp-dir={_temp_dir}"]
        process = subprocess.Popen(sleep)
        tried.append((Path(_temp_dir).parent, process, psutil.Process(process.pid)))
        raise TimeoutError("the raylet is gone\nand sixty lines")

    monkeypatch.setattr(session, "connected", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr(session, "private_session", lambda _: contextlib.nullcontext())  # a session may run here
    with (
        Session() as started,
        pytest.raises(RayStartError, match=r"2 tries \(the raylet is gone\); .* GiB .*RAY_TMPDIR"),
    ):
        started.connect()
    assert len({folder for folder, _, _ in tried}) == 2
    for folder, left, process in tried:
        assert gone([process])
        assert not folder.exists()
        left.wait()
    assert "is started again: the raylet is gone" in caplog.text
