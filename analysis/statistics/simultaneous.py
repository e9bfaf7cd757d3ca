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
from analysis.statistics.inference import LEVEL, NO_SPREAD, half_width
from analysis.statistics.runs import by
from analysis.statistics.scaling import comparisons
from analysis.store.columns import INT, PLACE, REAL, TEXT, typed
from analysis.store.store import Store, remembered

DRAWS = 400


def critical(intervals: int, freedom: float, level: float = LEVEL) -> float:
    """Standard errors that `intervals` t intervals reach out, so that all of them hold at once with chance `level`.

    Sidak's (J. Am. Stat. Assoc. 62, 1967), with the degrees of freedom of one interval: exact where they are
    independent, and wider than needed where they go together. A quantile of the largest of joint draws (sup-t) is
    narrower, and covers 83 to 93 % with 3 seeds.

    Raises:
        ValueError: no interval.
    """
    if intervals < 1:
        raise ValueError(f"intervals that hold at once must be 1 or more, got {intervals}")
    return float(stats.t.isf(sidak(intervals, level) / 2, freedom))


def sidak(intervals: int, level: float = LEVEL) -> float:
    """The error that each of `intervals` may take, so that all of them hold at once with chance `level`."""
    return float(1 - level ** (1 / intervals))


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
        *typed(TEXT, *PLACE, "method", "baseline", "reference"),
        *typed(INT, "budget", "n", "family"),  # family: comparisons that hold at once, all that the verdicts are for
        *typed(REAL, "difference", "low", "high"),  # null where a point has no spread, or one seed
        ("band", TEXT),  # WITH_CHOICE or GIVEN_RATES; null without one
        *typed(TEXT, "verdict"),
    ]
)
WITH_CHOICE, GIVEN_RATES = "with the choice of rates", "given the chosen rates"


@remembered
def difference_curves(store: Store, baseline: str | None = None) -> pa.Table:
    """Every method's paired difference to a baseline over the budgets of a place; columns `DIFFERENCES`.

    `low` and `high` are a band: with 95 % all comparisons of the table lie in theirs at once, whatever the order
    of tests: a verdict may be withheld, because the mean over budgets is not settled, where a band leaves out zero.
    What the choice of both arms' rates adds is in it where it is known at every budget of the curve.
    """
    rows: list[Row] = []
    compared = comparisons(store, baseline).to_pylist()
    family = sum(map(_spread, compared))
    for curve in by([r for r in compared if r["reference"] is not None], *PLACE, "method").values():
        known = all(r["choice_sd"] is not None for r in curve)
        for r in sorted(curve, key=lambda r: r["budget"]):
            row = {name: r.get(name) for name in DIFFERENCES.names} | {"family": family, "low": None}
            row |= {"high": None, "band": None}
            if _spread(r):
                added = r["choice_sd"] ** 2 if known else 0.0
                half = float(half_width([r["error"] ** 2], [r["freedom"]], added, sidak(family)))
                row |= {"low": r["difference"] - half, "high": r["difference"] + half}
                row["band"] = WITH_CHOICE if known else GIVEN_RATES
            rows.append(row)
    return pa.Table.from_pylist(rows, schema=DIFFERENCES)


def _spread(row: Row) -> bool:
    return row["error"] is not None and bool(row["error"] > NO_SPREAD)
