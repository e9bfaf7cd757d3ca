"""Each method against the baseline: the table, the figure of differences, and whether they change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import pyarrow.compute as pc

from analysis.drawing.picture import BESIDE, Picture, first_panels, margin_text
from analysis.findings.comparisons.numbers import changes, difference_curves
from analysis.findings.comparisons.sheet import comparisons_sheet
from analysis.findings.finding import Finding
from analysis.findings.scaling.numbers import one_budget
from analysis.findings.shared import SEEDS, verdict_as
from analysis.format import Row, change_text, p_text, points
from analysis.sheets.columns import METHOD, columns_of
from analysis.sheets.sheet import Column, Sheet, number
from analysis.store.store import Store
from analysis.styles import style
from analysis.verdict.comparisons import comparisons
from analysis.verdict.looks import margin_of, preliminary_words
from analysis.verdict.question import ASKED, Question, question, question_names, rows_of_question
from analysis.verdict.runs import score_name

_ENDS = {"difference at the smallest, points [95 %]": "at_least", "difference at the largest": "at_most"}
_CHANGES = {"higher": "rises", "lower": "falls", "not distinguishable": "no change detected"}


def changes_sheet(store: Store, baseline: str | None = None) -> Sheet:
    """Return the table of whether the difference between a method and a baseline changes with the budget."""
    rows = changes(store, baseline).to_pylist()
    return Sheet(
        "changes",
        f"Does the difference from {style(baseline or question(store).baseline).name} change with the budget?",
        columns_of(
            rows,
            METHOD,
            Column("budgets", lambda r: f"{r['least']} to {r['most']}", label=True, beneath=True),
            *(Column(head, partial(_end, end), "number") for head, end in _ENDS.items()),
            Column("change, points [corrected]", change_text, "number"),
            Column("trend", lambda r: verdict_as(r, _CHANGES)),
            SEEDS,
            number("p, corrected (Holm)", "p_holm", p_text),
        ),
        rows,
        "The change is the difference at the largest budget less the difference at the smallest, seed by seed. The "
        f"test accounts for the choice of the learning rates of both methods at both budgets.{_over_data(rows)} The "
        "interval of the change has the level of its test; those of the two differences are pointwise.",
        strong=lambda r: r["dataset"] is None,
    )


def _end(name: str, r: Row) -> str:
    return change_text(r, name, f"{name}_low", f"{name}_high")


def _over_data(rows: Sequence[Row]) -> str:
    """Return how several data sets are tested; "" for one."""
    if len({r["dataset"] for r in rows}) < 2:
        return ""
    return (
        " The budgets are those that every data set has. All rows are corrected together (Holm); the mean over data "
        "sets has half of the level at the first step."
    )


def difference_pictures(store: Store) -> list[Picture]:
    """Draw the paired difference of every method to the baseline against the budget."""
    from analysis.findings.comparisons.figure import draw_differences

    table, score = difference_curves(store).filter(pc.field("budget") > 0), score_name(store)  # a log axis
    if table.num_rows == 0 or one_budget(store):
        return []
    shown, margin = first_panels(table), margin_of(store)
    asked_question = question(store)
    focus, name = question_names(asked_question)
    shapes = (
        "The bars are" if asked_question.focus is None else f"The band (of {focus}) and the bars (of the others) are"
    )
    label = f"{score.capitalize()}: difference from {name} at the same budget, with simultaneous 95 % bands"
    caption = f"{score.capitalize()}: paired difference from {name} at the same budget, in points. "
    caption += f"{shapes} {band_meaning(table.to_pylist())}. {name} is the zero line.{margin_text(margin)}{BESIDE}"
    figure = draw_differences(shown, score=score, focus=asked_question.focus, margin=margin)
    says = preliminary_words(comparisons(store))
    says += conclude_differences(table.to_pylist(), changes(store).to_pylist(), asked_question)
    return [Picture("differences", figure, label, caption, says)]


def conclude_differences(rows: Sequence[Row], changes: Sequence[Row] = (), asked: Question = ASKED) -> str:
    """Describe the differences of the question's methods, and count the bands that exclude zero.

    Args:
        rows: rows of `numbers.difference_curves`.
        changes: rows of `numbers.changes`. If all are of one sweep, model and size, the first one gets a sentence.
        asked: the sweep's question.
    """
    (a, b), all_rows = question_names(asked), rows_of_question(rows, asked)
    single_rows, means = [r for r in all_rows if r["dataset"]], [r for r in all_rows if not r["dataset"] and r["band"]]
    if not single_rows:
        return f"No difference of {a} and {b}: nowhere are both confirmed with a common seed."
    gaps = [r["difference"] for r in single_rows]
    kinds = (
        "budgets"
        if len({(r["sweep"], r["dataset"], r["train_size"]) for r in single_rows}) == 1
        else "budgets and places"
    )
    kinds = kinds if asked.focus is not None else "comparisons"
    range_seen = f"{points(min(gaps))} to {points(max(gaps))} points over {len(single_rows)} {kinds}"
    text = f"{a[0].upper()}{a[1:]} minus {b} at the same budget: {range_seen}"
    verdicts = Counter(r["verdict"] for r in single_rows)
    verdicts_text = ", ".join(f"{verdict} at {count}" for verdict, count in verdicts.most_common())
    banded = [r for r in single_rows if r["band"]]
    if not banded:
        why = "There is no band, because there is one seed or no spread between seeds."
        return f"{text}. Verdicts: {verdicts_text}. {why}"
    apart, of_means = (sum(r["low"] > 0 or r["high"] < 0 for r in part) for part in (banded, means))
    text += (
        f". Corrected verdicts: {verdicts_text}. The simultaneous 95 % band excludes zero at {apart} of {len(banded)}"
    )
    text += f", and that of the mean over data sets at {of_means} of {len(means)}" if means else ""
    return f"{text}.{_changed(changes)}"


def _changed(rows: Sequence[Row]) -> str:
    """Return a sentence on whether the difference changes with the budget; "" if there are several places."""
    if len({(r["sweep"], r["model"], r["train_size"]) for r in rows}) != 1 or rows[0]["difference"] is None:
        return ""
    row = rows[0]
    where = f" in the mean over {row['n_datasets']} data sets" if row["dataset"] is None else ""
    observed = f"{points(row['at_least'])} points at {row['least']} and {points(row['at_most'])} at {row['most']}"
    direction = {"higher": "it rises", "lower": "it falls"}.get(row["verdict"], row["verdict"])
    return f" The difference is {observed}{where}. Its change is {change_text(row)} points: {direction}."


def band_meaning(rows: Sequence[Row]) -> str:
    """Return what the bands of `numbers.difference_curves` mean: how many differences they cover at once."""
    band_kinds = " or ".join(sorted({r["band"] for r in rows if r["band"]})) or "none: one seed, or no spread"
    count = rows[0]["family"]
    what_holds = "the difference lies in its own" if count == 1 else f"all {count} differences lie in theirs at once"
    return f"simultaneous 95 % intervals over seeds ({band_kinds}): with that confidence {what_holds}"


FINDING = Finding(
    "comparisons",
    ("comparisons",),
    lambda store, _: [comparisons_sheet(store)],
    lambda store, _: difference_pictures(store),
    live=True,
)
CHANGES = Finding("comparisons", ("changes",), lambda store, _: [changes_sheet(store)])
