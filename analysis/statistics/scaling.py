"""The scaling curve and the comparisons at each budget: every function returns an Arrow table, or a phrase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.format import Row
from analysis.statistics.choice import CellKey, choice_variances, noise_share
from analysis.statistics.inference import (
    OVER_DATASETS,
    Difference,
    holm_steps,
    t_difference,
    verdict,
)
from analysis.statistics.looks import declared_before_scores, least_advanced, level, margin_of, restrict_to_declared
from analysis.statistics.power import detectable, effect_size, power_at, seeds_needed
from analysis.statistics.runs import (
    Seed,
    added_over_datasets,
    averaged,
    baseline_runs,
    by_seed,
    confirmed,
    datasets_of,
    group_by,
    lost_runs,
    over_all_datasets,
    over_datasets,
    seed_differences,
    seed_differences_as_untrained,
    seed_of,
    shared_seeds,
    sharing_seeds,
    size_ratios,
)
from analysis.store.columns import INT, PLACE, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import in_order, size_key, style

Runs = Sequence[Row]
"""The confirmed runs of a cell."""

FOCUS, BASELINE = "randlora", "lora"
"""The question's two methods: full rank and low rank at the same count."""


@dataclass(frozen=True)
class Question:
    """Which methods a sweep compares at equal parameters.

    Attributes:
        focus: the method in question; None where there are several, each against the `baseline` alike.
    """

    focus: str | None = FOCUS
    baseline: str = BASELINE


@remembered
def question(store: Store) -> Question:
    """The method of `confirm.question` against LoRA; without one RandLoRA, where the sweep has it with a budget.

    Else the baseline is the first other method in the order of tables, and in question the one method that is left.
    Methods that joined after the first declaration change none of it.
    """
    declared_cells = restrict_to_declared(store).table("cells").to_pylist()
    rows = [r for r in declared_cells if r["feasible"] and r["reference"] is not None]
    return question_among({r["method"] for r in rows}, declared_before_scores(store).get("question"))


def question_among(names: Collection[str], asked: str | None) -> Question:
    """Return the question of a sweep whose cells with a budget have these methods. `asked`: its `confirm.question`."""
    methods = in_order(set(names))
    focus = asked if asked in methods else FOCUS
    others = [m for m in methods if m != focus]
    baseline = BASELINE if BASELINE in others else others[0] if others else BASELINE
    rest = [m for m in methods if m != baseline]
    return Question(focus if focus in rest else rest[0] if len(rest) == 1 else None, baseline)


PLANTED = 0.02
"""The true difference that `power` is given for: 2 points."""

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

COMPARISONS = pa.schema(
    [
        *typed(TEXT, *PLACE),  # dataset null: all data sets together
        *typed(TEXT, "method", "baseline"),
        ("added", pa.bool_()),  # whether it is of the second analysis: of cells that joined after the first declaration
        ("reference", TEXT),  # null: all matched budgets together, those that every data set has
        ("budget", INT),
        ("params_ratio", REAL),  # the method's adapter parameters / the baseline's; null for one without a budget
        ("dof_ratio", REAL),  # the same of degrees of freedom; null also where they are not known
        *typed(
            INT, "failed", "baseline_failed"
        ),  # confirming runs of either without a score; null of a mean over several
        (
            "difference_as_untrained",
            REAL,
        ),  # with each failed run of the one ahead scored as the untrained model, if any
        ("n", INT),  # pairs, of all data sets whose pairs count by themselves; of OVER_DATASETS data sets
        ("datasets", INT),  # whose pairs count by themselves; 1 where each seed is averaged over data sets first
        ("n_datasets", INT),  # that the row is of
        ("n_budgets", INT),  # that a row over several is of; null for one
        # with the choice of rates; null if that is not known. The interval has the level at which the row was decided,
        # so it leaves out zero exactly if the verdict is 'higher' or 'lower'
        *typed(REAL, "difference", "low", "high"),
        ("decided_at", REAL),  # 1 less that level
        *typed(REAL, "low_pointwise", "high_pointwise"),  # the 95 % interval, for this row alone
        ("sd", REAL),  # of the paired differences; over several data sets pooled within them
        ("error", REAL),  # standard error of the mean difference, given the chosen rates
        ("freedom", REAL),  # its degrees of freedom
        ("choice_sd", REAL),  # what the choice of both arms' rates adds (`choice`); null where not known
        ("p", REAL),  # with the choice of rates in it, as `low` and `high`
        ("p_holm", REAL),  # Holm's steps over the rows of a family, of which a mean over budgets has half of the level
        ("margin", REAL),  # below which a difference counts as none (`confirm.margin`); null where none was named
        (
            "p_equivalent",
            REAL,
        ),  # corrected as `p_holm`, of a true difference beyond the margin
        ("verdict", TEXT),
        ("p_given_rates", REAL),  # were the chosen rates the only ones possible
        ("verdict_given_rates", TEXT),
        ("test", TEXT),  # 'paired t'; over several data sets which rule: `inference.OVER_SEEDS`, `WELCH`, ...
        ("edge", TEXT),  # which arms chose the end of their range of rates: 'method', 'baseline', 'both'; else null
        ("alpha", REAL),  # level of the row's first step, which the next three are for
        ("power", REAL),  # chance to find a true difference of PLANTED; null where not computable
        ("seeds_needed", INT),  # least seeds that would find it 4 times in 5; null: not within 1000, or unknown
        ("detectable", REAL),  # smallest true difference that is found 4 times in 5; null where not computable
        # of a row that is not distinguishable: least seeds that would find the difference seen 4 times in 5; null: not
        # within 1000, or unknown; the second one were the chosen rates the only ones possible
        *typed(INT, "seeds_for_seen", "seeds_for_seen_given_rates"),
        ("effect", REAL),  # Hedges' g of the paired differences: their mean in standard deviations
        *typed(REAL, "effect_low", "effect_high"),
    ]
)

