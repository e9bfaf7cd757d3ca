"""What the choice of a learning rate adds to the uncertainty of a comparison.

CONFIRM runs every seed at the one rate that stage TUNE chose. So the spread over CONFIRM's seeds does not show that
another draw of TUNE's noise would have chosen another rate, with another expected score. The variance of the expected
score at the chosen rate, over TUNE's noise, is what the choice adds. It is computed by quadrature, so the same data
always give the same variance.

The computation needs two things. The noise of a run comes from CONFIRM's validation scores and from TUNE's re-runs,
because nothing was selected among these runs. The expected score by rate comes from a local quadratic in log rate
through TUNE's scores. The best rate lies between rates that were tried, so the square of what they miss is added. The
variance is pooled over the budgets of a method.

If scores are equal, TUNE chooses by a rule (`search.rules`). Two noisy scores are never equal, so this module ignores
the rule. `benchmarks/calibration.py` shows that tests with this variance keep their 5 % if both methods are tuned.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from analysis.store.store import Store, remembered
from analysis.styles import Place, place_of
from analysis.verdict.inference import Array
from analysis.verdict.noise import Runs, run_noises, tuned_runs
from analysis.verdict.runs import CellKey

AT_ONCE = 2**20
"""Largest number of random numbers that are drawn in one call."""
WIDTH = 2.0
"""Width of the local fit's kernel, in steps of the grid of rates."""
FAR = 7.0
"""A rate that is this many standard deviations of a run behind the best one is never chosen."""
STEP_MEAN, STEP_FIRST = 0.4, 0.5
"""Steps of the quadrature, in standard deviations of a mean and of a first run. They give the variance to 0.5 %."""


def levels(runs: Runs) -> tuple[Array, Array]:
    """Return the expected score of each point, and the number of runs it was estimated from; both (..., K)."""
    weight = np.ones_like(runs.first)
    if runs.again.shape[-1] < 2 or runs.again.shape[-2] < 1:
        return runs.first, weight
    shift = (runs.again - runs.again[..., :1]).mean(axis=-2, keepdims=True)  # what each seed does to all rates
    level = runs.first.copy()
    np.put_along_axis(level, runs.at, (runs.again - shift).mean(axis=-1), axis=-1)
    np.put_along_axis(weight, runs.at, float(runs.again.shape[-1]), axis=-1)
    return level, weight


def smoothed(log_rates: Array, level: Array, weight: Array, chosen: NDArray[np.int64]) -> Array:
    """Return (..., K) a quadratic in log rate, fitted to scores with most weight near the chosen rate.

    Args:
        log_rates: (..., K) log10 of the rates, rising.
        level, weight: (..., K) as returned by `levels`.
        chosen: (...) index of the chosen rate.
    """
    step = (log_rates[..., -1:] - log_rates[..., :1]) / (log_rates.shape[-1] - 1)
    rates = np.broadcast_to(log_rates, level.shape)
    apart = (rates - np.take_along_axis(rates, chosen[..., None], axis=-1)) / (WIDTH * step)
    root = np.sqrt(weight * np.exp(-0.5 * apart**2))
    powers = np.stack([np.ones_like(apart), apart, apart**2], axis=-1)
    coefficients = np.linalg.pinv(root[..., None] * powers) @ (root * level)[..., None]
    return np.asarray((powers @ coefficients)[..., 0], dtype=float)


