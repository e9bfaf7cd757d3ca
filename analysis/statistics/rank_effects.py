"""The question itself: what does a higher rank of the update bring at equal parameters, and what do more parameters at
equal rank?

Both are slopes of the test score per doubling, fitted for each seed with fixed effects: of rank, over the methods of
one budget, every budget having a level of its own; of parameters, over the budgets of a method whose rank is the same
at all of them, every method having a level of its own. Their spread over seeds, and what the choice of rates adds to
the cells' scores, give the interval and the test; so for the one slope less the other, seed by seed: is rank worth more
than parameters? Methods differ in more than rank, so the slope over all of them says what goes along with rank; the
slope over variants of one method (RandLoRA-a, whose rank is an option) says what rank does in that method, whose number
of bases makes up for the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from analysis.format import Row
from analysis.statistics.choice import CellKey, choice_variances
from analysis.statistics.inference import holm_steps, verdict
from analysis.statistics.looks import level, restrict_to_declared
from analysis.statistics.runs import (
    Seed,
    added_over_datasets,
    by_seed,
    group_by,
    over_datasets,
    shared_seeds,
    sharing_seeds,
)
from analysis.store.columns import INT, NOT_PARAMETERS, PLACE, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import in_order, size_key

MATCHED = 0.1
"""Largest distance of a cell's count from its budget, and largest share of it that can't act: beyond either parameters
are not equal."""

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
        *typed(REAL, "least", "most"),  # of the ranks, or of the parameters; null of the contrast
        ("cells", INT),
        ("n", INT),  # seeds
        ("n_datasets", INT),
        ("slope", REAL),  # of the score, a fraction, per doubling
        # with the choice of rates in them; null if that is not known. The interval has the level at which the row was
        # decided
        *typed(REAL, "low", "high", "p", "p_holm"),
        *typed(REAL, "low_pointwise", "high_pointwise"),  # the 95 % interval, for this row alone
        ("verdict", TEXT),  # 'higher': the score rises with the rank, or the parameters
        ("choice_sd", REAL),  # what the choice of rates adds to the slope; null where not known
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


def points(store: Store) -> pa.Table:
    """Score against the rank of the update, a row per confirmed cell whose rank is known; columns `POINTS`.

    Cells whose count is off their budget by more than `MATCHED` are left out, and those of which a larger share can't
    act (`idle_cells`: at a low rank RandLoRA-a has more gammas than its update has degrees of freedom); so are budgets that
    do not limit trainable parameters.
    """
    means = {(r["sweep"], r["cell_id"]): r for r in store.table("scaling").to_pylist()}
    rows = [runs[0] | means[cell] for cell, runs in group_by(_runs(store), "sweep", "cell_id").items()]
    return pa.Table.from_pylist(rows, schema=POINTS)


@remembered
def effects(store: Store) -> pa.Table:
    """What a doubling of the rank, and of the parameters, brings, and which brings more; columns `EFFECTS`.

    A row needs two ranks at one budget, or two budgets at one rank of a method; the contrast needs both. Seeds are
    those that all its cells have; one seed has no interval and no test. Data sets of a sweep are also averaged. Only
    the cells of the first declaration count. Holm's correction is over all rows of the table.
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
                found = {d: _Slope.of(each[effect], choice) for d, each in slopes.items() if effect in each}
                place = {"sweep": sweep, "model": model, "train_size": size, "scope": scope, "effect": effect}
                rows += [place | {"dataset": d} | _effect_row([f], shared=shared) for d, f in found.items()]
                if len(found) > 1 and len(found) == len(datasets):
                    rows.append(place | {"dataset": None} | _effect_row(list(found.values()), shared=shared))
    given, tested = (holm_steps([r[p] for r in rows], level=level(store)) for p in ("p_given_rates", "p"))
    for row, as_chosen, step in zip(rows, given, tested, strict=True):
        known = row["choice_sd"] is not None or row["p_given_rates"] is None
        row |= {"p_holm": step.adjusted, "verdict": verdict(row["slope"], step.adjusted, known=known)}
        row["verdict_given_rates"] = verdict(row["slope"], as_chosen.adjusted)
        if row["tested"] is not None:
            row["low"], row["high"] = row["tested"].interval(step.level)
    rows.sort(
        key=lambda r: (r["sweep"], r["model"], r["dataset"] is not None, r["dataset"] or "", size_key(r["train_size"]))
    )
    return pa.Table.from_pylist(rows, schema=EFFECTS)


def is_idle(row: Row) -> bool:
    """Whether more than `MATCHED` of a cell's parameters can't act, so that equal counts are not equal there."""
    count, dof = row.get("count"), row.get("dof")
    return count is not None and dof is not None and bool(dof < (1 - MATCHED) * count)


