"""Evidence on tuning: validation scores by learning rate, the expected best of n, and the width of the optimum."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from scipy import special

from analysis.format import Row
from analysis.store.columns import FLAG, INT, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import style
from analysis.verdict.inference import LEVEL, NO_SPREAD, Array
from analysis.verdict.runs import group_by

_RATES = """
select c.sweep, c.model, c.dataset, c.train_size, c.method, c.reference, c.budget, c.cell_id, t.lr, t.hyperparameters,
       count(*) filter (t.status = 'finished') as n, count(*) filter (t.status = 'failed') as failed,
       avg(t.val_score) filter (t.status = 'finished') as mean_val,
       min(t.val_score) filter (t.status = 'finished') as min_val,
       max(t.val_score) filter (t.status = 'finished') as max_val,
       bool_or(abs(t.lr - h.lr) <= 1e-9 * t.lr and t.hyperparameters is not distinct from h.hyperparameters) as chosen
from searched t join cells c using (sweep, cell_id) left join chosen h using (sweep, cell_id)
group by all
order by c.sweep, c.dataset, c.train_size, c.method, c.budget nulls last, t.hyperparameters nulls first, t.lr
"""


@remembered
def rates(store: Store) -> pa.Table:
    """Return the validation scores of stage TUNE, a row for each cell and point, and whether the point was chosen.

    A point is a learning rate with the other hyperparameters that were searched. Scores are mean, minimum and maximum.
    """
    return store.sql(_RATES)


_CONFIRMED = """
select sweep, cell_id, avg(test_score) as test, var_samp(test_score) as test_variance, var_samp(val_score) as noise,
       count(*) as n
