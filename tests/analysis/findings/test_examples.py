"""Intervals over seeds and test examples: known answers, and words where there are none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from analysis import Store, open_store, results_table
from analysis.findings.results.examples import (
    DIFFERENT,
    NONE_KEPT,
    ONE_SEED,
    OTHER_SCORE,
    crossed_interval,
    example_intervals,
    unpacked,
)
from analysis.verdict.inference import mean_interval
from tests.analysis.odd import odd_results
from tests.analysis.synthetic import make_results

PLAN = {"randlora": ("lora-1",), "lora": ("lora-1",)}


def test_of_seeds_that_agree_it_is_the_binomial_interval_of_the_examples() -> None:
    right = np.tile(np.arange(400) < 300, (3, 1)).astype(float)
    low, high = crossed_interval(right) or (0.0, 0.0)
    half = stats.t.isf(0.025, 399) * np.sqrt(0.75 * 0.25 / 399)
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half))


def test_it_is_never_narrower_than_over_the_seeds_or_without_the_choice() -> None:
    rng = np.random.default_rng(0)
    for seeds in (2, 3, 8):
        scores = (rng.random((seeds, 50)) < rng.random((seeds, 1))).astype(float)
        alone = mean_interval(scores.mean(axis=1).tolist())
        low, high = crossed_interval(scores) or (0.0, 0.0)
        wider = crossed_interval(scores, added=0.01) or (0.0, 0.0)
        assert alone.low is not None and alone.high is not None
        assert wider[0] <= low <= alone.low + 1e-12 and alone.high <= high + 1e-12 and high <= wider[1]
    assert crossed_interval(np.ones((3, 5))) is None
    with pytest.raises(ValueError, match="two or more, got 1 and 5"):
        crossed_interval(np.ones((1, 5)))


def test_the_table_stands_beside_the_seeds_interval(store: Store) -> None:
    for r in results_table(store).to_pylist():
        if r["n"] > 1:
            assert r["low_examples"] <= r["low"] + 1e-9 and r["high"] - 1e-9 <= r["high_examples"]
        elif r["n"] == 1:
            assert r["low_examples"] is None and r["examples_note"] == ONE_SEED
        assert (r["difference"] is None) == (r["difference_low_examples"] is None)
        if r["difference"] is not None:
            assert r["difference_low_examples"] < r["difference"] < r["difference_high_examples"]


def test_why_there_is_none_is_said(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "mixed", plan=PLAN, seal=0.0)
    journal = folder / "journal.jsonl"
    events = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    kept = [e for e in events if e["ev"] == "finish" and e["prediction"]]
    lora = [e for e in kept if e["row"]["method"] == "lora"]
    lora[-1]["prediction"]["examples_hash"] = "cd" * 8
    for e in (e for e in kept if e["row"]["method"] == "randlora"):
        e["row"]["test_score"] = 0.5  # another metric's
    journal.write_text("".join(json.dumps(e) + "\n" for e in events), encoding="utf-8")
    notes = {r["cell_id"].split("_")[0]: r for r in example_intervals(open_store(folder)).to_pylist()}
    assert {m: r["examples_note"] for m, r in notes.items()} == {"lora": DIFFERENT, "randlora": OTHER_SCORE}
    assert all(r["low_examples"] is r["difference_low_examples"] is None for r in notes.values())
    none = open_store(odd_results(tmp_path / "none", {("lora", "lora-1", "a"): {0: 0.7, 1: 0.8}}))
    assert example_intervals(none)["examples_note"].to_pylist() == [NONE_KEPT]


def test_predictions_are_bits_of_the_examples() -> None:
    assert unpacked(b"\xc0", 3).tolist() == [True, True, False]
    with pytest.raises(ValueError, match="2 bytes"):
        unpacked(b"\xff", 9)
