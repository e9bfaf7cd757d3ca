"""A sweep of more trials than one Tuner takes: Tuner after Tuner, and the same tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.engine import drive
from sweeps.lanes.pool import Pool
from sweeps.lanes.tune import Dispatcher
from tests.fakes import fake_plan
from tests.sweeps.support import PAIR, Undisturbed, assert_same_tables, go


def test_a_tuner_outlasts_what_runs_at_once() -> None:
    """At its end the lanes wait for the last trials, and the next one starts its processes anew."""
    assert [drive.wave(at_once) for at_once in (1, 50, 51, 1000)] == [1000, 1000, 1020, 20_000]


@pytest.mark.slow
def test_a_long_sweep_takes_several_tuners(
    tmp_path: Path, pool: Pool, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune keeps every trial of a Tuner in memory; waves of them share journal, studies and warm lanes."""
    waves: list[int] = []
    real = drive._tune

    def tune(dispatcher: Dispatcher, pool: Pool) -> None:
        before = dispatcher.left
        real(dispatcher, pool)
        waves.append(before - dispatcher.left)

    assert drive.WAVE == 1000
    monkeypatch.setattr(drive, "WAVE", 6)
    monkeypatch.setattr(drive, "ROUNDS", 1)
    monkeypatch.setattr(drive, "_tune", tune)
    assert go(fake_plan(tmp_path / "r", PAIR), pool).finished == 16
    assert sum(waves) == 16
    assert len(waves) >= 3
    assert max(waves) == 6
    monkeypatch.undo()
    assert_same_tables(tmp_path / "r", undisturbed(PAIR))
