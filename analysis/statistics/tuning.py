"""Evidence on tuning: validation scores against learning rates, and what more trials would have brought."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import special

from analysis.format import Row
from analysis.statistics.inference import LEVEL, NO_SPREAD, best_weights, expected_best
from analysis.statistics.runs import group_by
from analysis.store.columns import FLAG, INT, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import style

_RATES = """
select c.sweep, c.model, c.dataset, c.train_size, c.method, c.reference, c.budget, c.cell_id, t.lr, t.hyperparameters,
       count(*) filter (t.status = 'finished') as n, count(*) filter (t.status = 'failed') as failed,
       avg(t.val_score) filter (t.status = 'finished') as mean_val,
       min(t.val_score) filter (t.status = 'finished') as min_val,
       max(t.val_score) filter (t.status = 'finished') as max_val,
       bool_or(abs(t.lr - h.lr) <= 1e-9 * t.lr and t.hyperparameters is not distinct from h.hyperparameters) as chosen
from last_attempts t join cells c using (sweep, cell_id) left join chosen h using (sweep, cell_id)
where t.stage = 'TUNE' and t.lr is not null
group by all
order by c.sweep, c.dataset, c.train_size, c.method, c.budget nulls last, t.hyperparameters nulls first, t.lr
"""


@remembered
def rates(store: Store) -> pa.Table:
    """Stage TUNE: per cell and point (a learning rate, and what else was searched) the mean validation score, range,
    trials, and whether it was chosen.
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
        ("decades", REAL),  # of learning rate around the best one whose validation score is within NEAR of its
        ("open", FLAG),  # the range tried ends before the score has fallen by NEAR: at least so many decades
        *typed(REAL, "searched", "best"),  # decades searched, the best mean validation score
    ]
)
NEAR = 0.01
"""One point."""


def best_of_n(store: Store) -> pa.Table:
    """Expected best validation score of n rates, n = 1 .. all, per cell; columns `BEST_OF_N`.

    Re-runs of a rate count once, by their mean: the curve is about how many rates were tried. The n are drawn at random
    from those tried; a grid is no random sample, and n of its points, spread evenly, would do better.

    Test scores are known at the chosen rate alone, so `test` is its confirmed mean less what the best of n is expected
    to validate below it. The choice validates a little too well, being the best, so early values are a little too low.
    The band has CONFIRM's seeds in it and the noise of the rates' validation scores, taken from CONFIRM's.
    """
    confirmed = {(r["sweep"], r["cell_id"]): r for r in store.sql(_CONFIRMED).to_pylist()}
    rows: list[Row] = []
    for named, mine in _tuned_cells(store):
        scores = np.array([row["mean_val"] for row in mine])
        chosen, seen = [row["chosen"] for row in mine], confirmed.get((named["sweep"], named["cell_id"]))
        for n, expected in enumerate(expected_best(scores.tolist()), start=1):
            row = named | {"n": n, "expected": expected}
            if seen and any(chosen):
                row |= _in_test_terms(mine, n, expected, chosen.index(True), seen)
            rows.append(row)
    return pa.Table.from_pylist(rows, schema=BEST_OF_N)


def _in_test_terms(rates: Sequence[Row], n: int, expected: float, chosen: int, seen: Row) -> Row:
    """Test score expected of the best of n rates, with the ends of its band where there are two seeds."""
    test = seen["test"] + expected - rates[chosen]["mean_val"]
    if seen["n"] < 2 or seen["noise"] is None or seen["test_variance"] + seen["noise"] <= NO_SPREAD**2:
        return {"test": test}
    weight = best_weights([row["mean_val"] for row in rates], n)
    weight[chosen] -= 1.0
    runs = np.array([row["n"] for row in rates])
    parts = np.array([seen["test_variance"] / seen["n"], seen["noise"] * float((weight**2 / runs).sum())])
    half = -special.stdtrit(seen["n"] - 1, (1 - LEVEL) / 2) * math.sqrt(float(parts.sum()))
    return {"test": test, "test_low": test - half, "test_high": test + half}


def sharpness(store: Store) -> pa.Table:
    """How exactly each cell's rate must be met, from stage TUNE; of cells with three rates or more; `SHARPNESS`.

    Where more than the rate was searched, the rates are those tried with the rest of the best point.

    Mean validation scores are joined by lines in log rate. They are noisy, and so is the best of them.
    """
    rows: list[Row] = []
    for named, tried in _tuned_cells(store):
        top = max(tried, key=lambda r: r["mean_val"])
        mine = [r for r in tried if r["hyperparameters"] == top["hyperparameters"]]
        if len(mine) < 3:
            continue
        x, y = np.log10([r["lr"] for r in mine]), np.array([r["mean_val"] for r in mine])
        best = int(y.argmax())
        right, left = _near_range(x[best:], y[best:]), _near_range(-x[best::-1], y[best::-1])
        wide = {"decades": left[0] + right[0], "open": left[1] or right[1]}
        rows.append(named | wide | {"searched": float(x[-1] - x[0]), "best": float(y[best])})
    return pa.Table.from_pylist(rows, schema=SHARPNESS)


def _near_range(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, bool]:
    """How far from the first point lines through the points stay within NEAR of it, and whether they end so."""
    level = y[0] - NEAR
    for i in range(1, len(x)):
        if y[i] < level:
            return float(x[i - 1] - x[0] + (x[i] - x[i - 1]) * (y[i - 1] - level) / (y[i - 1] - y[i])), False
    return float(x[-1] - x[0]), True


def _tuned_cells(store: Store) -> Iterator[tuple[Row, list[Row]]]:
    """Every cell's own columns, and its points that have a score, lowest rate first within what else was searched."""
    tried = [row for row in rates(store).to_pylist() if row["mean_val"] is not None]
    for key, mine in group_by(tried, *_CELL).items():
        yield dict(zip(_CELL, key, strict=True)) | {"name": style(mine[0]["method"]).name}, mine
