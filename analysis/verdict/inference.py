"""Intervals over seeds, and paired differences with their tests (with scipy).

The unit of a claim is the trained run. A difference between two methods is the mean of per-seed paired differences. Its
variance is a sum of estimates, each with its degrees of freedom: the seeds' within every data set, and what the choice
of learning rates adds (`choice`). One standard error and one number of degrees of freedom (Welch-Satterthwaite) give
the p value, the interval and the test of equivalence. Scores and differences are fractions in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]
Seed = TypeVar("Seed", bound=Hashable)

LEVEL = 0.95
"""Level of every interval; 1 - LEVEL is the family-wise error rate of a family of comparisons."""

FEW_SEEDS = 3
"""With fewer seeds an interval reaches 12.7 standard errors to each side, which is too wide to be shaded in a plot."""
T_TEST = "paired t"
OVER_SEEDS = "paired t, each seed averaged over data sets"
WELCH = "Welch-Satterthwaite within data sets"
OVER_DATASETS = "t over data sets"
"""Names of the tests: on one data set; on several that share seeds; on several with different seeds; and the test that
takes the data sets as a sample, which claims something about data sets like these."""
CHOICE_FREEDOM = 3
"""Degrees of freedom of the variance that a choice of rates adds. Few runs estimate it, and it is far from normal.
By simulation (`benchmarks/calibration.py`): 3 keeps 5 % over shapes of the response, 4 hardly does."""
NO_SPREAD = 1e-12
"""A smaller spread is a rounding error."""
DRAWS = 400
"""Default number of joint draws of means."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its t interval.

    Attributes:
        mean: the mean of the runs.
        low, high: ends of the t interval; None if `n` is 1 or all runs are equal, because then the spread is unknown.
        sd: standard deviation of the sample (n - 1); None if `n` is 1.
        n: number of runs.
    """

    mean: float
    low: float | None
    high: float | None
    sd: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A paired difference a - b, and the numbers that its test needs.

    Attributes:
        mean: mean of the differences.
        pairs: number of pairs, one entry for each data set whose pairs are counted separately.
        sd: standard deviation of the differences. Over several data sets it is pooled within them. None if there are
            fewer than two pairs.
        variances: estimates whose sum is the variance of the mean, one for each data set with two pairs or more. Empty
            if the variance cannot be estimated.
        freedoms: degrees of freedom of each of `variances`.
        test: name of the test.
        added: variance that the choice of rates adds to the mean.
        as_untrained: the same difference if each failed run of the method that is ahead gets the untrained model's
            score. None if none of its runs failed. A claim has to hold for both differences. So p values are the larger
            of the two, and intervals cover both.
        lost: number of failed runs of the two methods. If there is one, the methods are never called equivalent.
    """

    mean: float
    pairs: tuple[int, ...]
    sd: float | None = None
    variances: tuple[float, ...] = ()
    freedoms: tuple[float, ...] = ()
    test: str = T_TEST
    added: float = 0.0
    as_untrained: Difference | None = None
    lost: int = 0

    @property
    def n(self) -> int:
        """Number of pairs."""
        return sum(self.pairs)

    def widened(self, variance: float) -> Difference:
        """Return this difference with `variance` as the variance that the choice of rates adds."""
        also = None if self.as_untrained is None else self.as_untrained.widened(variance)
        return replace(self, added=variance, as_untrained=also)

    def turned(self) -> Difference:
        """Return the opposite difference, b - a."""
        also = None if self.as_untrained is None else self.as_untrained.turned()
        return replace(self, mean=-self.mean, as_untrained=also)

    @property
    def testable(self) -> bool:
        """Whether there is a spread between pairs."""
        return sum(self.variances) > NO_SPREAD**2

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None if it is not known."""
        return float(satterthwaite(self.variances, self.freedoms, self.added)[0]) if self.testable else None

    @property
    def freedom(self) -> float:
        """Degrees of freedom of `error`; 0 if that is not known."""
        return float(satterthwaite(self.variances, self.freedoms, self.added)[1]) if self.testable else 0.0

    @property
    def p(self) -> float | None:
        """Two-sided p value of no difference; None if there are fewer than two pairs, or no spread between them.

        Without spread (a coarse score, or a run compared with itself) the test statistic has no distribution.
        """
        if not self.testable:
            return None
        own_p = float(two_sided(self.mean, self.variances, self.freedoms, self.added))
        if self.as_untrained is None or (untrained_p := self.as_untrained.p) is None:
            return own_p
        return max(own_p, untrained_p) if self.mean * self.as_untrained.mean > 0 else 1.0

    def p_beyond(self, margin: float) -> float | None:
        """Return the p value of a true difference of at least `margin` in either direction; None if not testable.

        These are two one-sided tests (Schuirmann 1987).
        """
        if not self.testable:
            return None
        return 1.0 if self.lost else float(tail(margin - abs(self.mean), self.variances, self.freedoms, self.added))

    def interval(self, alpha: float = 1 - LEVEL) -> tuple[float, float] | tuple[None, None]:
        """Return the interval of level 1 - alpha, which excludes zero exactly if p < alpha.

        Both ends are None if the difference is not testable, or if alpha is 0.
        """
        if not self.testable or not alpha:
            return None, None
        half = float(half_width(self.variances, self.freedoms, self.added, alpha))
        ends = [self.mean - half, self.mean + half]
        if self.as_untrained is not None:
            ends += [end for end in self.as_untrained.interval(alpha) if end is not None]
        return min(ends), max(ends)

    @property
    def low(self) -> float | None:
        """Low end of the 95 % interval."""
        return self.interval()[0]

    @property
    def high(self) -> float | None:
        """High end of the 95 % interval."""
        return self.interval()[1]


def satterthwaite(variances: ArrayLike, freedoms: ArrayLike, added: ArrayLike = 0.0) -> tuple[Array, Array]:
    """Return the standard error and the degrees of freedom of a mean (Welch 1947), both of shape (...).

    The degrees of freedom are (sum v)^2 / sum(v^2 / f).

    Args:
        variances: (..., parts) independent estimates whose sum is the variance of the mean.
        freedoms: (..., parts) or (parts,) degrees of freedom of each estimate.
        added: (...) variance that the choice of rates adds. It has CHOICE_FREEDOM degrees of freedom.
    """
    v, extra = np.asarray(variances, dtype=float), np.asarray(added, dtype=float)
    total = v.sum(axis=-1) + extra
    squares = (v**2 / np.asarray(freedoms, dtype=float)).sum(axis=-1) + extra**2 / CHOICE_FREEDOM
    return np.sqrt(total), np.asarray(total**2 / np.maximum(squares, np.finfo(float).tiny))


def tail(distance: ArrayLike, variances: ArrayLike, freedoms: ArrayLike, added: ArrayLike = 0.0) -> Array:
    """Return (...) the chance that a mean is off by `distance` or more to one side; arguments as in `satterthwaite`.

    `added` also brings degrees of freedom, so it could make a claim stronger. Therefore the chance is computed with and
    without it, and the larger one is returned.
    """
    chances = []
    for extra in (added, 0.0):
        error, freedom = satterthwaite(variances, freedoms, extra)
        chances.append(special.stdtr(freedom, -np.asarray(distance, dtype=float) / error))
    return np.asarray(np.maximum(*chances), dtype=float)


def two_sided(mean: ArrayLike, variances: ArrayLike, freedoms: ArrayLike, added: ArrayLike = 0.0) -> Array:
    """Return (...) the two-sided p value of a mean of zero; arguments as in `satterthwaite`."""
    return np.asarray(2.0 * tail(np.abs(np.asarray(mean, dtype=float)), variances, freedoms, added))


def half_width(variances: ArrayLike, freedoms: ArrayLike, added: ArrayLike = 0.0, alpha: float = 1 - LEVEL) -> Array:
    """Return (...) half the width of the interval of level 1 - alpha, which agrees with `two_sided`.

    Arguments as in `satterthwaite`.
    """
    widths = []
    for extra in (added, 0.0):
        error, freedom = satterthwaite(variances, freedoms, extra)
        widths.append(-special.stdtrit(freedom, alpha / 2) * error)
    return np.asarray(np.maximum(*widths), dtype=float)


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean and the t interval over runs. Raises ValueError if there is no value."""
    if len(values) == 0:
        raise ValueError("an interval needs at least one value, got none")
    mean = t_difference(values)
    return Interval(mean.mean, mean.low, mean.high, mean.sd, mean.n)


