"""Statistics against scipy and known numbers, and against themselves: a method compared with itself."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis.findings.fits.pareto import front_share
from analysis.findings.tuning.numbers import expected_best
from analysis.verdict.correction import holm_steps, step_down
from analysis.verdict.inference import (
    CHOICE_FREEDOM,
    critical,
    mean_interval,
    paired_difference,
    satterthwaite,
    t_difference,
    t_weights,
)
from analysis.verdict.verdicts import verdict


def test_interval_is_scipys() -> None:
    values = [0.71, 0.74, 0.69, 0.73]
    interval = mean_interval(values)
    low, high = scipy_stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy_stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert interval.n == 4


def test_one_run_has_no_interval_and_none_is_an_error() -> None:
    alone = mean_interval([0.5])
    assert (alone.mean, alone.low, alone.high, alone.sd) == (0.5, None, None, None)
    equal = mean_interval([0.5, 0.5, 0.5])  # a coarse score, or chance: no interval of zero width
    assert (equal.mean, equal.low, equal.high, equal.sd) == (0.5, None, None, 0.0)
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_paired_difference_is_scipys_over_common_seeds() -> None:
    a, b = {0: 0.8, 1: 0.83, 2: 0.79, 9: 0.1}, {2: 0.77, 0: 0.79, 1: 0.8, 7: 0.9}
    found = paired_difference(a, b)
    assert found is not None
    want = scipy_stats.ttest_rel([0.8, 0.83, 0.79], [0.79, 0.8, 0.77])
    low, high = want.confidence_interval(0.95)
    assert (found.p, found.low, found.high, found.n) == pytest.approx((want.pvalue, low, high, 3))
    assert paired_difference({0: 0.5}, {1: 0.5}) is None


def test_without_spread_there_is_no_test() -> None:
    same = {0: 0.8, 1: 0.7}
    assert paired_difference(same, same).p is None  # type: ignore[union-attr]
    shifted = paired_difference({0: 0.81, 1: 0.71}, same)
    assert shifted is not None
    assert shifted.p is None  # equal by the coarseness of the score, or by chance: not evidence
    assert verdict(shifted.mean, None) == "not testable"
    single = paired_difference({0: 0.81}, {0: 0.8})
    assert single is not None
    assert (single.p, single.low) == (None, None)


def holm(pvalues: Sequence[float | None]) -> list[float | None]:
    return [steps.adjusted for steps in holm_steps(pvalues)]


def test_holm_known_numbers() -> None:
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, None, 0.04]) == [0.02, None, 0.04]
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("difference", "p", "beyond", "said"),
    [
        (0.1, 0.05, None, "higher"),
        (-0.1, 0.01, None, "lower"),
        (0.1, 0.051, None, "not distinguishable"),
        (None, 0.01, None, "not testable"),
        (0.001, 0.3, 0.05, "equivalent"),
        (0.001, 0.3, 0.051, "not distinguishable"),
        (0.001, 0.04, 0.001, "higher"),  # small as it is
    ],
)
def test_verdicts(difference: float | None, p: float, beyond: float | None, said: str) -> None:
    assert verdict(difference, p, beyond=beyond) == said


def test_an_unknown_choice_is_never_none() -> None:
    assert verdict(0.1, None, known=False) == "not testable with the choice of rates"
    assert verdict(0.1, None) == "not testable"


def test_one_standard_error_for_p_interval_and_equivalence() -> None:
    """Formula by hand; p is 5 % at the interval's end; the 90 % interval is in the margin where it is equivalent."""
    values, added = [0.012, 0.004, 0.009, 0.015, 0.007], 2e-5
    given = t_difference(values)
    found = given.widened(added)
    own = np.var(values, ddof=1) / 5
    freedom = (own + added) ** 2 / (own**2 / 4 + added**2 / CHOICE_FREEDOM)
    assert (found.error, found.freedom) == pytest.approx((np.sqrt(own + added), freedom))
    wanted = 2 * scipy_stats.t.sf(np.mean(values) / np.sqrt(own + added), freedom)
    assert found.p == pytest.approx(wanted) and found.p > given.p  # type: ignore[operator]
    low, high = found.interval()
    assert low is not None and high is not None and given.low is not None and low < given.low
    shifted = t_difference([v - low for v in values]).widened(added)
    assert shifted.p == pytest.approx(0.05)
    inner = found.interval(0.1)
    assert inner[1] is not None
    assert found.p_beyond(inner[1]) == pytest.approx(0.05)
    assert given.widened(0.0).p == given.p


