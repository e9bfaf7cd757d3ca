"""The results table at the end of a run: as an Arrow table, and printed on the terminal."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from operator import itemgetter
from typing import Any

import pyarrow as pa
from rich.console import Console

from analysis.errors import StoreError
from analysis.format import Row, change_text, duration, listed, percent, plural, points, quantity, with_interval
from analysis.sheets.sheet import Column, Sheet
from analysis.sheets.terminal import print_sheet, safe_console
from analysis.statistics import scaling
from analysis.statistics.examples import example_intervals
from analysis.statistics.looks import declared, level, margin_of
from analysis.statistics.measures import FurtherMeasure, further_measure, separations
from analysis.statistics.runs import confirmed, failed, group_by
from analysis.store.columns import INT, PLACE, REAL, TAKEN_OUT, TEXT, limited, typed
from analysis.store.store import Store
from analysis.styles import dataset_text, place_of, place_text, size_key, style, training_text
from analysis.words.absent import absent_data
from analysis.words.batch_sizes import chosen_batch_size
from analysis.words.conclusions import Conclusion, conclude, preliminary
from analysis.words.decisions import behind_text, best_text, would_change
from analysis.words.parity import devices_apart, versions_apart
from analysis.words.verdicts import (
    LATER,
    LATER_MEANS,
    further_head,
    further_text,
    meanings,
    measures_text,
    seeds_text,
    size_of,
    untested,
    verdict_text,
)
from analysis.words.weak import weak_evidence

DIFFERENCE = ("difference", "difference_low", "difference_high")
"""Columns of the paired difference to the baseline at the same budget."""
OVER_EXAMPLES = ("low_examples", "high_examples", "difference_low_examples", "difference_high_examples")
RESULTS = pa.schema(
    [
        *typed(TEXT, *PLACE, "method", "name", "reference"),
        *typed(INT, "budget", "adapter_params"),
        ("off_budget", REAL),  # (count - budget) / budget where that is above the tolerance: `unmatched = true`
        ("lr", REAL),
        ("batch_size", INT),  # the chosen batch size; null if batch sizes were not searched
        *typed(TEXT, "edge", "under_tuned"),  # why more tuning might help: the view `tuned`
        ("weak", TEXT),  # what the cell's result rests on too little, in words (`words.weak`); null for nothing
        *typed(REAL, "mean", "low", "high"),
        ("beside", REAL),  # mean of the measure beside the score (`measures.further_measure`): the loss, in most sweeps
        *typed(INT, "n", "failed"),  # confirming runs with a score, and without one
        ("absent", TEXT),  # why the cell's data was not at hand, of one that `--available` left out
        ("baseline", TEXT),  # that the differences are to; null where there is none
        *typed(REAL, *DIFFERENCE, "p_holm"),
        *typed(REAL, *OVER_EXAMPLES),  # the intervals of the score and of the difference, over test examples too
        ("examples_note", TEXT),  # why the score has none over test examples
        *typed(TEXT, "verdict", "note"),  # null where there is nothing to compare with; why a row has no score
        ("added", pa.bool_()),  # whether the difference is of the second analysis (`scaling.comparisons`)
    ]
)


def conclusion(store: Store) -> str:
    """Return the sweep's answer in sentences that claim no more than its tests allow."""
    return str(conclusion_of(store))


def conclusion_of(store: Store) -> Conclusion:
    """Return the sweep's answer with its limits, and how it was tested."""
    asked_question = scaling.question(store)
    methods = None if asked_question.focus is None else (asked_question.focus, asked_question.baseline)
    limits = [*runs_failed(store, methods), *unlike(store, methods)]
    return conclude(scaling.verdict_table(store), level(store), limits, asked_question)


