"""Prints what to take at each budget, for `sweeps best`."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

from rich.console import Console

from analysis.findings.decisions.words import behind_text, best_text, would_change
from analysis.format import Row, duration, listed, percent, plural, quantity, with_interval
from analysis.sheets.sheet import Column, Sheet
from analysis.sheets.terminal import print_sheet
from analysis.styles import dataset_text, place_of, place_text, style
from analysis.verdict.looks import preliminary
from analysis.verdict.verdicts import size_of, untested, verdict_text


def print_decisions(rows: Sequence[Row], console: Console) -> None:
    """Say what to take at each budget (`decisions.decisions`), and what would change that.

    It prints two lines for each budget, or one table if there are several data sets or models.
    """
    rows = [r for r in rows if r["methods"] > 1]
    if not rows:
        return
    console.print("\nWhat to take at each budget, and what would change it", style="bold")
    if len({place_of(r) for r in rows}) > 1:
        print_sheet(_decision_sheet(rows), console)
        console.print(f"  {_decision_note(rows)}", style="dim")
    else:
        _print_each(rows, console)
    if any(_prospects(r)[1] == _RATES for r in rows):
        console.print(f"  {_LESS_NOISE}", style="dim")


_RATES = "rates"
_LESS_NOISE = (
    "What helps if the choice of learning rates limits a comparison: more validation examples, or more re-runs of the "
    "best rates. For these raise `rerun_seeds` under [search] in the sweep file."
)


def _print_each(rows: Sequence[Row], console: Console) -> None:
    """Print two lines for each budget."""
    for r in rows:
        score = with_interval(f"{percent(r['mean'])} %", percent(r["low"]), percent(r["high"]))
        count = "" if r["adapter_params"] is None else f", {plural(r['adapter_params'], 'parameter')}"
        seconds = "" if r["seconds"] is None else f", {duration(r['seconds'])} of training per run"
        console.print(f"  {r['reference']}: {best_text(r)}, {score}{count}{seconds}")
        console.print(f"    {would_change(r)}", style="dim")


def _decision_sheet(rows: Sequence[Row]) -> Sheet:
    """Return the table of decisions, a row for each place and budget."""
    models, sizes = (len({r[column] for r in rows}) > 1 for column in ("model", "train_size"))
    previous = None
    shown = []
    for r in rows:
        place = place_text(r["dataset"], r["train_size"]) if sizes else dataset_text(r["dataset"])
        shown.append({**r, "place": place if (place, r["model"]) != previous else ""})
        previous = place, r["model"]
    columns = [
        Column("data", itemgetter("place")),
        *([Column("model", itemgetter("model"))] if models else []),
        Column("budget", itemgetter("reference")),
        Column("take", lambda r: preliminary(r["early"]) + _take(r)),
        Column("score %", lambda r: percent(r["mean"]), "number"),
        Column("next", lambda r: "" if r["next"] is None else style(r["next"]).name),
        Column("points [ ]", lambda r: "" if r["ahead"] is None else behind_text(r), "number"),
        Column("detectable", lambda r: _prospects(r)[0], "number"),
        Column("seeds needed", lambda r: _prospects(r)[1], "number"),
    ]
    return Sheet("decisions", "", columns, shown, keep_empty=True)


def _take(row: Row) -> str:
    """Return the best methods of a decision, and whether they were not tested."""
    return best_text(row) if untested(row["verdict"]) else listed([style(m).name for m in row["best"]], "or")


def _prospects(row: Row) -> tuple[str, str]:
    """Return what the seeds of a decision can detect (or its verdict), and the number of seeds that it would need."""
    if row["verdict"] != "not distinguishable" or row["detectable"] is None:
        return verdict_text(row["verdict"]), ""
    detectable = size_of(row["detectable"]) if row["detectable"] < 1 else "nothing"
    if row["seeds_needed"] is not None:
        return detectable, quantity(row["seeds_needed"])
    return detectable, _RATES if row["seeds_needed_given_rates"] is not None else "over 1,000"


def _decision_note(rows: Sequence[Row]) -> str:
    """Return sentences on how to read the table of decisions."""
    notes = [
        "The tests found no difference between the first method of a row and the others in it; the score is that of "
        "the first.",
        "Next: the runner-up. Points: its score minus that of the first method, with the corrected interval.",
        "Detectable: the smallest difference, in points, that these seeds can detect.",
    ]
    last = {_prospects(r)[1] for r in rows} - {""}
    if last:
        notes.append("Seeds needed: the number of seeds, in all, that would detect the difference that was seen.")
    if _RATES in last:
        notes.append("'rates': more seeds alone would not help, since the choice of learning rates limits this.")
    return " ".join(notes)
