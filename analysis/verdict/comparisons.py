"""Step 6: every method against a baseline at each budget, with corrected tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.format import Row
from analysis.store.columns import INT, PLACE, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import Place, in_order, size_key, style
from analysis.verdict.choice import choice_variances
from analysis.verdict.correction import holm_steps
from analysis.verdict.datasets import added_over_datasets, over_all_datasets, over_datasets
from analysis.verdict.inference import OVER_DATASETS, Difference, t_difference
from analysis.verdict.looks import EARLY, least_advanced, level, margin_of, restrict_to_declared
from analysis.verdict.noise import noise_share
from analysis.verdict.power import PLANTED, detectable, effect_size, power_at, seeds_needed
from analysis.verdict.question import Question, question, question_against
from analysis.verdict.runs import (
    CellKey,
    Seed,
    averaged,
    baseline_runs,
    confirmed,
    datasets_of,
    failed,
    group_by,
    lost_runs,
    seed_differences,
    seed_differences_as_untrained,
    seed_of,
    shared_seeds,
    sharing_seeds,
    size_ratios,
)
from analysis.verdict.verdicts import verdict

Runs = Sequence[Row]
"""The confirmed runs of one cell."""

COMPARISONS = pa.schema(
    [
        *typed(TEXT, *PLACE),  # dataset null: all data sets together
        *typed(TEXT, "method", "baseline"),
        ("added", pa.bool_()),  # whether the row is of the second analysis, of cells that were added later
        ("reference", TEXT),  # null: all matched budgets together, those that every data set has
        ("budget", INT),
        ("params_ratio", REAL),  # the method's adapter parameters / the baseline's; null for one without a budget
        ("dof_ratio", REAL),  # the same of degrees of freedom; null also where they are not known
        # number of CONFIRM runs of the method, and of the baseline, without a score; null for a mean over several cells
        *typed(INT, "failed", "baseline_failed"),
        # the difference if each failed run of the method that is ahead gets the untrained model's score; null if no run
        # failed
        ("difference_as_untrained", REAL),
        ("n", INT),  # number of pairs, in all `datasets` together; with the test OVER_DATASETS the number of data sets
        ("datasets", INT),  # number of data sets with separate pairs; 1 if each seed is averaged over data sets first
        ("n_datasets", INT),  # number of data sets of the row
        ("n_budgets", INT),  # number of budgets of a row over several; null for one budget
        # with the choice of rates; null if that is not known. The interval has the level at which the row was decided,
        # so it leaves out zero exactly if the verdict is 'higher' or 'lower'
        *typed(REAL, "difference", "low", "high"),
        ("decided_at", REAL),  # 1 less that level
        *typed(REAL, "low_pointwise", "high_pointwise"),  # the 95 % interval, for this row alone
        ("sd", REAL),  # of the paired differences; over several data sets pooled within them
        ("error", REAL),  # standard error of the mean difference, given the chosen rates
        ("freedom", REAL),  # its degrees of freedom
        ("choice_sd", REAL),  # what the choice of both methods' rates adds (`choice`); null if not known
        ("p", REAL),  # with the choice of rates, as `low` and `high`
        ("p_holm", REAL),  # Holm's steps over the rows of a family, of which a mean over budgets has half of the level
        ("margin", REAL),  # below which a difference counts as none (`confirm.margin`); null if none was declared
        ("p_equivalent", REAL),  # p value of a true difference beyond the margin, corrected as `p_holm`
        ("verdict", TEXT),
        ("p_given_rates", REAL),  # the p value if the chosen rates were the only possible ones
        ("verdict_given_rates", TEXT),
        ("test", TEXT),  # 'paired t'; over several data sets which rule: `inference.OVER_SEEDS`, `WELCH`, ...
        ("edge", TEXT),  # who chose a rate at the edge of its range: 'method', 'baseline', 'both'; else null
        ("alpha", REAL),  # level of the row's first step, at which the next three columns are computed
        ("power", REAL),  # chance to find a true difference of PLANTED; null if not computable
        ("seeds_needed", INT),  # least seeds that would find it 4 times in 5; null: not within 1000, or unknown
        ("detectable", REAL),  # smallest true difference that is found 4 times in 5; null if not computable
        # only if not distinguishable: least number of seeds that would find the difference seen 4 times in 5; null if
        # more than 1000, or unknown. The second one: if the chosen rates were the only possible ones
        *typed(INT, "seeds_for_seen", "seeds_for_seen_given_rates"),
        ("effect", REAL),  # Hedges' g of the paired differences: their mean in standard deviations
        *typed(REAL, "effect_low", "effect_high"),
    ]
)

FURTHER = ("power", "seeds_needed", "effect", "effect_low", "effect_high")
"""Columns of `COMPARISONS` that take long to compute. No verdict needs them."""
TESTED = pa.schema([field for field in COMPARISONS if field.name not in FURTHER])


def comparisons(store: Store, baseline: str | None = None) -> pa.Table:
    """Compare every method that has a budget with `baseline`, paired by seed; columns `COMPARISONS`.

    There is a row for each place, method and budget. The question's focus also gets a row over all budgets that every
    data set has (`reference` null), and one that takes the data sets as a sample (`test` OVER_DATASETS). If `baseline`
    is the focus itself, the question's baseline gets these rows. `verdict` includes the choice of rates.

    The rows of the focus are one family of tests, in which the mean over budgets has half of the level (Holm). The rows
    of the other methods are a second family. If every method is in question, all rows are one family, and the means of
    all methods share half of the level. If the baseline has no budget, all rows are one family, with the mean over
    all data sets of each method and budget. Cells that were added later change none of these rows; their rows are a
    further family with a level of 5 %. In each family the chance of any false 'higher' or 'lower' is at most 5 %, and
    so is the chance of any false 'equivalent'.

    Args:
        store: the results.
        baseline: a method with budgets (compared at the same budget), or one without, such as 'full' (compared at every
            budget). Default: the baseline of the sweep's `question`.

    Returns:
        The table. Its schema's metadata has `EARLY` while cells of the question have seeds still to run.

    Raises:
        StoreError: the margin in the sweep file is not a fraction between 0 and 1.
    """
    return _table(store, _with_further(store, question_against(store, baseline)), COMPARISONS)


def verdict_table(store: Store) -> pa.Table:
    """Return `comparisons` without the columns `FURTHER`, which take long; columns `TESTED`."""
    return _table(store, [row for row, _ in rows_with_differences(store)], TESTED)


def _table(store: Store, rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Return rows as a table. Its metadata has `EARLY` if cells of the question have seeds still to run."""
    asked_question = question(store)
    pair = (asked_question.focus, asked_question.baseline)  # also if the table compares both with a third method
    focus_known = asked_question.focus is not None
    of_question = [r for r in rows if not focus_known or r["method"] in pair]
    seeds = least_advanced(store, of_question, [m for m in pair if m] if focus_known else None)
    return pa.Table.from_pylist(rows, schema=schema if seeds is None else schema.with_metadata({EARLY: seeds}))


