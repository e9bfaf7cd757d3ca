"""Computes how far a sweep is, from its results folder alone, for `status` and the page of `watch`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analysis import Store, open_store
from analysis.findings.estimate import estimate_table
from analysis.format import Row, duration, plural
from analysis.store.journal import JOURNAL
from analysis.store.left import Left
from analysis.store.left import to_come as left_of
from sweeps.engine.limits import used_seconds
from sweeps.records.locks import holder
from sweeps.watch.counts import PHASES, seconds_left, where_raised

_FAILURES = 20
"""The largest number of different reasons of failures that are returned."""
_TIMED = ["trial_id", "attempt", "method", "started_at", "ended_at", "seconds_setup", "seconds_total"]
_TOLD = ["trial_id", "cell_id", "stage", "status", "reason", "val_score"]
"""Columns of `trials` that are read: to convert all columns to Python would take longer than everything else."""


def says(p: Row) -> tuple[str, str]:
    """Return the result of `progress_of` as two texts: how far the sweep is; and its speed, time left and cost."""
    state = {True: "running", False: "not running"}.get(p["running"], "running or not")
    far = (
        f"{p['sweep']}: {p['finished']} of {p['trials']} trials finished, {p['failed']} failed, "
        f"{p['unfinished']} in progress; {p['cells_confirmed']} of {p['cells']} cells confirmed; {state}"
    )
    words = [", ".join(f"{plural(n, 'cell')} {phase}" for phase, n in p["phases"].items())]
    if p["per_minute"] is not None:
        which = "run" if p["running"] else "last run"
        words.append(f"{p['this_run']} trials of the {which} at {p['per_minute']:.1f}/min")
    if p["seconds_left"]:
        words.append(f"about {duration(p['seconds_left'])} left")
    words.append(f"{p['accelerator_hours']:.2f} accelerator-hours")
    if p["cost"] is not None:
        words.append(f"cost {p['cost']:.2f}")
    if p["estimate"] is not None:
        guess, took = p["estimate"]["estimated"], p["estimate"]["actual"]
        words.append(f"estimated {duration(guess)}" + ("" if took is None else f", took {duration(took)}"))
    return far, "; ".join(filter(None, words))


def progress_of(store: Store) -> dict[str, Any]:
    """Return how far a sweep is, as JSON values.

    Args:
        store: the results.

    Returns:
        `trials`: number of trials that ended (also of rates past the edge of the range, and replaced ones) or are still
        to come. `idle_seconds`: seconds since the last event in the journal. `this_run`, `per_minute` and
        `seconds_left`: of the run in progress or the last one, without its start-up; None before its first trial.
        `cost`: None without `limits.price_per_hour`. `estimate`: the wall time estimated at the last start, and the
        actual one once the run is over. `phase_of`: every cell's phase. `phases`: the number of cells in each phase. A
        cell is done if nothing of it is left to run, and confirmed if all of its seeds also have a score. `retried`:
        trials that failed before and that the run in progress tries again; they count as begun, not as failed.
        `losses`: when and why Ray was lost and started again, in all runs.
    """
    from analysis.findings.absent import absent_data

    running = holder(store.path) is not None
    events = store.events()
    asked = {e["trial_id"] for e in events if e["ev"] == "ask"}
    all_cells = store.table("cells").to_pylist()
    cells = [c for c in all_cells if c["feasible"]]
    coverage = [r for r in store.table("coverage").to_pylist() if r["feasible"]]
    rows = store.table("trials").select(_TIMED).to_pylist()
    retried = _retried(events) if running else frozenset()
    trials = {row["trial_id"]: row for row in store.table("last_attempts").select(_TOLD).to_pylist()}
    failed = Counter((r["cell_id"], r["stage"]) for name in retried if (r := trials.pop(name, None)) is not None)
    named = {c["cell_id"] for c in cells}
    states = Counter(row["status"] for row in trials.values() if row["cell_id"] in named)
    left_in = {cell_id: counts for (_, cell_id), counts in left_of(store).items()}
    left_in |= {r["cell_id"]: _with_retried(left_in[r["cell_id"]], r, failed) for r in coverage}
    to_come = {cell_id: sum(counts or ()) for cell_id, counts in left_in.items()}
    missing: Counter[str] = Counter()
    for row in coverage:
        missing[row["method"]] += to_come[row["cell_id"]]
    this_run, per_minute, seconds_to_go = pace(rows, events, missing, datetime.now(UTC) if running else None)
    hours, cost = _used(rows, events)
    phase_of = _phases(cells, store, left_in)
    phases = Counter(phase_of.values())
    scored = {r["cell_id"] for r in coverage if r["confirm_done"] >= r["confirm_planned"]}
    confirmed = {cell_id for cell_id, phase in phase_of.items() if phase == "done"} & scored
    return {
        "sweep": cells[0]["sweep"] if cells else store.path.name,
        "folder": str(store.path),
        "running": running,
        "idle_seconds": _idle(store),
        "trials": states.total() + sum(to_come.values()),
        "finished": states["finished"] + states["pruned"],
        "failed": states["failed"],
        "unfinished": len((asked | retried) - set(trials)),
        "retried": sorted(retried),
        "cells": len(cells),
        "cells_confirmed": len(confirmed),
        "phases": {phase: phases[phase] for phase in PHASES if phases[phase]},
        "phase_of": phase_of,
        "this_run": this_run,
        "per_minute": per_minute,
        "seconds_left": seconds_to_go,
        "accelerator_hours": hours,
        "cost": cost,
        "estimate": _estimate(store),
        "losses": [{"at": e["at"], "reason": e["reason"]} for e in events if e["ev"] == "lost"],
        "left_out": absent_data(c for c in all_cells if c["feasible"] or c["absent"]),
        "failures": _failures(trials, events, {c["cell_id"]: c["label"] for c in cells}),
        "methods": [_method(name, cells, confirmed, trials) for name in dict.fromkeys(c["method"] for c in cells)],
    }


def _retried(events: Sequence[Row]) -> frozenset[str]:
    """Return the trials that the last run tries again and that have not ended since."""
    last = max((i for i, e in enumerate(events) if e["ev"] == "sweep"), default=len(events))
    retried = {name for e in events[last : last + 1] for name in e.get("retried") or ()}
    return frozenset(retried - {e["trial_id"] for e in events[last:] if e["ev"] == "finish"})


def _with_retried(to_come: Left, row: Row, failed: Mapping[tuple[str, str], int]) -> Left:
    """Return the numbers of trials still to come of a cell, with its trials that are tried again.

    Args:
        to_come: the numbers of TUNE and CONFIRM trials to come without these; None if no rate finished.
        row: the cell's row of `coverage`.
        failed: number of trials that are tried again, by cell id and stage.
    """
    tune, confirm = (failed.get((row["cell_id"], stage), 0) for stage in ("TUNE", "CONFIRM"))
    if to_come is None and tune:  # no rate had finished; one may finish now, and then further trials follow
        rest = row["tune_planned"] - row["tune_done"] - row["failed"]
        to_come = max(0, rest), row["confirm_planned"] - row["confirm_done"]
    return None if to_come is None else (to_come[0] + tune, to_come[1] + confirm)


def _phases(cells: Sequence[Row], store: Store, left_in: Mapping[str, tuple[int, int] | None]) -> dict[str, str]:
    """Return every cell's phase, by cell id. `left_in`: the numbers of trials to come, by cell id."""
    begun = {e["cell_id"] for e in store.events("ask")}
    begun |= set(store.table("trials").column("cell_id").to_pylist())  # the folder may be a copy without a journal
    phase_of: dict[str, str] = {}
    for name in (cell["cell_id"] for cell in cells):
        to_come = left_in[name]
        phase = "stuck" if to_come is None else "tuning" if to_come[0] else "confirming" if to_come[1] else "done"
        phase_of[name] = "waiting" if name not in begun and phase in ("tuning", "confirming") else phase
    return phase_of


