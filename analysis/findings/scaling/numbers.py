"""The scaling curve: mean test scores over seeds, with intervals, by method and budget."""

from __future__ import annotations

from collections import defaultdict

import pyarrow as pa

from analysis.format import Row
from analysis.store.columns import INT, PLACE, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import style
from analysis.verdict.comparisons import table_order
from analysis.verdict.datasets import over_datasets
from analysis.verdict.runs import by_seed, confirmed, group_by, sharing_seeds

CURVE = pa.schema(
    [
        *typed(TEXT, *PLACE),  # dataset null: the mean over `n_datasets` data sets
        *typed(TEXT, "method", "name"),
        ("kind", TEXT),  # 'curve', or 'line' for a method without a budget
        ("reference", TEXT),
        *typed(INT, "budget", "adapter_params"),
        ("lr", REAL),
        ("n", INT),
        *typed(REAL, "mean", "low", "high", "sd"),
        ("n_datasets", INT),
    ]
)


def one_budget(store: Store) -> bool:
    """Return whether the plan has a single budget, so that a curve would be a point."""
    return len({r["reference"] for r in store.table("cells").to_pylist() if r["feasible"] and r["reference"]}) == 1


@remembered
def curve(store: Store) -> pa.Table:
    """Return each method's mean test score and 95 % t interval over seeds at each budget; columns `CURVE`.

    The numbers of a cell are those of the view `scaling`. Methods without a budget (full fine-tuning, zero-shot) are
    rows of kind 'line'. A sweep over several data sets also has rows with a null `dataset`: the mean over all its data
    sets, with an interval over seeds, for methods and budgets that are confirmed on each.
    """
    of_cells = store.table("scaling").to_pylist()
    cells, sharing = confirmed(store), sharing_seeds(store)
    sets: dict[tuple[str, str, str], set[str | None]] = defaultdict(set)
    for (sweep, model, dataset, size), _, _ in cells:
        sets[sweep, model, size].add(dataset)
    means: list[Row] = []
    for (sweep, model, size, method, reference), method_cells in group_by(of_cells, *_ACROSS).items():
        datasets = sorted(sets[sweep, model, size], key=lambda name: name or "")
        groups = [cells.get(((sweep, model, dataset, size), method, reference), []) for dataset in datasets]
        if len(datasets) < 2 or not all(groups):
            continue
        mean = over_datasets([by_seed(runs) for runs in groups], shared=sweep in sharing)
        if mean is not None:
            row = method_cells[0] | {"dataset": None, "lr": None, "n_datasets": len(datasets)}
            row |= {"n": mean.n // len(mean.pairs), "mean": mean.mean, "sd": mean.sd}
            row |= {"low": mean.low, "high": mean.high}
            means.append(row)
    rows = [{"n_datasets": 1} | r | _labels(r) for r in (*of_cells, *means)]
    return pa.Table.from_pylist(sorted(rows, key=table_order), schema=CURVE)


_ACROSS = ("sweep", "model", "train_size", "method", "reference")
"""The columns in which the cells of a mean over data sets agree."""


def _labels(row: Row) -> Row:
    """Return the columns `name` and `kind` of a row of `CURVE`."""
    return {"name": style(row["method"]).name, "kind": "line" if row["budget"] is None else "curve"}
