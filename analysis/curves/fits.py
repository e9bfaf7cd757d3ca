"""Curves through score against cost: isotonic, power law and sigmoid fits, and what is read off them.

Pure functions of arrays. A curve is K points: `x` (K,) positive and increasing, and `scores` (K, S), one column per
seed. Everything is computed in log x. Intervals over seeds: t intervals where there are such (areas, the band of the
isotonic fit), else quantiles over joint t draws of the points (`inference.t_weights`). One seed gives no interval.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from analysis.statistics.inference import LEVEL, NO_SPREAD, critical, mean_interval, t_weights

Array = NDArray[np.float64]
Kind = Literal["isotonic", "power law", "sigmoid"]

FEWEST_POINTS = 3
_PARAMETERS: dict[Kind, int] = {"isotonic": 1, "power law": 3, "sigmoid": 4}
KINDS = tuple(_PARAMETERS)
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
        """(draws, K) the means drawn again; curves of as many seeds are drawn together. No draw of one seed."""
        return np.asarray(self.mean + t_weights(range(self.seeds)) @ (self.scores - self.mean[:, None]).T, dtype=float)


@dataclass(frozen=True)
class Fit:
    """A fitted curve.

    Attributes:
        kind: the form.
        parameters: by name; for 'isotonic' the level at every x.
        rmse: root mean square distance from the points' means, a fraction.
        predict: score at any x (isotonic: linear in log x between the points, constant beyond them).
    """

    kind: Kind
    parameters: dict[str, float]
    rmse: float
    predict: Callable[[Array], Array]


@dataclass(frozen=True)
class Estimate:
    """A number read off curves.

    Attributes:
        value: None where the curves do not reach it within their range.
        low, high: 95 % interval; None where that end lies beyond the range, or with one seed.
        share: share of the draws in which the value lies in the range; None with one seed.
        note: what there is to say, 'no crossing in range' and so on; empty where all is said.
    """

    value: float | None
    low: float | None
    high: float | None
    share: float | None
    note: str = ""


def interpolate(x: Array, y: Array, at: Array) -> Array:
    """Linear in log x between points, constant beyond them."""
    return np.asarray(np.interp(np.log(at), np.log(x), y), dtype=float)


def isotonic(x: Array, y: Array) -> Fit:
    """The closest curve that never falls (pool adjacent violators)."""
    level = np.asarray(optimize.isotonic_regression(y).x, dtype=float)
    named = {f"{v:g}": float(s) for v, s in zip(x, level, strict=True)}
    return Fit("isotonic", named, _rmse(level, y), lambda at: interpolate(x, level, at))


def power_law(x: Array, y: Array) -> Fit | None:
    """score = ceiling - gap * (x / x0)^-exponent with x0 the smallest x; None where it does not settle."""
    u = x / x[0]

    def form(v: Array, ceiling: float, gap: float, exponent: float) -> Array:
        return np.asarray(ceiling - gap * v ** (-exponent), dtype=float)

    start = (float(y.max()), max(float(y.max() - y.min()), 1e-3), 0.5)
    found = _settle(form, u, y, start, ((0.0, -1.0, 1e-3), (1.0, 1.0, 8.0)))
    if found is None:
        return None
    named = dict(zip(("ceiling", "gap", "exponent"), found, strict=True))
    return Fit("power law", named, _rmse(form(u, *found), y), lambda at: form(at / x[0], *found))


def sigmoid(x: Array, y: Array) -> Fit | None:
    """score = floor + rise / (1 + exp(-slope * (log10 x - middle))); None where it does not settle."""
    u = np.log10(x)

    def form(v: Array, floor: float, rise: float, slope: float, middle: float) -> Array:
        return np.asarray(floor + rise / (1 + np.exp(-np.clip(slope * (v - middle), -60, 60))), dtype=float)

    spread = max(float(y.max() - y.min()), 1e-3)
    start = (float(y.min()), spread, 3.0, float(u.mean()))
    room = float(u[-1] - u[0]) + 0.5
    low, high = (0.0, 0.0, 0.1, float(u[0]) - room), (1.0, 1.0, 40.0, float(u[-1]) + room)
    found = _settle(form, u, y, start, (low, high))
    if found is None:
        return None
    named = dict(zip(("floor", "rise", "slope", "middle"), found, strict=True))
    return Fit("sigmoid", named, _rmse(form(u, *found), y), lambda at: form(np.log10(at), *found))


def fit(kind: Kind, x: Array, y: Array) -> Fit | None:
    """One fit; None with fewer points than parameters plus one (isotonic: than three), or where it does not settle."""
    if len(x) < max(FEWEST_POINTS, _PARAMETERS[kind] + 1):
        return None
    return {"isotonic": isotonic, "power law": power_law, "sigmoid": sigmoid}[kind](x, y)


def band(curve: Curve, at: Array) -> tuple[Array, Array] | None:
    """Simultaneous band of the isotonic fit, two arrays like `at`; None with one seed, or a point without spread.

    Isotonic regression keeps order, so if t intervals hold at all points at once, the fits of their lower and of their
    upper ends enclose the fit of the true scores everywhere.
    """
    if curve.seeds < 2 or (error := curve.scores.std(axis=1, ddof=1) / math.sqrt(curve.seeds)).min() <= NO_SPREAD:
        return None
    half = critical(len(curve.x), curve.seeds - 1) * error
    low, high = (isotonic(curve.x, curve.mean + side * half).predict(at) for side in (-1, 1))
    return low, high


def crossing(a: Curve, b: Curve) -> Estimate:
    """The x from which `a` stays on the other side of `b` than it began, on isotonic fits over the common range.

    A draw without the crossing counts as one before the range (already on the final side) or beyond it, so that an
    interval's end is None, 'beyond the range', where more than its tail has none.

    Args:
        a, b: curves whose columns are the same seeds; they are drawn together.

    Raises:
        ValueError: different numbers of seeds.
    """
    if a.seeds != b.seeds:
        raise ValueError(f"the curves are paired by seed but have {a.seeds} and {b.seeds}")
    low, high = max(a.x[0], b.x[0]), min(a.x[-1], b.x[-1])
    if low >= high:
        return Estimate(None, None, None, None, "no common range")
    at = np.unique(np.concatenate([c.x[(c.x >= low) & (c.x <= high)] for c in (a, b)] + [np.array([low, high])]))

    def gap(mean_a: Array, mean_b: Array) -> Array:
        return isotonic(a.x, mean_a).predict(at) - isotonic(b.x, mean_b).predict(at)

    observed = gap(a.mean, b.mean)
    if observed[0] * observed[-1] >= 0:
        side = "above" if observed.sum() > 0 else "below" if observed.sum() < 0 else "equal"
        lasting = len(set(np.sign(observed[observed != 0]))) < 2
        note = f"no crossing in range: {side} throughout" if lasting else "no lasting crossing in range"
        return Estimate(None, None, None, None, note)
    turn = float(np.sign(observed[-1]))
    found = [_last_turn(at, turn * gap(*means)) for means in zip(a.drawn, b.drawn, strict=True)]
    return _estimate(_last_turn(at, turn * observed), found)


def needed(curve: Curve, target: float) -> Estimate:
    """The least x at which the isotonic fit reaches `target`."""

    def least(mean: Array) -> float:
        level = isotonic(curve.x, mean).predict(curve.x)
        reached = np.flatnonzero(level >= target)
        if len(reached) == 0:
            return math.inf
        if (i := int(reached[0])) == 0:
            return -math.inf
        part = (target - level[i - 1]) / (level[i] - level[i - 1])
        return _between(curve.x, i - 1, part)

    value, found = least(curve.mean), [least(mean) for mean in curve.drawn]
    if math.isfinite(value):
        return _estimate(value, found)
    note = "reached at the smallest x already" if value < 0 else "not reached in range"
    return Estimate(None, None, None, float(np.mean(np.isfinite(found))) if found else None, note)


def area(curve: Curve, low: float, high: float) -> Estimate:
    """Mean score over log x between two costs: the area under the points joined by lines, over its width.

    It is linear in the scores, so its interval is a t interval over the areas of the seeds.
    """
    values = seed_areas(curve, low, high)
    if values is None:
        return Estimate(None, None, None, None, "the curve does not span the range")
    if curve.seeds < 2:
        return _estimate(values[0], ())
    found = mean_interval(values)
    return Estimate(found.mean, found.low, found.high, 1.0)


def seed_areas(curve: Curve, low: float, high: float) -> list[float] | None:
    """The area of every seed's own curve, see `area`; None where the curve does not span the range."""
    if not curve.x[0] <= low < high <= curve.x[-1] * (1 + 1e-9):
        return None
    at = np.concatenate([[low], curve.x[(curve.x > low) & (curve.x < high)], [high]])
    heights = [interpolate(curve.x, seed, at) for seed in curve.scores.T]
    return [float(np.trapezoid(y, np.log(at)) / (math.log(high) - math.log(low))) for y in heights]