def pace(
    rows: Sequence[Row], events: Sequence[Row], missing: Mapping[str, int], now: datetime | None
) -> tuple[int, float | None, float | None]:
    """Return the number of trials that ended in the last run, the trials per minute, and the seconds left.

    The start of Ray and of workers does not count. The last two are None if they are not known.

    Args:
        rows: rows of `trials`.
        events: the journal's events.
        missing: the number of trials to come, by method.
        now: the time now; None if no run is in progress.
    """
    last = max((i for i, e in enumerate(events) if e["ev"] == "sweep" and "at" in e), default=len(events))
    # by the events and not by time, because clocks of machines differ
    ended_here = {(e["trial_id"], e["attempt"]) for e in events[last:] if e["ev"] == "finish"}
    ended = [r for r in rows if r["ended_at"] is not None and r["started_at"] is not None]
    of_this_run = [r for r in ended if (r["trial_id"], r["attempt"]) in ended_here]
    if not of_this_run:
        return 0, None, None
    first = min(of_this_run, key=lambda r: r["started_at"])
    until = now or max(r["ended_at"] for r in of_this_run)
    seconds = (until - first["started_at"]).total_seconds() - (first["seconds_setup"] or 0.0)
    spent: dict[str, tuple[float, int]] = {}
    for r in of_this_run:
        earlier_seconds, trials = spent.get(r["method"], (0.0, 0))
        own = max(0.0, (r["seconds_total"] or 0.0) - (r["seconds_setup"] or 0.0))
        spent[r["method"]] = (earlier_seconds + own, trials + 1)
    lanes = events[last].get("lanes") or ()
    planned = sum(1 if lane.get("group") else lane.get("workers", 1) for lane in lanes)
    changed = [e["workers"] for e in events[last:] if e["ev"] == "workers"]  # nodes joined or left
    at_once = max(1, changed[-1] if changed else planned)
    to_go = None if now is None else seconds_left(missing, spent, at_once)
    return len(of_this_run), 60 * len(of_this_run) / seconds if seconds > 0 else None, to_go


