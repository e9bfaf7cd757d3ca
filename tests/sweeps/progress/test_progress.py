"""The totals, the speed and the time left of a sweep, from what is known of its cells and from a running engine."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sweeps.progress.failures import where_raised
from sweeps.progress.of_state import StateReader, ended_trials
from sweeps.progress.progress import CellProgress, Pace, SweepProgress, Timed
from sweeps.search.stages import SweepState
from tests.fakes import fake_plan, fake_row
from tests.sweeps.progress.support import START, TIMES, half_way, progress_of

CELL = CellProgress("", "", "lora", "data", "lora-8", 1, 0, (0, 0), begun=True, scored=True, best=0.5)


def timed(began: float, seconds: float, setup: float) -> Timed:
    at = START + timedelta(seconds=began)
    return Timed(at, at + timedelta(seconds=seconds), setup, seconds)


def test_the_pace_of_a_run_leaves_its_start_out() -> None:
    """A minute until workers are up, then two trials of 5 s at a time, the first with 20 s of set-up."""
    lora = replace(CELL, left=(8, 0), pace=Pace.of([timed(60, 25, 20.0)]))
    vera = replace(CELL, method="vera", left=(0, 2), pace=Pace.of([timed(60, 30, 20.0)]))
    now = SweepProgress((lora, vera), (), 0, 2, START + timedelta(seconds=90))
    assert (now.this_run, now.per_minute, now.seconds_left) == (2, 12.0, (8 * 5 + 2 * 10) / 2)
    assert replace(now, at_once=4).seconds_left == (8 * 5 + 2 * 10) / 4
    dora = replace(CELL, method="dora", left=(2, 0))  # as the mean of all methods
    assert replace(now, cells=(lora, replace(vera, left=(0, 0)), dora)).seconds_left == pytest.approx(
        (8 * 5 + 2 * 7.5) / 2
    )
    assert replace(now, cells=(replace(lora, left=(0, 0)), replace(vera, left=(1, 0)))).seconds_left == 10  # one worker
    over = replace(now, now=None)
    assert (over.this_run, over.per_minute, over.seconds_left) == (2, 12.0, None)
    begins = replace(now, cells=(replace(CELL, left=(8, 0)),))
    assert (begins.this_run, begins.per_minute, begins.seconds_left) == (0, None, None)


def test_the_progress_of_an_engine(tmp_path: Path) -> None:
    state = half_way(tmp_path)
    now = progress_of(state)
    assert (now.done, now.total) == (12, 41)
    assert sum(now.phases.values()) == 6
    assert (now.this_run, now.per_minute, now.seconds_left) == (12, 12, 2.0 * 29)
    state.workers = 100
    assert progress_of(state).seconds_left == 2.0  # one trial is no faster on many workers
    assert {cell.method for cell in now.cells if cell.best is not None} == {"lora", "randlora"}
    for cell in now.cells:
        scores = [row.val_score for row in state.cells[cell.cell_id].rows.values() if row.val_score is not None]
        assert cell.best == max(scores, default=None)
    assert {f.reason for f in now.failures} == {"TrialError: loss became nan at step 3"}
    assert (now.accelerator_hours, now.cost) == (None, None)


def test_trials_of_earlier_runs_are_done_and_have_no_pace(tmp_path: Path) -> None:
    state = half_way(tmp_path)
    reader, at = StateReader(state, ended_trials(state)), START + timedelta(seconds=60)
    before = reader.progress(at)
    assert (before.done, before.this_run, before.per_minute, before.seconds_left) == (12, 0, None, None)
    slot = state.next_slot()
    assert slot is not None
    state.start(slot)
    assert reader.progress(at).running == state.running == 2  # one was running when the simulation stopped
    state.finish(fake_row(slot, val_score=0.5, **TIMES))
    now = reader.progress(at)
    assert (now.done, now.running, now.per_minute) == (13, 1, 1.0)
    assert now == StateReader(state, ended_trials(state) - {slot.trial_id}).progress(at)  # as counted afresh


def test_an_engine_that_has_not_begun_has_all_to_come(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path)
    now = StateReader(SweepState(plan.feasible, plan.spec)).progress(datetime.now(UTC))
    assert (now.done, now.total, now.phases) == (0, plan.n_trials, {"waiting": 6})


def test_where_a_trial_raised() -> None:
    trace = 'Traceback (most recent call last):\n  File "/a/b/lane.py", line 3, in run\n    x()\n'
    trace += '  File "/a/b/clip.py", line 88, in evaluate\n    raise ValueError("no")\nValueError: no\n'
    assert where_raised(trace) == "clip.py:88 in evaluate"
    assert where_raised("killed") is None
    assert where_raised(None) is None
