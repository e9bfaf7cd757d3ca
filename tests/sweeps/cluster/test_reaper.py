"""What is ended with a session: Ray's processes, and nobody else's."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from sweeps.cluster.reaper import Reaper, ray_processes
from sweeps.lanes.pool import Pool

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
