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

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from analysis.format import Row
from analysis.statistics.runs import Seed, group_by, seed_of
from analysis.store.store import Store, remembered
from analysis.styles import Place, place_of

Array = NDArray[np.float64]
CellKey = tuple[str, str]
"""(sweep, cell)."""
Point = tuple[float, str | None]
"""(learning rate, the other hyperparameters)."""

AT_ONCE = 2**20
"""Largest number of random numbers that are drawn in one call."""
APART = 0.01
"""Level of the test by which `method_noise` sets a method aside: ISO 5725-2's level for outliers."""
WIDTH = 2.0
"""Width of the local fit's kernel, in steps of the grid of rates."""
FAR = 7.0
"""A rate that is this many standard deviations of a run behind the best one is never chosen."""
STEP_MEAN, STEP_FIRST = 0.4, 0.5
"""Steps of the quadrature, in standard deviations of a mean and of a first run. They give the variance to 0.5 %."""

_CONFIRMED = """
select sweep, model, dataset, train_size, reference, method, cell_id, data_seed, init_seed, basis_seed, val_score
from confirmed semi join cells using (sweep, cell_id)
where val_score is not null and lr is not null
"""
"""If a part of `cells` is lost, some runs have no cell. They are left out."""


@dataclass(frozen=True)
class Runs:
    """Validation scores of stage TUNE, of one cell or of many cells of the same shape (leading axes).

    Attributes:
        first: (..., K) score of every point on the first seed.
        again: (..., k, 1 + S) scores of the k points that were run again, the first seed included; k or S may be 0.
        at: (..., k) indices of the points that were run again.
    """

    first: Array
    again: Array
    at: NDArray[np.int64]


def run_noise(scores: Array) -> tuple[Array, int]:
    """Return the residual sum of squares of scores (...), after cell and seed effects, and its degrees of freedom.

    Their ratio is the variance of one run's own noise.

    Args:
        scores: (..., cells, seeds) validation scores of stage CONFIRM. A missing run is NaN, in all tables alike.
    """
    residuals, projection, _ = _residuals(scores)
    return (residuals**2).sum(axis=-1), round(float(np.trace(projection)))


def _residuals(scores: Array) -> tuple[Array, Array, Array]:
    """Return the runs' residuals after cell and seed effects, the projection, and which cell each run belongs to.

    The shapes are (..., runs), (runs, runs) and (runs, cells). The residuals are the scores times the projection. In
    the last matrix a run has 1 at its cell, and 0 at the others.
    """
    cells, seeds = scores.shape[-2:]
    present = np.isfinite(scores).reshape(-1, cells, seeds)[0].ravel()
    design = np.hstack([np.repeat(np.eye(cells), seeds, axis=0), np.tile(np.eye(seeds), (cells, 1))])[present]
    projection = np.eye(len(design)) - design @ np.linalg.pinv(design, rcond=1e-10)
    residuals = scores.reshape(*scores.shape[:-2], -1)[..., present] @ projection
    return residuals, projection, np.repeat(np.eye(cells), seeds, axis=0)[present]


def method_noise(scores: Array) -> tuple[Array, NDArray[np.bool_]] | None:
    """Return the variance of one run's noise by method, and which methods share a pooled one; both (..., methods).

    Methods share one variance. A method with clearly more noise (some of its seeds diverged, for example) is set aside
    and gets its own, and the test is repeated until none is set aside. The test is an F test of the residuals without
    that method, at 1 % over the methods, as Cochran's test of laboratories (ISO 5725-2). It is exact for normal noise
    that is the same at all budgets. A budget with two methods cannot say which one is noisy, so the test ignores it.

    Args:
        scores: (..., budgets, methods, seeds) as in `run_noise`. A method is NaN at budgets that it does not have.

    Returns:
        None if no budget has two methods with two common seeds, so that the noise is unknown.
    """
    noises = _pooled_noise(scores.reshape(-1, *scores.shape[-3:]))
    shape = (*scores.shape[:-3], scores.shape[-2])
    return None if noises is None else (noises[0].reshape(shape), noises[1].reshape(shape))


def _pooled_noise(scores: Array) -> tuple[Array, NDArray[np.bool_]] | None:
    parts = [run_noise(scores[:, budget]) for budget in range(scores.shape[1])]
    freedom = sum(f for _, f in parts)
    if not freedom:
        return None
    pooled = np.sum([squares for squares, _ in parts], axis=0) / freedom
    noise = np.repeat(pooled[:, None], scores.shape[2], axis=-1)
    alike = np.ones(noise.shape, dtype=bool)
    largest, own_noise = _noisiest(scores)
    for at in set(largest[largest >= 0].tolist()):
        tables, others = np.flatnonzero(largest == at), np.flatnonzero(np.arange(scores.shape[2]) != at)
        if (rest_noise := _pooled_noise(scores[tables][:, :, others])) is not None:
            noise[np.ix_(tables, others)], alike[np.ix_(tables, others)] = rest_noise
            noise[tables, at], alike[tables, at] = own_noise[tables, at], False
    return noise, alike


