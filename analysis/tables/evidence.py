"""The report's tables of evidence: parity, tuning, cost, failures, what could not run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from analysis.format import duration, mib, percent, points, quantity, short, signed_percent, whole
from analysis.statistics.estimates import foresight
from analysis.statistics.tuning import best_of_n, rates
from analysis.store.store import Store
from analysis.styles import size_key, style
from analysis.tables.results import LONG, PARAMETERS
from analysis.tables.sheet import BUDGET, METHOD, PLACE, Column, Sheet, columns_of

Row = dict[str, Any]

MOST_FAILURES = 50


def parity_rows(store: Store) -> list[Row]:
    """The view `parity` in the order of the tables."""
    rows: list[Row] = store.table("parity").to_pylist()
    rows.sort(key=_order)
    return rows


def _order(r: Row) -> tuple[Any, ...]:
    place = (r["sweep"], r["dataset"], size_key(r["train_size"]))
    return (*place, style(r["method"]).order, r["method"], r["budget"] or 0)


def parity(rows: list[Row]) -> Sheet:
    """Counts, allowance and edges, cell by cell."""
    columns = columns_of(
        rows,
        METHOD,
        BUDGET,
        Column("budget, parameters", lambda r: whole(r["budget"]), "number"),
        Column("built", _built, "number"),
        Column("residual", lambda r: signed_percent(r["residual_fraction"]), "number"),
        Column("allocation", lambda r: r["allocation"] or ""),
        Column("tuning used / given", _allowance, "number"),
        Column("rates", lambda r: str(r["rates_tried"] or ""), "number"),
        Column("chosen", lambda r: short(r["chosen_lr"]), "number"),
        Column("last gain, points", lambda r: points(r["last_gain"]), "number"),
        Column("under-tuned?", lambda r: r["under_tuned"] or ""),
        Column("seeds", lambda r: f"{r['seeds_confirmed']} / {r['confirm_seeds']}", "number"),
    )
    note = (
        "Last gain: what the expected best validation score rose by when the number of learning rates went from one "
        "fewer to all of them; a large gain says that more tuning might have helped. Under-tuned: the choice is the "
        "end of its range, few of the points tried have finished, or the last gain is above half a point; a wider "
        "range (search.widen) or more trials, and the same command, go on from here."
    )
    return Sheet("parity", "Parity: counts, allowance, edges", columns, rows, note, folded=len(rows) > LONG)


def _built(r: Row) -> str:
    return whole(r["adapter_params"]) + (f" (predicted {whole(r['count'])})" if r["count_holds"] is False else "")


def _allowance(r: Row) -> str:
    used = str(r["allowance_used"])
    if r["allowance_samples"] is not None:
        used += f" trials, {whole(r['tune_samples'] or 0)} / {whole(r['allowance_samples'])} examples"
    else:
        used += f" / {r['allowance']}"
    return used + (f" ({r['tune_failed']} failed)" if r["tune_failed"] else "")


def tuning_says(rows: list[Row]) -> list[str]:
    """Sentences on what tuned cells were given and what they used, rows of the view `parity`, true as they are."""
    sampled = [r for r in rows if r["allowance_samples"] is not None]
    rest = [r for r in rows if r["allowance_samples"] is None]
    said = []
    for mine, given, used, unit in (
        (rest, "allowance", "allowance_used", "trials"),
        (sampled, "allowance_samples", "tune_samples", "training examples"),
    ):
        if not mine:
            continue
        each = {r[given] for r in mine}
        equal = f"{'every tuned cell was' if len(each) == 1 else 'cells were'} given {_span(each)} {unit}"
        full = _span(r["tune_full_length"] for r in mine)
        if mine is rest:
            spent = f"{_span(r[used] for r in mine)} were used, {full} of them finished at full length"
        else:
            trials = _span(r["allowance_used"] for r in mine)
            spent = f"{_span(r[used] or 0 for r in mine)} were used, in {trials} trials, {full} of them finished at "
            spent += "full length; points past an edge and failed trials are among them"
        said.append(f"Tuning: {equal}; {spent}.")
    return said


def _span(values: Iterable[float]) -> str:
    found = [quantity(value) for value in sorted(values)]
    return found[0] if found[0] == found[-1] else f"{found[0]} to {found[-1]}"


def learning_rates(store: Store) -> Sheet:
    """Stage TUNE's validation scores, the numbers of the figures of learning rates."""
    rows = sorted(rates(store).to_pylist(), key=_order)
    columns = columns_of(
        rows,
        METHOD,
        BUDGET,
        Column("learning rate", lambda r: short(r["lr"]) + "*" * bool(r["chosen"]), "number"),
        Column("validation score, %", lambda r: percent(r["mean_val"]), "number"),
        Column("runs", lambda r: str(r["n"]), "number"),
        Column("failed", lambda r: str(r["failed"] or ""), "number"),
    )
    return Sheet("learning_rates", "Stage TUNE, rate by rate", columns, rows, "* chosen.", folded=True)