@remembered
def _with_further(store: Store, asked: Question) -> list[Row]:
    return [row | _further_columns(row, difference) for row, difference in _compared_with(store, asked)]


def _further_columns(row: Row, difference: Difference) -> Row:
    """Return the columns `FURTHER`; null if they cannot be computed."""
    columns: Row = dict.fromkeys(FURTHER)
    effect = effect_size(difference)
    if effect is not None:
        columns |= {"effect": effect.mean, "effect_low": effect.low, "effect_high": effect.high}
    if row["p"] is not None and row["alpha"] and difference.testable and difference.as_untrained is None:
        widened = difference.widened(row["choice_sd"] ** 2)
        columns["power"] = power_at(widened, PLANTED, row["alpha"])
        columns["seeds_needed"] = seeds_needed(widened, PLANTED, row["alpha"])
    return columns


def rows_with_differences(store: Store, baseline: str | None = None) -> list[tuple[Row, Difference]]:
    """Return the rows of `verdict_table`, each with its difference (without the variance of the choice of rates)."""
    return _compared_with(store, question_against(store, baseline))


@remembered
def _compared_with(store: Store, asked: Question) -> list[tuple[Row, Difference]]:
    first = restrict_to_declared(store)
    tested_rows = _tested(first, asked, set())
    for row, _ in tested_rows:
        row["added"] = False
    if first is not store:
        later = _tested(store, asked, {_row_key(row) for row, _ in tested_rows})
        for row, _ in later:
            row["added"] = True
        tested_rows = sorted([*tested_rows, *later], key=lambda pair: (table_order(pair[0]), pair[0]["added"]))
    return tested_rows


def _row_key(row: Row) -> tuple[Any, ...]:
    """Return what identifies a row: place, method, budget, and the numbers of data sets and budgets of a mean."""
    return (
        *(row.get(k) for k in (*PLACE, "method", "reference", "n_datasets", "n_budgets")),
        row["test"] == OVER_DATASETS,
    )


