"""Puts how far a sweep is into JSON values and sentences, for `status` and the page of `watch`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from analysis import Store
from analysis.findings.estimate import estimate_table
from analysis.format import Row, duration, plural
from analysis.store.journal import JOURNAL
from sweeps.progress.failures import Failure
from sweeps.progress.of_folder import read_progress, retried_trials
from sweeps.progress.progress import CellProgress
from sweeps.records.locks import holder

_FAILURES = 20
"""The largest number of different reasons of failures that are returned."""


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
    now = read_progress(store, running=running)
    events = store.events()
    listed = store.table("cells").to_pylist()
    sweep = next((c["sweep"] for c in listed if c["feasible"]), store.path.name)
    return {
        "sweep": sweep,
        "folder": str(store.path),
        "running": running,
        "idle_seconds": _idle(store),
        "trials": now.total,
        "finished": now.finished,
        "failed": now.failed,
        "unfinished": now.running,
        "retried": sorted(retried_trials(events)) if running else [],
        "cells": len(now.cells),
        "cells_confirmed": sum(c.confirmed for c in now.cells),
        "phases": now.phases,
        "phase_of": {c.cell_id: c.phase for c in now.cells},
        "this_run": now.this_run,
        "per_minute": now.per_minute,
        "seconds_left": now.seconds_left,
        "accelerator_hours": now.accelerator_hours,
        "cost": now.cost,
        "estimate": _estimate(store),
        "losses": [{"at": e["at"], "reason": e["reason"]} for e in events if e["ev"] == "lost"],
        "left_out": absent_data(c for c in listed if c["feasible"] or c["absent"]),
        "failures": _by_reason(now.failures),
        "methods": [_method(name, now.cells) for name in dict.fromkeys(c.method for c in now.cells)],
    }


def _idle(store: Store) -> float | None:
    """Return the seconds since the last event of the journal; None if there is no journal."""
    journal = store.path / JOURNAL
    return max(0.0, time.time() - journal.stat().st_mtime) if journal.exists() else None


def _estimate(store: Store) -> dict[str, float | None] | None:
    for row in estimate_table(store).to_pylist():
        if row["quantity"] == "wall time":
            return {"estimated": row["estimated"], "actual": row["actual"]}
    return None


def _by_reason(failures: Sequence[Failure]) -> list[Row]:
    """Return the most common reasons of failed trials, each with one trial's cell, traceback and place of the error."""
    same: dict[str, list[Failure]] = {}
    for failure in failures:
        same.setdefault(failure.reason, []).append(failure)
    reasons = sorted(same.items(), key=lambda item: len(item[1]), reverse=True)[:_FAILURES]
    rows = []
    for reason, trials in reasons:
        one = next((f for f in reversed(trials) if f.traceback), trials[0])
        where = {"cell": one.label, "where": one.where, "traceback": one.traceback}
        rows.append({"reason": reason, "count": len(trials), **where})
    return rows


def _method(name: str, cells: Sequence[CellProgress]) -> dict[str, Any]:
    own = [c for c in cells if c.method == name]
    return {
        "method": name,
        "cells": len(own),
        "confirmed": sum(c.confirmed for c in own),
        "best_val_score": max((c.best for c in own if c.best is not None), default=None),
    }
