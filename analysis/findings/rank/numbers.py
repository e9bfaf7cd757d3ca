"""The effect of the update's rank at equal parameters, and of parameters at equal rank.

Both effects are slopes of the test score per doubling, fitted for each seed with fixed effects. The slope of rank is
over the methods of one budget, with a level for each budget. The slope of parameters is over the budgets of a method
whose rank is the same at all of them, with a level for each method. The contrast is the first slope minus the second,
seed by seed: is rank worth more than parameters? Intervals and tests come from the spread over seeds, and from what the
choice of rates adds to the cells' scores.

Methods differ in more than rank. So the slope over all methods shows only what goes together with rank. The slope over
variants of one method (RandLoRA-a, whose rank is an option) shows what rank does in that method. There the number of
bases keeps the parameters equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from analysis.format import Row
from analysis.store.columns import INT, NOT_PARAMETERS, PLACE, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import in_order, size_key
from analysis.verdict.choice import choice_variances
from analysis.verdict.correction import holm_steps
from analysis.verdict.datasets import added_over_datasets, over_datasets
from analysis.verdict.looks import level, restrict_to_declared
from analysis.verdict.runs import CellKey, Seed, by_seed, group_by, shared_seeds, sharing_seeds
from analysis.verdict.verdicts import verdict

MATCHED = 0.1
"""Largest relative distance of a cell's parameter count from its budget, and largest share of its parameters that may
have no effect. Beyond either, parameters do not count as equal."""

RANK = "rank"
PARAMETERS = "parameters"
CONTRAST = "rank less parameters"

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
        ("effect", TEXT),  # 'rank' at equal parameters, 'parameters' at equal rank, or the one slope less the other
        *typed(REAL, "least", "most"),  # smallest and largest rank or number of parameters; null for the contrast
        ("cells", INT),
        ("n", INT),  # seeds
        ("n_datasets", INT),
        ("slope", REAL),  # change of the score (a fraction) per doubling
        # with the choice of rates; null if that is not known. The interval has the level at which the row was decided
        *typed(REAL, "low", "high", "p", "p_holm"),
        *typed(REAL, "low_pointwise", "high_pointwise"),  # the 95 % interval, for this row alone
        ("verdict", TEXT),  # 'higher': the score rises with the rank, or the parameters
        ("choice_sd", REAL),  # what the choice of rates adds to the slope; null if not known
        ("verdict_given_rates", TEXT),
    ]
)

_RUNS = f"""
select f.sweep, f.cell_id, f.model, f.dataset, f.train_size, f.method, coalesce(c.base, f.method) as base, f.reference,
       f.budget, f.adapter_params, c.count, c.dof, c.update_rank, f.data_seed, f.init_seed, f.basis_seed, f.test_score
from confirmed f join cells c using (sweep, cell_id)
where f.test_score is not null and f.reference is not null and c.update_rank > 0
      and abs(c.residual_fraction) <= {MATCHED} and not regexp_matches(f.reference, '^({NOT_PARAMETERS})-')
