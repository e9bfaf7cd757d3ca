"""Statistics against scipy and known numbers, and against themselves: a method compared with itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis.statistics import inference, power


def test_interval_is_scipys() -> None:
    values = [0.71, 0.74, 0.69, 0.73]
    interval = inference.mean_interval(values)
    low, high = scipy_stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy_stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert interval.n == 4


def test_one_run_has_no_interval_and_none_is_an_error() -> None:
    alone = inference.mean_interval([0.5])
    assert (alone.mean, alone.low, alone.high, alone.sd) == (0.5, None, None, None)
    assert inference.mean_interval([0.5, 0.5]).low == 0.5
    with pytest.raises(ValueError, match="at least one"):
        inference.mean_interval([])


def test_paired_difference_is_scipys_over_common_seeds() -> None:
    a, b = {0: 0.8, 1: 0.83, 2: 0.79, 9: 0.1}, {2: 0.77, 0: 0.79, 1: 0.8, 7: 0.9}
    found = inference.paired_difference(a, b)
    assert found is not None
    want = scipy_stats.ttest_rel([0.8, 0.83, 0.79], [0.79, 0.8, 0.77])
    low, high = want.confidence_interval(0.95)
    assert (found.p, found.low, found.high, found.n) == pytest.approx((want.pvalue, low, high, 3))
    assert inference.paired_difference({0: 0.5}, {1: 0.5}) is None


def test_without_spread_there_is_no_test() -> None:
    same = {0: 0.8, 1: 0.7}
    assert inference.paired_difference(same, same).p == 1.0  # type: ignore[union-attr]
    shifted = inference.paired_difference({0: 0.81, 1: 0.71}, same)
    assert shifted is not None
    assert shifted.p is None  # equal by the coarseness of the score, or by chance: not evidence
    assert inference.verdict(shifted.mean, None) == "not testable"
    single = inference.paired_difference({0: 0.81}, {0: 0.8})
    assert single is not None
    assert (single.p, single.low) == (None, None)


def test_holm_known_numbers() -> None:
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert inference.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert inference.holm([0.01, None, 0.04]) == [0.02, None, 0.04]
    assert inference.holm([]) == []
    assert inference.holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("difference", "p", "said"),
    [(0.1, 0.05, "higher"), (-0.1, 0.01, "lower"), (0.1, 0.051, "not distinguishable"), (None, 0.01, "not testable")],
)
def test_verdicts(difference: float | None, p: float, said: str) -> None:
    assert inference.verdict(difference, p) == said


def test_blocked_difference_of_few_blocks_is_the_exact_sign_flip_test() -> None:
    blocks = {"a": [0.03, 0.01, 0.02], "b": [0.02, -0.01]}
    found = inference.blocked_difference(blocks)
    weights = [1 / 6] * 3 + [1 / 4] * 2
    values = [v for block in blocks.values() for v in block]
    observed = sum(w * v for w, v in zip(weights, values, strict=True))
    flips = [
        sum(s * w * v for s, w, v in zip(signs, weights, values, strict=True))
        for signs in itertools.product((1, -1), repeat=5)
    ]
    exact = np.mean([abs(f) >= abs(observed) - 1e-12 for f in flips])
    assert found.mean == pytest.approx(observed)
    assert found.p == pytest.approx(exact, abs=1 / 32)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.mean < found.high
    assert inference.blocked_difference(blocks) == found  # seeded
    with pytest.raises(ValueError, match="got none"):
        inference.blocked_difference({})


def test_bootstrap_interval_is_not_too_narrow_at_three_seeds() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for k in range(150):
        blocks = {str(d): list(rng.normal(0.0, 0.01, 3)) for d in range(8)}
        found = inference.blocked_difference(blocks, seed=k, resamples=500)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.0 <= found.high
    assert held >= 132  # 95 % of 150 is 142; the chance of fewer than 132 at 95 % is below 0.1 %


def test_power_agrees_with_simulation_and_seeds_with_power() -> None:
    rng = np.random.default_rng(1)
    draws = rng.normal(0.02, 0.015, size=(4000, 5))
    found = (scipy_stats.ttest_1samp(draws, 0.0, axis=1).pvalue <= 0.05).mean()
    assert power.power_at(0.015 / 5**0.5, 4, 0.02) == pytest.approx(found, abs=0.03)
    assert power.power_at(0.01, 0, 0.02) is None
    assert power.power_at(0.0, 2, 0.02) is None
    assert power.power_at(1e-6, 2, 0.02) == pytest.approx(1.0)
    needed = power.seeds_needed(0.015, 0.02)
    assert needed is not None
    fewer, enough = (power.power_at(0.015 / n**0.5, n - 1, 0.02) or 0 for n in (needed - 1, needed))
    assert fewer < 0.8 <= enough
    assert power.seeds_needed(1.0, 0.001) is None


def test_expected_best_is_the_mean_over_all_subsets() -> None:
    scores = [0.3, 0.9, 0.5, 0.7]
    want = [np.mean([max(s) for s in itertools.combinations(scores, n)]) for n in range(1, 5)]
    assert inference.expected_best(scores) == pytest.approx(want)


def test_proportion_interval_known_numbers() -> None:
    assert inference.proportion_interval(1, 20) == pytest.approx((0.001265, 0.248733), abs=1e-5)


def test_a_method_against_itself_differs_in_at_most_one_table_of_twenty() -> None:
    """Six budgets, five seeds with shared luck, 600 tables: Holm keeps the family-wise rate."""
    rng = np.random.default_rng(0)
    false = 0
    for _ in range(600):
        luck = rng.normal(0, 0.01, size=(6, 5))
        pairs = luck + rng.normal(0, 0.006, size=(2, 6, 5))
        p = [inference.t_difference(list(d)).p for d in pairs[0] - pairs[1]]
        false += any(q is not None and q <= 0.05 for q in inference.holm(p))
    assert inference.proportion_interval(false, 600)[0] <= 0.05
    assert false <= 45


def test_a_planted_two_point_difference_is_found() -> None:
    rng = np.random.default_rng(2)
    found = 0
    for _ in range(200):
        differences = rng.normal(0.02, 0.006 * 2**0.5, size=(6, 5))
        adjusted = inference.holm([inference.t_difference(list(d)).p for d in differences])
        found += sum(p is not None and p <= 0.05 for p in adjusted)
    expected = power.power_at(0.006 * (2 / 5) ** 0.5, 4, 0.02, alpha=0.05 / 6)
    assert expected is not None
    assert found / 1200 >= expected  # Holm's later steps are easier than its first
