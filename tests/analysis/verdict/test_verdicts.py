"""Word, interval and p value of a row never disagree, whatever the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import ndtr

from analysis.format import Row
from analysis.verdict.comparisons import _comparison_row, _corrected, _prospects
from analysis.verdict.correction import Steps, holm_steps
from analysis.verdict.inference import LEVEL, Difference, t_difference
from benchmarks.verdicts import EFFECTS, RULES, decided

ROUNDING = 1e-12


def simulated(rng: np.random.Generator, margin: float | None, alpha: float) -> list[tuple[Row, Difference]]:
    """A decided table of a focus with a mean over budgets, and of another method."""
    seeds, budgets = int(rng.integers(2, 7)), int(rng.integers(2, 7))
    effects = rng.choice([0.0, 0.01, 0.03, -0.03], (2, budgets))
    found = []
    for method, of in zip(("randlora", "vera"), effects, strict=True):
        values = of[:, None] + rng.normal(0, rng.choice([0.002, 0.01]), (budgets, seeds))
        parts = [(f"lora-{k + 1}", k + 1, each) for k, each in enumerate(values)]
        if method == "randlora":
            parts.append((None, None, values.mean(axis=0)))
        for reference, budget, each in parts:
            cell: Row = {"sweep": "s", "model": "m", "dataset": "d", "train_size": "1.0"}
            cell |= {"method": method, "reference": reference, "budget": budget}
            difference = t_difference(list(each))
            row = _comparison_row(cell, "lora", difference, float(rng.choice([0.0, 1e-5])), margin)
            found.append((row, difference))
    _corrected([row for row, _ in found], "randlora", alpha)
    return [(row | _prospects(row, difference), difference) for row, difference in found]


@pytest.mark.parametrize("margin", [None, 0.02])
def test_word_interval_and_p_of_a_row_agree(margin: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("seeds_needed", "power_at", "detectable", "effect_size"):  # they take time, and decide nothing
        monkeypatch.setattr(f"analysis.verdict.comparisons.{name}", lambda *_: None)
    rng, words = np.random.default_rng(0), set[Any]()
    for _ in range(200):
        alpha = float(rng.choice([1 - LEVEL, 0.04, 0.008]))
        for row, difference in simulated(rng, margin, alpha):
            word, low, high = row["verdict"], row["low"], row["high"]
            words.add(word)
            assert low <= row["difference"] <= high and low <= difference.mean <= high
            assert (low > 0 or high < 0) == (word in ("higher", "lower")) == (row["p_holm"] <= 1 - LEVEL)
            if word in ("higher", "lower"):
                assert (low > 0) == (word == "higher")
            elif margin is not None:
                assert (-margin < low and high < margin) == (word == "equivalent") == (row["p_equivalent"] <= 0.05)
            assert row["p"] <= row["p_holm"] + ROUNDING
            assert row["low_pointwise"] >= low - ROUNDING and row["high_pointwise"] <= high + ROUNDING
    assert words == {"higher", "lower", "not distinguishable"} | ({"equivalent"} if margin else set())


def test_a_level_that_is_spent_leaves_no_interval() -> None:
    rows = simulated(np.random.default_rng(0), 0.02, 0.0)
    assert {(r["verdict"], r["low"], r["high"]) for r, _ in rows} == {("not distinguishable", None, None)}


def test_weighted_steps_by_hand() -> None:
    """A mean of weight 3 and three rows: at .025 and .00833 each; what is rejected leaves its share to the rest."""
    found = holm_steps([0.024, 0.03, 0.001, None, 0.2], [3.0, 1.0, 1.0, 1.0, 1.0])
    row = 0.05 / 6
    assert [s.first for s in found] == pytest.approx([0.025, row, row, 0.05, row])
    assert [s.level for s in found] == pytest.approx([0.03, 0.025, row, 0.05, 0.025])
    assert found[3].adjusted is None
    assert [s.adjusted for s in found if s.adjusted is not None] == pytest.approx([0.04, 0.06, 0.006, 0.2])
    assert holm_steps([0.001], level=0.0) == [Steps(1.0, 0.0, 0.0)]


def test_what_the_gate_missed_is_found_and_equal_methods_stay_equal() -> None:
    """p values of normal means: every rule keeps 5 %, and without a gate effects of either sign are found."""
    rng = np.random.default_rng(0)
    null = rng.normal(size=(4000, 6))

    def p(rows: np.ndarray) -> np.ndarray:
        every = np.hstack([rows.mean(axis=1, keepdims=True) * 6**0.5, rows])
        return np.asarray(2 * ndtr(-np.abs(every)))

    for rule in RULES:
        assert decided(p(null), rule).any(axis=1).mean() < 0.057
    crossing = 4.0 * np.sign(EFFECTS["+2 at three, -2 at three"])
    words = {rule: decided(p(null + crossing), rule).any(axis=1).mean() for rule in RULES}
    assert words["gate"] < 0.1 and words["weighted"] > 0.95 and words["holm"] > 0.95