order by f.sweep, f.model, f.dataset, f.train_size, f.budget, c.update_rank, f.method, f.data_seed, f.init_seed
"""  # noqa: S608  values of ours


def scores_by_rank(store: Store) -> pa.Table:
    """Return the score and the update's rank of each confirmed cell whose rank is known; columns `POINTS`.

    A cell is left out if its parameter count is off the budget by more than `MATCHED`, or if a larger share of its
    parameters has no effect. (At a low rank RandLoRA-a has more gammas than its update has degrees of freedom; see
    `idle_cells`.) Budgets that do not limit trainable parameters are left out as well.
    """
    means = {(r["sweep"], r["cell_id"]): r for r in store.table("scaling").to_pylist()}
    rows = [runs[0] | means[cell] for cell, runs in group_by(_runs(store), "sweep", "cell_id").items()]
    return pa.Table.from_pylist(rows, schema=POINTS)


@remembered
def effects(store: Store) -> pa.Table:
    """Return the effects of doubling the rank and the parameters, and their contrast; columns `EFFECTS`.

    The effect of rank needs two ranks at one budget, that of parameters two budgets at one rank of a method, and the
    contrast needs both. The seeds are those that all cells of a row have; with one seed there is no interval and no
    test. There are also rows for the mean over all data sets of a sweep. Cells that were added later do not count.
    Holm's correction is over all rows of the table.
    """
    store = restrict_to_declared(store)
    rows: list[Row] = []
    choice, sharing = choice_variances(store), sharing_seeds(store)
    for (sweep, model, size), runs in group_by(_runs(store), "sweep", "model", "train_size").items():
        datasets = group_by(runs, "dataset")
        for scope in (None, *_families(runs)):
            shared = sweep in sharing
            slopes = {d: _slopes([r for r in g if scope in (None, r["base"])]) for (d,), g in datasets.items()}
            for effect in (RANK, PARAMETERS, CONTRAST):
                slope_by_dataset = {d: _Slope.of(each[effect], choice) for d, each in slopes.items() if effect in each}
                place = {"sweep": sweep, "model": model, "train_size": size, "scope": scope, "effect": effect}
                rows += [place | {"dataset": d} | _effect_row([f], shared=shared) for d, f in slope_by_dataset.items()]
                if len(slope_by_dataset) > 1 and len(slope_by_dataset) == len(datasets):
                    rows.append(place | {"dataset": None} | _effect_row(list(slope_by_dataset.values()), shared=shared))
    given_rates, tested = (holm_steps([r[p] for r in rows], level=level(store)) for p in ("p_given_rates", "p"))
    for row, as_chosen, step in zip(rows, given_rates, tested, strict=True):
        choice_known = row["choice_sd"] is not None or row["p_given_rates"] is None
        row |= {"p_holm": step.adjusted, "verdict": verdict(row["slope"], step.adjusted, known=choice_known)}
        row["verdict_given_rates"] = verdict(row["slope"], as_chosen.adjusted)
        if row["tested"] is not None:
            row["low"], row["high"] = row["tested"].interval(step.level)
    rows.sort(
        key=lambda r: (r["sweep"], r["model"], r["dataset"] is not None, r["dataset"] or "", size_key(r["train_size"]))
    )
    return pa.Table.from_pylist(rows, schema=EFFECTS)


def is_idle(row: Row) -> bool:
    """Return whether more than the share `MATCHED` of a cell's parameters has no effect on the update."""
    count, dof = row.get("count"), row.get("dof")
    return count is not None and dof is not None and bool(dof < (1 - MATCHED) * count)


def idle_cells(store: Store) -> list[Row]:
    """Return one row for each method and budget that is left out because `is_idle`."""
    return [rows[0] for rows in group_by(filter(is_idle, _all_runs(store)), "method", "reference").values()]


def _runs(store: Store) -> list[Row]:
    """Return the runs of all cells that are not idle."""
    return [row for row in _all_runs(store) if not is_idle(row)]


@remembered
def _all_runs(store: Store) -> list[Row]:
    return list(store.sql(_RUNS).to_pylist())


def _families(runs: Sequence[Row]) -> list[str]:
    """Return the methods of which several variants were run, in the order of tables; none if nothing else was run."""
    variants = group_by(runs, "base")
    if len(variants) == 1:  # the rows over all methods are already the rows of its variants
        return []
    return in_order({base for (base,), group in variants.items() if len({r["method"] for r in group}) > 1})


Weights = dict[CellKey, tuple[float, list[Row]]]
"""For each cell its weight in a slope, and its runs. The slope is the weighted sum of the cells' scores."""