def _tested(store: Store, asked: Question, before: Collection[tuple[Any, ...]]) -> list[tuple[Row, Difference]]:
    """Return the rows of a store, with corrected p values and verdicts.

    Rows whose key is in `before` are left out, and the others are then one family.
    """
    baseline = asked.baseline
    cells = confirmed(store)
    choice = choice_variances(store)
    margin = margin_of(store)
    edges = {(r["sweep"], r["cell_id"]) for r in store.table("chosen").to_pylist() if r["edge"]}
    tested_rows: list[tuple[Row, Difference]] = []
    for (place, method, reference), runs in cells.items():
        base_runs = baseline_runs(cells, place, baseline, reference)
        if method == baseline or runs[0]["budget"] is None or not base_runs:
            continue
        by_seed_differences = seed_differences(runs, base_runs)
        if by_seed_differences:
            difference = t_difference(list(by_seed_differences.values()))
            lost_here = [len(lost_runs(store, each)) for each in (runs, base_runs)]
            if any(lost_here):
                filled = seed_differences_as_untrained(store, runs, base_runs, ahead=difference.mean > 0)
                also = None if filled == by_seed_differences else t_difference(list(filled.values()))
                difference = replace(difference, as_untrained=also, lost=sum(lost_here))
            row = _comparison_row(runs[0], baseline, difference, _choice_variance(choice, [(runs, base_runs)]), margin)
            row |= size_ratios(store, runs[0], base_runs[0]) | {"edge": _edge(edges, runs[0], base_runs[0])}
            row["failed"], row["baseline_failed"] = lost_here
            tested_rows.append((row, difference))
    single = [row for row, _ in tested_rows]
    matched = any(row["params_ratio"] is not None for row in single)  # else all rows are one family
    for rows, mean, added in () if matched else over_all_datasets(store, single):
        row = _comparison_row(rows[0] | {"dataset": None}, baseline, mean, added, margin)
        tested_rows.append((row | {"n_datasets": len(rows)}, mean))
    in_question = {row["method"] for row in single} if asked.every else {asked.focus}
    for method in in_order({name for name in in_question if name is not None}):
        tested_rows += _overall(store, single, baseline, method)
    tested_rows = [(row, difference) for row, difference in tested_rows if _row_key(row) not in before]
    tested_rows.sort(key=lambda pair: table_order(pair[0]))
    _corrected([row for row, _ in tested_rows], asked.focus if matched and not before else None, level(store))
    for row, difference in tested_rows:
        row.update(_prospects(row, difference))
    return tested_rows


def _corrected(rows: Sequence[Row], focus: str | None, alpha: float) -> None:
    """Put adjusted p values, levels and verdicts into the rows of a table. Each family has the level `alpha`."""
    for family in ([r for r in rows if (r["method"] == focus) is of_focus] for of_focus in (True, False)):
        steps = partial(holm_steps, weights=_weights(family), level=alpha)
        for row, step, step_given_rates in zip(
            family, steps([r["p"] for r in family]), steps([r["p_given_rates"] for r in family]), strict=True
        ):
            row |= {"p_holm": step.adjusted, "alpha": step.first, "decided_at": step.level}
            row["verdict_given_rates"] = verdict(row["difference"], step_given_rates.adjusted)
        # equivalent only if the row's own interval also lies within the margin
        beyond = [None if (p := r["p_beyond"]) is None else p if 2 * p <= r["decided_at"] else 1.0 for r in family]
        for row, step in zip(family, steps(beyond), strict=True):
            choice_known = row["choice_sd"] is not None or row["p_given_rates"] is None
            row["p_equivalent"] = step.adjusted
            row["verdict"] = verdict(row["difference"], row["p_holm"], beyond=step.adjusted, known=choice_known)
            if step.adjusted is not None and row["verdict"] not in ("higher", "lower"):
                row["decided_at"] = min(row["decided_at"], 2 * step.level)


def _weights(family: Sequence[Row]) -> list[float]:
    """Return the weights of Holm's test.

    The means over budgets of a place together weigh as much as all its other rows together. There is one mean, or one
    for each method if every method is in question.
    """
    places = [(r["sweep"], r["model"], r["train_size"]) for r in family]
    tested = [(place, _is_overall(r)) for place, r in zip(places, family, strict=True) if r["p"] is not None]
    means = Counter(place for place, overall in tested if overall)
    others = Counter(place for place, overall in tested if not overall)
    return [
        max(1, others[place]) / max(1, means[place]) if _is_overall(r) else 1.0
        for place, r in zip(places, family, strict=True)
    ]


