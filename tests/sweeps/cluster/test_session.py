"""Ray that does not come up: once more, then an error that says what to do, with nothing left."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from sweeps.cluster import session
from sweeps.cluster.session import RayStartError, Session
from tests.support import gone


def test_ray_that_does_not_come_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    tried: list[tuple[Path, subprocess.Popen[bytes], psutil.Process]] = []

    def init(*, _temp_dir: str, **_: Any) -> None:
        sleep = [sys.executable, "-S", "-c", "import time; time.sleep(60)", f"--temp-dir={_temp_dir}"]
        process = subprocess.Popen(sleep)
        tried.append((Path(_temp_dir).parent, process, psutil.Process(process.pid)))
        raise TimeoutError("the raylet is gone\nand sixty lines")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr(session, "guarded", lambda _: contextlib.nullcontext())  # another session may run in this test
    with (
        Session() as started,
        pytest.raises(RayStartError, match=r"2 times \(the raylet is gone\); .* GiB .*RAY_TMPDIR"),
    ):
        started.connect()
    assert len({folder for folder, _, _ in tried}) == 2
    for folder, left, process in tried:
        assert gone([process])
        assert not folder.exists()
        left.wait()
    assert "is started again: the raylet is gone" in caplog.text
