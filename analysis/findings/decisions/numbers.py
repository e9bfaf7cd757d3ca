"""What to take at each budget: the best methods that are not distinguishable, their cost, and what would decide."""

from __future__ import annotations

import pyarrow as pa

from analysis.format import Row
from analysis.store.columns import INT, PLACE, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import budget_order, size_key
from analysis.verdict.groups import Block, Pair, tested_blocks
from analysis.verdict.inference import mean_interval
from analysis.verdict.looks import least_advanced_at
from analysis.verdict.power import detectable, seeds_needed

DECISIONS = pa.schema(
    [
        *typed(TEXT, *PLACE, "reference"),
        ("budget", INT),
        ("methods", INT),  # number of methods confirmed at the budget
        ("best", pa.list_(TEXT)),  # the first method, and those that are not distinguishable from it
        ("method", TEXT),  # the one with the best mean that no test puts below another
        *typed(REAL, "mean", "low", "high"),  # its score
        *typed(INT, "n", "adapter_params"),
        *typed(REAL, "seconds", "memory_bytes"),  # training of one of its confirmed runs; peak
        ("next", TEXT),  # the second of `best`, else the method with the second best mean; null if there is no other
        ("verdict", TEXT),  # on `method` and `next`
        ("pairs", INT),  # seeds that both have
        *typed(
            REAL, "ahead", "ahead_low", "ahead_high"
        ),  # `method` minus `next`; interval as in `comparisons.COMPARISONS`
        ("failed", INT),  # failed confirming runs of the two, if the verdict depends on them; else null
        ("detectable", REAL),  # smallest difference of the two that these seeds find 4 times in 5
        ("seeds_needed", INT),  # seeds that would find the difference seen 4 times in 5; null if more than 1000
        ("seeds_needed_given_rates", INT),  # the same, if the chosen rates were the only possible ones
        ("early", TEXT),  # such as "2 of 5 seeds" (`looks.least_advanced_at`); null if no seed is still to run
    ]
)
_COST = """
select sweep, cell_id, max(adapter_params) as adapter_params, avg(seconds_train) as seconds,
       max(peak_memory_bytes) as memory_bytes
from confirmed group by all
"""


@remembered
def decisions(store: Store) -> pa.Table:
    """Return one row for each place and budget with a confirmed method; columns `DECISIONS`."""
    costs = {(r["sweep"], r["cell_id"]): r for r in store.sql(_COST).to_pylist()}
    rows = [_decide(block) | costs[block[0][0]["sweep"], block[0][0]["cell_id"]] for block in tested_blocks(store)]
    rows = [row | {"early": least_advanced_at(store, row)} for row in rows]
    rows.sort(
        key=lambda r: (r["sweep"], r["model"], r["dataset"], size_key(r["train_size"]), budget_order(r["reference"]))
    )
    return pa.Table.from_pylist(rows, schema=DECISIONS)


def _decide(block: Block) -> Row:
    """Return the row of one place and budget, without costs."""
    methods, pairs = block
    against = {second: pair for (first, second), pair in pairs.items() if first == 0}
    # in the block's order: pairs with the baseline are tested before the others, and stand first
    top, best = methods[0], [0, *sorted(k for k, pair in against.items() if not pair.apart)]
    interval = mean_interval(list(top["scores"].values()))
    named = {k: top[k] for k in (*PLACE, "reference", "budget", "method", "n")}
    row = named | {"methods": len(methods), "best": [methods[k]["method"] for k in best]}
    row |= {"mean": interval.mean, "low": interval.low, "high": interval.high}
    if len(methods) == 1:
        return row
    second = best[1] if len(best) > 1 else min(against)
    return row | _lead(top, methods[second], against[second])


def _lead(top: Row, second: Row, pair: Pair) -> Row:
    """Return the columns that compare the best method with the next one."""
    row: Row = {"next": second["method"], "verdict": pair.verdict, "ahead": top["mean"] - second["mean"]}
    if pair.tested is None or not pair.tested.testable:
        return row
    row["pairs"] = pair.tested.n
    row |= {"ahead": pair.tested.mean, "ahead_low": pair.interval[0], "ahead_high": pair.interval[1]}
    if pair.tested.as_untrained is not None:  # failed runs are part of the test, and more seeds do not mend that
        return row | {"failed": pair.tested.lost}
    row["detectable"] = detectable(pair.tested, pair.alpha)
    if not pair.apart and pair.tested.mean:
        row["seeds_needed"] = seeds_needed(pair.tested, pair.tested.mean, pair.alpha)
        row["seeds_needed_given_rates"] = seeds_needed(pair.tested.widened(0.0), pair.tested.mean, pair.alpha)
    return row
