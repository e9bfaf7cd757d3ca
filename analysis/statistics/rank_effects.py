"""The question itself: what does a higher rank of the update bring at equal parameters, and what do more parameters at
equal rank?

Both are slopes of the test score per doubling, fitted for each seed with fixed effects: of rank, over the methods of
one budget, every budget having a level of its own; of parameters, over the budgets of a method whose rank is the same
at all of them, every method having a level of its own. Their spread over seeds gives the interval and the test.
Methods differ in more than rank, so the slope over all of them says what goes along with rank; the slope over variants
of one method (RandLoRA-a, whose rank is an option) says what rank does in that method, whose number of bases makes up
for the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pyarrow as pa

from analysis.format import Row
from analysis.statistics.inference import holm, mean_interval, t_difference, verdict
from analysis.statistics.runs import averaged, by, seed_of, shared_seeds
from analysis.store.columns import INT, PLACE, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import in_order

MATCHED = 0.1
"""Largest distance of a cell's count from its budget: beyond it parameters are not equal."""

RANK, PARAMETERS = "rank", "parameters"

POINTS = pa.schema(
    [
        *typed(TEXT, *PLACE, "method", "base", "reference"),
        *typed(INT, "budget", "adapter_params"),
        ("update_rank", REAL),
        ("n", INT),
        *typed(REAL, "mean", "low", "high"),
    ]
)

EFFECTS = pa.schema(
    [
        *typed(TEXT, *PLACE),  # dataset null: the mean over `n_datasets` data sets
        ("scope", TEXT),  # the method whose variants are compared; null: all methods
        ("effect", TEXT),  # 'rank' at equal parameters, or 'parameters' at equal rank
        *typed(REAL, "least", "most"),  # of the ranks, or of the parameters
        ("cells", INT),
        ("n", INT),  # seeds
        ("n_datasets", INT),
        ("slope", REAL),  # of the score, a fraction, per doubling
        *typed(REAL, "low", "high", "p", "p_holm"),
        ("verdict", TEXT),  # 'higher': the score rises with the rank, or the parameters
    ]
)

_RUNS = f"""
select f.sweep, f.cell_id, f.model, f.dataset, f.train_size, f.method, coalesce(c.base, f.method) as base, f.reference,
       f.budget, f.adapter_params, c.update_rank, f.data_seed, f.init_seed, f.basis_seed, f.test_score
from confirmed f join cells c using (sweep, cell_id)
where f.test_score is not null and f.reference is not null and c.update_rank > 0
      and abs(c.residual_fraction) <= {MATCHED}
order by f.sweep, f.model, f.dataset, f.train_size, f.budget, c.update_rank, f.method, f.data_seed, f.init_seed
"""  # noqa: S608  a number of ours


def points(store: Store) -> pa.Table:
    """Score against the rank of the update, a row per confirmed cell whose rank is known; columns `POINTS`.

    Cells whose count is off their budget by more than `MATCHED` are left out.
    """
    cells = by(_runs(store), "sweep", "cell_id").values()
    rows = [runs[0] | vars(mean_interval([r["test_score"] for r in runs])) for runs in cells]
    return pa.Table.from_pylist(rows, schema=POINTS)


@remembered
def effects(store: Store) -> pa.Table:
    """What a doubling of the rank, and of the parameters, brings; columns `EFFECTS`.

    A row needs two ranks at one budget, or two budgets at one rank of a method. Seeds are those that all its cells
    have; one seed has no interval and no test. Data sets of a sweep are also averaged, seed by seed. Holm's correction
    is over all rows of the table.
    """
    rows: list[Row] = []
    for (sweep, model, size), runs in by(_runs(store), "sweep", "model", "train_size").items():
        datasets = by(runs, "dataset")
        for scope in (None, *_families(runs)):
            for effect in (RANK, PARAMETERS):
                found = {
                    dataset: slopes
                    for (dataset,), group in datasets.items()
                    if (slopes := _slopes([r for r in group if scope in (None, r["base"])], effect))
                }
                place = {"sweep": sweep, "model": model, "train_size": size, "scope": scope, "effect": effect}
                rows += [place | {"dataset": d, "n_datasets": 1} | _said([f]) for d, f in found.items()]
                if len(found) > 1 and len(found) == len(datasets):
                    rows.append(place | {"dataset": None, "n_datasets": len(found)} | _said(list(found.values())))
    for row, adjusted in zip(rows, holm([r["p"] for r in rows]), strict=True):
        row |= {"p_holm": adjusted, "verdict": verdict(row["slope"], adjusted)}
    rows.sort(key=lambda r: (r["sweep"], r["model"], r["dataset"] is not None, r["dataset"] or "", r["train_size"]))
    return pa.Table.from_pylist(rows, schema=EFFECTS)


@remembered
def _runs(store: Store) -> list[Row]:
    return list(store.sql(_RUNS).to_pylist())


def _families(runs: Sequence[Row]) -> list[str]:
    """Methods of which several variants were run beside other methods, in the order of tables."""
    variants = by(runs, "base")
    if len(variants) == 1:  # its variants are all there is
        return []
    return in_order({base for (base,), group in variants.items() if len({r["method"] for r in group}) > 1})


def _slopes(runs: Sequence[Row], effect: str) -> Row | None:
    """Slope by seed over the cells that tell of the effect, with what they span; None where none do."""
    if effect == RANK:
        level, along, kept = "reference", "update_rank", list(runs)
    else:
        level, along = "method", "adapter_params"
        same = [m for (m,), g in by(runs, "method").items() if len({r["update_rank"] for r in g}) == 1]
        kept = [r for r in runs if r["method"] in same]
    groups = [g for g in by(kept, level).values() if len({r[along] for r in g}) > 1]
    used = [r for g in groups for r in g]
    cells = [{seed_of(r): r for r in cell} for cell in by(used, "cell_id").values()]
    if not cells:
        return None
    by_seed = {
        seed: _slope([[(math.log2(r[along]), r["test_score"]) for r in g if seed_of(r) == seed] for g in groups])
        for seed in sorted(shared_seeds(cells))
    }
    spanned = [r[along] for r in used]
    return {"slopes": by_seed, "cells": len(cells), "least": min(spanned), "most": max(spanned)} if by_seed else None


def _slope(groups: Iterable[Sequence[tuple[float, float]]]) -> float:
    """Least squares with a level of its own for every group (the within estimator)."""
    above = below = 0.0
    for group in groups:
        x0, y0 = (sum(column) / len(group) for column in zip(*group, strict=True))
        above += sum((x - x0) * (y - y0) for x, y in group)
        below += sum((x - x0) ** 2 for x, _ in group)
    return above / below


def _said(found: Sequence[Row]) -> Row:
    """Mean slope of data sets, seed by seed, with its interval and test."""
    values = list(averaged([f["slopes"] for f in found]).values())
    spans = {
        "cells": sum(f["cells"] for f in found),
        "least": min(f["least"] for f in found),
        "most": max(f["most"] for f in found),
        "n": len(values),
    }
    if not values:  # the data sets share no seed
        return spans | dict.fromkeys(("slope", "low", "high", "p"))
    tested = t_difference(values)
    return spans | {"slope": tested.mean, "low": tested.low, "high": tested.high, "p": tested.p}
