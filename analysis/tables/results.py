"""The report's tables of scores, comparisons and ranks, as `Sheet`s."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from analysis.format import (
    Row,
    change_text,
    duration,
    end_of_interval,
    level_text,
    listed,
    p_text,
    percent,
    plural,
    points,
    quantity,
    range_text,
    score_text,
    with_interval,
)
from analysis.sheets.columns import BUDGET, METHOD, PARAMETERS, by_size, columns_of, origins, pivoted
from analysis.sheets.sheet import Column, Sheet, number, text
from analysis.statistics.decisions import decisions
from analysis.statistics.groups import groups
from analysis.statistics.inference import OVER_DATASETS
from analysis.statistics.looks import level, margin_of
from analysis.statistics.measures import further_measure, separations
from analysis.statistics.scaling import PLANTED, comparisons, curve, question, question_against
from analysis.statistics.sizing.seeds import DIFFERENCES, seeds_table
from analysis.store.columns import limited
from analysis.store.store import Store
from analysis.styles import size_key, size_text, style
from analysis.tables.console import DIFFERENCE, results_table
from analysis.words.decisions import best_text, would_change
from analysis.words.verdicts import (
    LATER,
    LATER_MEANS,
    further_head,
    further_text,
    meanings,
    measures_text,
    seeds_text,
    verdict_text,
)

LONG = 45
"""The page closes a table of more rows until asked for."""
MOST_NAMED = 6
TESTS = "tests"
DETECTABLE = "what these seeds can detect"
TUNED = "learning rate, seeds and weak evidence"
EFFECT = "size of the effect"
OTHER_EXAMPLES = "intervals for other test examples"
RATES_FIXED = "seeds needed if the chosen learning rates are taken as fixed"
"""Groups of columns."""


SEEDS = number("seeds", "n")
PAIRS = Column(
    "seeds", lambda r: f"{r['n']} data sets" if _like_these(r) else f"{r['n'] / (r.get('datasets') or 1):.3g}", "number"
)
"""Seeds per data set, or their mean if data sets have different numbers; the data sets if they are the sample."""
BUDGETS = Column("budget", lambda r: r["reference"] or _several(r), label=True, beneath=True)
SIZE = Column("size", lambda r: size_text(r["train_size"]), label=True, beneath=True)
VERDICT = Column("verdict", lambda r: f"{verdict_text(r['verdict'])}{LATER if r.get('added') else ''}", "verdict")


def results(store: Store) -> Sheet:
    """Return the table of every feasible cell: its score, and the difference from the baseline at the same budget."""
    baseline = question(store).baseline
    versus = style(baseline).name
    cells = results_table(store).to_pylist()
    rows = [r for r in cells if not _infeasible(r)]
    rows.sort(key=lambda r: (r["sweep"], r["dataset"], size_key(r["train_size"])))
    compared_at = {(r["dataset"], r["train_size"], r["reference"]) for r in rows if r["verdict"]}
    second, which = further_measure(store), separations(store)
    other = None if second is None else second.name

    def verdict(r: Row) -> str:
        place = (r["dataset"], r["train_size"], r["reference"])
        is_baseline = r["method"] == baseline and place in compared_at
        word = f"{verdict_text(r['verdict'])}{LATER if r['added'] else ''}"
        return word or r["note"] or ("baseline" if is_baseline else "")

    columns = columns_of(
        rows,
        METHOD,
        BUDGET,
        Column("test score, % [95 %]", score_text, "number"),
        *([] if other is None else [Column(f"test {further_head(other)}", partial(_beside, other), "number")]),
        Column(f"difference from {versus}, points [corrected]", lambda r: change_text(r, *DIFFERENCE), "number"),
        Column("verdict", verdict, "verdict"),
        replace(PARAMETERS, text=lambda r: quantity(r["adapter_params"]) + ("\N{DAGGER}" if r["off_budget"] else "")),
        Column("learning rate", lambda r: quantity(r["lr"]) + ("*" if r["under_tuned"] else ""), "number", TUNED),
        *([number("batch size", "batch_size", group=TUNED)] if any(r["batch_size"] for r in rows) else []),
        replace(SEEDS, text=seeds_text, group=TUNED),
        text("weak evidence", "weak", "long", TUNED),
        Column("test score, %", _over_examples, "number", OTHER_EXAMPLES),
        Column(
            f"difference from {versus}, points [95 %, not corrected]",
            _difference_over_examples,
            "number",
            OTHER_EXAMPLES,
        ),
    )
    return Sheet(
        "results",
        "Test score of every method",
        columns,
        rows,
        " ".join([_how_computed(rows), *([] if which is None else [measures_text(*which)])]),
        legend=_legend(rows, versus, margin_of(store)) + _without_row([r for r in cells if _infeasible(r)]),
        faint=lambda r: bool(r["note"]),
        folded=len(rows) > LONG,
    )


def _legend(rows: Sequence[Row], versus: str, margin: float | None) -> str:
    """Explain the signs and the verdicts that the rows have."""
    verdicts = {r["verdict"] for r in rows}
    sentences = ["Brackets after a score hold its 95 % interval."] if any(r["low"] is not None for r in rows) else []
    if any(r["difference_low"] is not None for r in rows):
        sentences.append(
            "The interval of a difference is corrected for the number of comparisons, as its verdict is: it leaves out "
            "zero exactly if the verdict is higher or lower."
        )
    if verdicts & {"higher", "lower"}:
        sentences.append(
            f'"Higher" (green) and "lower" (red) say that the method of the row scores above or below {versus}.'
        )
    if "equivalent" in verdicts:
        sentences.append(f'"Equivalent" says that the difference is smaller than {percent(margin)} points.')
    if "not distinguishable" in verdicts:
        sentences.append(
            '"Not distinguishable" says that these runs cannot tell which is better; they may still differ.'
        )
    if any(r["off_budget"] for r in rows):
        unit = limited(r["reference"] for r in rows).removeprefix("trainable ")
        sentences.append(f"\N{DAGGER} The row misses its budget by more than the tolerance: its {unit} are not equal.")
    return " ".join(sentences)


def _beside(name: str, r: Row) -> str:
    return further_text(r["beside"], name)


def _infeasible(r: Row) -> bool:
    return bool((r["note"] or "").startswith("infeasible"))


def _without_row(cells: Sequence[Row]) -> str:
    """Name the methods and budgets that could not run."""
    names = list(dict.fromkeys(f"{r['name']} at {r['reference']}" for r in cells if not r["absent"]))
    if not names:
        return ""
    rest = [f"{len(names) - MOST_NAMED} more"] if len(names) > MOST_NAMED else []
    without = listed([*names[:MOST_NAMED], *rest])
    return f" Infeasible, so without a row here: {without}. The section on failures says why."


def _how_computed(rows: Sequence[Row]) -> str:
    note = (
        "The score is the mean over seeds, and its interval says how much that mean varies between seeds at the chosen "
        "learning rate. Differences "
        "are paired: both methods ran on the same seeds. Their intervals and verdicts account for the choice of "
        "learning rate, and are corrected for the number of comparisons (Holm). All of these intervals hold for this "
        "test set. The intervals for other test examples also cover which examples were drawn."
    )
    if any(r["under_tuned"] for r in rows):
        note += " * More tuning might help this row."
    return note


def _ends(r: Row, value: str, form: Callable[[float], str]) -> str:
    low, high = r[f"{value}low_examples"], r[f"{value}high_examples"]
    return "" if low is None else f"[{form(low)}, {form(high)}]"


def _over_examples(r: Row) -> str:
    return _ends(r, "", percent) or r["examples_note"] or ""


def _difference_over_examples(r: Row) -> str:
    return _ends(r, "difference_", points)


def decided(store: Store) -> Sheet:
    """Return the table of what to take at each budget, and what would change that."""
    rows = decisions(store).to_pylist()
    several = any(len(r["best"]) > 1 for r in rows)
    legend = "Score, parameters and training time are those of the first method that a row names." if several else ""
    return Sheet(
        "decisions",
        "What to take at each budget",
        columns_of(
            rows,
            BUDGET,
            number("parameters", "adapter_params"),
            Column("best method", best_text),
            Column("test score, % [95 %]", score_text, "number"),
            number("training time of a run", "seconds", duration, "training time"),
            Column("the next best method, and how sure", would_change, "long"),
        ),
        rows,
        "A difference can be detected if a study like this one finds it in four of five repetitions. This accounts for "
        "the correction for multiple comparisons and for the choice of learning rate.",
        legend,
        folded=len(rows) > LONG,
    )


def averages(store: Store) -> Sheet:
    """Return the table of means over data sets for each method and budget, with a column per training size."""
    rows = [r for r in curve(store).to_pylist() if r["dataset"] is None]
    averaged_rows, sizes = by_size(rows, ("sweep", "model", "method", "reference"))
    facts = {"parameters": "adapter_params", "data sets": "n_datasets", "seeds": "n"}
    columns = [Column(head, partial(_over_sizes, key), "number") for head, key in facts.items()]
    return Sheet(
        "averages",
        "Mean test score over data sets",
        [*origins(averaged_rows), METHOD, BUDGET, *columns[:1], *sizes, *columns[1:]],
        averaged_rows,
        "Every data set has the same weight. The t intervals over seeds hold for these data sets and the chosen "
        "rates only. A method and "
        "budget is in the table if it was confirmed on every data set.",
        folded=len(averaged_rows) > LONG,
    )


def _over_sizes(key: str, r: Row) -> str:
    """Return the value of a row's training sizes, or the smallest and the largest if they differ."""
    return range_text({one[key] for one in r["by"].values()} - {None})


