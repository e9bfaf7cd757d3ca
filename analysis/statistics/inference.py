"""Statistics of comparisons (scipy): intervals over seeds, paired differences, Holm, and words no stronger than tests.

The unit of a claim is the trained run. A difference between two methods is the mean of per-seed paired differences. Its
variance is a sum of estimates, each with its degrees of freedom: the seeds' within every data set, and what the choice
of learning rates adds (`choice`). One standard error and one number of degrees of freedom (Welch-Satterthwaite) give
the p value, the interval and the test of equivalence. Scores and differences are fractions in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]
Seed = TypeVar("Seed", bound=Hashable)
Verdict = Literal[
    "higher",
    "lower",
    "equivalent",
    "not distinguishable",
    "not testable",
    "not testable with the choice of rates",
]
NOT_KNOWN: Verdict = "not testable with the choice of rates"
"""Where it is not known what the choice of rates adds."""

LEVEL = 0.95
"""Level of every interval; 1 - LEVEL is the family-wise error rate of a family of comparisons."""

T_TEST = "paired t"
OVER_SEEDS = "paired t, each seed averaged over data sets"
WELCH = "Welch-Satterthwaite within data sets"
OVER_DATASETS = "t over data sets"
"""The tests: on one data set; on several that share seeds; on several whose seeds are their own; of sets like these."""
CHOICE_FREEDOM = 3
"""Degrees of freedom of the variance that a choice of rates adds. Few runs estimate it, and it is far from normal.
By simulation (`benchmarks/calibration.py`): 3 keeps 5 % over shapes of the response, 4 hardly does."""
NO_SPREAD = 1e-12
"""Below it a spread is rounding."""
DRAWS = 400
"""Joint draws of means, by default."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds.

    Attributes:
        mean: their mean.
        low, high: t interval; None where `n` is 1 or all are equal: neither says anything about spread.
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
    """A paired difference a - b, and what tests it.

    Attributes:
        mean: of the differences.
        pairs: number of them, of each data set whose pairs count by themselves.
        sd: their standard deviation; over several data sets the pooled one within them. None without two pairs.
        variances: of the mean, estimates whose sum is its variance, one of each data set with two pairs or more; none
            where it can't be estimated.
        freedoms: their degrees of freedom.
        test: the test's name.
        added: variance that the choice of rates adds to the mean.
        as_untrained: the same with each failed run of the one that is ahead scored as the untrained model; None if none
            of its runs failed. A claim has to hold for both, so p values are the larger ones of the two, and intervals
            reach over both.
        lost: how many runs of the two failed. With one they are never equivalent.
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
        """The same difference, the variance that the choice of rates adds included."""
        also = None if self.as_untrained is None else self.as_untrained.widened(variance)
        return replace(self, added=variance, as_untrained=also)

    def turned(self) -> Difference:
        """b - a."""
        also = None if self.as_untrained is None else self.as_untrained.turned()
        return replace(self, mean=-self.mean, as_untrained=also)

    @property
    def testable(self) -> bool:
        """Whether there is a spread between pairs."""
        return sum(self.variances) > NO_SPREAD**2

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None where it is not known."""
        return float(satterthwaite(self.variances, self.freedoms, self.added)[0]) if self.testable else None

    @property
    def freedom(self) -> float:
        """Degrees of freedom of `error`; 0 where that is not known."""
        return float(satterthwaite(self.variances, self.freedoms, self.added)[1]) if self.testable else 0.0

    @property
    def p(self) -> float | None:
        """Two-sided p value of no difference; None where it cannot be tested: fewer than two pairs, or no spread.

        Without spread (a coarse score, or one run against itself) the statistic has no distribution.
        """
        if not self.testable:
            return None
        found = float(two_sided(self.mean, self.variances, self.freedoms, self.added))
        if self.as_untrained is None or (other := self.as_untrained.p) is None:
            return found
        return max(found, other) if self.mean * self.as_untrained.mean > 0 else 1.0

    def p_beyond(self, margin: float) -> float | None:
        """p value of a true difference of `margin` or more, either way: two one-sided tests (Schuirmann 1987)."""
        if not self.testable:
            return None
        return 1.0 if self.lost else float(tail(margin - abs(self.mean), self.variances, self.freedoms, self.added))

    def interval(self, alpha: float = 1 - LEVEL) -> tuple[float, float] | tuple[None, None]:
        """The interval of level 1 - alpha: it excludes zero exactly if p < alpha. None at alpha 0."""
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
    """Standard error and degrees of freedom of a mean (Welch 1947): (sum v)^2 / sum(v^2 / f).

    Args:
        variances: (..., parts) of the mean, independent estimates whose sum is its variance.
        freedoms: (..., parts) or (parts,) theirs.
        added: (...) variance that the choice of rates adds, of CHOICE_FREEDOM.

    Returns:
        Both (...).
    """
    v, extra = np.asarray(variances, dtype=float), np.asarray(added, dtype=float)
    total = v.sum(axis=-1) + extra
    squares = (v**2 / np.asarray(freedoms, dtype=float)).sum(axis=-1) + extra**2 / CHOICE_FREEDOM
    return np.sqrt(total), np.asarray(total**2 / np.maximum(squares, np.finfo(float).tiny))


