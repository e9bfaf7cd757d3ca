"""The number of seeds that a difference needs.

It helps to plan the next sweep. It also shows that a missing difference may be a matter of too few seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from analysis.findings.finding import Finding
from analysis.findings.shared import BUDGETS, PAIRS
from analysis.format import Row, percent, quantity
from analysis.sheets.columns import METHOD, columns_of, pivoted
from analysis.sheets.sheet import Column, Sheet, number
from analysis.store.columns import INT, PLACE, REAL, TEXT, typed
from analysis.store.store import Store
from analysis.styles import style
from analysis.verdict.comparisons import rows_with_differences
from analysis.verdict.inference import OVER_DATASETS
from analysis.verdict.power import power_at, seeds_needed
from analysis.verdict.question import question

DIFFERENCES = (0.005, 0.01, 0.02, 0.05)
"""Default true differences as fractions: half a point to five points."""

SEEDS = pa.schema(
    [
        *typed(TEXT, *PLACE, "method", "baseline", "reference"),
        *typed(INT, "n", "datasets", "n_datasets", "n_budgets"),  # as in `comparisons.COMPARISONS`
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
        baseline: as in `analysis.comparisons`.
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


RATES_FIXED = "seeds needed if the chosen learning rates are taken as fixed"
"""Groups of columns."""


def seeds_sheet(store: Store, baseline: str | None = None, differences: Sequence[float] = DIFFERENCES) -> Sheet:
    """Return the number of seeds that would detect each of `differences`, for each comparison with the baseline."""
    baseline = baseline or question(store).baseline
    table_rows = seeds_table(store, baseline, differences).to_pylist()
    rows = pivoted(table_rows, ("sweep", "model", "dataset", "train_size", "method", "reference"), "difference")

    def cell(difference: float, key: str, group: str) -> Column:
        head = f"for {100 * difference:g} points" + (", rates fixed" if group else "")
        return Column(head, lambda r: _needed(r["by"][difference][key]), "number", group)

    true_differences = dict.fromkeys(r["difference"] for r in table_rows)
    needed_columns = [cell(difference, "seeds_needed", "") for difference in true_differences]
    given_rates = [cell(difference, "seeds_needed_given_rates", RATES_FIXED) for difference in true_differences]
    sd = number("sd of paired differences, points", "sd", percent)
    return Sheet(
        "seeds",
        f"Seeds needed to detect a difference from {style(baseline).name}",
        columns_of(rows, METHOD, BUDGETS, PAIRS, sd, *needed_columns, *given_rates),
        rows,
        "Each number is the smallest number of seeds (of each data set) with which four of five studies would find a "
        "true difference of that size, at the level of its row in the comparisons. It includes the uncertainty of the "
        "choice of learning rates, which more seeds do not reduce: the second table leaves that out. \N{EM DASH} "
        "means that not even 1,000 seeds are enough, that runs of the method ahead failed, which more seeds do not "
        "change, or that the number is not known.",
        strong=lambda r: r["reference"] is None,
        folded=True,
    )


def _needed(seeds_needed: int | None) -> str:
    return quantity(seeds_needed) or "\N{EM DASH}"


FINDING = Finding("comparisons", ("seeds",), lambda store, _: [seeds_sheet(store)])
