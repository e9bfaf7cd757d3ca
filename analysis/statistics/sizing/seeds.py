"""How many seeds would see a difference: it plans the next sweep, and keeps silence from being read as equality."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from analysis.statistics.inference import OVER_DATASETS
from analysis.statistics.power import power_at, seeds_needed
from analysis.statistics.scaling import rows_with_differences
from analysis.store.columns import INT, PLACE, REAL, TEXT, typed
from analysis.store.store import Store

DIFFERENCES = (0.005, 0.01, 0.02, 0.05)
"""True differences asked about, as fractions: half a point to five points."""

SEEDS = pa.schema(
    [
        *typed(TEXT, *PLACE, "method", "baseline", "reference"),
        *typed(INT, "n", "datasets", "n_datasets", "n_budgets"),  # as in `scaling.COMPARISONS`
        *typed(REAL, "sd", "error", "freedom"),
        ("choice_sd", REAL),  # what the choice of rates adds to their mean; null where not known
        ("test", TEXT),
        ("alpha", REAL),  # level of the row's first step
        ("difference", REAL),  # the true difference asked about
        ("power", REAL),  # chance that the seeds it has find it; this and the next two with the choice of rates
        ("detectable", REAL),  # smallest true difference that they find 4 times in 5
        ("seeds_needed", INT),  # least seeds (of each data set) that find it 4 times in 5; null: not within 1000
        ("seeds_needed_given_rates", INT),  # the same, were the chosen rates the only ones possible
    ]
)


def seeds_table(store: Store, baseline: str | None = None, differences: Sequence[float] = DIFFERENCES) -> pa.Table:
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
    rows = []
    for r, given in rows_with_differences(store, baseline):
        if not given.testable or given.test == OVER_DATASETS:
            continue
        tested = None if r["choice_sd"] is None else given.widened(r["choice_sd"] ** 2)
        for difference in differences:
            found = {"difference": difference, "seeds_needed_given_rates": seeds_needed(given, difference, r["alpha"])}
            if tested is not None:
                found |= {"power": power_at(tested, difference, r["alpha"])}
                found |= {"seeds_needed": seeds_needed(tested, difference, r["alpha"])}
            rows.append(r | dict.fromkeys(("power", "seeds_needed")) | found)
    return pa.Table.from_pylist(rows, schema=SEEDS)