def compared(store: Store, baseline: str | None = None) -> Sheet:
    """Compare each method with a baseline at the same budget."""
    baseline = baseline or question(store).baseline
    rows = comparisons(store, baseline).to_pylist()
    return Sheet(
        "comparisons",
        f"Each method against {style(baseline).name} at the same budget",
        _difference_columns(rows, ratio=True),
        rows,
        _reading(rows, level(store), question_against(store, baseline).focus),
        _how_to_read(rows),
        strong=lambda r: r["reference"] is None,
        folded=len(rows) > LONG,
    )


def _how_to_read(rows: Sequence[Row]) -> str:
    """Say what the verdicts of the rows mean, and why an interval may say otherwise."""
    verdicts = {r["verdict"] for r in rows}
    margin = next((r["margin"] for r in rows if r["margin"] is not None), None)
    sentences = meanings(verdicts, margin)
    if verdicts:
        sentences.append("Verdicts and intervals are corrected for multiple comparisons.")
    if any(r.get("added") for r in rows):
        sentences.append(f"{LATER_MEANS}.")
    return " ".join(sentences)


def _reading(rows: Sequence[Row], alpha: float, focus: str | None) -> str:
    """Explain how the comparisons were computed. `focus`: the method in question, if the sweep has one."""
    note = (
        "Differences are paired by seed. Interval, p and verdict account for the choice of learning rate: if the "
        f"tuning were repeated, another rate might be chosen. {_families(rows, focus)}The tests that are corrected "
        f"together share a level of {level_text(alpha)}. Each interval has the level at which the test of its row was "
        "decided, so it leaves out zero exactly if the verdict is higher or lower. The pointwise interval is the 95 % "
        "interval of the row alone. "
        "The verdict if the rates are fixed takes the chosen learning rates as given. Effect is Hedges' g, also at "
        "these rates: the mean of the paired differences divided by their standard deviation, corrected for few seeds. "
        f"Power is the chance that this comparison finds a true difference of {100 * PLANTED:g} points. The next "
        "column is the number of seeds that would find it in four of five studies (empty: over 1,000). Detectable is "
        "the smallest true difference that these seeds find in four of five studies. Power, seeds and detectable come "
        "from simulations with the variances seen here. "
        "The ratio divides the parameters of the method by those of the baseline."
    )
    tests = list(dict.fromkeys(r["test"] for r in rows if r["n_datasets"] > 1))
    if tests:
        note += f" Rows over data sets use the budgets that every data set has ({'; '.join(tests)}). They hold for "
        note += "these data sets only, unless the row says what is expected on other data sets."
    return note