def test_what_the_choice_adds_never_makes_a_claim_stronger() -> None:
    """Its degrees of freedom outweigh its variance at three seeds: the wider of both intervals counts."""
    given = t_difference([0.010, 0.013, 0.017])
    (own,) = given.variances
    error, freedom = satterthwaite(given.variances, given.freedoms, own / 5)
    assert 2 * scipy_stats.t.sf(given.mean / error, freedom) < (given.p or 0)
    assert given.widened(own / 5).p == given.p


def test_expected_best_is_the_mean_over_all_subsets() -> None:
    scores = [0.3, 0.9, 0.5, 0.7]
    want = [np.mean([max(s) for s in itertools.combinations(scores, n)]) for n in range(1, 5)]
    assert expected_best(scores) == pytest.approx(want)


def test_a_method_against_itself_differs_in_at_most_one_table_of_twenty() -> None:
    """Six budgets, five seeds with shared luck, 600 tables: Holm keeps the family-wise rate."""
    rng = np.random.default_rng(0)
    false = 0
    for _ in range(600):
        luck = rng.normal(0, 0.01, size=(6, 5))
        pairs = luck + rng.normal(0, 0.006, size=(2, 6, 5))
        p = [t_difference(list(d)).p for d in pairs[0] - pairs[1]]
        false += any(q is not None and q <= 0.05 for q in holm(p))
    assert scipy_stats.binomtest(false, 600).proportion_ci().low <= 0.05


def test_steps_along_an_axis() -> None:
    many = step_down(np.array([[0.01, 0.04, 0.03, 0.005], [0.9, 0.8, 0.7, 0.6]]))
    assert many == pytest.approx(np.array([[0.03, 0.06, 0.06, 0.02], [1.0, 1.0, 1.0, 1.0]]))


def test_one_interval_is_the_t_interval_and_more_are_wider() -> None:
    assert critical(1, 4) == pytest.approx(scipy_stats.t.isf(0.025, 4))
    assert critical(4, 2) == pytest.approx(8.77, abs=0.01)
    together = (1 - 2 * scipy_stats.t.sf(critical(6, 9), 9)) ** 6
    assert together == pytest.approx(0.95)
    with pytest.raises(ValueError, match="1 or more, got 0"):
        critical(0, 4)


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_quantiles_of_the_draws_are_the_t_interval(seeds: int) -> None:
    scores = np.random.default_rng(1).normal(0.7, 0.01, seeds)
    drawn = scores.mean() + t_weights(range(seeds), 200_000) @ (scores - scores.mean())
    wanted = mean_interval(scores.tolist())
    assert wanted.low is not None and wanted.high is not None
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=0.03 * (wanted.high - wanted.low))


def test_a_seeds_luck_goes_with_it() -> None:
    every, some = t_weights(range(4)), t_weights([0, 2, 3])
    assert every.shape == (400, 4) and some.shape == (400, 3) and t_weights([2]).shape == (0, 1)
    assert scipy_stats.spearmanr(every[:, 2], some[:, 1]).statistic > 0.9  # the same seed
    assert abs(scipy_stats.spearmanr(every[:, 1], some[:, 1]).statistic) < 0.2
    luck = np.array([0.0, 0.03, -0.02])
    cells = [dict(enumerate(level + luck)) for level in (0.7, 0.701)]
    found = front_share(np.array([1.0, 2.0]), cells)
    assert found is not None and found.tolist() == [1.0, 1.0]  # the costlier cell is better at every seed