def _noisiest(scores: Array) -> tuple[NDArray[np.int64], Array]:
    """Return (tables,) the method with clearly more noise than the others (-1 if none), and (tables, methods) noises.

    Without a method the sum of squares falls by a v + (1 - a) v_rest, in expectation and per degree of freedom.
    """
    total, explained = np.zeros((len(scores), 1)), np.zeros((len(scores), scores.shape[2]))
    freedom, own_freedom, trace = 0.0, np.zeros(scores.shape[2]), np.zeros(scores.shape[2])
    for budget in range(scores.shape[1]):
        residuals, projection, cell_of_run = _residuals(scores[:, budget])
        blocks = projection * (cell_of_run @ cell_of_run.T)
        inverse = np.linalg.pinv(blocks, rcond=1e-8, hermitian=True)
        cell_freedom = np.rint(np.diag(inverse @ blocks) @ cell_of_run)
        if (cell_freedom > 0).sum() < 3:
            continue
        total += (residuals**2).sum(axis=-1, keepdims=True)
        # by cell: how much the sum of squares falls without the runs of that cell
        explained += (residuals * (residuals @ inverse)) @ cell_of_run
        freedom += round(float(np.trace(projection)))
        own_freedom += cell_freedom
        trace += np.diag(projection) @ cell_of_run
    testable = (own_freedom > 0) & (freedom > own_freedom)
    freedoms, other_freedoms, part = (
        np.where(testable, x, 1.0) for x in (own_freedom, freedom - own_freedom, trace / np.maximum(own_freedom, 1.0))
    )
    rest_noise = np.maximum(total - explained, np.finfo(float).tiny) / other_freedoms
    with np.errstate(over="ignore"):
        p = np.where(testable, special.fdtrc(freedoms, other_freedoms, explained / freedoms / rest_noise), 1.0)
    largest = np.where(p.min(axis=-1) < APART / max(1, int(testable.sum())), p.argmin(axis=-1), -1)
    return largest, np.maximum((explained / freedoms - (1 - part) * rest_noise) / part, 0.0)


def rerun_noise(again: Array) -> tuple[Array, int]:
    """Return `run_noise` of the rates that TUNE ran again, without the seed by which they were selected.

    This can be larger than CONFIRM's noise. CONFIRM compares methods, often at one rate, and a seed's examples affect
    them in the same way. TUNE compares rates, which have less in common.

    Args:
        again: (..., k, 1 + S) as in `Runs`. If S or k is below 2, there are no degrees of freedom.
    """
    return run_noise(again[..., 1:]) if again.shape[-2] and again.shape[-1] > 1 else (np.zeros(again.shape[:-2]), 0)


def noise_share(scores: Array) -> Array:
    """Return (...) the noise variance of a mean over budgets, divided by that of one run.

    It is 1 / budgets if the budgets are independent. They may not be: the budgets of a method share TUNE's seeds, so a
    seed may affect all its choices in the same way. CONFIRM's scores show by how much.

    Args:
        scores: (..., budgets, cells, seeds) validation scores of stage CONFIRM, of the same methods at every budget.

    Returns:
        From 1 / budgets to 1; 1 if the scores leave no degrees of freedom.
    """
    budgets = scores.shape[-3]
    (each, freedom), (mean, _) = run_noise(scores), run_noise(scores.mean(axis=-3))
    run_variance = each.mean(axis=-1)
    if not freedom:
        return np.ones_like(run_variance)
    return np.clip(mean / np.where(run_variance > 0, run_variance, 1.0), 1.0 / budgets, 1.0)


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
def run_noises(store: Store) -> dict[CellKey, float]:
    """Return the variance of one run in each cell: CONFIRM's, or TUNE's re-runs' if that is larger.

    Some methods of a place have about the same variance, and their cells share one estimate. `method_noise` decides
    from CONFIRM's scores which methods these are, and that holds for both stages. Cells of unknown variance are left
    out.
    """
    cells, tuned = store.table("cells").to_pylist(), tuned_runs(store)
    rerun_noises: dict[tuple[Place, str], list[tuple[Array, int]]] = defaultdict(list)
    for cell in cells:
        if (key := (cell["sweep"], cell["cell_id"])) in tuned:
            rerun_noises[place_of(cell), cell["method"]].append(rerun_noise(tuned[key][1].again))
    cells_by_place = _by_place(cells)
    variances: dict[CellKey, float] = {}
    for place, alike, noise in _confirm_noise(store, cells_by_place):
        parts = [part for method in alike for part in rerun_noises[place, method]]
        freedom = sum(f for _, f in parts)
        tune_noise = float(sum(s for s, _ in parts)) / freedom if freedom else 0.0
        sharing_cells = (c for c in cells_by_place[place] if c["method"] in alike)
        variances |= {(c["sweep"], c["cell_id"]): max(noise, tune_noise) for c in sharing_cells}
    return variances


