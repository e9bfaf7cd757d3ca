"""Statistics of comparisons (scipy): intervals over seeds, paired differences, Holm, and words no stronger than tests.

The unit of a claim is the trained run. A score's interval is a t interval over seeds; a difference between two methods
is the mean of per-seed paired differences, with its t interval on one data set and a sign-flip permutation test over
data set x seed blocks on several. Scores and differences are fractions in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from scipy import optimize, special, stats

Seed = TypeVar("Seed", bound=Hashable)
Verdict = Literal["higher", "lower", "not distinguishable", "not testable"]

LEVEL = 0.95
"""Level of every interval; 1 - LEVEL is the family-wise error rate of a table."""

T_TEST, SIGN_FLIP = "paired t", "sign-flip permutation"
WANTED = 0.8
"""The power that a smallest detectable difference and a number of seeds are given for."""
CHOICE_FREEDOM = 2
"""Degrees of freedom of the variance that a choice of rates adds: it is estimated from few runs, and far from normal.
By simulation (`calibration`): 2 keeps 5 % over shapes of the response, 4 does not."""
AT_ONCE = 10_000
"""Permutations drawn at once, so that many of them do not fill the memory."""
_NO_SPREAD = 1e-12  # below it a spread is rounding


@dataclass(frozen=True)
class Interval:
    """A mean over seeds.

    Attributes:
        mean: their mean.
        low, high: t interval; None where `n` is 1, since one run says nothing about spread.
        sd: standard deviation of the sample (n - 1); None where `n` is 1.
        n: number of runs.
    """

    mean: float
    low: float | None
    high: float | None
    sd: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.high is None else self.high - self.mean


@dataclass(frozen=True)
class Difference:
    """A paired difference a - b.

    Attributes:
        mean, low, high: of the per-seed differences; see `Interval`.
        sd: their standard deviation; over several data sets the pooled one within data sets. None where no data set has
            two pairs.
        p: two-sided p value; None where it cannot be tested: fewer than two pairs, or no spread between them.
        n: number of pairs.
        test: the test's name.
        datasets: number of data sets, where the pairs of each count by themselves.
        error: standard error of the mean, from `sd`.
        freedom: degrees of freedom of `sd`.
    """

    mean: float
    low: float | None
    high: float | None
    sd: float | None
    p: float | None
    n: int
    test: str
    datasets: int = 1
    error: float | None = None
    freedom: int = 0


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean and t interval over runs.

    Raises:
        ValueError: no value.
    """
    if len(values) == 0:
        raise ValueError("an interval needs at least one value, got none")
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Interval(mean, None, None, None, 1)
    sd = float(np.std(values, ddof=1))
    if sd <= _NO_SPREAD:
        return Interval(mean, mean, mean, 0.0, n)
    low, high = stats.t.interval(level, n - 1, loc=mean, scale=sd / math.sqrt(n))
    return Interval(mean, float(low), float(high), sd, n)


def paired_difference(a: Mapping[Seed, float], b: Mapping[Seed, float], level: float = LEVEL) -> Difference | None:
    """Paired t test of a - b over the seeds both have; None where they share none.

    Args:
        a, b: score by seed (any hashable key that says which runs belong together).
        level: of the interval.
    """
    shared = [seed for seed in a if seed in b]
    if not shared:
        return None
    return t_difference([a[seed] - b[seed] for seed in shared], level)


def t_difference(differences: Sequence[float], level: float = LEVEL) -> Difference:
    """t test that the mean of paired differences is zero, with its interval.

    Without spread (a coarse score, or one run against itself) the statistic has no distribution: all differences zero
    give p = 1, all equal but not zero give no p.
    """
    interval = mean_interval(differences, level)
    p: float | None = None
    if interval.sd is not None:
        if interval.sd > _NO_SPREAD:
            p = float(stats.ttest_1samp(differences, 0.0).pvalue)
        elif abs(interval.mean) <= _NO_SPREAD:
            p = 1.0
    n, sd = interval.n, interval.sd
    error = None if sd is None else sd / math.sqrt(n)
    return Difference(interval.mean, interval.low, interval.high, sd, p, n, T_TEST, 1, error, n - 1)


def widened_p(difference: Difference, variance: float) -> float | None:
    """The p value of a difference whose mean has a further variance, that of the choice of learning rates.

    A t test's standard error grows; its degrees of freedom are Satterthwaite's, the choice's part counting for
    CHOICE_FREEDOM. A permutation test's p is widened by the same ratio on the normal scale, its standard error being
    that of its interval.
    """
    if difference.p is None or variance <= 0.0:
        return difference.p
    if difference.test == T_TEST:
        if difference.sd is None:
            return difference.p
        seeds = difference.sd**2 / difference.n
        freedom = (seeds + variance) ** 2 / (seeds**2 / (difference.n - 1) + variance**2 / CHOICE_FREEDOM)
        widened = float(2 * stats.t.sf(abs(difference.mean) / math.sqrt(seeds + variance), freedom))
        return max(difference.p, widened)  # more degrees of freedom must not make a claim stronger
    if difference.low is None or difference.high is None:
        return None
    error = (difference.high - difference.low) / (2 * stats.norm.isf((1 - LEVEL) / 2))
    z = stats.norm.isf(difference.p / 2) * error / math.sqrt(error**2 + variance)
    return float(2 * stats.norm.sf(z))


