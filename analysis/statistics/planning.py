"""How many seeds would see a difference: it plans the next sweep, and keeps silence from being read as equality."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pyarrow as pa

from analysis.statistics.power import power_at, seeds_needed
from analysis.statistics.scaling import BASELINE, comparisons
from analysis.store.columns import INT, PLACE, REAL, TEXT, typed
from analysis.store.store import Store

DIFFERENCES = (0.005, 0.01, 0.02, 0.05)
"""True differences asked about, as fractions: half a point to five points."""

SEEDS = pa.schema(
    [
        *typed(TEXT, *PLACE, "method", "baseline", "reference"),
        *typed(INT, "n", "datasets", "n_datasets"),
        *typed(REAL, "sd", "error"),
        ("freedom", INT),
        ("choice_sd", REAL),  # what the choice of rates adds to their mean; null where not known
        ("test", TEXT),
        ("alpha", REAL),  # level of one comparison, the family's 5 % shared out (Holm's first step)
        ("difference", REAL),  # the true difference asked about
        ("power", REAL),  # chance that the seeds it has find it
        ("detectable", REAL),  # smallest true difference that they find 4 times in 5
        ("seeds_needed", INT),  # least seeds (of each data set) that find it 4 times in 5; null: not within 1000
        ("seeds_needed_choice", INT),  # the same with the choice of rates, which more seeds do not lessen
    ]
)


def seeds_table(store: Store, baseline: str = BASELINE, differences: Sequence[float] = DIFFERENCES) -> pa.Table:
    """Power and seeds needed for each difference, of every comparison with a spread between seeds; columns `SEEDS`.

    Args:
        baseline: as of `scaling.comparisons`.
        differences: fractions; 0.02 is two points.

    Raises:
        ValueError: a difference of zero or of one and more.
    """
    wrong = [d for d in differences if not 0.0 < abs(d) < 1.0]
    if wrong:
        raise ValueError(f"a difference of {wrong[0]:g} can't be asked about; it is a fraction between 0 and 1")
    compared = comparisons(store, baseline).to_pylist()
    alpha = 0.05 / max(1, sum(r["p"] is not None for r in compared))
    rows = []
    for r in (r for r in compared if r["detectable"] is not None):
        for difference in differences:
            needed, added = partial(seeds_needed, r["sd"], difference, alpha, datasets=r["datasets"]), r["choice_sd"]
            found = {
                "alpha": alpha,
                "difference": difference,
                "power": power_at(r["error"], r["freedom"], difference, alpha),
                "seeds_needed": needed(),
                "seeds_needed_choice": None if added is None else needed(added=added),
            }
            rows.append(r | found)
    return pa.Table.from_pylist(rows, schema=SEEDS)