def paired_difference(a: Mapping[Seed, float], b: Mapping[Seed, float]) -> Difference | None:
    """Return the paired difference a - b over the seeds that both have, or None if they share none.

    Args:
        a, b: score by seed. A seed is any hashable key that says which runs belong together.
    """
    differences = [a[seed] - b[seed] for seed in a if seed in b]
    return t_difference(differences) if differences else None


def t_difference(differences: Sequence[float], test: str = T_TEST) -> Difference:
    """Return the mean of paired differences with its t test against zero. Raises ValueError if there is none."""
    if len(differences) == 0:
        raise ValueError("a difference needs at least one pair, got none")
    n, mean = len(differences), float(np.mean(differences))
    if n == 1:
        return Difference(mean, (1,), test=test)
    sd = float(np.std(differences, ddof=1))
    sd = 0.0 if sd <= NO_SPREAD else sd
    return Difference(mean, (n,), sd, (sd**2 / n,), (n - 1.0,), test)


def stratified_difference(blocks: Sequence[Sequence[float]]) -> Difference:
    """Return the mean over data sets of their mean paired differences. Each data set has the same weight.

    Its variance is the sum of the variances within data sets. So an effect that differs between data sets is not
    counted as noise. A data set with a single pair gets the variance that is pooled within the others, and adds no
    degrees of freedom.

    Args:
        blocks: for each data set its differences by seed. No seed is shared between data sets.

    Raises:
        ValueError: there is no difference at all.
    """
    groups = [np.asarray(values, dtype=float) for values in blocks if len(values)]
    if not groups:
        raise ValueError("a difference over data sets needs at least one with a pair, got none")
    pairs, sets = tuple(len(g) for g in groups), len(groups)
    mean = float(np.mean([g.mean() for g in groups]))
    freedom = float(sum(pairs) - sets)
    if not freedom:  # with one seed, an effect of the seed on all data sets would look like a difference
        return Difference(mean, pairs, test=WELCH)
    pooled = sum(float(((g - g.mean()) ** 2).sum()) for g in groups) / freedom
    spread, alone = [g for g in groups if len(g) > 1], pairs.count(1)
    shares = [1 / len(g) + alone * (len(g) - 1) / freedom for g in spread]  # weight of a set in the pooled variance
    variances = tuple(float(g.var(ddof=1)) * share / sets**2 for g, share in zip(spread, shares, strict=True))
    return Difference(mean, pairs, math.sqrt(pooled), variances, tuple(len(g) - 1.0 for g in spread), WELCH)


