"""The number of seeds that a difference needs.

It helps to plan the next sweep. It also shows that a missing difference may be a matter of too few seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from analysis.format import Row
from analysis.statistics.inference import OVER_DATASETS
from analysis.statistics.power import power_at, seeds_needed
from analysis.statistics.scaling import rows_with_differences
from analysis.store.columns import INT, PLACE, REAL, TEXT, typed
from analysis.store.store import Store

DIFFERENCES = (0.005, 0.01, 0.02, 0.05)
"""Default true differences as fractions: half a point to five points."""

SEEDS = pa.schema(
    [
        *typed(TEXT, *PLACE, "method", "baseline", "reference"),
        *typed(INT, "n", "datasets", "n_datasets", "n_budgets"),  # as in `scaling.COMPARISONS`
        *typed(REAL, "sd", "error", "freedom"),
        ("choice_sd", REAL),  # what the choice of rates adds to their mean; null if not known
        ("test", TEXT),
        ("alpha", REAL),  # level of the row's first step
        ("difference", REAL),  # the true difference
        ("power", REAL),  # chance that the present seeds find it; this and the next two include the choice of rates
        ("detectable", REAL),  # smallest true difference that they find 4 times in 5
        ("seeds_needed", INT),  # least seeds (of each data set) that find it 4 times in 5; null if more than 1000
        ("seeds_needed_given_rates", INT),  # the same, if the chosen rates were the only possible ones
    ]
)


_NUMBERS = ("power", "seeds_needed", "seeds_needed_given_rates")


def seeds_table(store: Store, baseline: str | None = None, differences: Sequence[float] = DIFFERENCES) -> pa.Table:
    """Return power and needed seeds of each comparison that has a spread, for each difference; columns `SEEDS`.

    Args:
        baseline: as in `scaling.comparisons`.
        differences: true differences as fractions; 0.02 is two points.

    Raises:
        ValueError: a difference is zero, or one or more.
    """
    wrong = [d for d in differences if not 0.0 < abs(d) < 1.0]
    if wrong:
        raise ValueError(f"a difference of {wrong[0]:g} can't be asked about; it is a fraction between 0 and 1")
    rows: list[Row] = []
    for r, given_rates in rows_with_differences(store, baseline):
        if not given_rates.testable or given_rates.test == OVER_DATASETS:
            continue
        if given_rates.as_untrained is not None:  # more seeds do not change that runs fail
            rows += [r | dict.fromkeys(_NUMBERS) | {"difference": difference} for difference in differences]
            continue
        tested = None if r["choice_sd"] is None else given_rates.widened(r["choice_sd"] ** 2)
        for difference in differences:
            numbers = {
                "difference": difference,
                "seeds_needed_given_rates": seeds_needed(given_rates, difference, r["alpha"]),
            }
            if tested is not None:
                numbers |= {"power": power_at(tested, difference, r["alpha"])}
                numbers |= {"seeds_needed": seeds_needed(tested, difference, r["alpha"])}
            rows.append(r | dict.fromkeys(_NUMBERS) | numbers)
    return pa.Table.from_pylist(rows, schema=SEEDS)