def blocked_difference(
    blocks: Mapping[str, Sequence[float]], *, seed: int = 0, resamples: int = 9999, level: float = LEVEL
) -> Difference:
    """The mean over data sets of paired differences: sign-flip permutation p, bootstrap interval.

    Args:
        blocks: per data set its per-seed differences; each data set weighs the same.
        seed: of the resampling.
        resamples: random permutations and bootstrap samples; where all sign flips are fewer, they are enumerated.
        level: of the interval (bootstrap: seeds resampled within each data set, spread corrected for their number;
            where a data set has one seed, the t interval of the deviation pooled within the others).

    Raises:
        ValueError: no difference at all.
    """
    groups = [np.asarray(values, dtype=float) for values in blocks.values() if len(values)]
    if not groups:
        raise ValueError("a blocked difference needs at least one data set with a paired seed, got none")
    values = np.concatenate(groups)
    weights = np.concatenate([np.full(len(g), 1 / (len(g) * len(groups))) for g in groups])
    mean, n, sets = float(values @ weights), len(values), len(groups)
    freedom = n - sets
    sd = math.sqrt(sum(float(((g - g.mean()) ** 2).sum()) for g in groups) / freedom) if freedom else None
    error = None if sd is None else sd * math.sqrt(float((weights**2).sum()))
    if freedom == 0:  # one seed: what it does to a method on all data sets alike would pass for a difference
        return Difference(mean, None, None, sd, None, n, SIGN_FLIP, sets, error, freedom)
    rng = np.random.default_rng(seed)
    result = stats.permutation_test(
        (values, np.zeros(n)),
        lambda x, y, axis: ((x - y) * weights).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=AT_ONCE,
        rng=rng,
    )
    p = float(result.pvalue)
    if min(len(g) for g in groups) < 2:  # nothing to resample there: the pooled deviation's t interval, if there is one
        half = float(stats.t.isf((1 - level) / 2, freedom)) * (error or 0.0)
        return Difference(mean, mean - half, mean + half, sd, p, n, SIGN_FLIP, sets, error, freedom)
    # resampling n values shrinks their variance by (n - 1) / n, which matters at 3 seeds: stretch it back
    shifts = sum(
        (rng.choice(g, size=(resamples, len(g)), replace=True).mean(axis=1) - g.mean())
        * math.sqrt(len(g) / (len(g) - 1))
        for g in groups
    )
    low, high = mean + np.quantile(shifts / sets, [(1 - level) / 2, (1 + level) / 2])
    return Difference(mean, float(low), float(high), sd, p, n, SIGN_FLIP, sets, error, freedom)


def common_seed_p(differences: Sequence[Sequence[float]]) -> float | None:
    """F test that a seed moves the difference on all data sets alike; `differences` by data set and seed.

    A sign-flip test over data set x seed takes it that none does; where one does, its p is too small. None with fewer
    than two of either, or without spread.
    """
    x = np.asarray(differences, dtype=float)
    sets, seeds = x.shape
    if sets < 2 or seeds < 2:
        return None
    by_seed = x.mean(axis=0) - x.mean()
    rest = x - x.mean(axis=1, keepdims=True) - by_seed
    error = float((rest**2).sum()) / ((sets - 1) * (seeds - 1))
    if error <= _NO_SPREAD**2:
        return None
    return float(
        stats.f.sf(sets * float((by_seed**2).sum()) / (seeds - 1) / error, seeds - 1, (sets - 1) * (seeds - 1))
    )