def _families(rows: Sequence[Row], focus: str | None) -> str:
    """Return sentences on which rows are corrected together by Holm's method."""
    first = [r for r in rows if not r.get("added")]
    matched = any(r["params_ratio"] is not None for r in first)  # else the baseline has no budget
    mine = [r for r in first if r["method"] == focus] if matched else []
    sentences = []
    if mine:
        half = any(r["reference"] is None and not _like_these(r) for r in mine)
        mean = ", of which its mean over all budgets has half of the level at the first" if half else ""
        sentences.append(f"The rows of {style(mine[0]['method']).name} are corrected together by Holm's steps{mean}.")
    if len(mine) < len(first):
        which = "all other methods" if mine else "all methods"
        means = not mine and any(r["reference"] is None and r["n_budgets"] and not _like_these(r) for r in first)
        share = "'s steps, of which the means over all budgets share half of the level at the first" if means else ""
        sentences.append(f"The rows of {which} are corrected together by Holm{share}.")
    if len(first) < len(rows):
        sentences.append(f"So are the rows marked{LATER}, apart from the others.")
    return "".join(f"{sentence} " for sentence in sentences)


def _several(r: Row) -> str:
    """Return what stands in place of the budget in a row over several budgets."""
    mean_text = f"mean of {plural(r['n_budgets'], 'budget')}"
    return f"{mean_text}, for other data sets" if _like_these(r) else mean_text


def _like_these(r: Row) -> bool:
    return bool(r["test"] == OVER_DATASETS)


def gaps(store: Store) -> Sheet:
    """Compare each method that has a budget with full fine-tuning."""
    rows = comparisons(store, baseline="full").to_pylist()
    return Sheet(
        "full_fine_tuning",
        "Each method against full fine-tuning",
        _difference_columns(rows, ratio=False),
        rows,
        "The columns are those of the comparisons at equal budgets. The correction for multiple comparisons covers the "
        "rows of this table.",
        folded=True,
    )