FURTHER = ("power", "seeds_needed", "effect", "effect_low", "effect_high")
"""Columns of `COMPARISONS` that take long to compute. No verdict needs them."""
TESTED = pa.schema([field for field in COMPARISONS if field.name not in FURTHER])

EARLY = b"preliminary"
"""Key of a table's metadata: '2 of 5 seeds', as of `looks.least_advanced`."""


def score_name(store: Store, dataset: str | None = None) -> str:
    """What test scores measure: 'test accuracy', or the one metric of the confirmed trials; else 'test score'.

    Args:
        dataset: its trials alone; default all.
    """
    query = (
        "select distinct dataset, coalesce(metric, 'accuracy') as metric from confirmed where test_score is not null"
    )
    found = store.remember("metrics", lambda: store.sql(query)).to_pylist()
    kinds = {r["metric"].partition(" (")[0] for r in found if dataset in (None, r["dataset"])}
    return f"test {kinds.pop()}" if len(kinds) == 1 else "test score" if kinds else "test accuracy"


def one_budget(store: Store) -> bool:
    """Whether the plan has a single budget, at which a curve would be a point."""
    return len({r["reference"] for r in store.table("cells").to_pylist() if r["feasible"] and r["reference"]}) == 1


@remembered
def curve(store: Store) -> pa.Table:
    """Score against trainable parameters: per method and budget the mean over seeds with its 95 % t interval.

    Columns: `CURVE`. A cell has the numbers of the view `scaling`. Methods without a budget (full fine-tuning,
    zero-shot) are rows of kind 'line'. A sweep over several data sets also has rows with a null `dataset`: the mean
    over all its data sets, its interval over seeds, for methods and budgets that are confirmed on each.
    """
    of_cells = store.table("scaling").to_pylist()
    cells, sharing = confirmed(store), sharing_seeds(store)
    means: list[Row] = []
    for (sweep, model, size, method, reference), mine in group_by(of_cells, *_ACROSS).items():
        datasets = sorted(datasets_of(cells, sweep, model, size), key=lambda name: name or "")
        groups = [cells.get(((sweep, model, dataset, size), method, reference), []) for dataset in datasets]
        if len(datasets) < 2 or not all(groups):
            continue
        mean = over_datasets([by_seed(runs) for runs in groups], shared=sweep in sharing)
        if mean is not None:
            row = mine[0] | {"dataset": None, "lr": None, "n_datasets": len(datasets)}
            row |= {"n": mean.n // len(mean.pairs), "mean": mean.mean, "sd": mean.sd}
            row |= {"low": mean.low, "high": mean.high}
            means.append(row)
    rows = [{"n_datasets": 1} | r | _labels(r) for r in (*of_cells, *means)]
    return pa.Table.from_pylist(sorted(rows, key=_order), schema=CURVE)


_ACROSS = ("sweep", "model", "train_size", "method", "reference")
"""What the cells of a mean over data sets have in common."""


def _labels(row: Row) -> Row:
    return {"name": style(row["method"]).name, "kind": "line" if row["budget"] is None else "curve"}


def comparisons(store: Store, baseline: str | None = None) -> pa.Table:
    """Every method with a budget against `baseline`, paired by seed; columns `COMPARISONS`.

    Args:
        store: the results.
        baseline: a method with budgets (compared at the same budget) or without ('full': compared at every budget);
            default: that of the sweep's `question`.

    Returns:
        Rows by place, method and budget. The question's focus (its baseline, where `baseline` is its focus) also gets
        one row over the matched budgets that every data set has (`reference` null), where these are more than one row,
        and one for data sets like these (`test` OVER_DATASETS). `verdict` has the choice of rates in it. The rows of
        the focus are one family (Holm; its mean over budgets has half of the level); the rows of the other methods are
        a second one. Against a baseline without a budget all rows are one, with the mean over all data sets of every
        method and budget. Cells that joined after the first declaration change none of these rows. Theirs are a further
        family, with 5 % of its own. The chance of any false 'higher' or 'lower' in a family is at most 5 %, and so is
        that of any false 'equivalent'. The schema's metadata has `EARLY` while seeds of the question's cells are to
        come.

    Raises:
        StoreError: the margin in the folder's sweep file is no fraction between 0 and 1.
    """
    asked = question_against(store, baseline)
    return _table(store, _with_further(store, asked.baseline, asked.focus), COMPARISONS)


def verdict_table(store: Store, baseline: str | None = None) -> pa.Table:
    """`comparisons` without the columns `FURTHER`; columns `TESTED`."""
    return _table(store, [row for row, _ in rows_with_differences(store, baseline)], TESTED)


def _table(store: Store, rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Return rows as a table. Its metadata has `EARLY` if cells of the question have seeds still to run."""
    asked = question(store)
    pair = (asked.focus, asked.baseline)  # against a third method the sentence is on both
    seeds = least_advanced(store, [r for r in rows if asked.focus is None or r["method"] in pair])
    return pa.Table.from_pylist(rows, schema=schema if seeds is None else schema.with_metadata({EARLY: seeds}))


@remembered
def _with_further(store: Store, baseline: str, focus: str | None) -> list[Row]:
    return [row | _further(row, difference) for row, difference in _compared_with(store, baseline, focus)]


def _further(row: Row, difference: Difference) -> Row:
    """Return the columns `FURTHER`; null if they cannot be computed."""
    columns: Row = dict.fromkeys(FURTHER)
    effect = effect_size(difference)
    if effect is not None:
        columns |= {"effect": effect.mean, "effect_low": effect.low, "effect_high": effect.high}
    if row["p"] is not None and row["alpha"] and difference.testable:
        widened = difference.widened(row["choice_sd"] ** 2)
        columns["power"] = power_at(widened, PLANTED, row["alpha"])
        columns["seeds_needed"] = seeds_needed(widened, PLANTED, row["alpha"])
    return columns


def rows_with_differences(store: Store, baseline: str | None = None) -> list[tuple[Row, Difference]]:
    """Return the rows of `verdict_table`, each with the difference it was computed from, given the chosen rates."""
    asked = question_against(store, baseline)
    return _compared_with(store, asked.baseline, asked.focus)


def question_against(store: Store, baseline: str | None = None) -> Question:
    """The sweep's question with another baseline; with its focus for one the pair stands the other way round."""
    asked = question(store)
    turned = baseline is not None and baseline == asked.focus
    return Question(asked.baseline if turned else asked.focus, baseline or asked.baseline)


@remembered
def _compared_with(store: Store, baseline: str, focus: str | None) -> list[tuple[Row, Difference]]:
    first = restrict_to_declared(store)
    found = _tested(first, baseline, focus, set())
    for row, _ in found:
        row["added"] = False
    if first is not store:
        later = _tested(store, baseline, focus, {_row_key(row) for row, _ in found})
        for row, _ in later:
            row["added"] = True
        found = sorted([*found, *later], key=lambda pair: (_order(pair[0]), pair[0]["added"]))
    return found


def _row_key(row: Row) -> tuple[Any, ...]:
    """What a row is of: place, method, budget, and for a mean of how many data sets and budgets."""
    return (
        *(row.get(k) for k in (*PLACE, "method", "reference", "n_datasets", "n_budgets")),
        row["test"] == OVER_DATASETS,
    )


def _tested(
    store: Store, baseline: str, focus: str | None, before: Collection[tuple[Any, ...]]
) -> list[tuple[Row, Difference]]:
    """The rows of a store, corrected together; without those of `before`, and then as one family."""
    cells = confirmed(store)
    choice = choice_variances(store)
    margin = margin_of(store)
    edges = {(r["sweep"], r["cell_id"]) for r in store.table("chosen").to_pylist() if r["edge"]}
    found: list[tuple[Row, Difference]] = []
    for (place, method, reference), runs in cells.items():
        other = baseline_runs(cells, place, baseline, reference)
        if method == baseline or runs[0]["budget"] is None or not other:
            continue
        seen = seed_differences(runs, other)
        if seen:
            difference = t_difference(list(seen.values()))
            lost_here = [len(lost_runs(store, each)) for each in (runs, other)]
            if any(lost_here):
                filled = seed_differences_as_untrained(store, runs, other, ahead=difference.mean > 0)
                also = None if filled == seen else t_difference(list(filled.values()))
                difference = replace(difference, as_untrained=also, lost=sum(lost_here))
            row = _comparison_row(runs[0], baseline, difference, _choice_variance(choice, [(runs, other)]), margin)
            row |= size_ratios(store, runs[0], other[0]) | {"edge": _edge(edges, runs[0], other[0])}
            row["failed"], row["baseline_failed"] = lost_here
            found.append((row, difference))
    single = [row for row, _ in found]
    matched = any(row["params_ratio"] is not None for row in single)  # else, without a mean to ask first, one family
    for rows, mean, added in () if matched else over_all_datasets(store, single):
        row = _comparison_row(rows[0] | {"dataset": None}, baseline, mean, added, margin)
        found.append((row | {"n_datasets": len(rows)}, mean))
    found += _overall(store, single, baseline, focus)
    found = [(row, difference) for row, difference in found if _row_key(row) not in before]
    found.sort(key=lambda pair: _order(pair[0]))
    _corrected([row for row, _ in found], focus if matched and not before else None, level(store))
    for row, difference in found:
        row.update(_prospects(row, difference))
    return found


def _corrected(rows: Sequence[Row], focus: str | None, alpha: float) -> None:
    """Adjusted p values, levels and verdicts of a whole table, put into its rows. `alpha`: level of each family."""
    for family in ([r for r in rows if (r["method"] == focus) is mine] for mine in (True, False)):
        steps = partial(holm_steps, weights=_weights(family), level=alpha)
        for row, step, given in zip(
            family, steps([r["p"] for r in family]), steps([r["p_given_rates"] for r in family]), strict=True
        ):
            row |= {"p_holm": step.adjusted, "alpha": step.first, "decided_at": step.level}
            row["verdict_given_rates"] = verdict(row["difference"], given.adjusted)
        # equivalent only if the row's own interval lies within the margin, too
        beyond = [None if (p := r["p_beyond"]) is None else p if 2 * p <= r["decided_at"] else 1.0 for r in family]
        for row, step in zip(family, steps(beyond), strict=True):
            known = row["choice_sd"] is not None or row["p_given_rates"] is None
            row["p_equivalent"] = step.adjusted
            row["verdict"] = verdict(row["difference"], row["p_holm"], beyond=step.adjusted, known=known)
            if step.adjusted is not None and row["verdict"] not in ("higher", "lower"):
                row["decided_at"] = min(row["decided_at"], 2 * step.level)


def _weights(family: Sequence[Row]) -> list[float]:
    """A mean over budgets has as much of the first step's level as all other rows of its place together."""
    places = [(r["sweep"], r["model"], r["train_size"]) for r in family]
    others = Counter(
        place for place, r in zip(places, family, strict=True) if r["p"] is not None and not _is_overall(r)
    )
    return [float(max(1, others[place])) if _is_overall(r) else 1.0 for place, r in zip(places, family, strict=True)]


def _is_overall(row: Row) -> bool:
    return row["reference"] is None and row["test"] != OVER_DATASETS


def _edge(edges: set[CellKey], mine: Row, other: Row) -> str | None:
    ours, theirs = ((run["sweep"], run["cell_id"]) in edges for run in (mine, other))
    return {(True, True): "both", (True, False): "method", (False, True): "baseline"}.get((ours, theirs))


def _prospects(row: Row, difference: Difference) -> Row:
    """The interval at the level that decided the row, the seeds for the difference seen, the least detectable."""
    if row["p"] is None or not row["alpha"] or not difference.testable:
        return {}
    alpha, widened = row["alpha"], difference.widened(row["choice_sd"] ** 2)
    low, high = widened.interval(row["decided_at"])
    silent = row["verdict"] == "not distinguishable" and row["difference"]
    return {
        "low": low,
        "high": high,
        "seeds_for_seen": seeds_needed(widened, row["difference"], alpha) if silent else None,
        "seeds_for_seen_given_rates": seeds_needed(difference, row["difference"], alpha) if silent else None,
        "detectable": detectable(widened, alpha),
    }


def _choice_variance(choice: Mapping[CellKey, float], pairs: Sequence[tuple[Runs, Runs]]) -> float | None:
    """Variance that choices add to a mean over budgets of one data set; None where one of them is not known."""
    found = [choice.get((runs[0]["sweep"], runs[0]["cell_id"])) for pair in pairs for runs in pair]
    known = [variance for variance in found if variance is not None]
    return sum(known) / len(pairs) * _noise_share(pairs) if len(known) == len(found) else None


def _noise_share(pairs: Sequence[tuple[Runs, Runs]]) -> float:
    """Which share of one choice's variance the mean over budgets has (`choice.noise_share`)."""
    scores = [[{seed_of(r): r["val_score"] for r in runs if r["val_score"] is not None} for runs in p] for p in pairs]
    seeds = shared_seeds([cell for pair in scores for cell in pair])
    if len(pairs) == 1 or not seeds:
        return 1.0
    return float(noise_share(np.array([[[cell[seed] for seed in seeds] for cell in pair] for pair in scores])))


def _overall(store: Store, rows: Sequence[Row], baseline: str, focus: str | None) -> list[tuple[Row, Difference]]:
    """The rows of `focus` over the matched budgets that every data set has, and of data sets like these."""
    cells = confirmed(store)
    choice = choice_variances(store)
    sharing = sharing_seeds(store)
    if focus is None:
        return []
    matched = [row for row in rows if row["method"] == focus and row["params_ratio"] is not None]
    found = []
    for (sweep, model, size), group in group_by(matched, "sweep", "model", "train_size").items():
        sets = datasets_of({c for c in cells if c[1] in (focus, baseline)}, sweep, model, size)
        several = [r for same in group_by(group, "reference").values() if len(same) == len(sets) for r in same]
        if len(several) < 2:
            continue
        blocks: dict[str, dict[Seed, float]] = {}
        pairs_of: dict[str, list[tuple[Runs, Runs]]] = {}
        parts: list[float | None] = []
        for (dataset,), mine in group_by(several, "dataset").items():
            place = (sweep, model, dataset, size)
            pairs: list[tuple[Runs, Runs]] = [
                (cells[place, focus, r["reference"]], cells[place, baseline, r["reference"]]) for r in mine
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
        if these is not None and lost:
            ahead = these.mean > 0
            filled = [
                averaged([seed_differences_as_untrained(store, *pair, ahead=ahead) for pair in p])
                for p in pairs_of.values()
            ]
            also = None if filled == each else over_datasets(filled, shared=shared)
            these = replace(these, as_untrained=also, lost=lost)
        tests = [(these, added)]
        if len(blocks) > 1:  # one seed, which may do the same to all of them, tells no more of sets like these
            spread = not shared and these is not None and these.testable
            like = _like_these(each, spread=spread)
            if these is not None and lost:
                also = None if these.as_untrained is None else _like_these(filled, spread=spread)
                like = replace(like, as_untrained=also, lost=lost)
            tests.append((like, 0.0))  # spread over data sets has their choices in it
        for difference, extra in tests:
            if difference is not None:
                row = _comparison_row(total, baseline, difference, extra, margin_of(store))
                n_budgets = len({r["reference"] for r in several})
                found.append((row | {"n_datasets": len(blocks), "n_budgets": n_budgets}, difference))
    return found


def _like_these(blocks: Sequence[Mapping[Seed, float]], *, spread: bool) -> Difference:
    """The mean over data sets as a sample of data sets like them: a t test over their means.

    Without a spread where data sets share seeds, or have one: what a seed does to all is in no spread between them.
    """
    means = [sum(values.values()) / len(values) for values in blocks]
    found = t_difference(means, OVER_DATASETS)
    return found if spread else replace(found, variances=(), freedoms=())


def _comparison_row(cell: Row, baseline: str, difference: Difference, added: float | None, margin: float | None) -> Row:
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


def _order(row: Row) -> tuple[Any, ...]:
    method = style(row["method"])
    params = row.get("adapter_params") if row.get("budget") is None else row["budget"]
    place = (row["sweep"], row["model"], row["dataset"] is None, row["dataset"] or "", size_key(row["train_size"]))
    total = (row["budget"] is None and row.get("baseline") is not None) + (row.get("test") == OVER_DATASETS)
    return (*place, method.order, row["method"], total, params or 0)  # "all budgets" after the budgets
