"""How many seeds would see a difference: to plan the next sweep, and so that silence isn't read as equality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from analysis.statistics.inference import power_at, seeds_needed
from analysis.statistics.scaling import BASELINE, comparisons
from analysis.store.scaling_schemas import COMPARISONS
from analysis.store.store import Store

Row = dict[str, Any]

DIFFERENCES = (0.005, 0.01, 0.02, 0.05)
"""True differences asked about, as fractions: half a point to five points."""

SEEDS = pa.schema(
    [
        *(COMPARISONS.field(name) for name in ("sweep", "model", "dataset", "train_size", "method", "baseline")),
        COMPARISONS.field("reference"),
        *(COMPARISONS.field(name) for name in ("n", "datasets", "n_datasets", "sd", "error", "freedom")),
        ("choice_sd", pa.float64()),  # what the choice of rates adds to their mean; null where not known
        ("test", pa.string()),
        ("alpha", pa.float64()),  # level of one comparison, the family's 5 % shared out (Holm's first step)
        ("difference", pa.float64()),  # the true difference asked about
        ("power", pa.float64()),  # chance that the seeds it has find it
        ("detectable", pa.float64()),  # smallest true difference that they find 4 times in 5
        ("seeds_needed", pa.int64()),  # least seeds (of each data set) that find it 4 times in 5; null: not within 1000
        ("seeds_needed_choice", pa.int64()),  # the same with the choice of rates, which more seeds do not lessen
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
    for r in compared:
        if r["detectable"] is None:
            continue
        shared: Row = {k: r[k] for k in SEEDS.names if k in r} | {"alpha": alpha}
        for difference in differences:
            added, sets = r["choice_sd"], r["datasets"]
            plain = seeds_needed(r["sd"], difference, alpha, datasets=sets)
            with_choice = (
                None if added is None else seeds_needed(r["sd"], difference, alpha, added=added, datasets=sets)
            )
            found = power_at(r["error"], r["freedom"], difference, alpha)
            rows.append(
                shared
                | {"difference": difference, "power": found}
                | {"seeds_needed": plain, "seeds_needed_choice": with_choice}
            )
    return pa.Table.from_pylist(rows, schema=SEEDS)