def tail(distance: ArrayLike, variances: ArrayLike, freedoms: ArrayLike, added: ArrayLike = 0.0) -> Array:
    """Chance that a mean is off by `distance` or more to one side; (...). Arguments as of `satterthwaite`.

    What the choice of rates adds never makes a claim stronger: it may bring degrees of freedom along, so the larger
    chance of those with and without it counts.
    """
    found = []
    for extra in (added, 0.0):
        error, freedom = satterthwaite(variances, freedoms, extra)
        found.append(special.stdtr(freedom, -np.asarray(distance, dtype=float) / error))
    return np.asarray(np.maximum(*found), dtype=float)


def two_sided(mean: ArrayLike, variances: ArrayLike, freedoms: ArrayLike, added: ArrayLike = 0.0) -> Array:
    """Two-sided p value that a mean is zero; (...). Arguments as of `satterthwaite`."""
    return np.asarray(2.0 * tail(np.abs(np.asarray(mean, dtype=float)), variances, freedoms, added))


def half_width(variances: ArrayLike, freedoms: ArrayLike, added: ArrayLike = 0.0, alpha: float = 1 - LEVEL) -> Array:
    """Half of the interval of level 1 - alpha that `two_sided` inverts; (...). Arguments as of `satterthwaite`."""
    found = []
    for extra in (added, 0.0):
        error, freedom = satterthwaite(variances, freedoms, extra)
        found.append(-special.stdtrit(freedom, alpha / 2) * error)
    return np.asarray(np.maximum(*found), dtype=float)


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean and t interval over runs. Raises ValueError: no value."""
    if len(values) == 0:
        raise ValueError("an interval needs at least one value, got none")
    found = t_difference(values)
    return Interval(found.mean, found.low, found.high, found.sd, found.n)


def paired_difference(a: Mapping[Seed, float], b: Mapping[Seed, float]) -> Difference | None:
    """Paired t test of a - b over the seeds both have; None where they share none.

    Args:
        a, b: score by seed (any hashable key that says which runs belong together).
    """
    differences = [a[seed] - b[seed] for seed in a if seed in b]
    return t_difference(differences) if differences else None


def t_difference(differences: Sequence[float], test: str = T_TEST) -> Difference:
    """t test that the mean of paired differences is zero. Raises ValueError: no difference."""
    if len(differences) == 0:
        raise ValueError("a difference needs at least one pair, got none")
    n, mean = len(differences), float(np.mean(differences))
    if n == 1:
        return Difference(mean, (1,), test=test)
    sd = float(np.std(differences, ddof=1))
    sd = 0.0 if sd <= NO_SPREAD else sd
    return Difference(mean, (n,), sd, (sd**2 / n,), (n - 1.0,), test)


def stratified_difference(blocks: Sequence[Sequence[float]]) -> Difference:
    """The mean over data sets of their mean paired differences, each data set weighing the same.

    Its variance is the sum of the data sets' own, so that effects which differ between data sets are no noise. A data
    set with one pair has the variance pooled within the others, which is part of their estimates: it brings no degrees
    of freedom of its own.

    Args:
        blocks: per data set its per-seed differences; no seed is shared between data sets.

    Raises:
        ValueError: no difference at all.
    """
    groups = [np.asarray(values, dtype=float) for values in blocks if len(values)]
    if not groups:
        raise ValueError("a difference over data sets needs at least one with a pair, got none")
    pairs, sets = tuple(len(g) for g in groups), len(groups)
    mean = float(np.mean([g.mean() for g in groups]))
    freedom = float(sum(pairs) - sets)
    if not freedom:  # one seed: what it does to a method on all data sets alike would pass for a difference
        return Difference(mean, pairs, test=WELCH)
    pooled = sum(float(((g - g.mean()) ** 2).sum()) for g in groups) / freedom
    spread, alone = [g for g in groups if len(g) > 1], pairs.count(1)
    shares = [1 / len(g) + alone * (len(g) - 1) / freedom for g in spread]  # a set's part in the pooled variance
    variances = tuple(float(g.var(ddof=1)) * share / sets**2 for g, share in zip(spread, shares, strict=True))
    return Difference(mean, pairs, math.sqrt(pooled), variances, tuple(len(g) - 1.0 for g in spread), WELCH)


def critical(intervals: int, freedom: float) -> float:
    """Standard errors that `intervals` t intervals reach out, so that all of them hold at once with chance LEVEL.

    Sidak's (J. Am. Stat. Assoc. 62, 1967), with the degrees of freedom of one interval: exact where they are
    independent, and wider than needed where they go together. A quantile of the largest of joint draws (sup-t) is
    narrower, and covers 83 to 93 % with 3 seeds.

    Raises:
        ValueError: no interval.
    """
    if intervals < 1:
        raise ValueError(f"intervals that hold at once must be 1 or more, got {intervals}")
    return float(-special.stdtrit(freedom, sidak(intervals) / 2))


def sidak(intervals: int) -> float:
    """The error that each of `intervals` may take, so that all of them hold at once with chance LEVEL."""
    return float(1 - LEVEL ** (1 / intervals))


def t_weights(seeds: Sequence[int], draws: int = DRAWS) -> Array:
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
    chi2 = special.chdtri(len(seeds) - 1, 1 - rng.random(draws))
    normal = rng.standard_normal((max(seeds) + 1, draws))[list(seeds)]  # row by row: a seed's do not depend on others
    return np.asarray((normal / np.sqrt(len(seeds) * chi2)).T, dtype=float)


@dataclass(frozen=True)
class Steps:
    """What Holm's step-down decides of one hypothesis.

    Attributes:
        adjusted: p value that is at most `1 - LEVEL` if the hypothesis is rejected; None if it can't be tested.
        level: at which it was decided: at its own step if it was rejected, at the last step otherwise. An interval of
            this level leaves out what was tested exactly if it was rejected.
        first: level of the first step.
    """

    adjusted: float | None
    level: float
    first: float


def holm_steps(
    pvalues: Sequence[float | None], weights: Sequence[float] | None = None, level: float = 1 - LEVEL
) -> list[Steps]:
    """Holm's step-down (Scand. J. Statist. 6, 1979), weighted if some hypotheses are to have more of the level.

    The chance of any false rejection is at most `level`. A rejected hypothesis leaves its share to the others.

    Args:
        pvalues: None can't be tested, and takes no share.
        weights: of each; default all alike.
        level: of the whole family; may be 0.
    """
    shares = [1.0] * len(pvalues) if weights is None else list(weights)
    tested = [i for i, p in enumerate(pvalues) if p is not None]
    p = np.array([pvalues[i] for i in tested], dtype=float)
    w = np.array([shares[i] for i in tested], dtype=float)
    found = [Steps(None, level, level)] * len(pvalues)
    if not tested:
        return found
    cost = (1 - LEVEL) / level if level else math.inf
    adjusted = np.minimum(step_down(np.minimum(cost * p, 1.0) if level else np.ones_like(p), w), 1.0)
    left = w.sum() - w[adjusted <= 1 - LEVEL].sum()
    for k, i in enumerate(tested):
        if adjusted[k] <= 1 - LEVEL:  # those of the same ratio and before it are gone by then
            ratio = p / w
            gone = (ratio < ratio[k]) | ((ratio == ratio[k]) & (np.arange(len(p)) < k))
            remaining = w.sum() - w[gone].sum()
        else:
            remaining = left
        found[i] = Steps(float(adjusted[k]), float(level * w[k] / remaining), float(level * w[k] / w.sum()))
    return found


def holm(pvalues: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p values; None stays None and does not count.

    Reject if the adjusted value is at most alpha: the chance of any false rejection in the family is at most alpha.
    """
    return [steps.adjusted for steps in holm_steps(pvalues)]