def runs_failed(store: Store, methods: Collection[str] | None = None) -> list[str]:
    """Return a sentence on the confirming runs of `methods` (all if None) that failed, and one on what they change."""
    lost = [rows for (_, method, _), rows in failed(store).items() if methods is None or method in methods]
    if not lost:
        return []
    scored, cells, without_score = confirmed(store), [], []
    for rows in lost:
        r, n = rows[0], len(rows)
        finished = len(scored.get((place_of(r), r["method"], r["reference"]), ()))
        at = f" at {r['reference']}" if r["reference"] else ""
        cell = f"{style(r['method']).name}{at} on {dataset_text(r['dataset'])}"
        cells.append(f"{n} of {n + finished} of {cell}")
        without_score += [] if finished else [cell]
    sentences = [
        f"Confirming runs that failed: {listed(cells)}. A method is only called higher if that also "
        "holds with each of its failed runs scored as the untrained model."
    ]
    if without_score:
        sentences.append(f"No run finished of {listed(without_score)}: there is no difference, and means leave it out.")
    rows = [r for r in scaling.verdict_table(store).to_pylist() if r["difference_as_untrained"] is not None]
    rows = [r for r in rows if r["reference"] and (methods is None or r["method"] in methods)]
    for r in rows:
        pair = f"{style(r['method']).name} minus {style(r['baseline']).name} at {r['reference']}"
        so_scored = f"{points(r['difference_as_untrained'])} so scored"
        over = f"{points(r['difference'])} points over finished runs"
        sentences.append(f"{pair} on {dataset_text(r['dataset'])} is {over}, and {so_scored}.")
    return sentences


def unlike(store: Store, methods: Collection[str] | None = None) -> list[str]:
    """Return a sentence if devices or precision differ between `methods` (all if None), and one if versions differ."""
    difference_texts = {
        "Devices or precision": devices_apart(store.table("parity").to_pylist(), methods),
        "Versions of packages": versions_apart(ran_with(store), methods),
    }
    return [f"{what} are NOT equal: {apart}." for what, apart in difference_texts.items() if apart]


def ran_with(store: Store) -> list[Row]:
    """Return the versions of packages that finished trials ran with, for `versions_apart`."""
    columns = "sweep, dataset, train_size, method, versions"
    table = store.sql(f"select distinct {columns} from last_attempts where status = 'finished' order by all")  # noqa: S608  ours
    rows: list[Row] = table.to_pylist()
    return rows


def more_seeds(store: Store) -> str:
    """Say how to add seeds, and what they cost in confidence."""
    section = declared(store)
    seeds, most = section.get("seeds"), section.get("max_seeds")
    if not isinstance(seeds, list):
        return ""
    advice = f"Raise seeds under [confirm] in the sweep file (now {len(seeds)}), and run the same command again"
    if not isinstance(most, int):
        return f"{advice}. Each addition is a further look at the test scores, and the tests become stricter."
    if len(seeds) < most:
        return f"{advice}. This sweep declared at most {plural(most, 'seed')} before its first score."
    return (
        f"This sweep declared at most {plural(most, 'seed')} before its first score, so that seeds are not added until "
        "a difference appears. If you add seeds to this folder, its differences are no longer tested. For more seeds "
        "start a new sweep: copy the sweep file, give it another name, and raise seeds and max_seeds under [confirm]."
    )


def results_table(store: Store) -> pa.Table:
    """Return a row for each cell of the plan; columns `RESULTS`.

    A row has the chosen rate, the mean test score with its interval, and the difference to the baseline. A cell without
    a score has `n` 0, and a `note` that says why: it is infeasible, not confirmed yet, or confirmed without a score.
    """
    compared = {_key(r): r for r in scaling.verdict_table(store).to_pylist() if r["reference"] is not None}
    scored = {_key(r): r for r in scaling.curve(store).to_pylist() if r["dataset"] is not None}
    tuned = {(r["sweep"], r["cell_id"]): r for r in store.table("tuned").to_pylist()}
    signs = [r for r in store.table("signs").to_pylist() if not r["absent"]]
    weak = {(r["sweep"], r["cell_id"]): "; ".join(weak_evidence([r])) for r in signs}
    batch = {(r["sweep"], r["cell_id"]): chosen_batch_size(r) for r in signs}
    examples = {(r["sweep"], r["cell_id"]): r for r in example_intervals(store).to_pylist()}
    unscored, lost, further = _unscored(store), failed(store), further_measure(store)
    tolerance = _tolerance(store)
    rows = []
    for cell in store.table("cells").to_pylist():
        score, difference = scored.get(_key(cell)), compared.get(_key(cell))
        row: Row = {name: cell.get(name) for name in RESULTS.names}
        row |= {"name": style(cell["method"]).name, "adapter_params": cell["count"], "n": 0, "note": None}
        row["beside"] = None if further is None else further.means.get((cell["sweep"], cell["cell_id"]))
        row["failed"] = len(lost.get((place_of(cell), cell["method"], cell["reference"]), ()))
        off = cell["residual_fraction"]
        row["off_budget"] = off if tolerance is not None and cell["feasible"] and abs(off or 0) > tolerance else None
        row |= {k: tuned.get((cell["sweep"], cell["cell_id"]), {}).get(k) for k in ("edge", "under_tuned")}
        row["batch_size"] = batch.get((cell["sweep"], cell["cell_id"]))
        row["weak"] = weak.get((cell["sweep"], cell["cell_id"])) or None
        if score:
            row |= {k: score[k] for k in ("adapter_params", "lr", "mean", "low", "high", "n")}
            row |= {k: examples[cell["sweep"], cell["cell_id"]][k] for k in (*OVER_EXAMPLES, "examples_note")}
        elif not cell["feasible"]:
            row["note"] = cell["reason"] if cell["reason"] == TAKEN_OUT else f"infeasible: {cell['reason']}"
        else:
            row["note"] = unscored.get((cell["sweep"], cell["cell_id"]), "not confirmed yet")
        if difference:
            row |= dict(zip(DIFFERENCE, (difference[k] for k in ("difference", "low", "high")), strict=True))
            row |= {k: difference[k] for k in ("baseline", "p_holm", "verdict", "added")}
        rows.append(row)
    rows.sort(key=_order)
    return pa.Table.from_pylist(rows, schema=RESULTS)


