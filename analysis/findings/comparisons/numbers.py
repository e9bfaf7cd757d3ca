"""The difference to a baseline over the budgets: its curve with simultaneous bands, and whether it changes.

`changes` tests whether the question's difference at the largest budget is another than at the smallest, seed by seed.
That is an interaction of method and budget. Two verdicts, of which one is *higher*, do not show it.
`benchmarks/coverage.py` measures what bands cover, `benchmarks/calibration.py` how often a change is false.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from analysis.format import Row
from analysis.store.columns import INT, PLACE, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import place_of
from analysis.verdict.comparisons import rows_with_differences
from analysis.verdict.correction import holm_steps
from analysis.verdict.datasets import added_over_datasets, choice_variance_of, over_all_datasets, over_datasets
from analysis.verdict.inference import Difference, sidak
from analysis.verdict.looks import level, restrict_to_declared
from analysis.verdict.question import question_against
from analysis.verdict.runs import (
    Cell,
    Seed,
    confirmed,
    datasets_of,
    group_by,
    seed_differences,
    shared_seeds,
    sharing_seeds,
)
from analysis.verdict.verdicts import verdict

DIFFERENCES = pa.schema(
    [
        *typed(TEXT, *PLACE, "method", "baseline", "reference"),  # dataset null: the mean over `n_datasets` data sets
        *typed(INT, "budget", "n", "n_datasets", "family"),  # family: number of intervals that hold simultaneously
        *typed(REAL, "difference", "low", "high"),  # null if a point has no spread, or one seed
        ("band", TEXT),  # WITH_CHOICE or GIVEN_RATES; null without one
        *typed(TEXT, "verdict"),  # null for a mean over data sets: at a single budget it is not tested
    ]
)
WITH_CHOICE, GIVEN_RATES = "with the choice of rates", "given the chosen rates"


@remembered
def difference_curves(store: Store) -> pa.Table:
    """Return each method's paired difference to the question's baseline over the budgets; columns `DIFFERENCES`.

    A sweep over several data sets also has rows with a null `dataset`, as in `scaling.curve`: the mean over all its
    data sets, for methods and budgets that have a difference on each.

    `low` and `high` are a simultaneous band: with a chance of 95 % it covers all differences of the table. It includes
    what the choice of both methods' rates adds, if that is known at every budget of the curve.
    """
    single = rows_with_differences(store)
    each = [row | {"of": of} for row, of in [*single, *_means(store, [row for row, _ in single])]]
    family = sum(r["of"].testable for r in each)  # includes the rows over all budgets, which no panel shows
    rows: list[Row] = []
    for curve in group_by([r for r in each if r["reference"]], *PLACE, "method").values():
        choice_known = all(r["choice_sd"] is not None for r in curve)
        for r in sorted(curve, key=lambda r: r["budget"]):
            row = {name: r.get(name) for name in DIFFERENCES.names} | {"family": family, "low": None, "high": None}
            if r["of"].testable:
                added = r["choice_sd"] ** 2 if choice_known else 0.0
                row["low"], row["high"] = r["of"].widened(added).interval(sidak(family))
                row["band"] = WITH_CHOICE if choice_known else GIVEN_RATES
            rows.append(row)
    return pa.Table.from_pylist(rows, schema=DIFFERENCES)


def _means(store: Store, single: Sequence[Row]) -> Iterator[tuple[Row, Difference]]:
    """Yield the differences at each budget, averaged over all data sets of a sweep and training size."""
    for rows, difference, added in over_all_datasets(store, single):
        row = {"dataset": None, "n_datasets": len(rows), "n": difference.n, "difference": difference.mean}
        row |= {"choice_sd": None if added is None else added**0.5, "verdict": None}
        yield rows[0] | row, difference


_ENDS = (
    ("at_least", "at_most", "difference"),
    ("at_least_low", "at_most_low", "low"),
    ("at_least_high", "at_most_high", "high"),
)
"""Columns of the difference at the smallest budget, at the largest budget, and of the change, with their intervals."""
CHANGES = pa.schema(
    [
        *typed(TEXT, *PLACE),  # dataset null: the mean over `n_datasets` data sets
        *typed(TEXT, "method", "baseline", "least", "most"),  # the smallest and the largest budget that all sets have
        *typed(INT, "n", "n_datasets"),  # n: seeds of each data set
        # the difference at the smallest budget, at the largest, and the change between them, on the common seeds. The
        # intervals include the choice of rates. Those at the two budgets are 95 % intervals; that of the change has the
        # level at which the row was decided
        *typed(REAL, *(name for names in _ENDS for name in names)),
        *typed(REAL, "p", "p_holm", "p_given_rates", "choice_sd"),  # null if it is not known what the choice adds
        ("verdict", TEXT),  # 'higher': the difference to the baseline rises with the budget
    ]
)


@remembered
def changes(store: Store, baseline: str | None = None) -> pa.Table:
    """Return how the focus's difference to `baseline` changes from the smallest to the largest budget.

    The columns are `CHANGES`. There is a row for each data set, and one for the mean if there are several. The budgets
    are those that every data set has; with fewer than two of them there is no row. All rows are one family (Holm, at
    the level of this look), in which a mean has half of its place's level. Cells that were added later do not count.
    """
    store = restrict_to_declared(store)
    asked_question, sharing = question_against(store, baseline), sharing_seeds(store)
    cells = {
        cell: runs
        for cell, runs in confirmed(store).items()
        if cell[1] in (asked_question.focus, asked_question.baseline)
    }
    matched = [
        r
        for r, _ in rows_with_differences(store, baseline)
        if r["method"] == asked_question.focus and r["params_ratio"] is not None
    ]
    tested_rows: list[tuple[Row, Difference | None]] = []
    weights: list[float] = []
    for key, group in group_by(matched, "sweep", "model", "train_size").items():
        sets, shared = len(datasets_of(cells, *key)), key[0] in sharing
        budgets = [rows for rows in group_by(group, "reference").values() if len(rows) == sets]
        if len(budgets) < 2:
            continue
        budgets.sort(key=lambda rows: rows[0]["budget"])
        pairs = list(zip(budgets[0], budgets[-1], strict=True))  # both by data set
        ends, added = [_ends(cells, pair) for pair in pairs], [_choice_variances(pair) for pair in pairs]
        rows = [_change_row(pairs[k : k + 1], ends[k : k + 1], added[k], shared=shared) for k in range(sets)]
        if sets > 1:
            means = [added_over_datasets(each, shared=shared) for each in zip(*added, strict=True)]
            rows.insert(0, _change_row(pairs, ends, means, shared=shared))
        tested = sum(row["p"] is not None for row, _ in rows[-sets:])
        weights += [float(max(1, tested))] * (len(rows) - sets) + [1.0] * sets
        tested_rows += rows
    return pa.Table.from_pylist(_corrected(tested_rows, weights, level(store)), schema=CHANGES)


def _ends(cells: Mapping[Cell, Sequence[Row]], pair: Sequence[Row]) -> list[dict[Seed, float]]:
    """Return the differences by seed at both budgets, and their change, on the seeds that all four cells have."""
    differences_at_budgets = [
        seed_differences(*(cells[place_of(r), r[arm], r["reference"]] for arm in ("method", "baseline"))) for r in pair
    ]
    least, most = (
        {seed: each[seed] for seed in shared_seeds(differences_at_budgets)} for each in differences_at_budgets
    )
    return [least, most, {seed: most[seed] - value for seed, value in least.items()}]


def _choice_variances(pair: Sequence[Row]) -> list[float | None]:
    """Return the variance that the choices add to the difference at each budget, and to the change between them.

    The choices at a method's budgets may err in the same direction, which would make the last one smaller. They are
    taken as independent.
    """
    ends = list(map(choice_variance_of, pair))
    known_variances = [variance for variance in ends if variance is not None]
    return [*ends, sum(known_variances) if len(known_variances) == len(ends) else None]


def _change_row(
    pairs: Sequence[Sequence[Row]],
    ends: Sequence[Sequence[Mapping[Seed, float]]],
    added: Sequence[float | None],
    *,
    shared: bool,
) -> tuple[Row, Difference | None]:
    """Return a row without corrected p value, verdict and interval; and the change, or None if it cannot be tested.

    Args:
        pairs: for each data set its comparisons at both budgets.
        ends: for each data set what `_ends` returns.
        added: variance that the choices add to each of the three differences.
        shared: as in `over_datasets`.
    """
    least, most = pairs[0]
    differences = [over_datasets(blocks, shared=shared) for blocks in zip(*ends, strict=True)]
    tested = [
        of and (None if extra is None else of.widened(extra)) for of, extra in zip(differences, added, strict=True)
    ]
    change, test = differences[-1], tested[-1]
    row = {name: least[name] for name in (*PLACE, "method", "baseline")}
    if len(pairs) > 1:
        row["dataset"] = None
    row |= {"least": least["reference"], "most": most["reference"], "n_datasets": len(pairs)}
    for name, low, high, of, wide in zip(*_ENDS, differences, tested, strict=True):
        row |= {name: of and of.mean, low: wide and wide.low, high: wide and wide.high}
    row |= {
        "n": change.n // len(change.pairs) if change else 0,
        "p_given_rates": change and change.p,
        "p": test and test.p,
    }
    variance = added[-1]
    row["choice_sd"] = None if variance is None else variance**0.5
    return row, test


def _corrected(
    tested_rows: Sequence[tuple[Row, Difference | None]], weights: Sequence[float], alpha: float
) -> list[Row]:
    """Return the rows with adjusted p values, verdicts, and intervals at the levels at which the rows were decided."""
    rows = []
    for (row, test), step in zip(
        tested_rows, holm_steps([r["p"] for r, _ in tested_rows], weights, alpha), strict=True
    ):
        choice_known = row["choice_sd"] is not None or row["p_given_rates"] is None
        word = verdict(row["difference"], step.adjusted, known=choice_known)
        low, high = (None, None) if test is None else test.interval(step.level)
        rows.append(row | {"p_holm": step.adjusted, "verdict": word, "low": low, "high": high})
    return rows