def missed(log_rates: Array, level: Array) -> Array:
    """Return (...) how far the score at the best rate may lie above the best score that was seen.

    The tried rates lie beside the best one. The estimate is how far the parabola through the best score and its two
    neighbours rises above it. If training collapses at a neighbour, that parabola bends far too much. So the estimate
    is limited to the flatter of the two parabolas that start or end at the best score. It is 0 if the best score is at
    an end of the rates: what lies beyond is not known.

    Args:
        log_rates: (..., K) log10 of the rates, rising.
        level: (..., K) expected score of each rate.
    """
    last = level.shape[-1] - 1
    if last < 2:
        return np.zeros(level.shape[:-1])
    rates, best = np.broadcast_to(log_rates, level.shape), level.argmax(axis=-1)
    ends = [np.take_along_axis(rates, np.clip(best + k, 0, last)[..., None], axis=-1)[..., 0] for k in (-1, 1)]
    rises, bends = [], []
    for first in (best - 1, best - 2, best):
        three = np.clip(first, 0, last - 2)[..., None] + np.arange(3)
        rise, bend = _parabola_top(*(np.take_along_axis(each, three, axis=-1) for each in (rates, level)), *ends)
        inside_rates = (first >= 0) & (first + 2 <= last)
        rises.append(np.where(inside_rates, rise - level.max(axis=-1), np.inf))
        bends.append(np.where(inside_rates, np.abs(bend), np.inf))
    flatter = np.where(bends[1] <= bends[2], rises[1], rises[2])
    inside = (best > 0) & (best < last)
    return np.where(inside, np.maximum(np.minimum(rises[0], flatter), 0.0), 0.0)