def _unscored(store: Store) -> dict[tuple[str, str], str]:
    """Return why CONFIRM runs gave no score, by (sweep, cell), for cells of which some have run."""
    query = """
        select sweep, cell_id, count(*) filter (status = 'finished') as finished from last_attempts
        where stage = 'CONFIRM' group by all having count(test_score) = 0
    """
    reasons = {True: "no score: it was not a number", False: "every confirming run failed"}
    return {(r["sweep"], r["cell_id"]): reasons[r["finished"] > 0] for r in store.sql(query).to_pylist()}


def _tolerance(store: Store) -> float | None:
    """Return the sweep's `budgets.tolerance`, None if the folder has none. Raises StoreError if it is no fraction."""
    budgets = store.stored().get("budgets")
    tolerance = budgets.get("tolerance") if isinstance(budgets, dict) else None
    if tolerance is None:
        return None
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0.0 <= tolerance <= 1.0:
        rule = "it must be a fraction from 0 to 1: 0.05 is five percent, what a sweep file without it has"
        raise StoreError(f"{store.path}: budgets.tolerance is {tolerance!r}; {rule}")
    return float(tolerance)


def _order(r: Row) -> tuple[Any, ...]:
    sweep, model, dataset, size = place_of(r)
    return sweep, model, dataset, size_key(size), style(r["method"]).order, r["method"], r["budget"] or 0


def _key(row: Row) -> tuple[str, str, str, str, str, str | None]:
    return row["sweep"], row["model"], row["dataset"], row["train_size"], row["method"], row["reference"]


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
    against = style(scaling.question(store).baseline).name
    several = len({r["model"] for r in rows}) > 1
    for (sweep, model, dataset, size), place_rows in group_by([r for r in rows if not r["absent"]], *PLACE).items():
        measured = scaling.score_name(store, dataset)
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
        Column("parameters", _parameters, "number"),
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
        Column(f"verdict vs {against}", _verdict, "verdict"),
    ]
    previous = None
    shown = []
    for row in rows:
        if not _left_out(row):
            shown.append({**row, "shown": row["name"] if row["method"] != previous else ""})
            previous = row["method"]
    return Sheet("block", title, columns, shown, keep_empty=True)


def _parameters(row: Row) -> str:
    return quantity(row["adapter_params"]) + ("\N{DAGGER}" if row["off_budget"] else "")


def _rate(row: Row) -> str:
    return "" if row["lr"] is None else f"{row['lr']:.2g}{'*' if row['under_tuned'] else ' '}"


def _score(row: Row) -> str:
    if row["mean"] is None:
        return ""
    half = "" if row["high"] is None else f" \N{PLUS-MINUS SIGN} {percent(row['high'] - row['mean']):>4}"
    return f"{percent(row['mean'])}{half}"


def _verdict(row: Row) -> str:
    return str(row["note"] or f"{verdict_text(row['verdict'])}{LATER if row['added'] else ''}")
