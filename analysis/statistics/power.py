"""How much a comparison can see: its power, the smallest difference it detects, the seeds it needs, its effect size."""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, special, stats

from analysis.statistics.inference import LEVEL, NO_SPREAD, Difference, Interval

WANTED = 0.8
"""The power that a smallest detectable difference and a number of seeds are given for."""


def power_at(error: float, freedom: int, difference: float, alpha: float = 1 - LEVEL) -> float | None:
    """Chance that a paired t test finds a true difference (noncentral t); None without freedom or spread.

    Args:
        error, freedom: standard error of the mean difference, and its degrees of freedom.
        difference: the true mean difference.
        alpha: two-sided level; divide it by the number of comparisons for the power within a Holm family's first step.

    Of a sign-flip permutation test it is an approximation, were the difference the same on every data set: by
    simulation within 0.1, mostly within 0.05 (`tests/analysis/statistics/test_blocked_power.py`).
    """
    if freedom < 1 or error <= NO_SPREAD:
        return None
    shift, critical = abs(difference) / error, stats.t.ppf(1 - alpha / 2, freedom)
    above, below = stats.nct.sf(critical, freedom, shift), stats.nct.cdf(-critical, freedom, shift)
    # the far tail underflows to NaN for a large shift
    return float(np.nan_to_num(above, nan=1.0) + np.nan_to_num(below, nan=0.0))


def detectable(error: float, freedom: int, alpha: float = 1 - LEVEL, wanted: float = WANTED) -> float | None:
    """The smallest true difference that is found with the wanted power (minimum detectable difference).

    Args:
        error, freedom, alpha: as of `power_at`. wanted: the power.

    Returns:
        None where `power_at` has none.
    """
    if freedom < 1 or error <= NO_SPREAD:
        return None

    def beyond(shift: float) -> float:
        return (power_at(1.0, freedom, shift, alpha) or 0.0) - wanted

    high = 4.0
    while beyond(high) < 0.0:
        high *= 2.0
    return error * float(optimize.brentq(beyond, 0.0, high))


def seeds_needed(
    sd: float, difference: float, alpha: float = 1 - LEVEL, added: float = 0.0, datasets: int = 1
) -> int | None:
    """Least number of paired seeds that finds a difference with the power WANTED; None beyond 1000.

    Args:
        sd: standard deviation of the per-seed differences. difference, alpha: as of `power_at`.
        added: deviation that the choice of rates adds to the mean, which more seeds do not lessen.
        datasets: data sets, each with that number of seeds.
    """
    if sd <= NO_SPREAD:
        return None

    def enough(n: int) -> bool:
        error = math.hypot(sd / math.sqrt(n * datasets), added)
        return (power_at(error, datasets * (n - 1), difference, alpha) or 0.0) >= WANTED

    low, high = 2, 1000
    if not enough(high):
        return None
    while low < high:  # the power grows with the seeds
        n = (low + high) // 2
        low, high = (low, n) if enough(n) else (n + 1, high)
    return low


def effect_size(difference: Difference) -> Interval | None:
    """Hedges' g of paired differences: their mean in their own standard deviations, corrected for few seeds.

    Over several data sets the standard deviation is the pooled one within data sets. The interval inverts the
    noncentral t distribution. None where there is no spread.
    """
    sd, error, freedom = difference.sd, difference.error, difference.freedom
    if sd is None or error is None or sd <= NO_SPREAD or freedom < 1:
        return None
    correction = math.exp(special.gammaln(freedom / 2) - special.gammaln((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    if freedom == 1:
        correction = 1.0  # not defined for two seeds
    shifts = [_noncentrality(difference.mean / error, freedom, tail) for tail in ((1 + LEVEL) / 2, (1 - LEVEL) / 2)]
    low, high = (correction * shift * error / sd for shift in shifts)
    return Interval(correction * difference.mean / sd, low, high, None, difference.n)


def _noncentrality(t: float, freedom: int, share: float) -> float:
    """The shift under which a share of the noncentral t distribution lies below `t`."""
    reach = 10.0 + abs(t) * 10.0

    def beyond(shift: float) -> float:
        # nct.cdf loses its digits for a large shift: a mean far off is the normal limit
        found = float(stats.nct.cdf(t, freedom, shift))
        return (float(stats.norm.cdf(t - shift)) if math.isnan(found) else found) - share

    return float(optimize.brentq(beyond, -reach, reach))
