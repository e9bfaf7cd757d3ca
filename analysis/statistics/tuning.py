"""Evidence on tuning: validation scores against learning rates, and what more trials would have brought."""

from __future__ import annotations

import pyarrow as pa

from analysis.format import Row
from analysis.statistics.inference import expected_best
from analysis.statistics.runs import by
from analysis.store.columns import INT, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import style

_RATES = """
select c.sweep, c.model, c.dataset, c.train_size, c.method, c.reference, c.budget, c.cell_id, t.lr,
       count(*) filter (t.status = 'finished') as n, count(*) filter (t.status = 'failed') as failed,
       avg(t.val_score) filter (t.status = 'finished') as mean_val,
       min(t.val_score) filter (t.status = 'finished') as min_val,
       max(t.val_score) filter (t.status = 'finished') as max_val,
       bool_or(abs(t.lr - h.lr) <= 1e-9 * t.lr) as chosen
from last_attempts t join cells c using (sweep, cell_id) left join chosen h using (sweep, cell_id)
where t.stage = 'TUNE' and t.lr is not null
group by all order by c.sweep, c.dataset, c.train_size, c.method, c.budget nulls last, t.lr
"""


@remembered
def rates(store: Store) -> pa.Table:
    """Stage TUNE: per cell and learning rate the mean validation score, range, trials, and whether it was chosen."""
    return store.sql(_RATES)


def best_of_n(store: Store) -> pa.Table:
    """Expected best validation score of n rates, n = 1 .. all, per cell: columns of the cell, `n`, `expected`.

    Re-runs of a rate count once, by their mean: the curve is about how many rates were tried.
    """
    keys = ("sweep", "dataset", "train_size", "method", "reference", "budget", "cell_id")
    tried = [row for row in rates(store).to_pylist() if row["mean_val"] is not None]
    rows: list[Row] = []
    for key, mine in by(tried, *keys).items():
        named = dict(zip(keys, key, strict=True)) | {"name": style(mine[0]["method"]).name}
        best = expected_best([row["mean_val"] for row in mine])
        rows += [named | {"n": n, "expected": score} for n, score in enumerate(best, start=1)]
    cell = [*typed(TEXT, *keys[:5]), ("budget", INT), *typed(TEXT, "cell_id", "name")]
    return pa.Table.from_pylist(rows, schema=pa.schema([*cell, ("n", INT), ("expected", REAL)]))
