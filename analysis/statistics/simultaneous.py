"""Intervals that hold together: critical values of several t intervals at once, and means drawn again jointly.

`benchmarks/coverage.py` measures what they cover. A bootstrap of three to ten seeds covers 80 to 90 %: it has too few
values to draw from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import stats

from analysis.format import Row
from analysis.statistics.inference import LEVEL, Difference
from analysis.statistics.runs import baseline_runs, by, confirmed, datasets_of, gaps, over_datasets, sharing_seeds
from analysis.statistics.scaling import compared
from analysis.store.columns import INT, PLACE, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import place_of

DRAWS = 400


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
    return float(stats.t.isf(sidak(intervals) / 2, freedom))


def sidak(intervals: int) -> float:
    """The error that each of `intervals` may take, so that all of them hold at once with chance LEVEL."""
    return float(1 - LEVEL ** (1 / intervals))


def t_weights(seeds: Sequence[int], draws: int = DRAWS) -> NDArray[np.float64]:
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
    chi2 = stats.chi2.ppf(rng.random(draws), len(seeds) - 1)
    normal = rng.standard_normal((max(seeds) + 1, draws))[list(seeds)]  # row by row: a seed's do not depend on others
    return np.asarray((normal / np.sqrt(len(seeds) * chi2)).T, dtype=float)


DIFFERENCES = pa.schema(
    [
        *typed(TEXT, *PLACE, "method", "baseline", "reference"),  # dataset null: the mean over `n_datasets` data sets
        *typed(INT, "budget", "n", "n_datasets", "family"),  # family: differences that hold at once, all of the table
        *typed(REAL, "difference", "low", "high"),  # null where a point has no spread, or one seed
        ("band", TEXT),  # WITH_CHOICE or GIVEN_RATES; null without one
        *typed(TEXT, "verdict"),  # null for a mean over data sets: at a single budget it is not tested
    ]
)
WITH_CHOICE, GIVEN_RATES = "with the choice of rates", "given the chosen rates"


@remembered
def difference_curves(store: Store) -> pa.Table:
    """Every method's paired difference to the question's baseline over the budgets of a place; columns `DIFFERENCES`.

    A sweep over several data sets also has rows with a null `dataset`, as `scaling.curve` has: the mean over all its
    data sets, for methods and budgets that have a difference on each.

    `low` and `high` are a band: with 95 % all differences of the table lie in theirs at once, whatever the order
    of tests: a verdict may be withheld, because the mean over budgets is not settled, where a band leaves out zero.
    What the choice of both arms' rates adds is in it where it is known at every budget of the curve.
    """
    single = compared(store)
    each = [row | {"of": of} for row, of in [*single, *_means(store, [row for row, _ in single])]]
    family = sum(r["of"].testable for r in each)  # the rows over all budgets, which no panel shows, too
    rows: list[Row] = []
    for curve in by([r for r in each if r["reference"]], *PLACE, "method").values():
        known = all(r["choice_sd"] is not None for r in curve)
        for r in sorted(curve, key=lambda r: r["budget"]):
            row = {name: r.get(name) for name in DIFFERENCES.names} | {"family": family, "low": None, "high": None}
            if r["of"].testable:
                added = r["choice_sd"] ** 2 if known else 0.0
                row["low"], row["high"] = r["of"].widened(added).interval(sidak(family))
                row["band"] = WITH_CHOICE if known else GIVEN_RATES
            rows.append(row)
    return pa.Table.from_pylist(rows, schema=DIFFERENCES)


def _means(store: Store, single: Sequence[Row]) -> list[tuple[Row, Difference]]:
    """The differences at each budget averaged over all data sets of a sweep and training size."""
    cells, sharing, found = confirmed(store), sharing_seeds(store), []
    at_budgets = [r for r in single if r["reference"] and r["dataset"]]
    for key, of_place in by(at_budgets, "sweep", "model", "train_size").items():
        sets = len(datasets_of(cells, *key))
        shared = key[0] in sharing
        for (method, reference), rows in by(of_place, "method", "reference").items():
            if sets < 2 or len(rows) < sets:
                continue
            mine = [cells[place_of(r), method, reference] for r in rows]
            other = [baseline_runs(cells, place_of(r), r["baseline"], reference) for r in rows]
            difference = over_datasets([gaps(*pair) for pair in zip(mine, other, strict=True)], shared=shared)
            if difference is not None:
                known = [r["choice_sd"] ** 2 for r in rows if r["choice_sd"] is not None]
                # choices on shared seeds may go wrong alike
                added = (sum(known) / sets / (1 if shared else sets)) ** 0.5 if len(known) == sets else None
                row = {"dataset": None, "n_datasets": sets, "n": difference.n, "difference": difference.mean}
                found.append((rows[0] | row | {"choice_sd": added, "verdict": None}, difference))
    return found
