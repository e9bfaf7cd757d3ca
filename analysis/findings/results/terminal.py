"""Prints the results table at the end of a run."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from operator import itemgetter

from rich.console import Console

from analysis.findings.absent import absent_data
from analysis.findings.results.measures import (
    FurtherMeasure,
    further_head,
    further_measure,
    further_text,
    measures_text,
    separations,
)
from analysis.findings.results.numbers import parameters_text, results_table
from analysis.findings.shared import DIFFERENCE, VERDICT
from analysis.format import Row, change_text, percent, quantity
from analysis.sheets.sheet import Column, Sheet
from analysis.sheets.terminal import print_sheet, safe_console
from analysis.store.columns import PLACE, TAKEN_OUT, limited
from analysis.store.store import Store
from analysis.styles import dataset_text, place_text, style, training_text
from analysis.verdict.looks import margin_of
from analysis.verdict.question import question
from analysis.verdict.runs import group_by, score_name
from analysis.verdict.verdicts import LATER_MEANS, meanings, seeds_text


def print_results_table(
    store: Store, console: Console | None = None, references: Collection[str] | None = None
) -> None:
    """Print `results_table`, a block for each data set and training size, with notes on how to read it.

    Args:
        store: the results.
        console: where to print; default: the terminal.
        references: names of the budgets to show, beside the methods without a budget. Default: all.
    """
    console = console or safe_console()
    rows = results_table(store).to_pylist()
    if references is not None:
        rows = [r for r in rows if r["reference"] is None or r["reference"] in references]
    if not rows:
        console.print("no results yet: the store has no cells", highlight=False)
        return
    against = style(question(store).baseline).name
    several = len({r["model"] for r in rows}) > 1
    for (sweep, model, dataset, size), place_rows in group_by([r for r in rows if not r["absent"]], *PLACE).items():
        measured = score_name(store, dataset)
        of = f" of {model}" if several else ""
        title = f"{sweep}: {measured}{of} on {dataset_text(dataset)}, trained on {training_text(dataset, size)}"
        print_sheet(_block(title, measured, against, place_rows, further_measure(store)), console)
    margin = margin_of(store)
    which = separations(store)
    measures = [] if which is None else [measures_text(*which)]
    for line in (*_without_cells(rows), *absent_data(rows), *_footnotes(rows, margin), *measures):
        console.print(f"  {line}", style="dim", highlight=False, markup=False)


def _without_cells(rows: Sequence[Row]) -> list[str]:
    """Return a line for each method and budget that was left out, with the reason and the number of places."""
    several = len({r["model"] for r in rows}) > 1
    gone = [r for r in rows if _left_out(r) and not r["absent"]]
    lines = []
    for (name, reference, model, note), left_out_rows in group_by(gone, "name", "reference", "model", "note").items():
        (first, *others) = left_out_rows
        where = (
            f"{len(left_out_rows)} data sets or sizes" if others else place_text(first["dataset"], first["train_size"])
        )
        lines.append(f"Left out: {name} at {reference} on {where}{f' of {model}' if several else ''}, {note}.")
    return lines


def _left_out(row: Row) -> bool:
    return bool(row["note"] and (row["note"] == TAKEN_OUT or row["note"].startswith("infeasible")))


def _footnotes(rows: Sequence[Row], margin: float | None) -> list[str]:
    """Return the notes on how to read the table and its marks. `margin` is that of equivalence, a fraction."""
    notes = [*_budget_notes(rows), *_name_notes(rows)]
    notes.append(
        "\N{PLUS-MINUS SIGN}: 95 % intervals of scores over seeds, given the chosen rate. Differences, in points, "
        "are paired by seed, account for the "
        "choice of learning rate, and are taken before rounding. They are corrected for multiple comparisons (Holm), "
        "and so are their intervals [ ]: an interval excludes 0 exactly if the verdict is higher or lower."
    )
    notes += meanings({r["verdict"] for r in rows}, margin)
    if any(r["n"] and r["failed"] for r in rows):
        notes.append("Seeds '5 of 10': the other runs failed, and the score is the mean of those that finished.")
    if any(r["added"] for r in rows):
        notes.append(f"{LATER_MEANS}.")
    if any(r["method"] == "linear-probe" and r["adapter_params"] == 0 for r in rows):
        notes.append("Parameters are those of adapters or trained weights. A linear probe also trains its head.")
    if any(r["under_tuned"] for r in rows):
        notes.append("*: more learning rates might raise the score, see weak evidence.")
    if any(r["off_budget"] for r in rows):
        equal = limited(r["reference"] for r in rows).removeprefix("trainable ")
        notes.append(f"\N{DAGGER} off its budget by more than the tolerance: not a comparison at equal {equal}.")
    return notes


def _budget_notes(rows: Sequence[Row]) -> list[str]:
    """Return a note on what a budget such as 'lora-8' means, or [] if none is needed."""
    budget_by_name = {r["reference"]: r["budget"] for r in rows if re.fullmatch(r"lora-\d+", r["reference"] or "")}
    if not budget_by_name or len({r["model"] for r in rows}) > 1:
        return []
    (name, budget), *_ = budget_by_name.items()
    rank = name.removeprefix("lora-")
    return [
        f"LoRA-{rank} ({name} in the tables): a budget of {quantity(budget)} trainable parameters. LoRA of rank {rank} "
        "trains this number on the adapted weights. Every method gets the setting nearest to it."
    ]


def _name_notes(rows: Sequence[Row]) -> list[str]:
    """Return a note with the full ids of the data sets that have short names here, or [] if none has."""
    ids = dict.fromkeys(r["dataset"] for r in rows)
    short = {each: dataset_text(each) for each in ids}
    named = [f"{name} = {each}" for each, name in short.items() if each != name and not each.endswith(f":{name}")]
    return [f"Data: {', '.join(named)}."] if named else []


def _block(title: str, measured: str, against: str, rows: list[Row], further: FurtherMeasure | None) -> Sheet:
    score = f"{measured.removeprefix('test ')} %"
    columns = [
        Column("method", itemgetter("shown"), "method"),
        Column("budget", lambda r: r["reference"] or ""),
        Column("parameters", parameters_text, "number"),
        Column("learning rate", _rate, "number"),
    ]
    if any(row["batch_size"] for row in rows):
        columns.append(Column("batch size", lambda r: quantity(r["batch_size"]), "number"))
    columns.append(Column(score, _score, "number"))
    if further is not None:
        name = further.name
        columns.append(Column(further_head(name), lambda r: further_text(r["beside"], name), "number"))
    columns += [
        Column("seeds", seeds_text, "number"),
        Column(f"vs {against} [ ]", lambda r: change_text(r, *DIFFERENCE), "number"),
        Column(f"verdict vs {against}", lambda r: r["note"] or VERDICT.text(r), "verdict"),
    ]
    previous = None
    shown = []
    for row in rows:
        if not _left_out(row):
            shown.append({**row, "shown": row["name"] if row["method"] != previous else ""})
            previous = row["method"]
    return Sheet("block", title, columns, shown, keep_empty=True)


def _rate(row: Row) -> str:
    return "" if row["lr"] is None else f"{row['lr']:.2g}{'*' if row['under_tuned'] else ' '}"


def _score(row: Row) -> str:
    if row["mean"] is None:
        return ""
    half = "" if row["high"] is None else f" \N{PLUS-MINUS SIGN} {percent(row['high'] - row['mean']):>4}"
    return f"{percent(row['mean'])}{half}"
