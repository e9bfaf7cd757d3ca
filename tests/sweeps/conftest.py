"""Fake sweeps that nothing disturbs, each run once a session, and drivers in processes of their own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sweeps.backends.ray.pool import Pool
from tests.fakes import FakeCell, fake_plan
from tests.support import ROOT
from tests.sweeps.support import DRIVER, StartDriver, Undisturbed, go, without_faults


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, pool: Pool) -> Undisturbed:
    """Gives the results folder of a fake sweep of some cells and sections; tests only read it."""
    made: dict[str, Path] = {}

    def results(cells: tuple[FakeCell, ...] | None = None, **sections: Any) -> Path:
        plain = None if cells is None else tuple(without_faults(cell) for cell in cells)
        key = repr((plain, sections))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("undisturbed") / "r"
            assert go(fake_plan(made[key], plain, **sections), pool).complete
        return made[key]

    return results


@pytest.fixture
def start_driver() -> Iterator[StartDriver]:
    """Starts drivers; those that still run at the end of the test end with it, and all that they started."""
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path, log: Path, delay: float, code: str = DRIVER, **more: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, str(folder), str(log), str(delay)]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **more))
        return started[-1]

    yield start
    for driver in started:
        if driver.poll() is None:
            for process in [*psutil.Process(driver.pid).children(recursive=True), psutil.Process(driver.pid)]:
                with contextlib.suppress(psutil.Error):  # children come and go
                    process.kill()
        with driver:  # closes its pipe
            driver.wait()
