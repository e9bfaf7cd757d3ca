"""The benchmark of a method against itself: whose seeds are whose, what is counted, and that it runs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sweeps.plan.plan import Plan
from sweeps.spec.sections import TUNE_SEED
from tests.support import ROOT
from trainables.config import TrialConfig
from trainables.data.registry import load_dataset

FILE = ROOT / "benchmarks" / "aa_real.py"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", list(sys.path))  # the file adds to it
    spec = importlib.util.spec_from_file_location("aa_real", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_arms_share_data_and_no_start_and_tables_share_nothing(bench: Any, monkeypatch: Any, tmp_path: Path) -> None:
    seen: list[TrialConfig] = []
    monkeypatch.setattr(bench, "run_trial", lambda trial, **_: iter([seen.append(trial)]))
    names = ("data_seed", "init_seed", "basis_seed")
    for table in (0, 1):
        bench.deal(table, tmp_path)
        plan = Plan.from_spec(bench.table_spec(table, tmp_path, quick=True))
        assert len(plan.feasible) == 2 and len({c.count for c in plan.feasible}) == 1
        for cell in plan.feasible:
            for seed in (0, 4, TUNE_SEED, TUNE_SEED + 2):
                config = cell.trial("CONFIRM", 1e-2, (seed,) * 3, plan.spec.train)
                list(bench.shifted(config, warm={}))
    found = [tuple(getattr(c, n) for n in names) for c in seen]
    arms = [found[i : i + 4] for i in range(0, 16, 4)]
    assert [s[0] for s in arms[0]] == [s[0] for s in arms[1]] and [s[0] for s in arms[2]] == [s[0] for s in arms[3]]
    starts = [s for arm in arms for row in arm for s in row[1:]]
    assert len(set(starts)) == 16  # 4 arms of 4 seeds, the basis at the start's
    assert not {s[0] for s in arms[0]} & {s[0] for s in arms[2]}
    with pytest.raises(ValueError, match="not of an A/A table"):
        next(bench.shifted(seen[0].model_copy(update={"cell_id": "lora_lora-1"})))


def test_what_is_counted(bench: Any) -> None:
    def row(given: str, verdict: str, rates: tuple[float, float]) -> list[dict[str, Any]]:
        one = {"verdict_given_rates": given, "verdict": verdict, "rates": rates, "difference": 0.0}
        one |= {"means": [0.5, 0.7], "validation": [0.4, 0.6]}
        return [one | {"table": len(rows), "seeds": seeds} for seeds in bench.SEEDS]

    same, other = (0.1, 0.1), (0.1, 0.2)
    rows: list[dict[str, Any]] = []
    for _ in range(7):
        rows += row("not distinguishable", "not distinguishable", same)
    rows += row("lower", "lower", same)
    rows += row("higher", "not distinguishable", other)
    rows += row("not distinguishable", "not testable", other)
    rows[-1]["verdict"] = "higher"  # with all seeds
    summary = bench.summary(rows)
    found = summary[5]
    assert found["verdict_given_rates"]["false"] == 2 and found["verdict_given_rates"]["share"] == 0.2
    assert found["verdict_given_rates"]["same_rate"] == [1, 8] and found["verdict_given_rates"]["other_rate"] == [1, 2]
    low, high = found["verdict_given_rates"]["interval"]  # Clopper and Pearson's, from tables
    assert (low, high) == pytest.approx((0.0252, 0.5561), abs=1e-4)
    assert found["verdict"]["false"] == 1 and found["not_testable"] == 1
    assert summary[10]["verdict"]["false"] == 2
    said = bench.report(summary)
    assert " 5 seeds, given the chosen rates       2 false = 20.0 % [2.5, 55.6]" in said
    assert "rate 0.2: 2 cells, mean validation score 60.0 %, test 70.0 %" in said


def test_tables_that_are_kept_are_not_run_again(bench: Any, monkeypatch: Any, tmp_path: Path) -> None:
    asked: list[list[int]] = []
    verdict = dict.fromkeys(("verdict", "verdict_given_rates"), "not distinguishable")
    one = {"difference": 0.0, "means": [0.5, 0.5], "validation": [0.5, 0.5], "rates": [0.1, 0.1], **verdict}

    def tables(folder: Path, numbers: list[int], *_: object) -> list[dict[str, Any]]:
        asked.append(list(numbers))
        return [{"table": n, "seeds": seeds, **one} for n in numbers for seeds in bench.SEEDS]

    monkeypatch.setattr(bench, "tables", tables)
    for words in (["--first", "2", "--tables", "2"], ["--tables", "5"]):
        given = [*words, "--rows", str(tmp_path / "rows.parquet"), "--results", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", [str(FILE), *given])
        bench.main()
    assert asked == [[2, 3], [0, 1, 4]]
    kept = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [(r["table"], r["seeds"]) for r in kept] == [(n, s) for n in range(5) for s in bench.SEEDS]


def test_a_table_has_a_split_of_its_own(bench: Any, tmp_path: Path) -> None:
    found = []
    for number in (0, 1):
        bench.deal(number, tmp_path)
        dataset = load_dataset(f"parquet:{bench.split_of(number, tmp_path)}", stage="CONFIRM")
        assert (len(dataset.train), len(dataset.test)) == (6000, 2000)
        assert dataset.prompt == "an image of a {}"
        found.append(dataset.test.labels.tolist())
    assert found[0] != found[1]


@pytest.mark.slow
def test_two_short_tables(tmp_path: Path) -> None:
    command = [sys.executable, str(FILE), "--quick", "--json", str(tmp_path / "out.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["tables"] == 2 and found["sd_of_difference"] > 0  # the arms are no copies of each other