def _by_place(rows: Iterable[Row]) -> dict[Place, list[Row]]:
    """Group rows by place."""
    groups: dict[Place, list[Row]] = defaultdict(list)
    for row in rows:
        groups[place_of(row)].append(row)
    return dict(groups)


def _confirm_noise(
    store: Store, cells_by_place: Mapping[Place, Sequence[Row]]
) -> Iterator[tuple[Place, list[str], float]]:
    """Yield each place, the names of methods that share a noise, and its variance by CONFIRM's scores.

    Every method of a place is in one of the lists. The noise is estimated at budgets with two methods or more, or from
    all cells together if no budget has two. With a single cell the noise of a run cannot be separated from the effect
    of its seed. Then the whole variance over seeds is taken.
    """
    for place, place_runs in _by_place(store.sql(_CONFIRMED).to_pylist()).items():
        names = list(dict.fromkeys(cell["method"] for cell in cells_by_place[place]))
        budgets = list(group_by(place_runs, "reference").values())
        noises = method_noise(_scores(budgets, names))
        if noises is not None:
            noise, alike = noises
            yield place, [name for name, common in zip(names, alike, strict=True) if common], float(noise[alike][0])
            for at in np.flatnonzero(~alike):
                yield place, [names[at]], float(noise[at])
            continue
        squares, freedom = run_noise(
            _scores([place_runs], list(dict.fromkeys(r["cell_id"] for r in place_runs)), "cell_id")[0]
        )
        single_scores = [r["val_score"] for r in place_runs]
        if freedom:
            yield place, names, float(squares) / freedom
        elif len({r["cell_id"] for r in place_runs}) == 1 < len(single_scores):
            yield place, names, float(np.var(single_scores, ddof=1))


def _scores(budgets: Sequence[Sequence[Row]], names: Sequence[str], column: str = "method") -> Array:
    """Return (budgets, names, seeds) validation scores. A missing score is NaN."""
    seeds = list(dict.fromkeys(seed_of(r) for runs in budgets for r in runs))
    scores = np.full((len(budgets), len(names), len(seeds)), np.nan)
    for budget, runs in enumerate(budgets):
        for r in runs:
            scores[budget, names.index(r[column]), seeds.index(seed_of(r))] = r["val_score"]
    return scores


@remembered
def tuned_runs(store: Store) -> dict[CellKey, tuple[Array | None, Runs]]:
    """Return for each cell log10 of stage TUNE's rates, and their scores. The rates are None if more was searched."""
    rows = store.sql(
        """
        select sweep, cell_id, lr, hyperparameters, data_seed, init_seed, basis_seed, val_score from searched
        where status = 'finished' and val_score is not null
        order by sweep, cell_id, lr, hyperparameters nulls first, slot
    """
    ).to_pylist()
    cells: dict[CellKey, dict[Point, dict[Seed, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        cells[row["sweep"], row["cell_id"]][row["lr"], row["hyperparameters"]][seed_of(row)] = row["val_score"]
    return {key: _of_points(points) for key, points in cells.items()}


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


def _of_points(points: dict[Point, dict[Seed, float]]) -> tuple[Array | None, Runs]:
    """Return log10 of the rates (None if more was searched), and the scores of the points that ran on the first seed.

    The first seed is the one on which most points ran, because seeds have no order. Of the re-runs only the seeds count
    that all re-run points have.
    """
    start = Counter(seed for runs in points.values() for seed in runs).most_common(1)[0][0]
    points_on_start = {point: runs for point, runs in points.items() if start in runs}
    rerun = [i for i, runs in enumerate(points_on_start.values()) if len(runs) > 1]
    scores_by_point = list(points_on_start.values())
    shared = (
        sorted(set.intersection(*(set(scores_by_point[i]) for i in rerun)), key=lambda s: (s != start, s))
        if rerun
        else []
    )
    rerun_scores = np.array([[scores_by_point[i][seed] for seed in shared] for i in rerun], dtype=float)
    rates = np.log10([lr for lr, _ in points_on_start])
    alone = all(extra is None for _, extra in points_on_start) and len(set(rates.tolist())) == len(points_on_start)
    runs = Runs(
        np.array([each[start] for each in scores_by_point], dtype=float),
        rerun_scores.reshape(len(rerun), len(shared)),
        np.array(rerun, dtype=np.int64),
    )
    return (rates if alone and len(points_on_start) > 1 else None), runs