def _is_overall(row: Row) -> bool:
    """Return whether a row is the mean over the budgets of a method."""
    return row["reference"] is None and row["test"] != OVER_DATASETS


def _edge(edges: set[CellKey], run: Row, base_run: Row) -> str | None:
    """Return which of a run and its baseline's run has a rate at the edge of its range, or None if neither has."""
    run_at_edge, base_at_edge = ((each["sweep"], each["cell_id"]) in edges for each in (run, base_run))
    return {(True, True): "both", (True, False): "method", (False, True): "baseline"}.get((run_at_edge, base_at_edge))


def _prospects(row: Row, difference: Difference) -> Row:
    """Return the interval at the level that decided the row, the seeds it would need, and what it can detect.

    The last two are left out if failed runs are part of the test: they hold for finished runs alone.
    """
    if row["p"] is None or not row["alpha"] or not difference.testable:
        return {}
    alpha, widened = row["alpha"], difference.widened(row["choice_sd"] ** 2)
    low, high = widened.interval(row["decided_at"])
    if difference.as_untrained is not None:  # more seeds do not change that runs fail
        return {"low": low, "high": high}
    silent = row["verdict"] == "not distinguishable" and row["difference"]
    return {
        "low": low,
        "high": high,
        "seeds_for_seen": seeds_needed(widened, row["difference"], alpha) if silent else None,
        "seeds_for_seen_given_rates": seeds_needed(difference, row["difference"], alpha) if silent else None,
        "detectable": detectable(widened, alpha),
    }


def _choice_variance(choice: Mapping[CellKey, float], pairs: Sequence[tuple[Runs, Runs]]) -> float | None:
    """Return the variance that choices add to a mean over budgets of one data set, or None if one is not known."""
    variances = [choice.get((runs[0]["sweep"], runs[0]["cell_id"])) for pair in pairs for runs in pair]
    known_variances = [variance for variance in variances if variance is not None]
    return sum(known_variances) / len(pairs) * _noise_share(pairs) if len(known_variances) == len(variances) else None


def _noise_share(pairs: Sequence[tuple[Runs, Runs]]) -> float:
    """Return the variance of a mean of choices over budgets, divided by that of one choice (`noise.noise_share`)."""
    scores = [[{seed_of(r): r["val_score"] for r in runs if r["val_score"] is not None} for runs in p] for p in pairs]
    seeds = shared_seeds([cell for pair in scores for cell in pair])
    if len(pairs) == 1 or not seeds:
        return 1.0
    return float(noise_share(np.array([[[cell[seed] for seed in seeds] for cell in pair] for pair in scores])))


def _overall(store: Store, rows: Sequence[Row], baseline: str, focus: str) -> list[tuple[Row, Difference]]:
    """Return the rows of the method `focus` over all budgets that every data set has.

    If there are several data sets, there is also a row that takes them as a sample.
    """
    cells = confirmed(store)
    choice = choice_variances(store)
    sharing = sharing_seeds(store)
    matched = [row for row in rows if row["method"] == focus and row["params_ratio"] is not None]
    overall_rows = []
    for (sweep, model, size), group in group_by(matched, "sweep", "model", "train_size").items():
        sets = datasets_of({c for c in cells if c[1] in (focus, baseline)}, sweep, model, size)
        several = [r for same in group_by(group, "reference").values() if len(same) == len(sets) for r in same]
        if len(several) < 2:
            continue
        blocks: dict[str, dict[Seed, float]] = {}
        pairs_of: dict[str, list[tuple[Runs, Runs]]] = {}
        parts: list[float | None] = []
        for (dataset,), dataset_rows in group_by(several, "dataset").items():
            place = (sweep, model, dataset, size)
            pairs: list[tuple[Runs, Runs]] = [
                (cells[place, focus, r["reference"]], cells[place, baseline, r["reference"]]) for r in dataset_rows
            ]
            blocks[dataset] = averaged([seed_differences(runs, other) for runs, other in pairs])
            pairs_of[dataset] = pairs
            parts.append(_choice_variance(choice, pairs))
        if not all(blocks.values()):
            continue
        dataset = next(iter(blocks)) if len(blocks) == 1 else None
        total = {"sweep": sweep, "model": model, "dataset": dataset, "train_size": size, "method": focus}
        total |= {"reference": None, "budget": None}
        each, shared = list(blocks.values()), sweep in sharing
        added = added_over_datasets(parts, shared=shared)
        these = over_datasets(each, shared=shared)
        lost = sum(len(lost_runs(store, r)) for pairs in pairs_of.values() for pair in pairs for r in pair)
        ahead = these is not None and these.mean > 0
        leader, other = (focus, baseline) if ahead else (baseline, focus)
        collapsed = {name: _all_failed(store, (sweep, model, name, size), leader, other) for name in blocks}
        for name in blocks:
            behind = _all_failed(store, (sweep, model, name, size), other, leader)
            lost += sum(len(runs) for runs, _ in collapsed[name] + behind)
        if these is not None and lost:
            filled = [
                averaged(
                    [seed_differences_as_untrained(store, *pair, ahead=ahead) for pair in pairs]
                    + [seed_differences(*(pair if ahead else pair[::-1])) for pair in collapsed[name]]
                )
                for name, pairs in pairs_of.items()
            ]
            also = None if filled == each else over_datasets(filled, shared=shared)
            these = replace(these, as_untrained=also, lost=lost)
        tests = [(these, added)]
        if len(blocks) > 1:
            # a single seed may affect all data sets in the same way, so it says nothing about data sets like these
            spread = not shared and these is not None and these.testable
            like = _like_these(each, spread=spread)
            if these is not None and lost:
                also = None if these.as_untrained is None else _like_these(filled, spread=spread)
                like = replace(like, as_untrained=also, lost=lost)
            tests.append((like, 0.0))  # the spread over data sets includes their choices
        for difference, extra in tests:
            if difference is not None:
                row = _comparison_row(total, baseline, difference, extra, margin_of(store))
                n_budgets = len({r["reference"] for r in several})
                overall_rows.append((row | {"n_datasets": len(blocks), "n_budgets": n_budgets}, difference))
    return overall_rows