def critical(intervals: int, freedom: float) -> float:
    """Return the half width, in standard errors, with which all of `intervals` t intervals hold with chance LEVEL.

    This is Sidak's rule (J. Am. Stat. Assoc. 62, 1967), with the degrees of freedom of one interval. It is exact if the
    intervals are independent, and too wide if they are correlated. A quantile of the largest of joint draws (sup-t) is
    narrower, but it covers only 83 to 93 % with 3 seeds.

    Raises:
        ValueError: `intervals` is below 1.
    """
    if intervals < 1:
        raise ValueError(f"intervals that hold at once must be 1 or more, got {intervals}")
    return float(-special.stdtrit(freedom, sidak(intervals) / 2))


def sidak(intervals: int) -> float:
    """Return the error rate of each of `intervals` with which all of them hold at once with chance LEVEL."""
    return float(1 - LEVEL ** (1 / intervals))


def t_weights(seeds: Sequence[int], draws: int = DRAWS) -> Array:
    """Return (draws, S) weights w, with which m + (x - m) @ w.T draws the mean m of S scores x again.

    A draw is m + sum_s g_s (x_s - m) / sqrt(S (S - 1)) * sqrt((S - 1) / chi2), with normal g and chi2 of S - 1 degrees
    of freedom. So the quantiles of the draws are the ends of t intervals. A seed has the same g and the same quantile
    of chi2 in every cell. So draws of several cells are correlated as their scores are.

    Args:
        seeds: numbers of the seeds, from 0. A number means the same seed in all cells that are drawn together. For a
            single seed there is no draw: the shape is (0, 1).
        draws: number of draws.
    """
    if len(seeds) < 2:
        return np.zeros((0, len(seeds)))
    rng = np.random.default_rng(0)
    chi2 = special.chdtri(len(seeds) - 1, 1 - rng.random(draws))
    normal = rng.standard_normal((max(seeds) + 1, draws))[list(seeds)]  # a seed's numbers depend on no other seed
    return np.asarray((normal / np.sqrt(len(seeds) * chi2)).T, dtype=float)
