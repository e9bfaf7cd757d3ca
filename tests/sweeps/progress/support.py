"""A sweep half way, with a failed rate in each cell, and its progress."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sweeps.progress.of_state import StateReader
from sweeps.progress.progress import SweepProgress
from sweeps.search.stages import SweepState
from tests.fakes import fake_plan
from tests.sweeps.search.support import simulate

START = datetime(2026, 1, 1, tzinfo=UTC)
TIMES = {"started_at": START, "ended_at": START + timedelta(seconds=2), "seconds_total": 2.0}


def half_way(tmp_path: Path) -> SweepState:
    state = simulate(fake_plan(tmp_path), {}, fails=lambda slot: slot.lr == 1e-1, limit=12)
    for cell in state.cells.values():
        for trial_id, row in cell.rows.items():
            reason = "TrialError: loss became nan at step 3"
            cell.rows[trial_id] = replace(row, reason=reason, **TIMES)
            cell.raised[trial_id] = "training.py:88 in train"
    return state


def progress_of(state: SweepState) -> SweepProgress:
    """The progress a minute after the start."""
    return StateReader(state).progress(START + timedelta(seconds=60))