def holm(pvalues: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p values (Scand. J. Statist. 6, 1979); None stays None and does not count.

    Reject where the adjusted value is at most alpha: the chance of any false rejection in the family is at most alpha.
    """
    tested = sorted((p, i) for i, p in enumerate(pvalues) if p is not None)
    adjusted: list[float | None] = [None] * len(pvalues)
    running = 0.0
    for rank, (p, index) in enumerate(tested):
        running = max(running, min(1.0, (len(tested) - rank) * p))
        adjusted[index] = running
    return adjusted


def verdict(difference: float | None, adjusted_p: float | None, level: float = LEVEL) -> Verdict:
    """What a corrected test allows to be said of a difference."""
    if difference is None or adjusted_p is None:
        return "not testable"
    if adjusted_p > 1 - level:
        return "not distinguishable"
    return "higher" if difference > 0 else "lower"


def power(n: int, sd: float, difference: float, alpha: float = 1 - LEVEL) -> float | None:
    """Chance that a paired t test over `n` seeds finds a true difference; None where it cannot be computed.

    Args:
        n: pairs. sd: standard deviation of the per-seed differences. difference: the true mean difference.
        alpha: two-sided level; divide it by the number of comparisons for the power within a Holm family's first step.
    """
    return None if n < 2 else power_at(sd / math.sqrt(n), n - 1, difference, alpha)


def power_at(error: float, freedom: int, difference: float, alpha: float = 1 - LEVEL) -> float | None:
    """`power` from the standard error of the mean difference and its degrees of freedom (noncentral t).

    Of a sign-flip permutation test it is an approximation, were the difference the same on every data set: by
    simulation within 0.1, mostly within 0.05 (`tests/analysis/statistics/test_blocked_power.py`).
    """
    if freedom < 1 or error <= _NO_SPREAD:
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
    if freedom < 1 or error <= _NO_SPREAD:
        return None

    def beyond(shift: float) -> float:
        return (power_at(1.0, freedom, shift, alpha) or 0.0) - wanted

    high = 4.0
    while beyond(high) < 0.0:
        high *= 2.0
    return error * float(optimize.brentq(beyond, 0.0, high))


def seeds_needed(
    sd: float,
    difference: float,
    alpha: float = 1 - LEVEL,
    wanted: float = WANTED,
    added: float = 0.0,
    datasets: int = 1,
) -> int | None:
    """Least number of paired seeds that finds a difference with the wanted power; None beyond 1000.

    Args:
        sd, difference, alpha: as of `power`. wanted: the power.
        added: deviation that the choice of rates adds to the mean, which more seeds do not lessen.
        datasets: data sets, each with so many seeds.
    """
    if sd <= _NO_SPREAD:
        return None

    def enough(n: int) -> bool:
        error = math.hypot(sd / math.sqrt(n * datasets), added)
        return (power_at(error, datasets * (n - 1), difference, alpha) or 0.0) >= wanted

    low, high = 2, 1000
    if not enough(high):
        return None
    while low < high:  # the power grows with the seeds
        n = (low + high) // 2
        low, high = (low, n) if enough(n) else (n + 1, high)
    return low


def effect_size(difference: Difference, level: float = LEVEL) -> Interval | None:
    """Hedges' g of paired differences: their mean in their own standard deviations, corrected for few seeds.

    Over several data sets the standard deviation is the pooled one within data sets. The interval inverts the
    noncentral t distribution. None where there is no spread.
    """
    sd, error, freedom = difference.sd, difference.error, difference.freedom
    if sd is None or error is None or sd <= _NO_SPREAD or freedom < 1:
        return None
    correction = math.exp(special.gammaln(freedom / 2) - special.gammaln((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    if freedom == 1:
        correction = 1.0  # not defined for two seeds
    shifts = [_noncentrality(difference.mean / error, freedom, tail) for tail in ((1 + level) / 2, (1 - level) / 2)]
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


def expected_best(scores: Sequence[float]) -> list[float]:
    """Expected best score of n tuning trials, n = 1 .. N, over subsets without replacement of the N scores.

    The unbiased estimator of Tang et al. (ACL 2020, arXiv 2004.11947): a curve still rising at N says that more tuning
    would have helped.
    """
    ordered, total = np.sort(np.asarray(scores, dtype=float)), len(scores)
    ranks = np.arange(total)
    return [float(np.dot(special.comb(ranks, n - 1) / special.comb(total, n), ordered)) for n in range(1, total + 1)]


def mcnemar(a: bytes, b: bytes, n_examples: int) -> float:
    """Exact McNemar p value of two fixed checkpoints on the same test examples.

    It speaks of these two checkpoints only: pooled over seeds it would call a method different from itself (see
    docs/fairness.md), so it is never used for methods.

    Args:
        a, b: packed correctness bits, as in the table `predictions`.
        n_examples: number of test examples.

    Raises:
        ValueError: bits that do not match the number of examples.
    """
    if len(a) != (n_examples + 7) // 8 or len(b) != len(a):
        raise ValueError(f"{n_examples} examples need {(n_examples + 7) // 8} bytes of bits, got {len(a)} and {len(b)}")
    right_a, right_b = (np.unpackbits(np.frombuffer(x, np.uint8), count=n_examples).astype(bool) for x in (a, b))
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return 1.0 if only_a + only_b == 0 else float(stats.binomtest(only_a, only_a + only_b).pvalue)


def proportion_interval(successes: int, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """Exact (Clopper-Pearson) interval of a proportion."""
    interval = stats.binomtest(successes, trials).proportion_ci(level, method="exact")
    return float(interval.low), float(interval.high)