def _parabola_top(x: Array, y: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Return the maximum from `low` to `high` of a parabola through three points (..., 3), and its x^2 coefficient."""
    slopes = np.diff(y, axis=-1) / np.diff(x, axis=-1)
    bend = (slopes[..., 1] - slopes[..., 0]) / (x[..., 2] - x[..., 0])
    middle = (x[..., 0] + x[..., 1]) / 2  # there the parabola's slope is the first of the two
    vertex = middle - slopes[..., 0] / np.where(bend < 0, 2 * bend, -np.inf)
    at = np.stack([low, high, np.clip(vertex, low, high)])
    values = y[..., 0] + slopes[..., 0] * (at - x[..., 0]) + bend * (at - x[..., 0]) * (at - x[..., 1])
    return np.asarray(values.max(axis=0)), bend


def choice_variance(expected: Array, noise: ArrayLike, reruns: tuple[int, int]) -> Array:
    """Return (...) the variance of the expected score at the rate that TUNE chooses, over TUNE's noise.

    It is computed by quadrature.

    Args:
        expected: (..., K) expected score of each rate.
        noise: variance of one run's score, broadcast against (...).
        reruns: number of rates that are run again, and number of seeds for each. With (0, 0) the first seed chooses.
    """
    each = np.broadcast_to(np.asarray(noise, dtype=float), expected.shape[:-1])
    variances = np.zeros(expected.shape[:-1])
    rates, seeds = (min(reruns[0], expected.shape[-1]), reruns[1]) if min(reruns) > 0 else (1, 0)
    for at in np.ndindex(variances.shape):
        sd = float(np.sqrt(each[at]))
        if sd > 0.0:
            behind = np.maximum((expected[at] - expected[at].max()) / sd, -FAR)
            variances[at] = sd**2 * _variance(behind, rates, seeds if rates > 1 else 0)
    return variances


def drawn_variance(
    expected: Array, noise: ArrayLike, reruns: tuple[int, int], rng: np.random.Generator, draws: int
) -> Array:
    """Return `choice_variance` from `draws` simulated stages TUNE, which is faster for thousands of tables.

    The other arguments are those of `choice_variance`.
    """
    rates, seeds = reruns
    sd = np.sqrt(np.asarray(noise, dtype=float))[..., None]
    total, squares = np.zeros(expected.shape[:-1]), np.zeros(expected.shape[:-1])
    remaining, at_once = draws, max(1, AT_ONCE // expected.size)
    while remaining > 0:
        shape = (min(remaining, at_once), *expected.shape)
        remaining -= shape[0]
        first = expected + sd * rng.normal(size=shape)
        best = np.argsort(-first, axis=-1)[..., : max(1, rates)]
        observed = np.take_along_axis(first, best, axis=-1)
        true = np.take_along_axis(np.broadcast_to(expected, shape), best, axis=-1)
        if seeds:
            rerun_mean = true + sd / np.sqrt(seeds) * rng.normal(size=true.shape)
            observed = (observed + seeds * rerun_mean) / (1 + seeds)
        chosen_score = np.take_along_axis(true, observed.argmax(axis=-1)[..., None], axis=-1)[..., 0]
        total += chosen_score.sum(axis=0)
        squares += (chosen_score**2).sum(axis=0)
    return np.asarray(np.maximum(squares / draws - (total / draws) ** 2, 0.0), dtype=float)


def _variance(behind: Array, rates: int, seeds: int) -> float:
    """Return the variance of the expected score at the chosen rate, if one run's noise has variance 1.

    A rate's mean over its 1 + S runs is normal with variance 1 / (1 + S), and its first run is that mean plus an
    independent normal of variance S / (1 + S). One integral is over `s`, the mean of the chosen rate. The other is over
    `t`, the best first run among the rates that are not run again. Given both, rates are independent. So the integrand
    is a sum of products over rates, which one pass over the rates adds up.

    Args:
        behind: (K,) expected scores minus the largest, not below -FAR.
        rates, seeds: number of rates that are run again, and of further seeds for each; 1 and 0 if none is.
    """
    spread = (1 + seeds) ** -0.5
    s = _nodes(-FAR - 5 * spread, 5 * spread, STEP_MEAN * spread)
    apart = (s - behind[:, None]) / spread
    density = np.exp(-0.5 * apart**2) / np.sqrt(2 * np.pi) / spread
    if rates in (1, len(behind)):  # all rates have the same number of runs, so the best mean is chosen
        chance = density * [np.prod(special.ndtr(np.delete(apart, k, axis=0)), axis=0) for k in range(len(behind))]
        chances = chance.sum(axis=-1) * (s[1] - s[0])
        return max(0.0, float(chances @ behind**2 - (chances @ behind) ** 2))
    t = _nodes(-FAR - 5, 5, STEP_FIRST)
    step, below = s[1] - s[0], special.ndtr(t - behind[:, None])
    at = np.exp(-0.5 * (t - behind[:, None]) ** 2) / np.sqrt(2 * np.pi)
    chosen = density[..., None] * special.ndtr((s[:, None] - t) / (seeds**0.5 * spread))  # its first run is above t
    beaten = step * (np.cumsum(chosen, axis=1) - chosen / 2) - step**2 / 12 * np.gradient(chosen, step, axis=1)
    # axes: whether a rate is at t; power of the chosen rate's score (0 while none is chosen); number of rates above t
    sums = np.zeros((2, 3, rates + 1, len(s), len(t)))
    sums[0, 0, 0] = 1.0
    for k, score in enumerate(behind):
        updated = sums * below[k]
        updated[1] += sums[0] * at[k]
        updated[:, :, 1:] += sums[:, :, :-1] * beaten[k]
        now_chosen = sums[:, 0, :-1] * chosen[k]
        updated[:, 1, 1:] += score * now_chosen
        updated[:, 2, 1:] += score**2 * now_chosen
        sums = updated
    mean, square = sums[1, 1:, rates].sum(axis=(-1, -2)) * step * (t[1] - t[0])
    return max(0.0, float(square - mean**2))


def _nodes(low: float, high: float, step: float) -> Array:
    return np.linspace(low, high, 1 + int(np.ceil((high - low) / step)))


def chosen_variance(
    log_rates: Array | None,
    runs: Runs,
    chosen: NDArray[np.int64],
    noise: ArrayLike,
    reruns: tuple[int, int],
    rng: np.random.Generator | None = None,
    draws: int = 400,
    *,
    without_score: Sequence[float] = (),
) -> Array:
    """Return (...) the variance that the choice of a rate adds to a cell's score.

    It is `choice_variance` plus the square of `missed`. If rates alone were searched, the expected scores are taken
    from a smooth curve through the scores of stage TUNE, which has less noise. Otherwise they are these scores.

    Args:
        log_rates: (..., K) log10 of the rates; None if other hyperparameters were searched with them.
        chosen: (...) the point that was chosen.
        noise: variance of one run's score, broadcast against (...).
        reruns: how many rates are run again, and on how many seeds each.
        rng, draws: with a generator, the variance is simulated from this number of draws (`drawn_variance`).
        without_score: log10 of the rates of a single cell that failed or were pruned (`rates_without_score`).
    """
    level, weight = levels(runs)
    expected = level if log_rates is None else smoothed(log_rates, level, weight, chosen)
    if rng is None:
        variance = choice_variance(expected, noise, reruns)
    else:
        variance = drawn_variance(expected, noise, reruns, rng, draws)
    if log_rates is None:
        return variance
    return variance + missed(*with_rates_without_score(log_rates, level, without_score)) ** 2


def with_rates_without_score(log_rates: Array, level: Array, without_score: Sequence[float]) -> tuple[Array, Array]:
    """Return the rates of a cell, rising, and their scores, with the rates that failed or were pruned.

    These count as no better than the worst rate that finished, as in the local fit.

    Args:
        log_rates, level: (K,) log10 of the rates that finished, and their scores; (..., K) if `without_score` is empty.
        without_score: log10 of the other rates.
    """
    if not len(without_score):
        return log_rates, level
    rates = np.concatenate([log_rates, without_score])
    order = rates.argsort()
    return rates[order], np.concatenate([level, np.full(len(without_score), level.min())])[order]


@remembered
def choice_variances(store: Store) -> dict[CellKey, float]:
    """Return the variance that the choice of a rate adds to each cell's score, pooled over its method's budgets.

    It is 0 if there was nothing to choose: a method that trains nothing, rates that were fixed beforehand, or a single
    point. A cell is left out if the variance is not known. This is so if fewer than two of its points finished, if its
    TUNE is not in the store, or if CONFIRM's validation scores in its place do not show the noise of a run.
    """
    cells, tuned, noise = store.table("cells").to_pylist(), tuned_runs(store), run_noises(store)
    without_score = rates_without_score(store)
    chosen_rates = {(r["sweep"], r["cell_id"]): r["lr"] for r in store.table("chosen").to_pylist()}
    variances: dict[CellKey, float] = {}
    chosen: dict[tuple[Place, str], dict[CellKey, float]] = defaultdict(dict)
    for cell in cells:
        key = (cell["sweep"], cell["cell_id"])
        rates, runs = tuned.get(key, (None, None))
        if (cell["tune_trials"] or 0) < 2 and (runs is None or len(runs.first) < 2):
            variances[key] = 0.0
        elif runs is not None and len(runs.first) > 1 and key in noise:
            rate_known = rates is not None and key in chosen_rates
            best = int(np.abs(rates - np.log10(chosen_rates[key])).argmin() if rate_known else runs.first.argmax())
            reruns = (runs.again.shape[0], max(0, runs.again.shape[1] - 1))
            variance = chosen_variance(
                rates, runs, np.array(best), noise[key], reruns, without_score=without_score.get(key, ())
            )
            chosen[place_of(cell), cell["method"]][key] = float(variance)
    for budgets in chosen.values():
        variances |= dict.fromkeys(budgets, sum(budgets.values()) / len(budgets))
    return variances


@remembered
def rates_without_score(store: Store) -> dict[CellKey, list[float]]:
    """Return for each cell log10 of stage TUNE's rates that failed or were pruned, and that no other trial scored."""
    rows = store.sql(
        """
        select sweep, cell_id, lr from searched
        group by all having bool_and(status <> 'finished' or val_score is null) order by all
    """
    ).to_pylist()
    rates: dict[CellKey, list[float]] = defaultdict(list)
    for row in rows:
        rates[row["sweep"], row["cell_id"]].append(float(np.log10(row["lr"])))
    return dict(rates)