@dataclass(frozen=True)
class _Slope:
    """A slope on one data set.

    Attributes:
        by_seed: the slope of each seed.
        added: variance that the choice of rates adds; None if not known.
        cells: number of cells.
        spanned: the ranks, or the numbers of parameters, of the cells.
    """

    by_seed: dict[Seed, float]
    added: float | None
    cells: int
    spanned: list[float]

    @classmethod
    def of(cls, effect_weights: tuple[Weights, list[float]], choice: Mapping[CellKey, float]) -> _Slope:
        weights, spanned = effect_weights
        cells = [(weight, by_seed(runs)) for weight, runs in weights.values()]
        shared = shared_seeds([scores for _, scores in cells])
        slopes = {seed: sum(weight * scores[seed] for weight, scores in cells) for seed in shared}
        choice_known = all(key in choice for key in weights)
        if not choice_known:
            return cls(slopes, None, len(cells), spanned)
        moves = [{"method": runs[0]["method"], "by": w * math.sqrt(choice[k])} for k, (w, runs) in weights.items()]
        each = [[r["by"] for r in rows] for rows in group_by(moves, "method").values()]
        # a method's budgets share TUNE's seeds: its choices may err together or independently; the larger one counts
        added = sum(max(sum(method_moves) ** 2, sum(move**2 for move in method_moves)) for method_moves in each)
        return cls(slopes, added, len(cells), spanned)


def _slopes(runs: Sequence[Row]) -> dict[str, tuple[Weights, list[float]]]:
    """Return the weights of each effect that these cells determine, and the ranks or parameters that they span."""
    same = [m for (m,), g in group_by(runs, "method").items() if len({r["update_rank"] for r in g}) == 1]
    level = [r for r in runs if r["method"] in same]
    weights_by_effect = {
        RANK: _weights(runs, "reference", "update_rank"),
        PARAMETERS: _weights(level, "method", "adapter_params"),
    }
    determined = {effect: one for effect, one in weights_by_effect.items() if one[0]}
    if len(determined) == len(weights_by_effect):
        (rank, _), (count, _) = determined[RANK], determined[PARAMETERS]
        none = (0.0, list[Row]())
        contrast = {
            key: (rank.get(key, none)[0] - count.get(key, none)[0], (rank.get(key) or count[key])[1])
            for key in {**rank, **count}
        }
        determined[CONTRAST] = (contrast, [])
    return determined


def _weights(runs: Sequence[Row], level: str, along: str) -> tuple[Weights, list[float]]:
    """Return the weights of the slope of the score on log2 of `along`, and the values of `along`.

    The fit is least squares with a separate level for each value of the column `level` (the within estimator).
    """
    groups = [group_by(g, "sweep", "cell_id") for g in group_by(runs, level).values() if len({r[along] for r in g}) > 1]
    centred: dict[CellKey, float] = {}
    for cells in groups:
        x = {key: math.log2(cell_runs[0][along]) for key, cell_runs in cells.items()}
        centre = sum(x.values()) / len(x)
        centred |= {(key[0], key[1]): value - centre for key, value in x.items()}
    total = sum(value**2 for value in centred.values())
    spanned = [r[along] for cells in groups for cell_runs in cells.values() for r in cell_runs]
    return {k: (centred[k[0], k[1]] / total, cell_runs) for cells in groups for k, cell_runs in cells.items()}, spanned


def _effect_row(dataset_slopes: Sequence[_Slope], *, shared: bool) -> Row:
    """Return the columns of the mean slope over data sets, with its interval and test."""
    spanned = [value for f in dataset_slopes for value in f.spanned]
    slopes = [f.by_seed for f in dataset_slopes]
    added = added_over_datasets([f.added for f in dataset_slopes], shared=shared)
    given_rates = over_datasets(slopes, shared=shared)
    tested = None if given_rates is None or added is None else given_rates.widened(added)
    return {
        "cells": sum(f.cells for f in dataset_slopes),
        "n_datasets": len(dataset_slopes),
        "least": min(spanned, default=None),
        "most": max(spanned, default=None),
        "n": given_rates.n // len(given_rates.pairs) if given_rates else 0,
        "slope": given_rates and given_rates.mean,
        "tested": tested,
        "low_pointwise": tested and tested.low,
        "high_pointwise": tested and tested.high,
        "p": tested and tested.p,
        "p_given_rates": given_rates and given_rates.p,
        "choice_sd": None if added is None else math.sqrt(added),
    }
