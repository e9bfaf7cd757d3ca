"""The report's tables of scores, comparisons and ranks, as `Sheet`s."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from analysis.format import (
    Row,
    change_text,
    duration,
    level_text,
    p_text,
    percent,
    points,
    quantity,
    ranged,
    score_text,
    span,
)
from analysis.statistics.decisions import decisions
from analysis.statistics.groups import groups, mean_ranks
from analysis.statistics.inference import OVER_DATASETS
from analysis.statistics.looks import level
from analysis.statistics.scaling import PLANTED, comparisons, curve, question
from analysis.statistics.sizing.seeds import DIFFERENCES, seeds_table
from analysis.statistics.units.many import interquartile_means, wilcoxon
from analysis.store.columns import limited
from analysis.store.store import Store
from analysis.styles import budget_order, size_key, size_text, style
from analysis.tables.console import DIFFERENCE, results_table
from analysis.tables.sheet import (
    BUDGET,
    METHOD,
    PARAMETERS,
    Column,
    Sheet,
    by_size,
    columns_of,
    number,
    origins,
    pivoted,
    text,
)
from analysis.words.decisions import best_text, would_change

LONG = 45
"""A table of more rows is closed in the page until asked for."""


SEEDS = number("seeds", "n")
PAIRS = Column(
    "seeds", lambda r: f"{r['n']} sets" if _like_these(r) else f"{r['n'] / (r.get('datasets') or 1):.3g}", "number"
)
"""Seeds per data set, their mean where data sets have unequally many; the data sets of a row of sets like these."""
BUDGETS = Column("budget", lambda r: r["reference"] or _several(r))
SIZE = Column("size", lambda r: size_text(r["train_size"]))
VERDICT = text("verdict", "verdict", "verdict")


def results(store: Store) -> Sheet:
    """Every feasible cell: setting, score, and the difference to the baseline at the same budget."""
    versus = f"vs {style(question(store).baseline).name}"
    rows = [r for r in results_table(store).to_pylist() if not (r["note"] or "").startswith("infeasible")]
    rows.sort(key=lambda r: (r["sweep"], r["dataset"], size_key(r["train_size"])))
    columns = columns_of(
        rows,
        METHOD,
        BUDGET,
        Column("test score, % [95 %]", score_text, "number"),
        Column("verdict", lambda r: r["verdict"] or r["note"] or "", "verdict"),
        Column(f"{versus}, points [95 %]", lambda r: change_text(r, *DIFFERENCE), "number"),
        Column("parameters", lambda r: quantity(r["adapter_params"]) + "\N{DAGGER}" * bool(r["off_budget"]), "number"),
        Column("learning rate", lambda r: quantity(r["lr"]) + "*" * bool(r["under_tuned"]), "number"),
        SEEDS,
        Column("score, over test examples too, % [95 %]", _over_examples, "number"),
        Column(f"{versus}, over them too, points", lambda r: _ends(r, "difference_", points), "number"),
    )
    note = (
        "Intervals are 95 % intervals, each for itself. Differences are paired by seed. Verdicts are those of the "
        'comparisons below; "not distinguishable" does not mean equal: see their power. Over test examples too: for '
        "other examples of the same kind; the other intervals speak of this test set. * perhaps under-tuned."
        + " \N{DAGGER} off its budget by more than the tolerance: no comparison at equal "
        f"{limited(r['reference'] for r in rows).removeprefix('trainable ')}." * any(r["off_budget"] for r in rows)
    )
    return Sheet(
        "results",
        "Test score of every cell",
        columns,
        rows,
        note,
        faint=lambda r: bool(r["note"]),
        folded=len(rows) > LONG,
    )


def _ends(r: Row, value: str, form: Callable[[float], str]) -> str:
    low, high = r[f"{value}low_examples"], r[f"{value}high_examples"]
    return "" if low is None else f"[{form(low)}, {form(high)}]"


def _over_examples(r: Row) -> str:
    return _ends(r, "", percent) or r["examples_note"] or ""


def decided(store: Store) -> Sheet:
    """What to take at each budget, and what would change that."""
    rows = decisions(store).to_pylist()
    return Sheet(
        "decisions",
        "What to take at each budget",
        columns_of(
            rows,
            BUDGET,
            Column("best", best_text),
            Column("test score, % [95 %]", score_text, "number"),
            PARAMETERS,
            number("training of a run", "seconds", duration),
            Column("what would change the answer", would_change, "long"),
        ),
        rows,
        "Methods joined by 'or' are not distinguishable; score and cost are those of the first. A difference can be "
        "detected if it would be found four times in five, at the level of its row in the comparisons, the choice of "
        "learning rates included.",
        folded=len(rows) > LONG,
    )


def averages(store: Store) -> Sheet:
    """Mean over data sets by method and budget, a column per training size: the form of the paper's Tables 11 to 14."""
    rows = [r for r in curve(store).to_pylist() if r["dataset"] is None]
    found, sizes = by_size(rows, ("sweep", "model", "method", "reference"))
    facts = {"parameters": "adapter_params", "data sets": "n_datasets", "seeds": "n"}
    columns = [Column(head, partial(_over_sizes, key), "number") for head, key in facts.items()]
    return Sheet(
        "averages",
        "Mean test score over data sets",
        [*origins(found), METHOD, BUDGET, *columns[:1], *sizes, *columns[1:]],
        found,
        "Every data set weighs the same; intervals are t intervals over seeds, so they speak of these data sets only. "
        "Methods and budgets confirmed on every data set.",
        folded=len(found) > LONG,
    )


