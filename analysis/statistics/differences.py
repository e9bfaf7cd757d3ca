"""The difference to a baseline over the budgets: its curve with bands that hold at once, and whether it changes.

`changes` is the question's difference at the largest budget less that at the smallest, seed by seed: an interaction of
method and budget, which two verdicts, one of them *higher*, don't tell.
`benchmarks/coverage.py` measures what bands cover, `benchmarks/calibration.py` how often a change is false.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from analysis.format import Row
from analysis.statistics.inference import Difference, holm_steps, sidak, verdict
from analysis.statistics.looks import level, restrict_to_declared
from analysis.statistics.runs import (
    Cell,
    Seed,
    added_over_datasets,
    choice_variance_of,
    confirmed,
    datasets_of,
    group_by,
    over_all_datasets,
    over_datasets,
    seed_differences,
    shared_seeds,
    sharing_seeds,
)
from analysis.statistics.scaling import question_against, rows_with_differences
from analysis.store.columns import INT, PLACE, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import place_of

DIFFERENCES = pa.schema(
    [
        *typed(TEXT, *PLACE, "method", "baseline", "reference"),  # dataset null: the mean over `n_datasets` data sets
        *typed(INT, "budget", "n", "n_datasets", "family"),  # family: differences that hold at once, all of the table
        *typed(REAL, "difference", "low", "high"),  # null where a point has no spread, or one seed
        ("band", TEXT),  # WITH_CHOICE or GIVEN_RATES; null without one
        *typed(TEXT, "verdict"),  # null for a mean over data sets: at a single budget it is not tested
    ]
)
WITH_CHOICE, GIVEN_RATES = "with the choice of rates", "given the chosen rates"


@remembered
def difference_curves(store: Store) -> pa.Table:
    """Every method's paired difference to the question's baseline over the budgets of a place; columns `DIFFERENCES`.

    A sweep over several data sets also has rows with a null `dataset`, as `scaling.curve` has: the mean over all its
    data sets, for methods and budgets that have a difference on each.

    `low` and `high` are a band: with 95 % all differences of the table lie in theirs at once. What the choice of both
    arms' rates adds is in it where it is known at every budget of the curve.
    """
    single = rows_with_differences(store)
    each = [row | {"of": of} for row, of in [*single, *_means(store, [row for row, _ in single])]]
    family = sum(r["of"].testable for r in each)  # the rows over all budgets, which no panel shows, too
    rows: list[Row] = []
    for curve in group_by([r for r in each if r["reference"]], *PLACE, "method").values():
        known = all(r["choice_sd"] is not None for r in curve)
        for r in sorted(curve, key=lambda r: r["budget"]):
            row = {name: r.get(name) for name in DIFFERENCES.names} | {"family": family, "low": None, "high": None}
            if r["of"].testable:
                added = r["choice_sd"] ** 2 if known else 0.0
                row["low"], row["high"] = r["of"].widened(added).interval(sidak(family))
                row["band"] = WITH_CHOICE if known else GIVEN_RATES
            rows.append(row)
    return pa.Table.from_pylist(rows, schema=DIFFERENCES)


def _means(store: Store, single: Sequence[Row]) -> Iterator[tuple[Row, Difference]]:
    """The differences at each budget averaged over all data sets of a sweep and training size."""
    for rows, difference, added in over_all_datasets(store, single):
        row = {"dataset": None, "n_datasets": len(rows), "n": difference.n, "difference": difference.mean}
        row |= {"choice_sd": None if added is None else added**0.5, "verdict": None}
        yield rows[0] | row, difference


_ENDS = (
    ("at_least", "at_most", "difference"),
    ("at_least_low", "at_most_low", "low"),
    ("at_least_high", "at_most_high", "high"),
)
"""Names of the difference at the one budget, at the other, and of the change, with their intervals."""
CHANGES = pa.schema(
    [
        *typed(TEXT, *PLACE),  # dataset null: the mean over `n_datasets` data sets
        *typed(TEXT, "method", "baseline", "least", "most"),  # the smallest and the largest budget that all sets have
        *typed(INT, "n", "n_datasets"),  # n: seeds of each data set
        # the difference at the one, at the other, of the seeds that both have, and the second less the first; the
        # choice of rates in the intervals. Those of the ends are 95 % intervals, each for its row alone; that of the
        # change has the level at which the row was decided
        *typed(REAL, *(name for names in _ENDS for name in names)),
        *typed(REAL, "p", "p_holm", "p_given_rates", "choice_sd"),  # null where it is not known what the choice adds
        ("verdict", TEXT),  # 'higher': the difference to the baseline rises with the budget
    ]
)


@remembered
def changes(store: Store, baseline: str | None = None) -> pa.Table:
    """How the question's method's difference to `baseline` changes from the smallest matched budget to the largest.

    Columns: `CHANGES`; a row per data set and, over several, one of their mean. All rows are one family (Holm; a mean
    has half of its place's level), at the level of this look. Budgets are those that every data set has; no row if
    these are fewer than two. Only the cells of the first declaration count.
    """
    store = restrict_to_declared(store)
    asked, sharing = question_against(store, baseline), sharing_seeds(store)
    cells = {cell: runs for cell, runs in confirmed(store).items() if cell[1] in (asked.focus, asked.baseline)}
    matched = [
        r
        for r, _ in rows_with_differences(store, baseline)
        if r["method"] == asked.focus and r["params_ratio"] is not None
    ]
    found: list[tuple[Row, Difference | None]] = []
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
        found += rows
    return pa.Table.from_pylist(_corrected(found, weights, level(store)), schema=CHANGES)


def _ends(cells: Mapping[Cell, Sequence[Row]], pair: Sequence[Row]) -> list[dict[Seed, float]]:
    """The differences by seed at both budgets, and the second less the first; of the seeds that all four cells have."""
    found = [
        seed_differences(*(cells[place_of(r), r[arm], r["reference"]] for arm in ("method", "baseline"))) for r in pair
    ]
    least, most = ({seed: each[seed] for seed in shared_seeds(found)} for each in found)
    return [least, most, {seed: most[seed] - value for seed, value in least.items()}]


def _choice_variances(pair: Sequence[Row]) -> list[float | None]:
    """Variance that choices add at both budgets, and to the change: that of a method's budgets may err alike, which is
    less, but they are taken for independent."""
    ends = list(map(choice_variance_of, pair))
    known = [variance for variance in ends if variance is not None]
    return [*ends, sum(known) if len(known) == len(ends) else None]


def _change_row(
    pairs: Sequence[Sequence[Row]],
    ends: Sequence[Sequence[Mapping[Seed, float]]],
    added: Sequence[float | None],
    *,
    shared: bool,
) -> tuple[Row, Difference | None]:
    """A row without its corrected p value, verdict and interval; and the change, if it can be tested.

    Args:
        pairs: of each data set the comparisons at both budgets. ends: of each `_ends`.
        added: variance that choices add to each of these. shared: as of `over_datasets`.
    """
    least, most = pairs[0]
    given = [over_datasets(blocks, shared=shared) for blocks in zip(*ends, strict=True)]
    tested = [of and (None if extra is None else of.widened(extra)) for of, extra in zip(given, added, strict=True)]
    found, test = given[-1], tested[-1]
    row = {name: least[name] for name in (*PLACE, "method", "baseline")} | ({"dataset": None} if len(pairs) > 1 else {})
    row |= {"least": least["reference"], "most": most["reference"], "n_datasets": len(pairs)}
    for name, low, high, of, wide in zip(*_ENDS, given, tested, strict=True):
        row |= {name: of and of.mean, low: wide and wide.low, high: wide and wide.high}
    row |= {"n": found.n // len(found.pairs) if found else 0, "p_given_rates": found and found.p, "p": test and test.p}
    return row | {"choice_sd": None if (extra := added[-1]) is None else extra**0.5}, test


def _corrected(found: Sequence[tuple[Row, Difference | None]], weights: Sequence[float], alpha: float) -> list[Row]:
    """The rows with adjusted p values, verdicts and the intervals of the levels at which these were decided."""
    rows = []
    for (row, test), step in zip(found, holm_steps([r["p"] for r, _ in found], weights, alpha), strict=True):
        known = row["choice_sd"] is not None or row["p_given_rates"] is None
        said = verdict(row["difference"], step.adjusted, known=known)
        low, high = (None, None) if test is None else test.interval(step.level)
        rows.append(row | {"p_holm": step.adjusted, "verdict": said, "low": low, "high": high})
    return rows