def _idle(store: Store) -> float | None:
    """Return the seconds since the last event of the journal; None if there is no journal."""
    journal = store.path / JOURNAL
    return max(0.0, time.time() - journal.stat().st_mtime) if journal.exists() else None


def _used(rows: Sequence[Row], events: Sequence[Row]) -> tuple[float, float | None]:
    """Return the accelerator-hours of all trials (also of lost attempts), and their cost (None without a price)."""
    last: Row = next((e for e in reversed(events) if "price_per_hour" in e), {})
    if not last:  # an older version wrote the journal
        last = next((e["estimate"] for e in reversed(events) if e["ev"] == "estimate"), {})
        last = last | ({"price_per_hour": last["cost"] / last["accelerator_hours"]} if last.get("cost") else {})
    trial_seconds = [row.get("seconds_total") for row in rows]
    _, accelerator_seconds = used_seconds(trial_seconds, events, last.get("accelerators", 1.0))
    hours = accelerator_seconds / 3600
    price = last.get("price_per_hour")
    return hours, None if price is None else hours * price


def used_hours(folder: Path) -> float:
    """Return the accelerator-hours that a sweep's trials took so far; 0 if there are no results."""
    if not ((folder / JOURNAL).exists() or (folder / "tables").is_dir()):
        return 0.0
    store = open_store(folder)
    return _used(store.table("trials").select(_TIMED).to_pylist(), store.events())[0]


def _estimate(store: Store) -> dict[str, float | None] | None:
    for row in estimate_table(store).to_pylist():
        if row["quantity"] == "wall time":
            return {"estimated": row["estimated"], "actual": row["actual"]}
    return None


def _failures(trials: Mapping[str, Row], events: Sequence[Row], labels: Mapping[str, str]) -> list[Row]:
    """Return the most common reasons of failed trials, each with one trial's cell, traceback and place of the error."""
    traces = {e["trial_id"]: e["traceback"] for e in events if e.get("traceback")}
    failed = {name: row for name, row in trials.items() if row["status"] == "failed"}
    one: dict[str, str] = {}
    for name, row in failed.items():
        if name in traces or row["reason"] not in one:
            one[row["reason"]] = name
    failures = []
    for reason, count in Counter(row["reason"] for row in failed.values()).most_common(_FAILURES):
        trace, cell = traces.get(one[reason]), failed[one[reason]]["cell_id"]
        where = {"cell": labels.get(cell, cell), "where": where_raised(trace), "traceback": trace}
        failures.append({"reason": reason, "count": count, **where})
    return failures


def _method(name: str, cells: Sequence[Row], confirmed: set[str], trials: Mapping[str, Row]) -> dict[str, Any]:
    cell_ids = {c["cell_id"] for c in cells if c["method"] == name}
    scores = [t["val_score"] for t in trials.values() if t["cell_id"] in cell_ids and t["val_score"] is not None]
    return {
        "method": name,
        "cells": len(cell_ids),
        "confirmed": sum(c in confirmed for c in cell_ids),
        "best_val_score": max(scores, default=None),
    }
