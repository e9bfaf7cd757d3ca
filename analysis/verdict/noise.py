"""The noise of a run's validation score, from CONFIRM's scores and from TUNE's re-runs.

Nothing was selected among these runs. All methods of a data set share one noise, unless a method is clearly noisier.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from analysis.format import Row
from analysis.store.store import Store, remembered
from analysis.styles import Place, place_of
from analysis.verdict.inference import Array
from analysis.verdict.runs import CellKey, Seed, group_by, seed_of

Point = tuple[float, str | None]
"""(learning rate, the other hyperparameters)."""
APART = 0.01
"""Level of the test by which `method_noise` sets a method aside: ISO 5725-2's level for outliers."""

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
