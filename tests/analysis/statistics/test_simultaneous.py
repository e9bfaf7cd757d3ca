"""Several intervals at once: their critical values, and joint draws whose quantiles are t intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.curves.pareto import front_share
from analysis.statistics.inference import mean_interval
from analysis.statistics.simultaneous import critical, t_weights


def test_one_interval_is_the_t_interval_and_more_are_wider() -> None:
    assert critical(1, 4) == pytest.approx(stats.t.isf(0.025, 4))
    assert critical(4, 2) == pytest.approx(8.77, abs=0.01)
    together = (1 - 2 * stats.t.sf(critical(6, 9), 9)) ** 6
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
    assert stats.spearmanr(every[:, 2], some[:, 1]).statistic > 0.9  # the same seed
    assert abs(stats.spearmanr(every[:, 1], some[:, 1]).statistic) < 0.2
    luck = np.array([0.0, 0.03, -0.02])
    cells = [dict(enumerate(level + luck)) for level in (0.7, 0.701)]
    found = front_share(np.array([1.0, 2.0]), cells)
    assert found is not None and found.tolist() == [1.0, 1.0]  # the costlier cell is better at every seed