def _all_failed(store: Store, place: Place, method: str, other: str) -> list[tuple[Runs, Runs]]:
    """Return the runs of the method's cells of which every run failed, each with the other method's runs.

    Such a budget has no comparison, so a mean leaves it out. These runs have the untrained model's score.
    """
    cells = confirmed(store)
    return [
        (runs, cells[place, other, reference])
        for (where, name, reference), runs in failed(store).items()
        if (where, name) == (place, method)
        and (place, method, reference) not in cells
        and (place, other, reference) in cells
    ]


def _like_these(blocks: Sequence[Mapping[Seed, float]], *, spread: bool) -> Difference:
    """Return the mean over data sets as a sample of data sets like them, tested by a t test over their means.

    Args:
        spread: whether the spread between data sets is usable. It is not if data sets share seeds or have a single one,
            because what a seed does to all of them is not part of that spread.
    """
    means = [sum(values.values()) / len(values) for values in blocks]
    difference = t_difference(means, OVER_DATASETS)
    return difference if spread else replace(difference, variances=(), freedoms=())


def _comparison_row(cell: Row, baseline: str, difference: Difference, added: float | None, margin: float | None) -> Row:
    """Return a row of `COMPARISONS` before correction. `added` is None if the variance of the choice is not known."""
    widened = None if added is None else difference.widened(added)
    return (
        {k: cell[k] for k in (*PLACE, "method", "reference", "budget")}
        | {"params_ratio": None, "dof_ratio": None, "edge": None, "baseline": baseline, "n_datasets": 1}
        | {"n": difference.n, "datasets": len(difference.pairs), "test": difference.test}
        | {"failed": None, "baseline_failed": None}
        | {"difference_as_untrained": difference.as_untrained and difference.as_untrained.mean}
        | {"difference": difference.mean, "sd": difference.sd, "error": difference.error, "freedom": difference.freedom}
        | {"p_given_rates": difference.p, "choice_sd": None if added is None else added**0.5}
        | {"low": None, "high": None, "p": widened and widened.p}
        | {"low_pointwise": widened and widened.low, "high_pointwise": widened and widened.high}
        | {
            "margin": margin,
            "p_beyond": widened.p_beyond(margin) if widened is not None and margin is not None else None,
        }
    )


def table_order(row: Row) -> tuple[Any, ...]:
    method = style(row["method"])
    params = row.get("adapter_params") if row.get("budget") is None else row["budget"]
    place = (row["sweep"], row["model"], row["dataset"] is None, row["dataset"] or "", size_key(row["train_size"]))
    total = (row["budget"] is None and row.get("baseline") is not None) + (row.get("test") == OVER_DATASETS)
    return (*place, method.order, row["method"], total, params or 0)  # "all budgets" after the budgets
