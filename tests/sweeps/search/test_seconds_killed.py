"""A driver that is killed again and again under an allowance in seconds: the same trials as undisturbed."""

from __future__ import annotations

import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from sweeps.lanes.pool import Pool
from tests.fakes import FakePlan, FakeResources, FakeSamples, FakeSearch, fake_plan
from tests.sweeps.support import DRIVER, KILLED_AFTER, assert_same_tables, driver, events, go, logged

IN_SECONDS = (
    DRIVER.replace("FakeResources, ", "FakeResources, FakeSamples, FakeSearch, ")
    .replace(
        "delay=delay)",
        "delay=delay, seconds=20.0), search=FakeSearch(sampler='qmc', allowance=FakeSamples(seconds=320))",
    )
    .replace("plan = ", KILLED_AFTER + "\nplan = ")
)


def plan_of(folder: Path, log: Path) -> FakePlan:
    search = FakeSearch(sampler="qmc", allowance=FakeSamples(seconds=320))
    return fake_plan(folder, logged(log, seconds=20.0), search=search, resources=FakeResources(concurrent=2))


@pytest.mark.slow
def test_kills_neither_add_trials_nor_take_any(tmp_path: Path, pool: Pool) -> None:
    folder, log, draw = tmp_path / "r", tmp_path / "log", random.Random(3)
    for _ in range(4):
        before = {e["trial_id"] for e in events(folder, "finish")}
        seen = len(log.read_text().splitlines()) if log.exists() else 0
        done = driver(IN_SECONDS, folder, log, 0, draw.randint(1, 16))
        assert done.returncode == -signal.SIGKILL, "the sweep was over before its kill"
        later = {line.split()[0] for line in log.read_text().splitlines()[seen:]} if log.exists() else set()
        assert not later & before
    summary = go(plan_of(folder, log), pool)
    assert summary.skipped > 0
    assert summary.complete
    go(plan_of(tmp_path / "whole", tmp_path / "log2"), pool)
    # each fake trial says that it trained 60 s: five points and a re-run of every cell
    assert Counter(e["stage"] for e in events(folder, "ask")) == {"TUNE": 4 * 6, "CONFIRM": 4 * 2}
    assert_same_tables(folder, tmp_path / "whole")
    for kind in ("ask", "finish"):
        assert set(Counter(e["trial_id"] for e in events(folder, kind)).values()) == {1}