def step_down(p: Array, weights: ArrayLike = 1.0) -> Array:
    """Holm's adjusted p values along the last axis; of the same shape. `weights`: as of `holm_steps`."""
    shares = np.broadcast_to(np.asarray(weights, dtype=float), p.shape)
    order = np.argsort(p / shares, axis=-1, kind="stable")
    sorted_shares = np.take_along_axis(shares, order, axis=-1)
    remaining = np.cumsum(sorted_shares[..., ::-1], axis=-1)[..., ::-1]
    steps = np.take_along_axis(p, order, axis=-1) * remaining / sorted_shares
    raised = np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0)
    return np.take_along_axis(raised, np.argsort(order, axis=-1), axis=-1)


def verdict(
    difference: float | None, adjusted_p: float | None, *, beyond: float | None = None, known: bool = True
) -> Verdict:
    """What corrected tests allow to be said of a difference.

    Args:
        difference: seen.
        adjusted_p: of no difference, corrected; None where it can't be tested.
        beyond: of a true difference outside the margin, corrected; None without a margin.
        known: whether it is known what the choice of rates adds; not for a verdict that takes the rates for given.
    """
    if difference is None or (known and adjusted_p is None):
        return "not testable"
    if adjusted_p is None:
        return NOT_KNOWN
    if adjusted_p <= 1 - LEVEL:
        return "higher" if difference > 0 else "lower"
    return "equivalent" if beyond is not None and beyond <= 1 - LEVEL else "not distinguishable"


def expected_best(scores: Sequence[float]) -> list[float]:
    """Expected best score of n tuning trials, n = 1 .. N, over subsets without replacement of the N scores.

    The unbiased estimator of Tang et al. (ACL 2020, arXiv 2004.11947): a curve still rising at N says that more tuning
    would have helped.
    """
    ordered = np.sort(np.asarray(scores, dtype=float))
    return [float(best_weights(ordered, n) @ ordered) for n in range(1, len(ordered) + 1)]


def best_weights(scores: ArrayLike, n: int) -> Array:
    """Chance of every score to be the best of n drawn from all, as in `expected_best`."""
    ranks = np.argsort(np.argsort(scores, kind="stable"), kind="stable")
    return np.asarray(special.comb(ranks, n - 1) / special.comb(len(ranks), n), dtype=float)
