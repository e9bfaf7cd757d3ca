"""What is ended with a session: Ray's processes, and nobody else's; and what is left when a driver is killed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path

import psutil
import pytest

from sweeps.backends.ray.cluster import private
from sweeps.backends.ray.cluster.private import PREFIX, make_folder, session_folder, token_of
from sweeps.backends.ray.cluster.processes import clear, processes_of, runs, vital
from sweeps.backends.ray.pool import Pool
from sweeps.backends.ray.process import _Driver
from tests.support import ROOT, wait_for

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
AGAIN = "import os, sys, time\nwhile True: os.makedirs(sys.argv[1], exist_ok=True); time.sleep(0.01)"
"""A process with a session's folder on its command line that makes it again, as one of Ray's does when it begins."""
LEFT_S = 120.0
"""Ray's agents try for 60 s to reach a control store that is gone."""
DRIVER = """
import time
import ray
from sweeps.backends.ray.cluster.session import Session
from sweeps.backends.ray.cluster.private import session_folder

@ray.remote(num_cpus=1)
class Busy:
    def ready(self):
        return True

    def go(self):
        while True:
            sum(range(10**6))

session = Session()
session.__enter__()
session.connect()
busy = Busy.remote()
ray.get(busy.ready.remote())
busy.go.remote()
print(session_folder(), flush=True)
time.sleep(600)
"""


def test_it_ends_what_belongs_to_the_session(tmp_path: Path) -> None:
    """A tracker's helper, or what else the caller has started, is none of its business."""
    folder = tmp_path / "session"
    again = [sys.executable, "-S", "-c", AGAIN, str(folder / "r")]
    with subprocess.Popen(again) as late, subprocess.Popen(SLEEP) as other:
        wait_for(folder.exists, "the folder")
        clear(folder)
        assert not folder.exists()
        assert late.poll() is not None
        assert other.poll() is None
        other.kill()
    clear(folder)


def test_the_processes_of_a_session(pool: Pool) -> None:
    folder = session_folder()
    assert folder is not None
    with subprocess.Popen(SLEEP) as other:
        found = processes_of(folder)
        assert other.pid not in [process.pid for process in found]
        other.kill()
    names = []
    for process in found:
        with contextlib.suppress(psutil.Error):  # children come and go
            names += process.cmdline()
    assert all(name in " ".join(names) for name in ("gcs_server", "raylet", "Agent"))
    assert set(vital(folder)) == {"gcs_server", "raylet", "dashboard agent", "runtime-environment agent"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_a_killed_driver_leaves_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers at once, also in the middle of something; Ray's agents within a minute; the folder with the next."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    try:
        assert driver.stdout is not None
        folder = Path(driver.stdout.readline().decode().strip())
        assert folder.name.startswith(PREFIX)
        monkeypatch.setattr(private, "_YOUNG_S", 0.0)
        clear(make_folder())
        assert folder.exists() and runs(psutil.Process(driver.pid))  # it is in use
        family = processes_of(folder)
        workers = [process for process in family if "Busy" in " ".join(process.cmdline())]
        assert workers
    finally:
        driver.kill()
        driver.communicate()
    begun = time.monotonic()
    wait_for(lambda: not any(map(runs, workers)), "its workers to end", 30)
    wait_for(lambda: not any(map(runs, family)) and not processes_of(folder), "all of Ray to end", LEFT_S)
    print(f"all of Ray ended {time.monotonic() - begun:.0f} s after its driver")
    clear(make_folder())
    assert not folder.exists()


def test_an_abandoned_folder_goes_with_the_next_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one without a token, and one of which a process still runs."""
    monkeypatch.setattr(private, "_SOCKET_BYTES", 400)  # pytest's folder is long
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    abandoned, held, young, bare, busy = (make_folder() for _ in range(5))
    other = tmp_path / "not-ours"
    other.mkdir()
    token_of(bare).unlink()
    for old in (abandoned, held, other, bare, busy):
        os.utime(old, (0, 0))
    locking = f"import fcntl; file = open({str(token_of(held))!r}); fcntl.flock(file, fcntl.LOCK_SH)"
    locking += "; print(flush=True); input()"
    # as `private_session` does, in another driver
    driving = subprocess.Popen([sys.executable, "-c", locking], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with driving as driver, subprocess.Popen([*SLEEP, f"--temp-dir={busy}/r"]) as left:
        assert driver.stdout is not None
        driver.stdout.readline()
        process = psutil.Process(left.pid)
        new = make_folder()
        assert set(tmp_path.iterdir()) == {held, young, other, new}
        assert not runs(process)
        driver.communicate(b"\n")
    assert all(path.name.startswith(PREFIX) for path in (abandoned, held))
    monkeypatch.setattr(private, "_SHORT", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", str(other))  # also where this session's files go elsewhere
    clear(make_folder())
    assert not held.exists()


def test_after_the_engine_was_killed_no_nodes_are_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's driver tells the cluster's autoscaler so before it ends."""

    def exit_(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("sweeps.backends.ray.process.os._exit", exit_)
    monkeypatch.setattr("sweeps.backends.ray.process.session_folder", lambda: None)  # the cluster is not ours
    asked = list[str]()
    engine, own = Pipe()
    driver = _Driver(own)
    driver._wake, driver._withdraw = (lambda: None), (lambda: asked.append("no nodes"))
    engine.close()
    with pytest.raises(SystemExit):
        driver._listen()
    assert asked == ["no nodes"]
