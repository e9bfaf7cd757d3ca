"""`benchmarks/engine.py`: its options, its arithmetic, and its smallest section run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT


def bench(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return __import__(name)


def test_its_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    engine = bench("engine", monkeypatch)
    assert engine.parse([]).only == list(engine.SECTIONS)
    assert engine.parse(["--quick", "--only", "many", "queries"]).only == ["many", "queries"]
    with pytest.raises(SystemExit):
        engine.parse(["--only", "everything"])
    assert "overhead" in capsys.readouterr().err


def test_its_sweep_has_as_many_trials_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = bench("engine_many", monkeypatch).noop_plan(tmp_path / "r", 400, 25)
    assert len({cell.cell_id for cell in plan.feasible}) == 400
    assert sum(cell.tune_trials + cell.confirm_seeds for cell in plan.feasible) == 10_000
    assert plan.spec.train.epochs == 1


def test_memory_growth_is_a_slope_past_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    many = bench("engine_many", monkeypatch)
    points = [(done, 0.0, 10**8 + (10**6 if done < 500 else 0) + 3000 * done) for done in range(0, 2000, 50)]
    assert many.growth(points) == pytest.approx(3000)


def test_its_ratios_are_taken_inside_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = [{"lanes": 0.02, "trainers": 4.0, "functions": 0.03}, {"lanes": 0.1, "trainers": 10.0, "functions": 0.1}]
    found = bench("engine_overhead", monkeypatch).report(rounds)
    assert found["times faster than a TorchTrainer a trial"] == pytest.approx(150)
    assert found["rate against Tune functions"] == pytest.approx(1.25)


def test_the_smallest_section_without_ray(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "engine.py"), "--quick", "--only", "queries"]
    subprocess.run([*command, "--json", str(tmp_path / "q.json")], check=True, capture_output=True)
    found = json.loads((tmp_path / "q.json").read_text())
    assert found["queries"]["rows"] == 100_000
    assert all(value > 0 for name, value in found["queries"].items() if name.startswith("seconds"))


@pytest.mark.slow
def test_fifty_trials_that_train_nothing(tmp_path: Path) -> None:
    """The section `many` in small: half of the sweep, the other half, and the finished sweep."""
    command = [sys.executable, str(ROOT / "benchmarks" / "engine.py"), "--only", "many", "--trials", "500"]
    subprocess.run([*command, "--json", str(tmp_path / "m.json")], check=True, capture_output=True)
    found = json.loads((tmp_path / "m.json").read_text())["many"]
    assert found["trials"] == 500
    assert found["trials per second"] > 0
    first, second, third = (part["finished"] for part in found["parts"])
    assert first >= 250
    assert (first + second, third) == (500, 0)
    assert set(found["cpu seconds per trial"]) >= {"driver", "lane workers", "broker"}
