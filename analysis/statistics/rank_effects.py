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
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from analysis.statistics.inference import holm, mean_interval, t_difference, verdict
from analysis.store.store import Store
from analysis.styles import style

Row = dict[str, Any]
Place = tuple[str, str, str, str]
Seed = tuple[int, int, int]

MATCHED = 0.1
"""Largest distance of a cell's count from its budget: beyond it parameters are not equal."""

RANK, PARAMETERS = "rank", "parameters"

POINTS = pa.schema(
    [
        ("sweep", pa.string()),
        ("model", pa.string()),
        ("dataset", pa.string()),
        ("train_size", pa.string()),
        ("method", pa.string()),
        ("base", pa.string()),
        ("reference", pa.string()),
        ("budget", pa.int64()),
        ("adapter_params", pa.int64()),
        ("update_rank", pa.float64()),
        ("n", pa.int64()),
        ("mean", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)

EFFECTS = pa.schema(
    [
        ("sweep", pa.string()),
        ("model", pa.string()),
        ("dataset", pa.string()),  # null: the mean over `n_datasets` data sets
        ("train_size", pa.string()),
        ("scope", pa.string()),  # the method whose variants are compared; null: all methods
        ("effect", pa.string()),  # 'rank' at equal parameters, or 'parameters' at equal rank
        ("least", pa.float64()),  # of the ranks, or of the parameters
        ("most", pa.float64()),
        ("cells", pa.int64()),
        ("n", pa.int64()),  # seeds
        ("n_datasets", pa.int64()),
        ("slope", pa.float64()),  # of the score, a fraction, per doubling
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("p", pa.float64()),
        ("p_holm", pa.float64()),
        ("verdict", pa.string()),  # 'higher': the score rises with the rank, or the parameters
    ]
)

_RUNS = """
select f.sweep, f.cell_id, f.model, f.dataset, f.train_size, f.method, coalesce(c.base, f.method) as base, f.reference,
       f.budget, f.adapter_params, c.update_rank, f.data_seed, f.init_seed, f.basis_seed, f.test_score
from confirmed f join cells c using (sweep, cell_id)
where f.test_score is not null and f.reference is not null and c.update_rank > 0 and abs(c.residual_fraction) <= {}
order by f.sweep, f.model, f.dataset, f.train_size, f.budget, c.update_rank, f.method, f.data_seed, f.init_seed
"""


def points(store: Store) -> pa.Table:
    """Score against the rank of the update, a row per confirmed cell whose rank is known; columns `POINTS`.

    Cells whose count is off their budget by more than `MATCHED` are left out.
    """
    rows = []
    for cell in _by(_runs(store), "sweep", "cell_id").values():
        interval = mean_interval([r["test_score"] for r in cell])
        found = {"n": interval.n, "mean": interval.mean, "low": interval.low, "high": interval.high}
        rows.append({k: cell[0].get(k) for k in POINTS.names} | found)
    return pa.Table.from_pylist(rows, schema=POINTS)


def effects(store: Store) -> pa.Table:
    """What a doubling of the rank, and of the parameters, brings; columns `EFFECTS`.

    A row needs two ranks at one budget, or two budgets at one rank of a method. Seeds are those that all its cells
    have; one seed has no interval and no test. Data sets of a sweep are also averaged, seed by seed. Holm's correction
    is over all rows of the table.
    """
    return store.remember("rank effects", lambda: _effects(store))


def _effects(store: Store) -> pa.Table:
    rows: list[Row] = []
    for (sweep, model, size), runs in _by(_runs(store), "sweep", "model", "train_size").items():
        datasets = _by(runs, "dataset")
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


def _runs(store: Store) -> list[Row]:
    return list(store.remember("ranked runs", lambda: store.sql(_RUNS.format(MATCHED))).to_pylist())


def _by(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[n] for n in names)].append(row)
    return groups


def _families(runs: Sequence[Row]) -> list[str]:
    """Methods of which several variants were run beside other methods, in the order of tables."""
    variants = _by(runs, "base")
    if len(variants) == 1:  # its variants are all there is
        return []
    several = [base for (base,), group in variants.items() if len({r["method"] for r in group}) > 1]
    return sorted(several, key=lambda m: (style(m).order, m))


def _seed(run: Row) -> Seed:
    return run["data_seed"], run["init_seed"], run["basis_seed"]


def _slopes(runs: Sequence[Row], effect: str) -> Row | None:
    """Slope by seed over the cells that tell of the effect, with what they span; None where none do."""
    if effect == RANK:
        level, along, kept = "reference", "update_rank", list(runs)
    else:
        level, along = "method", "adapter_params"
        same = [m for (m,), g in _by(runs, "method").items() if len({r["update_rank"] for r in g}) == 1]
        kept = [r for r in runs if r["method"] in same]
    groups = [g for g in _by(kept, level).values() if len({r[along] for r in g}) > 1]
    cells = _by((r for g in groups for r in g), "cell_id")
    if not cells:
        return None
    seeds = set.intersection(*({_seed(r) for r in cell} for cell in cells.values()))
    by_seed = {
        seed: _slope([[(math.log2(r[along]), r["test_score"]) for r in g if _seed(r) == seed] for g in groups])
        for seed in sorted(seeds)
    }
    spanned = [r[along] for g in groups for r in g]
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
    seeds = set.intersection(*(set(f["slopes"]) for f in found))
    values = [sum(f["slopes"][s] for f in found) / len(found) for s in sorted(seeds)]
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