def _last_turn(at: Array, gap: Array) -> float:
    """Where `gap` becomes positive for good; -inf where it always is, inf where it ends without."""
    if gap[-1] <= 0:
        return math.inf
    below = np.flatnonzero(gap <= 0)
    if len(below) == 0:
        return -math.inf
    i = int(below[-1])
    return _between(at, i, -gap[i] / (gap[i + 1] - gap[i]))


def _between(at: Array, i: int, part: float) -> float:
    """The place at this part of the way from `at[i]` to the next, on a logarithmic axis."""
    return float(np.exp(np.log(at[i]) + part * (np.log(at[i + 1]) - np.log(at[i]))))


def _estimate(value: float, found: Sequence[float]) -> Estimate:
    """A value with the interval that its draws give."""
    if not found:
        return Estimate(value, None, None, None, "one seed: no interval")
    values = np.sort(np.asarray(found, dtype=float))
    if values[0] == values[-1]:
        return Estimate(value, None, None, None, NO_INTERVAL)
    n = len(values)
    # order statistics, not interpolation: infinities must stay whole
    low, high = values[math.floor((1 - LEVEL) / 2 * (n - 1))], values[math.ceil((1 + LEVEL) / 2 * (n - 1))]
    ends = [float(v) if math.isfinite(v) else None for v in (low, high)]
    said = [word for word, end in (("below", ends[0]), ("above", ends[1])) if end is None]
    note = f"the interval runs out of the range {' and '.join(said)}" if said else ""
    return Estimate(value, ends[0], ends[1], float(np.isfinite(values).mean()), note)


def _settle(form: Callable[..., Array], u: Array, y: Array, start: Sequence[float], bounds: Any) -> list[float] | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optimize.OptimizeWarning)  # a covariance nobody reads
        try:
            inside = np.clip(start, np.asarray(bounds[0]) + 1e-9, np.asarray(bounds[1]) - 1e-9)
            found, _ = optimize.curve_fit(form, u, y, p0=inside, bounds=bounds, max_nfev=400)
        except RuntimeError:  # scipy's word for "did not converge"
            return None
    return [float(v) for v in found]


def _rmse(fitted: Array, y: Array) -> float:
    return float(np.sqrt(np.mean((fitted - y) ** 2)))
