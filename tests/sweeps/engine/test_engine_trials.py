"""Trials that hang, run out of memory, or fail on one rank of a group: each costs itself, and says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sweeps.backends.ray.pool import Pool
from tests.fakes import FakeCell, FakeConfirm, FakeLimits, FakeResources, FakeSearch, fake_plan
from tests.support import ROOT
from tests.sweeps.support import DRIVER, PAIR, Undisturbed, assert_same_tables, events, go, logged, rows

FEW = {"search": FakeSearch(trials=2, rerun_rates=0, rerun_seeds=0), "confirm": FakeConfirm((0,))}


def own_session(tmp_path: Path, cells: str, resources: str, *, also: str = "") -> str:
    """A sweep in a process with a Ray session of its own; this one's has its CPUs in the shared lanes."""
    few = "search=FakeSearch(trials=2, rerun_rates=0, rerun_seeds=0), confirm=FakeConfirm((0,))" + also
    code = DRIVER.replace("concurrent=2", resources).replace("logged(log, delay=delay)", f"({cells},), {few}")
    command = [sys.executable, "-c", code, str(tmp_path / "r"), str(tmp_path / "log"), "0"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ})
    return done.stdout.split()[-1]


@pytest.mark.slow
def test_a_trial_that_hangs_once_is_started_again_and_costs_nothing_else(
    tmp_path: Path, pool: Pool, undisturbed: Undisturbed
) -> None:
    cells = (FakeCell("lora", options=(("hang", "once"),)), FakeCell("vera"))
    one = {"search": FakeSearch(trials=1, rerun_rates=0, rerun_seeds=0), "confirm": FakeConfirm((0,))}
    summary = go(fake_plan(tmp_path / "r", cells, resources=FakeResources(trial_timeout=10), **one), pool)
    assert (summary.finished, summary.failed) == (4, 0)
    attempts = [(e["row"]["method"], e["attempt"]) for e in events(tmp_path / "r", "finish")]
    assert sorted(attempts) == [("lora", 2), ("lora", 2), ("vera", 1), ("vera", 1)]
    assert_same_tables(tmp_path / "r", undisturbed(PAIR, **one))


@pytest.mark.slow
def test_a_trial_that_always_hangs_is_a_failed_row_and_nothing_else_is_lost(tmp_path: Path, pool: Pool) -> None:
    cells = (FakeCell("lora", options=(("hang", "always"),)), FakeCell("vera"))
    plan = fake_plan(tmp_path / "r", cells, resources=FakeResources(trial_timeout=10, attempts=2), **FEW)
    summary = go(plan, pool)
    assert (summary.finished, summary.failed) == (3, 2)
    failed = [t for t in rows(tmp_path / "r", "trials") if t["status"] == "failed"]
    assert {t["reason"] for t in failed} == {"no report for 10 s (resources.trial_timeout); started 2 times"}


def test_out_of_memory_halves_the_micro_batch_and_says_so(tmp_path: Path, pool: Pool, undisturbed: Undisturbed) -> None:
    cells = (FakeCell("lora", options=(("oom_above", 10),)), FakeCell("vera"))
    go(fake_plan(tmp_path / "r", cells, **FEW), pool)
    trials = rows(tmp_path / "r", "trials")
    assert {(t["method"], t["micro_batch_size"]) for t in trials} == {("lora", 8), ("vera", 32)}
    assert all(t["status"] == "finished" for t in trials)
    whole = {t["trial_id"]: t for t in rows(undisturbed(PAIR, **FEW), "trials")}
    assert whole == {t["trial_id"]: {**t, "micro_batch_size": 32} for t in trials}
    lora = next(t["trial_id"] for t in trials if t["method"] == "lora")
    said = [e for e in events(tmp_path / "r", "memory") if e["trial_id"] == lora]
    assert [(e["micro_batch_size"], e["reason"]) for e in said] == [
        (16, "OutOfMemoryError: tried to allocate 32 GiB"),
        (8, "OutOfMemoryError: tried to allocate 16 GiB"),
    ]


def test_a_trial_that_never_fits_fails_with_the_reason(tmp_path: Path, pool: Pool) -> None:
    summary = go(fake_plan(tmp_path / "r", (FakeCell("lora", options=(("oom_above", 0),)),), **FEW), pool)
    assert summary.failed == 2
    for trial in rows(tmp_path / "r", "trials"):
        assert "with a single example at once (micro_batch_size 1): OutOfMemoryError" in trial["reason"]
        assert trial["micro_batch_size"] == 1


@pytest.mark.slow
def test_groups_leave_a_trial_together(tmp_path: Path) -> None:
    """Two ranks: a symmetric error keeps the group, an error on one rank ends it, less memory starts it again."""
    cells = (
        'FakeCell("lora", options=(("nan_above", 1e-4),)), FakeCell("vera", options=(("fail_rank", 1),)), '
        'FakeCell("nola", options=(("oom_above", 8),)), FakeCell("dora")'
    )
    assert own_session(tmp_path, cells, "workers=2, trial_timeout=60") == "False"
    trials = rows(tmp_path / "r", "trials")
    found: dict[str, set[Any]] = {}
    for t in trials:
        found.setdefault(t["method"], set()).add((t["status"], t["reason"], t["micro_batch_size"]))
    assert found["lora"] == {("failed", "TrialError: loss became nan at step 1", 16), ("finished", None, 16)}
    assert found["vera"] == {("failed", "ValueError: rank 1 alone is at fault", 16)}
    assert found["nola"] == {("finished", None, 8)}
    assert found["dora"] == {("finished", None, 16)}
    assert all(e["attempt"] == 1 for e in events(tmp_path / "r", "finish"))


@pytest.mark.slow
def test_isolated_trials_have_a_process_each(tmp_path: Path) -> None:
    cells = 'FakeCell("lora", options=(("log", str(log)),)), FakeCell("vera", options=(("log", str(log)),))'
    assert own_session(tmp_path, cells, "concurrent=2, isolated=True") == "False"
    seen: dict[str, set[str]] = {}
    for line in (tmp_path / "log").read_text().splitlines():
        trial, _, pid = line.split()
        seen.setdefault(trial, set()).add(pid)
    assert len(seen) == 6
    assert all(len(pids) == 1 for pids in seen.values())
    assert len(set.union(*seen.values())) == 6


def test_a_limit_ends_a_run_cleanly_and_a_larger_one_goes_on(
    tmp_path: Path, pool: Pool, undisturbed: Undisturbed
) -> None:
    log = tmp_path / "log"
    cells = logged(log, delay=0.2)
    cut = fake_plan(tmp_path / "r", cells, limits=FakeLimits(max_cost=0.002, price_per_hour=1.0))  # 7.2 s of workers
    summary = go(cut, pool)
    assert summary.stopped_by is not None
    assert summary.stopped_by.startswith("limits.max_cost = 0.002")
    assert not summary.interrupted
    assert not summary.complete
    assert 0 < summary.finished < 32
    assert len(rows(tmp_path / "r", "trials")) == summary.finished
    assert (tmp_path / "r" / "work" / "trials").exists()  # checkpoints of what ran
    still = go(cut, pool)
    assert still.stopped_by is not None
    assert still.finished <= 2
    whole = go(fake_plan(tmp_path / "r", logged(log), limits=FakeLimits(max_cost=1000, price_per_hour=1.0)), pool)
    assert whole.complete
    assert not (tmp_path / "r" / "work").exists()
    assert_same_tables(tmp_path / "r", undisturbed(logged(log)), ("trials", "predictions"))