def _difference_columns(rows: Sequence[Row], *, ratio: bool) -> list[Column]:
    return columns_of(
        rows,
        METHOD,
        BUDGETS,
        Column("difference, points [corrected]", change_text, "number"),
        VERDICT,
        PAIRS,
        Column("pointwise 95 % interval, points", _pointwise, "number", TESTS),
        number("p", "p", p_text, TESTS),
        number("p, corrected (Holm)", "p_holm", p_text, TESTS),
        Column("verdict if the rates are fixed", lambda r: verdict_text(r["verdict_given_rates"]), "verdict", TESTS),
        Column("effect [95 %]", _effect, "number", EFFECT),
        number(
            f"power for {100 * PLANTED:g} points",
            "power",
            lambda v: "" if v is None else f"{100 * v:.0f} %",
            DETECTABLE,
        ),
        number(f"seeds for {100 * PLANTED:g} points", "seeds_needed", group=DETECTABLE),
        number("detectable, points", "detectable", _detectable, DETECTABLE),
        *([number("parameters, ratio", "params_ratio", _ratio, EFFECT)] if ratio else []),
    )


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _pointwise(r: Row) -> str:
    ends = [end_of_interval(r[k]) for k in ("low_pointwise", "high_pointwise")]
    return f"[{', '.join(ends)}]" if all(ends) else ""


def _detectable(fraction: float | None) -> str:
    """Return a detectable difference in points; no difference of scores can be larger than 100."""
    return "over 100" if fraction is not None and fraction > 1 else percent(fraction)


def _effect(r: Row) -> str:
    if r["effect"] is None:
        return ""
    return with_interval(*(points(r[k] / 100).removeprefix("+") for k in ("effect", "effect_low", "effect_high")))


_FAILED_COUNT = (
    " Seeds '4 of 8': the other runs failed. The order counts them as the untrained model; the mean leaves them out."
)


def grouped(store: Store) -> Sheet:
    """Group the methods of each budget that are not distinguishable from each other."""
    rows = groups(store).to_pylist()
    return Sheet(
        "groups",
        "Which methods of a budget are distinguishable",
        columns_of(
            rows,
            BUDGET,
            METHOD,
            number("mean score, %", "mean", percent),
            Column("seeds", lambda r: f"{r['n']} of {r['n'] + r['failed']}" if r["failed"] else str(r["n"]), "number"),
            Column("group", lambda r: r["group"] if r["tested"] else f"{r['group']} (not tested)"),
        ),
        rows,
        f"A pair with {style(question(store).baseline).name} has the verdict of the comparisons above. The other pairs "
        "are tested in the same way, with Holm's correction over all of them. A method is not tested if it shares no "
        "seed with another, if its seeds do not differ in score, or if the effect of the choice of rates is unknown.",
        "Two methods of one budget that share a letter are not distinguishable. Group a has the best method."
        + (_FAILED_COUNT if any(r["failed"] for r in rows) else ""),
        folded=len(rows) > LONG,
    )


def seeds(store: Store, baseline: str | None = None, differences: Sequence[float] = DIFFERENCES) -> Sheet:
    """Return the number of seeds that would detect each of `differences`, for each comparison with the baseline."""
    baseline = baseline or question(store).baseline
    table_rows = seeds_table(store, baseline, differences).to_pylist()
    rows = pivoted(table_rows, ("sweep", "model", "dataset", "train_size", "method", "reference"), "difference")

    def cell(difference: float, key: str, group: str) -> Column:
        head = f"for {100 * difference:g} points" + (", rates fixed" if group else "")
        return Column(head, lambda r: _needed(r["by"][difference][key]), "number", group)

    true_differences = dict.fromkeys(r["difference"] for r in table_rows)
    needed_columns = [cell(difference, "seeds_needed", "") for difference in true_differences]
    given_rates = [cell(difference, "seeds_needed_given_rates", RATES_FIXED) for difference in true_differences]
    sd = number("sd of paired differences, points", "sd", percent)
    return Sheet(
        "seeds",
        f"Seeds needed to detect a difference from {style(baseline).name}",
        columns_of(rows, METHOD, BUDGETS, PAIRS, sd, *needed_columns, *given_rates),
        rows,
        "Each number is the smallest number of seeds (of each data set) with which four of five studies would find a "
        "true difference of that size, at the level of its row in the comparisons. It includes the uncertainty of the "
        "choice of learning rates, which more seeds do not reduce: the second table leaves that out. \N{EM DASH} "
        "means that not even 1,000 seeds are enough, that runs of the method ahead failed, which more seeds do not "
        "change, or that the number is not known.",
        strong=lambda r: r["reference"] is None,
        folded=True,
    )


def _needed(seeds_needed: int | None) -> str:
    return quantity(seeds_needed) or "\N{EM DASH}"
