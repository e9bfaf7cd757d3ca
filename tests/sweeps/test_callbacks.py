from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from sweeps.callbacks import LineProgress, LiveProgress, Silent, duration, make_progress, render, snapshot
from sweeps.stages import SweepState
from tests.fakes import fake_plan
from tests.sweeps.test_stages import simulate


def half_way(tmp_path: Path) -> SweepState:
    state = simulate(fake_plan(tmp_path), {}, fails=lambda slot: slot.lr == 1e-1, limit=12)
    for cell in state.cells.values():
        for row in cell.rows.values():
            row |= {"seconds_total": 2.0, "reason": "TrialError: loss became nan at step 3"}
    return state


def test_snapshot_counts_and_estimates(tmp_path: Path) -> None:
    shot = snapshot(half_way(tmp_path), 0, 60.0)
    assert (shot.done, shot.total) == (12, 41)
    assert sum(shot.cells.values()) == 6
    assert shot.per_minute == 12
    assert shot.seconds_left == 2.0 * 29
    assert [method for method, _, _ in shot.best] == ["lora", "randlora"]
    assert {reason for _, reason in shot.failures} <= {"TrialError: loss became nan at step 3"}
    assert shot.failures


def test_displays(tmp_path: Path) -> None:
    state = half_way(tmp_path)
    for live in (False, True):
        text = io.StringIO()
        console = Console(file=text, force_terminal=live, width=100)
        display = LiveProgress(console) if live else LineProgress(console, every=0.0)
        display.start(state)
        display.note("damaged table file set aside: x")
        display.update(state)
        display.stop(state)
        assert "12/41 trials" in text.getvalue()
        assert "set aside" in text.getvalue()
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(render(snapshot(state, 0, 60.0)))
    shown = console.export_text()
    for words in ("12/41 trials", "randlora", "loss became nan", "12.0/min", "58 s left"):
        assert words in shown


def test_progress_may_be_none_or_ones_own() -> None:
    own = Silent()
    assert make_progress(own) is own
    assert isinstance(make_progress(False), Silent)
    assert isinstance(make_progress(True), LineProgress)  # under pytest there is no terminal


def test_durations_are_short() -> None:
    assert [duration(s) for s in (5, 100, 4000, 7500)] == ["5 s", "2 min", "67 min", "2 h 05 min"]
