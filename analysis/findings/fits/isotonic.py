"""Isotonic curves through score against cost, and what is read off them.

Pure functions of arrays. A curve is K points: `x` (K,) positive and increasing, and `scores` (K, S), one column per
seed. Everything is computed in log x. Intervals over seeds: t intervals where there are such (areas, the band of the
isotonic fit), else quantiles over joint t draws of the points (`inference.t_weights`). One seed gives no interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from analysis.verdict.inference import LEVEL, NO_SPREAD, Array, critical, mean_interval, t_weights

FEWEST_POINTS = 3
NO_INTERVAL = "no spread between seeds: no interval"


@dataclass(frozen=True)
class Curve:
    """Scores along a cost.

    Attributes:
        x: (K,) cost, positive, strictly increasing.
        scores: (K, S) score of every seed at every cost.
    """

    x: Array
    scores: Array

    def __post_init__(self) -> None:
        if self.x.ndim != 1 or self.scores.ndim != 2 or len(self.x) != len(self.scores) or self.scores.shape[1] < 1:
            raise ValueError(f"a curve needs x (K,) and scores (K, S), got {self.x.shape} and {self.scores.shape}")
        if not (np.isfinite(self.x).all() and (self.x > 0).all() and (np.diff(self.x) > 0).all()):
            raise ValueError(f"x must be positive and strictly increasing, got {self.x.tolist()}")

    @property
    def seeds(self) -> int:
        """Number of seeds S."""
        return int(self.scores.shape[1])

    @property
    def mean(self) -> Array:
        """(K,) mean over seeds."""
        return np.asarray(self.scores.mean(axis=1), dtype=float)

    @property
    def drawn(self) -> Array:
        """(draws, K) random draws of the mean. Curves with the same seeds are drawn together; one seed has no draw."""
        return np.asarray(self.mean + t_weights(range(self.seeds)) @ (self.scores - self.mean[:, None]).T, dtype=float)


@dataclass(frozen=True)
class Estimate:
    """A number read off curves.

    Attributes:
        value: the number; None if the curves do not reach it within their range.
        low, high: 95 % interval. An end is None if it lies beyond the range, or with one seed.
        share: share of the draws in which the value lies in the range; None with one seed.
        note: a remark such as 'no crossing in range'; empty if there is none.
    """

    value: float | None
    low: float | None
    high: float | None
    share: float | None
    note: str = ""


def interpolate(x: Array, y: Array, at: Array) -> Array:
    """Return the values at `at`, interpolated linearly in log x between points and constant beyond them."""
    return np.asarray(np.interp(np.log(at), np.log(x), y), dtype=float)


def isotonic(x: Array, y: Array, at: Array) -> Array:
    """Return at `at` the closest curve to the points that never falls (pool adjacent violators)."""
    return interpolate(x, np.asarray(optimize.isotonic_regression(y).x, dtype=float), at)


def band(curve: Curve, at: Array) -> tuple[Array, Array] | None:
    """Return the simultaneous band of the isotonic fit at `at` (low, high); None with one seed, or without spread.

    Isotonic regression keeps order, so if t intervals hold at all points at once, the fits of their lower and of their
    upper ends enclose the fit of the true scores everywhere.
    """
    if curve.seeds < 2 or (error := curve.scores.std(axis=1, ddof=1) / math.sqrt(curve.seeds)).min() <= NO_SPREAD:
        return None
    half = critical(len(curve.x), curve.seeds - 1) * error
    return isotonic(curve.x, curve.mean - half, at), isotonic(curve.x, curve.mean + half, at)


def crossing(a: Curve, b: Curve) -> Estimate:
    """Return the last crossing of the isotonic fits of two curves in their common range.

    A draw without a crossing counts as a crossing before the range (if `a` is always on its final side) or beyond it.
    So an end of the interval is None if more draws than its tail have no crossing in the range.

    Args:
        a, b: curves over the same seeds, in the same order. They are drawn together.

    Raises:
        ValueError: the curves have different numbers of seeds.
    """
    if a.seeds != b.seeds:
        raise ValueError(f"the curves are paired by seed but have {a.seeds} and {b.seeds}")
    low, high = max(a.x[0], b.x[0]), min(a.x[-1], b.x[-1])
    if low >= high:
        return Estimate(None, None, None, None, "no common range")
    at = np.unique(np.concatenate([c.x[(c.x >= low) & (c.x <= high)] for c in (a, b)] + [np.array([low, high])]))

    def gap(mean_a: Array, mean_b: Array) -> Array:
        return isotonic(a.x, mean_a, at) - isotonic(b.x, mean_b, at)

    observed = gap(a.mean, b.mean)
    if observed[0] * observed[-1] >= 0:
        side = "above" if observed.sum() > 0 else "below" if observed.sum() < 0 else "equal"
        lasting = len(set(np.sign(observed[observed != 0]))) < 2
        note = f"no crossing in range: {side} throughout" if lasting else "no lasting crossing in range"
        return Estimate(None, None, None, None, note)
    turn = float(np.sign(observed[-1]))
    draws = [_last_crossing(at, turn * gap(*means)) for means in zip(a.drawn, b.drawn, strict=True)]
    return _estimate(_last_crossing(at, turn * observed), draws)


def needed(curve: Curve, target: float) -> Estimate:
    """Return the least x at which the isotonic fit reaches `target`."""

    def least(mean: Array) -> float:
        level = isotonic(curve.x, mean, curve.x)
        reached = np.flatnonzero(level >= target)
        if len(reached) == 0:
            return math.inf
        if (i := int(reached[0])) == 0:
            return -math.inf
        part = (target - level[i - 1]) / (level[i] - level[i - 1])
        return _log_interpolate(curve.x, i - 1, part)

    value, draws = least(curve.mean), [least(mean) for mean in curve.drawn]
    if math.isfinite(value):
        return _estimate(value, draws)
    note = "reached at the smallest x already" if value < 0 else "not reached in range"
    return Estimate(None, None, None, float(np.mean(np.isfinite(draws))) if draws else None, note)


def area(curve: Curve, low: float, high: float) -> Estimate:
    """Return the mean score over log x between two costs: the area under the joined points, divided by its width.

    The area is a weighted sum of the scores. So it is computed for each seed, and the interval is a t interval over the
    seeds' areas.
    """
    values = seed_areas(curve, low, high)
    if values is None:
        return Estimate(None, None, None, None, "the curve does not span the range")
    if curve.seeds < 2:
        return _estimate(values[0], ())
    interval = mean_interval(values)
    return Estimate(interval.mean, interval.low, interval.high, 1.0)


def seed_areas(curve: Curve, low: float, high: float) -> list[float] | None:
    """Return the area (see `area`) of each seed's curve, or None if the curve does not span the range."""
    if not curve.x[0] <= low < high <= curve.x[-1] * (1 + 1e-9):
        return None
    at = np.concatenate([[low], curve.x[(curve.x > low) & (curve.x < high)], [high]])
    heights = [interpolate(curve.x, seed, at) for seed in curve.scores.T]
    return [float(np.trapezoid(y, np.log(at)) / (math.log(high) - math.log(low))) for y in heights]