def _over_sizes(key: str, r: Row) -> str:
    """A value of a row's training sizes: one, or the least and the largest."""
    return span({one[key] for one in r["by"].values()} - {None})


def compared(store: Store, baseline: str | None = None) -> Sheet:
    """Each method against a baseline at the same budget."""
    baseline = baseline or question(store).baseline
    rows = comparisons(store, baseline).to_pylist()
    return Sheet(
        "comparisons",
        f"Each method against {style(baseline).name} at the same budget",
        _difference_columns(rows, ratio=True),
        rows,
        _reading(rows, level(store)),
        strong=lambda r: r["reference"] is None,
        folded=len(rows) > LONG,
    )


def _reading(rows: Sequence[Row], alpha: float) -> str:
    """How the table of comparisons is read."""
    note = (
        "Intervals, p and verdict have the choice of learning rates in them: the test is widened by what another "
        "draw of stage TUNE might have chosen. Simultaneous: all intervals of a family cover at once, 19 times in "
        "20. A family is one method's rows in question, the mean over all budgets tested first and then Holm over "
        f"the rest, or the rows of all other methods; each spends {level_text(alpha)}. Given the rates: the "
        "verdict, were the chosen rates the only ones possible. Power: the chance that this comparison, at its "
        f"level, finds a true difference of {100 * PLANTED:g} points; beside it the seeds that would find it, and "
        "the smallest true difference that is found, four times in five; by simulation at the variances seen. "
        "Parameters, ratio: the method's over the baseline's. Effect: Hedges' g of the paired differences, their "
        "mean in their own standard deviations, with its 95 % interval, given the rates."
    )
    if (margin := next((r["margin"] for r in rows if r["margin"] is not None), None)) is not None:
        note += f" Equivalent: the 90 % interval lies within {percent(margin)} points of zero, corrected alike."
    tests = list(dict.fromkeys(r["test"] for r in rows if r["n_datasets"] > 1))
    if tests:
        note += f" Over data sets, of the budgets that all have: {'; '.join(tests)}. Without data sets like these, it "
        note += "speaks of these alone."
    return note


def _several(r: Row) -> str:
    """What stands for the budget of a row over several."""
    said = f"mean of {r['n_budgets']}"
    return f"{said}, sets like these" if _like_these(r) else f"{said} budget{'s' * (r['n_budgets'] != 1)}"


def _like_these(r: Row) -> bool:
    return bool(r["test"] == OVER_DATASETS)


def gaps(store: Store) -> Sheet:
    """Each method with a budget against full fine-tuning."""
    rows = comparisons(store, baseline="full").to_pylist()
    return Sheet(
        "full_fine_tuning",
        "Each method against full fine-tuning",
        _difference_columns(rows, ratio=False),
        rows,
        "A family of its own: corrected over this table, whose columns are those of the comparisons at equal budgets.",
        folded=True,
    )


def _difference_columns(rows: Sequence[Row], *, ratio: bool) -> list[Column]:
    return columns_of(
        rows,
        METHOD,
        BUDGETS,
        Column("difference, points [95 %]", change_text, "number"),
        VERDICT,
        Column("simultaneous, points", _simultaneous, "number"),
        PAIRS,
        number("p", "p", p_text),
        number("p, Holm", "p_holm", p_text),
        text("given the rates", "verdict_given_rates", "verdict"),
        Column("effect [95 %]", _effect, "number"),
        number("power", "power", lambda v: "" if v is None else f"{100 * v:.0f} %"),
        number("seeds for it", "seeds_needed"),
        number("detectable, points", "detectable", percent),
        *([number("parameters, ratio", "params_ratio", lambda v: "" if v is None else f"{v:.3f}")] if ratio else []),
    )


def _simultaneous(r: Row) -> str:
    ends = [points(r[k]) for k in ("low_simultaneous", "high_simultaneous")]
    return f"[{', '.join(ends)}]" if all(ends) else ""


def _effect(r: Row) -> str:
    if r["effect"] is None:
        return ""
    return ranged(*(points(r[k] / 100).removeprefix("+") for k in ("effect", "effect_low", "effect_high")))