def expected(store: Store) -> Sheet:
    """Expected best validation score of n rates."""
    lines: dict[tuple[str, str], Row] = {}
    for r in best_of_n(store).to_pylist():
        lines.setdefault((r["sweep"], r["cell_id"]), {**r, "by": {}})["by"][r["n"]] = r["expected"]
    rows = sorted(lines.values(), key=_order)
    most = max((len(r["by"]) for r in rows), default=0)

    def cell(n: int) -> Column:
        return Column(f"n = {n}", lambda r: percent(r["by"].get(n)), "number")

    columns = columns_of(rows, METHOD, BUDGET, *(cell(n) for n in range(1, most + 1)))
    note = (
        "Expected best validation score, %, had only n of the learning rates been tried (Tang et al. 2020): a row "
        "still rising at its end says that more tuning would have helped."
    )
    return Sheet("expected_best", "Was anyone under-tuned? Expected best of n rates", columns, rows, note, folded=True)


def cost(store: Store) -> Sheet:
    """What every method and budget took."""
    rows = store.table("cost").to_pylist()
    rows.sort(key=lambda r: (r["sweep"], style(r["method"]).order, r["method"], r["adapter_params"] or 0))
    columns = [
        *([Column("sweep", lambda r: r["sweep"])] if len({r["sweep"] for r in rows}) > 1 else []),
        METHOD,
        BUDGET,
        PARAMETERS,
        Column("attempts", lambda r: str(r["attempts"]), "number"),
        Column("trial time in all", lambda r: duration(None if r["hours"] is None else 3600 * r["hours"]), "number"),
        Column("per trial", lambda r: duration(r["seconds_per_trial"]), "number"),
        Column("training", lambda r: duration(r["seconds_train"]), "number"),
        Column("overhead", lambda r: duration(r["seconds_overhead"]), "number"),
        Column(
            "examples/s",
            lambda r: "" if r["samples_per_second"] is None else f"{r['samples_per_second']:,.0f}",
            "number",
        ),
        Column("peak memory, MiB", lambda r: mib(r["peak_memory_bytes"]), "number"),
        Column("stored, bytes", lambda r: whole(r["stored_bytes"]), "number"),
    ]
    return Sheet("cost", "What it cost", columns, rows)


def estimate(store: Store) -> Sheet:
    """Estimate against actual of the last run."""
    rows = foresight(store).to_pylist()
    columns = [
        Column("quantity", lambda r: r["quantity"] + (f", {r['unit']}" if r["unit"] else "")),
        METHOD,
        Column("estimated", lambda r: quantity(r["estimated"]), "number"),
        Column("actual", lambda r: quantity(r["actual"]), "number"),
        Column("actual / estimated", lambda r: short(r["ratio"]), "number"),
    ]
    return Sheet("estimate", "Estimated before the last run, against what it took", columns, rows)


def failures(store: Store) -> Sheet:
    """Failed attempts with their reasons, the first `MOST_FAILURES`."""
    rows = store.table("failures").to_pylist()
    columns = [
        Column("trial", lambda r: r["trial_id"], "code"),
        Column("attempt", lambda r: str(r["attempt"]), "number"),
        Column("stage", lambda r: r["stage"] or ""),
        METHOD,
        BUDGET,
        PLACE,
        Column("learning rate", lambda r: short(r["lr"]), "number"),
        Column("reason", lambda r: r["reason"] or "", "long"),
        Column("afterwards", lambda r: "finished on a later attempt" if r["recovered"] else "not recovered"),
    ]
    more = len(rows) - MOST_FAILURES
    note = f"And {more} more: sweeps query {store.path.name} failures" if more > 0 else ""
    return Sheet("failures", "Failed attempts", columns, rows[:MOST_FAILURES], note)


def infeasible(store: Store) -> Sheet:
    """Cells that have no setting near enough to their budget."""
    rows = [r for r in store.table("cells").to_pylist() if not r["feasible"]]
    columns = [
        METHOD,
        BUDGET,
        PLACE,
        Column("aimed at", lambda r: whole(r["budget"]), "number"),
        Column("nearest", lambda r: whole(r["count"]), "number"),
        Column("off by", lambda r: signed_percent(r["residual_fraction"]), "number"),
        Column("why", lambda r: r["reason"] or "", "long"),
    ]
    return Sheet("infeasible", "Infeasible cells", columns, rows)
