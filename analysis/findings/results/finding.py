"""The table of every feasible cell: its score, and its difference from the baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from analysis.findings.finding import Finding
from analysis.findings.results.measures import further_head, further_measure, further_text, measures_text, separations
from analysis.findings.results.numbers import parameters_text, results_table
from analysis.findings.shared import DIFFERENCE, LONG, SEEDS, VERDICT
from analysis.format import Row, change_text, first_listed, percent, points, quantity, score_text
from analysis.sheets.columns import BUDGET, METHOD, PARAMETERS, columns_of
from analysis.sheets.sheet import Column, Sheet, number, text
from analysis.store.columns import limited
from analysis.store.store import Store
from analysis.styles import size_key, style
from analysis.verdict.looks import margin_of
from analysis.verdict.question import question
from analysis.verdict.verdicts import seeds_text

MOST_NAMED = 6
TUNED = "learning rate, seeds and weak evidence"
OTHER_EXAMPLES = "intervals for other test examples"


def results_sheet(store: Store) -> Sheet:
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
        return VERDICT.text(r) or r["note"] or ("baseline" if is_baseline else "")

    columns = columns_of(
        rows,
        METHOD,
        BUDGET,
        Column("test score, % [95 %]", score_text, "number"),
        *([] if other is None else [Column(f"test {further_head(other)}", partial(_beside, other), "number")]),
        Column(f"difference from {versus}, points [corrected]", lambda r: change_text(r, *DIFFERENCE), "number"),
        Column("verdict", verdict, "verdict"),
        replace(PARAMETERS, text=parameters_text),
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
    without = first_listed(names, MOST_NAMED)
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


FINDING = Finding("results", ("results",), lambda store, _: [results_sheet(store)])
