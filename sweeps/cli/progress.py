"""How far a sweep is, from its results folder alone: for `status` and the page of `watch`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analysis import Store, open_store
from analysis.format import Row, duration, plural
from analysis.statistics.sizing.estimates import estimate_table
from analysis.store.journal import JOURNAL
from analysis.store.left import Left
from analysis.store.left import to_come as left_of
from sweeps.engine.limits import used_seconds
from sweeps.records.locks import holder
from sweeps.watch.counts import PHASES, seconds_left, where_raised

_FAILURES = 20
"""Reasons of failures that are known."""
_TIMED = ["trial_id", "attempt", "method", "started_at", "ended_at", "seconds_setup", "seconds_total"]
_TOLD = ["trial_id", "cell_id", "stage", "status", "reason", "val_score"]
"""Columns of `trials` that are read: making Python's rows of all takes longer than the rest."""


def says(p: Row) -> tuple[str, str]:
    """What `progress_of` found, in words: how far it is; how fast, how long, and what it took."""
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
    """Counts of trials and cells by state; speed, time left and what it took; why trials failed; best scores so far.

    JSON-able. `trials` are those that ended, rates past an end of the range and replaced ones among them, and those to
    come. `idle_seconds` is the time since anything was journaled, also an epoch. `this_run`, `per_minute` and
    `seconds_left` are of the run in progress or the last one, its start-up left out; null before its first trial;
    `cost` is null without `limits.price_per_hour`; `estimate` has the wall time estimated at the last launch and, once
    that is over, the actual one; `phase_of` has every cell's phase, `phases` how many are in each. A cell is
    done when nothing of it is left to run, confirmed when all of its seeds have a score too. `retried` are trials that
    failed before and that the run in progress has still to end; they count as begun, not as failed. `losses`: when and
    why Ray was lost and started again, in all runs.
    """
    from analysis.words.absent import absent_data

    running = holder(store.path) is not None
    events = store.events()
    asked = {e["trial_id"] for e in events if e["ev"] == "ask"}
    known = store.table("cells").to_pylist()
    cells = [c for c in known if c["feasible"]]
    coverage = [r for r in store.table("coverage").to_pylist() if r["feasible"]]
    rows = store.table("trials").select(_TIMED).to_pylist()
    again = _retried(events) if running else frozenset()
    trials = {row["trial_id"]: row for row in store.table("last_attempts").select(_TOLD).to_pylist()}
    failed = Counter((r["cell_id"], r["stage"]) for name in again if (r := trials.pop(name, None)) is not None)
    named = {c["cell_id"] for c in cells}
    states = Counter(row["status"] for row in trials.values() if row["cell_id"] in named)
    left_in = {cell_id: left for (_, cell_id), left in left_of(store).items()}
    left_in |= {r["cell_id"]: _with_retried(left_in[r["cell_id"]], r, failed) for r in coverage}
    to_come = {cell_id: sum(left or ()) for cell_id, left in left_in.items()}
    missing: Counter[str] = Counter()
    for row in coverage:
        missing[row["method"]] += to_come[row["cell_id"]]
    this_run, per_minute, left = pace(rows, events, missing, datetime.now(UTC) if running else None)
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
        "unfinished": len((asked | again) - set(trials)),
        "retried": sorted(again),
        "cells": len(cells),
        "cells_confirmed": len(confirmed),
        "phases": {phase: phases[phase] for phase in PHASES if phases[phase]},
        "phase_of": phase_of,
        "this_run": this_run,
        "per_minute": per_minute,
        "seconds_left": left,
        "accelerator_hours": hours,
        "cost": cost,
        "estimate": _estimate(store),
        "losses": [{"at": e["at"], "reason": e["reason"]} for e in events if e["ev"] == "lost"],
        "left_out": absent_data(c for c in known if c["feasible"] or c["absent"]),
        "failures": _failures(trials, events, {c["cell_id"]: c["label"] for c in cells}),
        "methods": [_method(name, cells, confirmed, trials) for name in dict.fromkeys(c["method"] for c in cells)],
    }


def _retried(events: Sequence[Row]) -> frozenset[str]:
    """Trials that the last run tries again, as it wrote down when it began, and that have not ended since."""
    last = max((i for i, e in enumerate(events) if e["ev"] == "sweep"), default=len(events))
    asked = {name for e in events[last : last + 1] for name in e.get("retried") or ()}
    return frozenset(asked - {e["trial_id"] for e in events[last:] if e["ev"] == "finish"})


def _with_retried(left: Left, row: Row, failed: Mapping[tuple[str, str], int]) -> Left:
    """What is to come of a cell, a `row` of `coverage`, with its trials that are tried again: of `failed`, by stage."""
    tune, confirm = (failed.get((row["cell_id"], stage), 0) for stage in ("TUNE", "CONFIRM"))
    if left is None and tune:  # no rate had finished; one may now, and what follows on it
        rest = row["tune_planned"] - row["tune_done"] - row["failed"]
        left = max(0, rest), row["confirm_planned"] - row["confirm_done"]
    return None if left is None else (left[0] + tune, left[1] + confirm)


