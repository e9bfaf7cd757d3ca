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
from scipy import special, stats

Seed = TypeVar("Seed", bound=Hashable)
Verdict = Literal["higher", "lower", "not distinguishable", "not testable"]

LEVEL = 0.95
"""Level of every interval; 1 - LEVEL is the family-wise error rate of a table."""

T_TEST, SIGN_FLIP = "paired t", "sign-flip permutation"
CHOICE_FREEDOM = 2
"""Degrees of freedom of the variance that a choice of rates adds. Few runs estimate it, and it is far from normal.
By simulation (`benchmarks/calibration.py`): 2 keeps 5 % over shapes of the response, 4 does not."""
AT_ONCE = 10_000
"""Permutations drawn at once: all of them would fill the memory."""
NO_SPREAD = 1e-12
"""Below it a spread is rounding."""


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


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean and t interval over runs. Raises ValueError: no value."""
    if len(values) == 0:
        raise ValueError("an interval needs at least one value, got none")
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Interval(mean, None, None, None, 1)
    sd = float(np.std(values, ddof=1))
    if sd <= NO_SPREAD:
        return Interval(mean, mean, mean, 0.0, n)
    low, high = stats.t.interval(LEVEL, n - 1, loc=mean, scale=sd / math.sqrt(n))
    return Interval(mean, float(low), float(high), sd, n)


def paired_difference(a: Mapping[Seed, float], b: Mapping[Seed, float]) -> Difference | None:
    """Paired t test of a - b over the seeds both have; None where they share none.

    Args:
        a, b: score by seed (any hashable key that says which runs belong together).
    """
    differences = [a[seed] - b[seed] for seed in a if seed in b]
    return t_difference(differences) if differences else None


def t_difference(differences: Sequence[float]) -> Difference:
    """t test that the mean of paired differences is zero, with its interval.

    Without spread (a coarse score, or one run against itself) the statistic has no distribution: all differences zero
    give p = 1, all equal but not zero give no p.
    """
    interval = mean_interval(differences)
    p: float | None = None
    if interval.sd is not None:
        if interval.sd > NO_SPREAD:
            p = float(stats.ttest_1samp(differences, 0.0).pvalue)
        elif abs(interval.mean) <= NO_SPREAD:
            p = 1.0
    n, sd = interval.n, interval.sd
    error = None if sd is None else sd / math.sqrt(n)
    return Difference(interval.mean, interval.low, interval.high, sd, p, n, T_TEST, 1, error, n - 1)


def widened_p(difference: Difference, variance: float) -> float | None:
    """The p value of a difference whose mean has a further variance, that of the choice of learning rates.

    A t test's standard error grows. Its degrees of freedom are Satterthwaite's, where the choice's part counts for
    CHOICE_FREEDOM. A permutation test's p is widened by the same ratio on the normal scale; its standard error is that
    of its interval.
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


def blocked_difference(blocks: Mapping[str, Sequence[float]], *, seed: int = 0, resamples: int = 9999) -> Difference:
    """The mean over data sets of paired differences: sign-flip permutation p, bootstrap interval.

    Args:
        blocks: per data set its per-seed differences; each data set weighs the same.
        seed: of the resampling.
        resamples: random permutations and bootstrap samples; where all sign flips are fewer, they are enumerated.

    The bootstrap resamples seeds within each data set and corrects the spread for their number. Where a data set has
    one seed, the interval is the t interval of the deviation pooled within the others.
    Raises ValueError: no difference at all.
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
        half = float(stats.t.isf((1 - LEVEL) / 2, freedom)) * (error or 0.0)
        return Difference(mean, mean - half, mean + half, sd, p, n, SIGN_FLIP, sets, error, freedom)
    # resampling n values shrinks their variance by (n - 1) / n, which matters at 3 seeds: stretch it back
    shifts = sum(
        (rng.choice(g, size=(resamples, len(g)), replace=True).mean(axis=1) - g.mean())
        * math.sqrt(len(g) / (len(g) - 1))
        for g in groups
    )
    low, high = mean + np.quantile(shifts / sets, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(mean, float(low), float(high), sd, p, n, SIGN_FLIP, sets, error, freedom)


def common_seed_p(differences: Sequence[Sequence[float]]) -> float | None:
    """F test that a seed moves the difference on all data sets alike; `differences` by data set and seed.

    A sign-flip test over data set x seed assumes that none does; where one does, its p is too small. None with fewer
    than two of either, or without spread.
    """
    x = np.asarray(differences, dtype=float)
    sets, seeds = x.shape
    if sets < 2 or seeds < 2:
        return None
    by_seed = x.mean(axis=0) - x.mean()
    rest = x - x.mean(axis=1, keepdims=True) - by_seed
    error = float((rest**2).sum()) / ((sets - 1) * (seeds - 1))
    if error <= NO_SPREAD**2:
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


def verdict(difference: float | None, adjusted_p: float | None) -> Verdict:
    """What a corrected test allows to be said of a difference."""
    if difference is None or adjusted_p is None:
        return "not testable"
    if adjusted_p > 1 - LEVEL:
        return "not distinguishable"
    return "higher" if difference > 0 else "lower"


def expected_best(scores: Sequence[float]) -> list[float]:
    """Expected best score of n tuning trials, n = 1 .. N, over subsets without replacement of the N scores.

    The unbiased estimator of Tang et al. (ACL 2020, arXiv 2004.11947): a curve still rising at N says that more tuning
    would have helped.
    """
    ordered, total = np.sort(np.asarray(scores, dtype=float)), len(scores)
    ranks = np.arange(total)
    return [float(np.dot(special.comb(ranks, n - 1) / special.comb(total, n), ordered)) for n in range(1, total + 1)]


def proportion_interval(successes: int, trials: int) -> tuple[float, float]:
    """Exact (Clopper-Pearson) interval of a proportion."""
    interval = stats.binomtest(successes, trials).proportion_ci(LEVEL, method="exact")
    return float(interval.low), float(interval.high)
