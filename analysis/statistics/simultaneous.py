"""Intervals that hold together: critical values of several t intervals at once, and means drawn again jointly.

`benchmarks/coverage.py` measures what they cover. A bootstrap of three to ten seeds covers 80 to 90 %: it has too few
values to draw from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.statistics.inference import LEVEL

DRAWS = 400


def critical(intervals: int, freedom: float, level: float = LEVEL) -> float:
    """Standard errors that `intervals` t intervals reach out, so that all of them hold at once with chance `level`.

    Sidak's (J. Am. Stat. Assoc. 62, 1967), with the degrees of freedom of one interval: exact where they are
    independent, and wider than needed where they go together. A quantile of the largest of joint draws (sup-t) is
    narrower, and covers 83 to 93 % with 3 seeds.

    Raises:
        ValueError: no interval.
    """
    if intervals < 1:
        raise ValueError(f"intervals that hold at once must be 1 or more, got {intervals}")
    return float(stats.t.isf((1 - level ** (1 / intervals)) / 2, freedom))


def t_weights(seeds: Sequence[int], draws: int = DRAWS) -> NDArray[np.float64]:
    """(draws, S) weights w; m + (x - m) @ w.T draws the mean m of S scores x as its t interval has it.

    A draw is m + sum_s g_s (x_s - m) / sqrt(S (S - 1)) * sqrt((S - 1) / chi2), with normal g and chi2 of S - 1 degrees
    of freedom: its quantiles are the ends of t intervals. A seed has the same g wherever it is used, and chi2 the same
    quantile, so that what a seed does to one cell goes with what it does to the next.

    Args:
        seeds: which seeds these are, numbers from 0 that mean the same in all cells that are drawn together. Of one
            seed there is no draw: (0, 1).
        draws: how many.
    """
    if len(seeds) < 2:
        return np.zeros((0, len(seeds)))
    rng = np.random.default_rng(0)
    chi2 = stats.chi2.ppf(rng.random(draws), len(seeds) - 1)
    normal = rng.standard_normal((max(seeds) + 1, draws))[list(seeds)]  # row by row: a seed's do not depend on others
    return np.asarray((normal / np.sqrt(len(seeds) * chi2)).T, dtype=float)