def _phases(cells: Sequence[Row], store: Store, left_in: Mapping[str, tuple[int, int] | None]) -> dict[str, str]:
    """Every cell's phase, as the live view has it. `left_in`: by cell, of `to_come`."""
    begun = {e["cell_id"] for e in store.events("ask")}
    begun |= set(store.table("trials").column("cell_id").to_pylist())  # of a copy, which has no journal
    found: dict[str, str] = {}
    for name in (cell["cell_id"] for cell in cells):
        left = left_in[name]
        phase = "stuck" if left is None else "tuning" if left[0] else "confirming" if left[1] else "done"
        found[name] = "waiting" if name not in begun and phase in ("tuning", "confirming") else phase
    return found


def pace(
    rows: Sequence[Row], events: Sequence[Row], missing: Mapping[str, int], now: datetime | None
) -> tuple[int, float | None, float | None]:
    """Trials that ended in the last run, how many a minute since the first of them began to train, and seconds left.

    The start of Ray and of workers is in neither: it is over when trials end.

    Args:
        rows: of `trials`. events: the journal's. missing: trials to come by method. now: None where nothing runs.
    """
    last = max((i for i, e in enumerate(events) if e["ev"] == "sweep" and "at" in e), default=len(events))
    told = {(e["trial_id"], e["attempt"]) for e in events[last:] if e["ev"] == "finish"}  # clocks of machines differ
    ended = [r for r in rows if r["ended_at"] is not None and r["started_at"] is not None]
    mine = [r for r in ended if (r["trial_id"], r["attempt"]) in told]
    if not mine:
        return 0, None, None
    first = min(mine, key=lambda r: r["started_at"])
    until = now or max(r["ended_at"] for r in mine)
    seconds = (until - first["started_at"]).total_seconds() - (first["seconds_setup"] or 0.0)
    spent: dict[str, tuple[float, int]] = {}
    for r in mine:
        taken, trials = spent.get(r["method"], (0.0, 0))
        own = max(0.0, (r["seconds_total"] or 0.0) - (r["seconds_setup"] or 0.0))
        spent[r["method"]] = (taken + own, trials + 1)
    lanes = events[last].get("lanes") or ()
    planned = sum(1 if lane.get("group") else lane.get("workers", 1) for lane in lanes)
    changed = [e["workers"] for e in events[last:] if e["ev"] == "workers"]  # nodes joined or left
    at_once = max(1, changed[-1] if changed else planned)
    left = None if now is None else seconds_left(missing, spent, at_once)
    return len(mine), 60 * len(mine) / seconds if seconds > 0 else None, left


def _idle(store: Store) -> float | None:
    """Seconds since the journal grew; None where there is none."""
    journal = store.path / JOURNAL
    return max(0.0, time.time() - journal.stat().st_mtime) if journal.exists() else None


def _used(rows: Sequence[Row], events: Sequence[Row]) -> tuple[float, float | None]:
    """Accelerator-hours of all trials, attempts that were lost included, and their price."""
    last: Row = next((e for e in reversed(events) if "price_per_hour" in e), {})
    if not last:  # of an older version
        last = next((e["estimate"] for e in reversed(events) if e["ev"] == "estimate"), {})
        last = last | ({"price_per_hour": last["cost"] / last["accelerator_hours"]} if last.get("cost") else {})
    taken = [row.get("seconds_total") for row in rows]
    hours, price = used_seconds(taken, events, last.get("accelerators", 1.0))[1] / 3600, last.get("price_per_hour")
    return hours, None if price is None else hours * price


def used_hours(folder: Path) -> float:
    """Accelerator-hours that a sweep's trials took so far; 0 where there are no results."""
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
    """The commonest reasons of failed trials; of one trial of each, the cell, the traceback and where it was raised."""
    traces = {e["trial_id"]: e["traceback"] for e in events if e.get("traceback")}
    failed = {name: row for name, row in trials.items() if row["status"] == "failed"}
    one: dict[str, str] = {}
    for name, row in failed.items():
        if name in traces or row["reason"] not in one:
            one[row["reason"]] = name
    found = []
    for reason, count in Counter(row["reason"] for row in failed.values()).most_common(_FAILURES):
        trace, cell = traces.get(one[reason]), failed[one[reason]]["cell_id"]
        where = {"cell": labels.get(cell, cell), "where": where_raised(trace), "traceback": trace}
        found.append({"reason": reason, "count": count, **where})
    return found


def _method(name: str, cells: Sequence[Row], confirmed: set[str], trials: Mapping[str, Row]) -> dict[str, Any]:
    mine = {c["cell_id"] for c in cells if c["method"] == name}
    scores = [t["val_score"] for t in trials.values() if t["cell_id"] in mine and t["val_score"] is not None]
    return {
        "method": name,
        "cells": len(mine),
        "confirmed": sum(c in confirmed for c in mine),
        "best_val_score": max(scores, default=None),
    }