from confirmed where test_score is not null group by all
"""
_CELL = ("sweep", "dataset", "train_size", "method", "reference", "budget", "cell_id")
_CELL_TYPES = [*typed(TEXT, *_CELL[:5]), ("budget", INT), *typed(TEXT, "cell_id", "name")]
BEST_OF_N = pa.schema(
    [
        *_CELL_TYPES,
        ("n", INT),
        ("expected", REAL),  # validation score of the best of n rates
        *typed(REAL, "test", "test_low", "test_high"),  # the same in test terms, with its pointwise 95 % band
    ]
)
SHARPNESS = pa.schema(
    [
        *_CELL_TYPES,
        ("decades", REAL),  # width of the range of learning rates whose validation score is within NEAR of the best
        ("open", FLAG),  # the tried range ends before the score has fallen by NEAR, so `decades` is a lower bound
        *typed(REAL, "searched", "best"),  # decades searched, the best mean validation score
    ]
)
NEAR = 0.01
"""One percentage point."""


def best_of_n(store: Store) -> pa.Table:
    """Return the expected best validation score of n tried rates for n = 1 .. all, for each cell; columns `BEST_OF_N`.

    Re-runs of a rate count once, by their mean, because the curve is about the number of rates. The n rates are drawn
    at random from those that were tried. A grid is not a random sample: n evenly spread points would do better.

    Test scores are known for the chosen rate only. So `test` is its confirmed mean, minus the distance in validation
    score between the chosen rate and the expected best of n. The validation score of the chosen rate is a little too
    high, because it was selected; so values for small n are a little too low. The band includes CONFIRM's seeds and the
    noise of the rates' validation scores, taken from CONFIRM's.
    """
    confirmed = {(r["sweep"], r["cell_id"]): r for r in store.sql(_CONFIRMED).to_pylist()}
    rows: list[Row] = []
    for named, points in _tuned_cells(store):
        scores = np.array([row["mean_val"] for row in points])
        chosen, confirmed_cell = [row["chosen"] for row in points], confirmed.get((named["sweep"], named["cell_id"]))
        for n, expected in enumerate(expected_best(scores.tolist()), start=1):
            row = named | {"n": n, "expected": expected}
            if confirmed_cell and any(chosen):
                row |= _in_test_terms(points, n, expected, chosen.index(True), confirmed_cell)
            rows.append(row)
    return pa.Table.from_pylist(rows, schema=BEST_OF_N)


def _in_test_terms(rates: Sequence[Row], n: int, expected: float, chosen: int, confirmed_cell: Row) -> Row:
    """Return the expected test score of the best of n rates. With two seeds or more it has the ends of its band."""
    test = confirmed_cell["test"] + expected - rates[chosen]["mean_val"]
    if (
        confirmed_cell["n"] < 2
        or confirmed_cell["noise"] is None
        or confirmed_cell["test_variance"] + confirmed_cell["noise"] <= NO_SPREAD**2
    ):
        return {"test": test}
    weight = best_weights([row["mean_val"] for row in rates], n)
    weight[chosen] -= 1.0
    runs = np.array([row["n"] for row in rates])
    parts = np.array(
        [
            confirmed_cell["test_variance"] / confirmed_cell["n"],
            confirmed_cell["noise"] * float((weight**2 / runs).sum()),
        ]
    )
    half = -special.stdtrit(confirmed_cell["n"] - 1, (1 - LEVEL) / 2) * math.sqrt(float(parts.sum()))
    return {"test": test, "test_low": test - half, "test_high": test + half}


def sharpness(store: Store) -> pa.Table:
    """Return how wide the range of good learning rates is for each cell; columns `SHARPNESS`.

    Cells with fewer than three rates are left out. If more than the rate was searched, the rates are those that were
    tried with the other hyperparameters of the best point. Mean validation scores are joined by lines in log rate. They
    are noisy, and so is the best of them.
    """
    rows: list[Row] = []
    for named, tried in _tuned_cells(store):
        top = max(tried, key=lambda r: r["mean_val"])
        comparable = [r for r in tried if r["hyperparameters"] == top["hyperparameters"]]
        if len(comparable) < 3:
            continue
        x, y = np.log10([r["lr"] for r in comparable]), np.array([r["mean_val"] for r in comparable])
        best = int(y.argmax())
        right, left = _near_range(x[best:], y[best:]), _near_range(-x[best::-1], y[best::-1])
        wide = {"decades": left[0] + right[0], "open": left[1] or right[1]}
        rows.append(named | wide | {"searched": float(x[-1] - x[0]), "best": float(y[best])})
    return pa.Table.from_pylist(rows, schema=SHARPNESS)


def _near_range(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, bool]:
    """Return how far from the first point the score stays within NEAR of it, and whether it does so to the end."""
    level = y[0] - NEAR
    for i in range(1, len(x)):
        if y[i] < level:
            return float(x[i - 1] - x[0] + (x[i] - x[i - 1]) * (y[i - 1] - level) / (y[i - 1] - y[i])), False
    return float(x[-1] - x[0]), True


def _tuned_cells(store: Store) -> Iterator[tuple[Row, list[Row]]]:
    """Yield the columns that name each cell, and its points that have a score, ordered by rate."""
    tried = [row for row in rates(store).to_pylist() if row["mean_val"] is not None]
    for key, cell_points in group_by(tried, *_CELL).items():
        yield dict(zip(_CELL, key, strict=True)) | {"name": style(cell_points[0]["method"]).name}, cell_points


def expected_best(scores: Sequence[float]) -> list[float]:
    """Return the expected best score of n tuning trials for n = 1 .. N, if n of the N scores are drawn at random.

    This is the unbiased estimator of Tang et al. (ACL 2020, arXiv 2004.11947), without replacement. If the curve still
    rises at N, more tuning would have helped.
    """
    ordered = np.sort(np.asarray(scores, dtype=float))
    return [float(best_weights(ordered, n) @ ordered) for n in range(1, len(ordered) + 1)]


def best_weights(scores: ArrayLike, n: int) -> Array:
    """Return each score's chance to be the best of n that are drawn at random, as in `expected_best`."""
    ranks = np.argsort(np.argsort(scores, kind="stable"), kind="stable")
    return np.asarray(special.comb(ranks, n - 1) / special.comb(len(ranks), n), dtype=float)
