"""What is ended with a session: Ray's processes, and nobody else's."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from sweeps.backends.ray.pool import Pool
from sweeps.cluster.reaper import Reaper, ray_processes, runs
from tests.support import wait_for

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the reaper reads /proc")
def test_it_ends_what_it_was_told_of(tmp_path: Path) -> None:
    """A tracker's helper, or what else the caller has started, is none of its business."""
    with subprocess.Popen(SLEEP) as own, subprocess.Popen(SLEEP) as other:
        (tmp_path / "session").mkdir()
        reaper = Reaper(tmp_path / "session")
        reaper.mind([own.pid])
        reaper.close()
        assert list(tmp_path.iterdir()) == []
        assert own.wait(10) == -signal.SIGKILL
        assert other.poll() is None
        other.kill()


AGAIN = "import os, sys, time\nwhile True: os.makedirs(sys.argv[1], exist_ok=True); time.sleep(0.01)"
"""A process with a session's folder on its command line that makes it again, as one of Ray's does when it begins."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the reaper reads /proc")
def test_it_ends_a_worker_that_outlives_ray(tmp_path: Path) -> None:
    folder = tmp_path / "session"
    reaper = Reaper(folder)
    with subprocess.Popen([sys.executable, "-S", "-c", AGAIN, str(folder / "r"), "/ray/"]) as late:
        wait_for(folder.exists, "the folder")
        reaper.close()
        assert not folder.exists()
        assert late.wait(10) == -signal.SIGKILL
    reaper.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the reaper reads /proc")
def test_it_ends_what_a_killed_driver_could_not_tell_it_of(tmp_path: Path) -> None:
    """A driver that is killed while it starts Ray."""
    folder = tmp_path / "session"
    start = f"""
import subprocess, sys, time
from pathlib import Path
from sweeps.cluster.reaper import Reaper
reaper = Reaper(Path({str(folder)!r}))
started = subprocess.Popen([sys.executable, "-S", "-c", {AGAIN!r}, {str(folder / "r")!r}, "/ray/"])
print(started.pid, reaper._process.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        started, reaper = (psutil.Process(int(pid)) for pid in driver.stdout.readline().split())
        wait_for(folder.exists, "the folder")
        driver.kill()
    left = [process for process in psutil.wait_procs([started, reaper], timeout=60)[1] if runs(process)]
    for process in left:
        process.kill()
    assert not left
    assert not folder.exists()


def test_the_processes_of_a_session(pool: Pool) -> None:
    with subprocess.Popen(SLEEP) as other:
        found = ray_processes()
        assert other.pid not in found
        other.kill()
    names = []
    for pid in found:
        with contextlib.suppress(psutil.Error):  # children come and go
            names += psutil.Process(pid).cmdline()
    assert all(name in " ".join(names) for name in ("gcs_server", "raylet", "agent"))
