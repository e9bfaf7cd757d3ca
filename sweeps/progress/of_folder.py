"""Reads the progress of a sweep from its results folder alone. It works while another process runs the sweep."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from analysis.format import Row
from analysis.store.journal import JOURNAL
from analysis.store.left import Left, to_come
from analysis.store.store import Store, open_store
from sweeps.progress.failures import Failure, where_raised
from sweeps.progress.progress import CellProgress, Pace, SweepProgress, Timed
from sweeps.progress.used import hours_and_cost

_TIMED = ["trial_id", "cell_id", "attempt", "started_at", "ended_at", "seconds_setup", "seconds_total"]
_TOLD = ["trial_id", "cell_id", "stage", "status", "reason", "val_score"]
"""Columns of `trials` that are read: to convert all columns to Python would take longer than everything else."""


def read_progress(store: Store, *, running: bool) -> SweepProgress:
    """Return how far a sweep is.

    Args:
        store: the results.
        running: whether a run is in progress. Then the trials that it tries again are to come.
    """
    events = store.events()
    attempts = store.table("trials").select(_TIMED).to_pylist()
    retried = retried_trials(events) if running else frozenset()
    trials = {row["trial_id"]: row for row in store.table("last_attempts").select(_TOLD).to_pylist()}
    failed_before = Counter((r["cell_id"], r["stage"]) for name in retried if (r := trials.pop(name, None)) is not None)
    asked = [e for e in events if e["ev"] == "ask"]
    begun = {e["cell_id"] for e in asked} | {r["cell_id"] for r in attempts}  # a copy may have no journal
    of_cell: dict[str, list[Row]] = defaultdict(list)
    for row in trials.values():
        of_cell[row["cell_id"]].append(row)
    timed = _timed(attempts, events)
    left = {cell_id: counts for (_, cell_id), counts in to_come(store).items()}
    coverage = {r["cell_id"]: r for r in store.table("coverage").to_pylist()}
    listed = [c for c in store.table("cells").to_pylist() if c["feasible"]]
    cells = []
    for c in listed:
        cell_id, rows, counted = c["cell_id"], of_cell[c["cell_id"]], coverage[c["cell_id"]]
        failed = sum(row["status"] == "failed" for row in rows)
        cells.append(
            CellProgress(
                cell_id=cell_id,
                label=c["label"],
                method=c["method"],
                data=f"{c['dataset']} {c['train_size']}",
                reference=c["reference"] or "",
                finished=len(rows) - failed,
                failed=failed,
                left=_with_retried(left[cell_id], counted, failed_before),
                begun=cell_id in begun,
                scored=counted["confirm_done"] >= counted["confirm_planned"],
                best=max((row["val_score"] for row in rows if row["val_score"] is not None), default=None),
                pace=Pace.of(timed[cell_id]),
            )
        )
    hours, cost = hours_and_cost([row["seconds_total"] for row in attempts], events)
    return SweepProgress(
        cells=tuple(cells),
        failures=_failures(trials, events, {c["cell_id"]: c["label"] for c in listed}),
        running=len(({e["trial_id"] for e in asked} | retried) - set(trials)),
        at_once=_at_once(events),
        now=datetime.now(UTC) if running else None,
        accelerator_hours=hours,
        cost=cost,
    )


def used_hours(folder: Path) -> float:
    """Return the accelerator-hours that a sweep's trials took so far; 0 if there are no results."""
    if not ((folder / JOURNAL).exists() or (folder / "tables").is_dir()):
        return 0.0
    store = open_store(folder)
    return hours_and_cost(store.table("trials").column("seconds_total").to_pylist(), store.events())[0]


def retried_trials(events: Sequence[Row]) -> frozenset[str]:
    """Return the trials that failed before, that the last run tries again, and that have not ended since."""
    last = _last_run(events)
    retried = {name for e in last[:1] for name in e.get("retried") or ()}
    return frozenset(retried - {e["trial_id"] for e in last if e["ev"] == "finish"})


def _last_run(events: Sequence[Row]) -> Sequence[Row]:
    """Return the events of the last run, from its `sweep` event; () if there is none."""
    last = max((i for i, e in enumerate(events) if e["ev"] == "sweep" and "at" in e), default=len(events))
    return events[last:]


def _timed(attempts: Sequence[Row], events: Sequence[Row]) -> Mapping[str, list[Timed]]:
    """Return the times of the trials that ended in the last run, by cell id."""
    # by the events and not by time, because clocks of machines differ
    ended_here = {(e["trial_id"], e["attempt"]) for e in _last_run(events) if e["ev"] == "finish"}
    timed: dict[str, list[Timed]] = defaultdict(list)
    for r in attempts:
        if (r["trial_id"], r["attempt"]) in ended_here and r["started_at"] is not None and r["ended_at"] is not None:
            timed[r["cell_id"]].append(Timed(r["started_at"], r["ended_at"], r["seconds_setup"], r["seconds_total"]))
    return timed


def _at_once(events: Sequence[Row]) -> int:
    """Return the number of trials that the last run trains at once."""
    last = _last_run(events)
    lanes = [lane for e in last[:1] for lane in e.get("lanes") or ()]
    planned = sum(1 if lane.get("group") else lane.get("workers", 1) for lane in lanes)
    changed = [e["workers"] for e in last if e["ev"] == "workers"]  # nodes joined or left
    return max(1, changed[-1] if changed else planned)


def _with_retried(left: Left, row: Row, failed: Mapping[tuple[str, str], int]) -> Left:
    """Return the numbers of trials to come of a cell, with its trials that are tried again.

    Args:
        left: the numbers of TUNE and CONFIRM trials to come without these; None if no rate finished.
        row: the cell's row of `coverage`.
        failed: number of trials that are tried again, by cell id and stage.
    """
    tune, confirm = (failed.get((row["cell_id"], stage), 0) for stage in ("TUNE", "CONFIRM"))
    if left is None and tune:  # no rate had finished; one may finish now, and then further trials follow
        rest = row["tune_planned"] - row["tune_done"] - row["failed"]
        left = max(0, rest), row["confirm_planned"] - row["confirm_done"]
    return None if left is None else (left[0] + tune, left[1] + confirm)


def _failures(trials: Mapping[str, Row], events: Sequence[Row], labels: Mapping[str, str]) -> tuple[Failure, ...]:
    traces = {e["trial_id"]: e["traceback"] for e in events if e.get("traceback")}
    return tuple(
        Failure(name, labels.get(row["cell_id"], row["cell_id"]), row["reason"], where_raised(trace), trace)
        for name, row in trials.items()
        if row["status"] == "failed"
        for trace in [traces.get(name)]
    )
