"""What is checked before a run, and the results folder that is held until it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.engine.prepare import prepare
from sweeps.engine.run import run_prepared
from sweeps.errors import Problem, SpecError
from sweeps.records.locks import LockedError, holder
from tests.fakes import TRIAL, fake_plan
from tests.sweeps.support import PAIR


def test_the_folder_is_held_until_the_block_ends(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path / "r", PAIR[:1])
    with prepare(plan, backend="inline", trial=TRIAL) as prepared:
        assert holder(tmp_path / "r") is not None
        with pytest.raises(LockedError), prepare(plan, backend="inline", trial=TRIAL):
            pytest.fail("two drivers hold one folder")
        assert run_prepared(prepared, progress=False).complete
    assert holder(tmp_path / "r") is None


def test_a_refusal_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path / "r", PAIR[:1])
    with pytest.raises(SpecError), prepare(plan, backend="inline", trial=TRIAL):
        raise SpecError([Problem("--track", "nobody", "is no tracker")])
    assert not (tmp_path / "r").exists()


def test_an_unknown_backend_is_refused_first(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path / "r", PAIR[:1])
    with pytest.raises(SpecError) as caught, prepare(plan, backend="inlne", upload="no-uri"):
        pytest.fail("it was prepared")
    (problem,) = caught.value.problems
    assert (problem.field, problem.value, problem.nearest) == ("--backend", "inlne", "inline")
    assert not (tmp_path / "r").exists()
