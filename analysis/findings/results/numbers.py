"""The results table at the end of a run, as an Arrow table."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from analysis.errors import StoreError
from analysis.findings.batch_sizes import chosen_batch_size
from analysis.findings.results.examples import example_intervals
from analysis.findings.results.measures import further_measure
from analysis.findings.scaling.numbers import curve
from analysis.findings.shared import DIFFERENCE
from analysis.findings.weak import weak_evidence
from analysis.format import Row, quantity
from analysis.store.columns import INT, PLACE, REAL, TAKEN_OUT, TEXT, typed
from analysis.store.store import Store
from analysis.styles import place_of, size_key, style
from analysis.verdict.comparisons import verdict_table
from analysis.verdict.runs import failed

OVER_EXAMPLES = ("low_examples", "high_examples", "difference_low_examples", "difference_high_examples")
RESULTS = pa.schema(
    [
        *typed(TEXT, *PLACE, "method", "name", "reference"),
        *typed(INT, "budget", "adapter_params"),
        ("off_budget", REAL),  # (count - budget) / budget where that is above the tolerance: `unmatched = true`
        ("lr", REAL),
        ("batch_size", INT),  # the chosen batch size; null if batch sizes were not searched
        *typed(TEXT, "edge", "under_tuned"),  # why more tuning might help: the view `tuned`
        ("weak", TEXT),  # what the cell's result rests on too little, in words (`weak.weak_evidence`); null for nothing
        *typed(REAL, "mean", "low", "high"),
        ("beside", REAL),  # mean of the measure beside the score (`measures.further_measure`): the loss, in most sweeps
        *typed(INT, "n", "failed"),  # confirming runs with a score, and without one
        ("absent", TEXT),  # why the cell's data was not at hand, of one that `--available` left out
        ("baseline", TEXT),  # that the differences are to; null where there is none
        *typed(REAL, *DIFFERENCE, "p_holm"),
        *typed(REAL, *OVER_EXAMPLES),  # the intervals of the score and of the difference, over test examples too
        ("examples_note", TEXT),  # why the score has none over test examples
        *typed(TEXT, "verdict", "note"),  # null where there is nothing to compare with; why a row has no score
        ("added", pa.bool_()),  # whether the difference is of the second analysis (`analysis.comparisons`)
    ]
)


def results_table(store: Store) -> pa.Table:
    """Return a row for each cell of the plan; columns `RESULTS`.

    A row has the chosen rate, the mean test score with its interval, and the difference to the baseline. A cell without
    a score has `n` 0, and a `note` that says why: it is infeasible, not confirmed yet, or confirmed without a score.
    """
    compared = {_key(r): r for r in verdict_table(store).to_pylist() if r["reference"] is not None}
    scored = {_key(r): r for r in curve(store).to_pylist() if r["dataset"] is not None}
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


def parameters_text(row: Row) -> str:
    """Return the parameters of a cell, with a dagger if it misses its budget by more than the tolerance."""
    return quantity(row["adapter_params"]) + ("\N{DAGGER}" if row["off_budget"] else "")


def _order(r: Row) -> tuple[Any, ...]:
    sweep, model, dataset, size = place_of(r)
    return sweep, model, dataset, size_key(size), style(r["method"]).order, r["method"], r["budget"] or 0


def _key(row: Row) -> tuple[str, str, str, str, str, str | None]:
    return row["sweep"], row["model"], row["dataset"], row["train_size"], row["method"], row["reference"]
