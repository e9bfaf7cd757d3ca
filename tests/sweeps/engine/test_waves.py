"""A sweep of more trials than one Tuner takes: Tuner after Tuner, and the same tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweeps.backends.ray import backend, tune
from sweeps.backends.ray.pool import Pool
from tests.fakes import fake_plan
from tests.sweeps.support import PAIR, Undisturbed, assert_same_tables, go


def test_a_tuner_outlasts_what_runs_at_once() -> None:
    """At its end the lanes wait for the last trials, and the next one starts its processes anew."""
    assert [tune.trials_per_tuner(at_once) for at_once in (1, 50, 51, 1000)] == [1000, 1000, 1020, 20_000]


@pytest.mark.slow
def test_a_long_sweep_takes_several_tuners(
    tmp_path: Path, pool: Pool, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune keeps every trial of a Tuner in memory; waves of them share journal, studies and warm lanes."""
    waves: list[int] = []
    suggest = tune.StartedTrials.suggest

    def counted(self: tune.StartedTrials, trial_id: str) -> Any:
        found = suggest(self, trial_id)
        if isinstance(found, dict):
            waves[-1] += 1
        return found

    def run_tuner(*given: Any) -> None:
        waves.append(0)
        tune.run_tuner(*given)

    assert tune.WAVE == 1000
    monkeypatch.setattr(tune, "WAVE", 6)
    monkeypatch.setattr(tune, "ROUNDS", 1)
    monkeypatch.setattr(tune.StartedTrials, "suggest", counted)
    monkeypatch.setattr(backend, "run_tuner", run_tuner)
    assert go(fake_plan(tmp_path / "r", PAIR), pool).finished == 16
    assert sum(waves) == 16
    assert len(waves) >= 3
    assert max(waves) == 6
    monkeypatch.undo()
    assert_same_tables(tmp_path / "r", undisturbed(PAIR))