def _last_crossing(at: Array, gap: Array) -> float:
    """Return the last zero crossing of `gap`; -inf if it is always positive, inf if it ends negative or zero."""
    if gap[-1] <= 0:
        return math.inf
    below = np.flatnonzero(gap <= 0)
    if len(below) == 0:
        return -math.inf
    i = int(below[-1])
    return _log_interpolate(at, i, -gap[i] / (gap[i + 1] - gap[i]))


def _log_interpolate(at: Array, i: int, part: float) -> float:
    """Return the point at the share `part` of the way from `at[i]` to the next one, on a logarithmic axis."""
    return float(np.exp(np.log(at[i]) + part * (np.log(at[i + 1]) - np.log(at[i]))))


def _estimate(value: float, draws: Sequence[float]) -> Estimate:
    """Return a value with the interval of its draws."""
    if not draws:
        return Estimate(value, None, None, None, "one seed: no interval")
    values = np.sort(np.asarray(draws, dtype=float))
    if values[0] == values[-1]:
        return Estimate(value, None, None, None, NO_INTERVAL)
    n = len(values)
    # order statistics, not interpolation: infinities must stay whole
    low, high = values[math.floor((1 - LEVEL) / 2 * (n - 1))], values[math.ceil((1 + LEVEL) / 2 * (n - 1))]
    ends = [float(v) if math.isfinite(v) else None for v in (low, high)]
    open_ends = [word for word, end in (("below", ends[0]), ("above", ends[1])) if end is None]
    note = f"the interval runs out of the range {' and '.join(open_ends)}" if open_ends else ""
    return Estimate(value, ends[0], ends[1], float(np.isfinite(values).mean()), note)