def grouped(store: Store) -> Sheet:
    """Groups of methods, at each budget, that the tests do not tell apart."""
    rows = groups(store).to_pylist()
    return Sheet(
        "groups",
        "Groups that are not distinguishable",
        columns_of(
            rows,
            BUDGET,
            METHOD,
            number("mean score, %", "mean", percent),
            SEEDS,
            Column("group", lambda r: r["group"] if r["tested"] else f"{r['group']} (untested)"),
        ),
        rows,
        "At one budget, two methods that share a letter are not distinguishable; 'a' is the best group. Pairs with "
        f"{style(question(store).baseline).name} have the verdicts of the table against it; the other pairs are tested "
        "alike, the choice of rates included, Holm-corrected over all of them: a family of its own. Untested: no seed "
        "in common with another, no spread between seeds, or what the choice of rates adds is not known.",
        folded=len(rows) > LONG,
    )


def ranks(store: Store) -> Sheet:
    """Mean ranks over data sets."""
    rows = [r | {"dataset": None} for r in mean_ranks(store).to_pylist()]
    rows.sort(key=lambda r: (r["sweep"], size_key(r["train_size"]), budget_order(r["reference"]), r["mean_rank"]))
    return Sheet(
        "ranks",
        "Mean ranks over data sets",
        [
            *origins(rows),
            *([SIZE] if len({r["train_size"] for r in rows}) > 1 else []),
            BUDGET,
            METHOD,
            number("mean rank", "mean_rank", lambda v: f"{v:.2f}"),
            number("of methods", "methods"),
            number("data sets", "datasets"),
            number("p, Friedman", "p_friedman", p_text),
            number("critical difference", "critical_difference"),
        ],
        rows,
        "1 is the best; ties share the mean of their ranks; methods confirmed on every data set. Friedman's test: that "
        "all methods of a budget rank alike, by permutation, uncorrected; it needs three of both. Two methods "
        "whose mean ranks are further apart than the critical difference (Nemenyi's, at the level of this look over "
        "all budgets of the table) differ.",
        folded=len(rows) > LONG,
    )


def many(store: Store) -> list[Sheet]:
    """Interquartile means, and Wilcoxon's test of every two methods; of five data sets or more."""
    means, pairs = ([r | {"dataset": None} for r in f(store).to_pylist()] for f in (interquartile_means, wilcoxon))
    note = (
        "Mean of the middle half of all runs over data sets and seeds; 95 % stratified bootstrap over the seeds of "
        "these data sets (Agarwal et al. 2021)."
    )
    value = Column("interquartile mean, % [95 %]", lambda r: score_text(r, "iqm"), "number")
    runs, sets = number("runs", "n"), number("data sets", "datasets")
    title = "Interquartile means over data sets"
    first = Sheet(
        "iqm", title, [*origins(means), SIZE, BUDGET, METHOD, value, runs, sets], means, note, folded=len(means) > LONG
    )
    columns = [
        *(*origins(pairs), SIZE, BUDGET, METHOD),
        Column("against", lambda r: style(r["other"]).name),
        number("median difference, points", "difference", points),
        *(sets, number("p", "p", p_text), number("p, Holm", "p_holm", p_text), VERDICT),
    ]
    note = (
        "Wilcoxon's signed-rank test of the mean scores over data sets, for data sets like these; Holm over this "
        "table. It looks at two methods alone, where Nemenyi's critical difference depends on the others. Five data "
        "sets cannot reach 5 %."
    )
    title = "Every two methods over data sets"
    return [first, Sheet("wilcoxon", title, columns, pairs, note, folded=len(pairs) > LONG)]


def seeds(store: Store, baseline: str | None = None, differences: Sequence[float] = DIFFERENCES) -> Sheet:
    """Seeds that would see a difference, for each comparison with the baseline."""
    baseline = baseline or question(store).baseline
    found = seeds_table(store, baseline, differences).to_pylist()
    rows = pivoted(found, ("sweep", "model", "dataset", "train_size", "method", "reference"), "difference")

    def cell(difference: float) -> Column:
        return Column(f"seeds for {100 * difference:g} points", lambda r: _needed(r["by"][difference]), "number")

    asked = dict.fromkeys(r["difference"] for r in found)
    sd = number("sd of paired differences, points", "sd", percent)
    return Sheet(
        "seeds",
        f"Seeds needed to see a difference to {style(baseline).name}",
        columns_of(rows, METHOD, BUDGETS, PAIRS, sd, *map(cell, asked)),
        rows,
        "Least number of paired seeds (of each data set) that finds a true difference of that size four times in five, "
        "at the row's level in the table of comparisons, the choice of rates included, which more seeds do not lessen; "
        "in brackets, were the chosen rates the only ones possible. \N{EM DASH}: not within 1,000 seeds, or not known.",
        strong=lambda r: r["reference"] is None,
        folded=True,
    )


def _needed(r: Row) -> str:
    found, given = (quantity(r[k]) or "\N{EM DASH}" for k in ("seeds_needed", "seeds_needed_given_rates"))
    return f"{found} [{given}]"