def idle_cells(store: Store) -> list[Row]:
    """A row of each method and budget that is left out for it."""
    return [rows[0] for rows in group_by(filter(is_idle, _all_runs(store)), "method", "reference").values()]


def _runs(store: Store) -> list[Row]:
    return [row for row in _all_runs(store) if not is_idle(row)]


@remembered
def _all_runs(store: Store) -> list[Row]:
    return list(store.sql(_RUNS).to_pylist())


def _families(runs: Sequence[Row]) -> list[str]:
    """Methods of which several variants were run beside other methods, in the order of tables."""
    variants = group_by(runs, "base")
    if len(variants) == 1:  # its variants are all there is
        return []
    return in_order({base for (base,), group in variants.items() if len({r["method"] for r in group}) > 1})


Weights = dict[CellKey, tuple[float, list[Row]]]
"""A cell's weight in a slope, which is the weighted sum of the cells' scores; and its runs."""


@dataclass(frozen=True)
class _Slope:
    """A slope on one data set: by seed, what the choice of rates adds to its variance, the cells, what they span."""

    by_seed: dict[Seed, float]
    added: float | None
    cells: int
    spanned: list[float]

    @classmethod
    def of(cls, found: tuple[Weights, list[float]], choice: Mapping[CellKey, float]) -> _Slope:
        weights, spanned = found
        cells = [(weight, by_seed(runs)) for weight, runs in weights.values()]
        shared = shared_seeds([scores for _, scores in cells])
        slopes = {seed: sum(weight * scores[seed] for weight, scores in cells) for seed in shared}
        known = all(key in choice for key in weights)
        if not known:
            return cls(slopes, None, len(cells), spanned)
        moves = [{"method": runs[0]["method"], "by": w * math.sqrt(choice[k])} for k, (w, runs) in weights.items()]
        each = [[r["by"] for r in rows] for rows in group_by(moves, "method").values()]
        # a method's budgets share TUNE's seeds: its choices may go wrong alike, or each for itself
        added = sum(max(sum(one) ** 2, sum(move**2 for move in one)) for one in each)
        return cls(slopes, added, len(cells), spanned)


def _slopes(runs: Sequence[Row]) -> dict[str, tuple[Weights, list[float]]]:
    """The weights of each effect that the cells tell of, and the ranks or parameters that they span."""
    same = [m for (m,), g in group_by(runs, "method").items() if len({r["update_rank"] for r in g}) == 1]
    level = [r for r in runs if r["method"] in same]
    asked = {RANK: _weights(runs, "reference", "update_rank"), PARAMETERS: _weights(level, "method", "adapter_params")}
    found = {effect: one for effect, one in asked.items() if one[0]}
    if len(found) == len(asked):
        (rank, _), (count, _) = found[RANK], found[PARAMETERS]
        none = (0.0, list[Row]())
        contrast = {
            key: (rank.get(key, none)[0] - count.get(key, none)[0], (rank.get(key) or count[key])[1])
            for key in {**rank, **count}
        }
        found[CONTRAST] = (contrast, [])
    return found


def _weights(runs: Sequence[Row], level: str, along: str) -> tuple[Weights, list[float]]:
    """Least squares of the score on log2 of `along` with a level of its own for every group (the within estimator)."""
    groups = [group_by(g, "sweep", "cell_id") for g in group_by(runs, level).values() if len({r[along] for r in g}) > 1]
    off: dict[CellKey, float] = {}
    for cells in groups:
        x = {key: math.log2(mine[0][along]) for key, mine in cells.items()}
        centre = sum(x.values()) / len(x)
        off |= {(key[0], key[1]): value - centre for key, value in x.items()}
    total = sum(value**2 for value in off.values())
    spanned = [r[along] for cells in groups for mine in cells.values() for r in mine]
    return {k: (off[k[0], k[1]] / total, mine) for cells in groups for k, mine in cells.items()}, spanned


def _effect_row(found: Sequence[_Slope], *, shared: bool) -> Row:
    """Mean slope over data sets with its interval and test."""
    spanned = [value for f in found for value in f.spanned]
    slopes = [f.by_seed for f in found]
    added = added_over_datasets([f.added for f in found], shared=shared)
    given = over_datasets(slopes, shared=shared)
    tested = None if given is None or added is None else given.widened(added)
    return {
        "cells": sum(f.cells for f in found),
        "n_datasets": len(found),
        "least": min(spanned, default=None),
        "most": max(spanned, default=None),
        "n": given.n // len(given.pairs) if given else 0,
        "slope": given and given.mean,
        "tested": tested,
        "low_pointwise": tested and tested.low,
        "high_pointwise": tested and tested.high,
        "p": tested and tested.p,
        "p_given_rates": given and given.p,
        "choice_sd": None if added is None else math.sqrt(added),
    }
