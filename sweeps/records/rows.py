"""From what a lane sends back to rows of the results tables."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from analysis.format import Row, finite
from sweeps.search.slots import Choice, Slot
from sweeps.spec.cell import Cell
from sweeps.spec.space import extra_json

_OF_CELL = ("model", "adapt", "dataset", "method", "allocation", "reference", "budget", "capacity")
_OF_SLOT = ("trial_id", "cell_id", "stage", "slot", "lr", "origin")
_OF_RESULT = (
    *("metric", "unit", "val_score", "test_score", "adapter_params", "head_params", "stored_bytes"),
    *("train_examples", "samples", "skipped", "seconds_setup", "seconds_train", "seconds_eval", "peak_memory_bytes"),
    *("device", "precision", "backend"),
)
_OF_OUTCOME = ("status", "reason", "seconds_total", "micro_batch_size", "packed", "workers", "processor", "host")
_METRICS = ("train_loss", "val_score", "seconds", "samples", "samples_per_second")


def utc(seconds: float | None) -> str | None:
    """Seconds since 1970 as ISO text in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


def trial_row(sweep: str, cell: Cell, slot: Slot, outcome: Mapping[str, Any]) -> Row:
    """The `trials` row of one trial.

    Args:
        sweep: name of the sweep.
        cell: the trial's cell.
        slot: its place, seeds and learning rate.
        outcome: from the lane: `status`, `reason`, `result` (the worker's, or None), `events` (one an epoch),
            `attempt`, `host`, `processor`, `device`, `started`, `ended` (seconds since 1970), `seconds_total` (lease to
            finish), `micro_batch_size`, `packed` and `workers`.
    """
    result: Mapping[str, Any] = outcome.get("result") or {}
    events: Sequence[Mapping[str, Any]] = outcome.get("events") or ()
    last: Mapping[str, Any] = events[-1] if events else {}
    row: Row = {"sweep": sweep, "attempt": outcome.get("attempt", 1), "train_size": str(cell.train_size)}
    row |= {name: getattr(slot, name) for name in _OF_SLOT} | {name: getattr(cell, name) for name in _OF_CELL}
    row |= {name: outcome.get(name) for name in _OF_OUTCOME} | {name: result.get(name) for name in _OF_RESULT}
    known = {  # by the epochs reported, of a trial that has no result of its own
        "val_score": None if outcome["status"] == "failed" else last.get("val_score"),
        "samples": last.get("samples"),
        "seconds_train": _summed(events, "seconds"),
        "seconds_eval": _summed(events, "seconds_eval"),
        "device": outcome.get("device"),
    }
    row |= {name: value for name, value in known.items() if row[name] is None}
    samples, seconds = row["samples"], row["seconds_train"]
    versions, further = result.get("versions"), result.get("further")
    return row | {
        "hyperparameters": extra_json(slot.extra),
        **dict(zip(("data_seed", "init_seed", "basis_seed"), slot.seeds, strict=True)),
        "further": json.dumps(finite(further), sort_keys=True, allow_nan=False) if further else None,
        "train_loss": last.get("train_loss"),
        "epochs": last.get("epoch"),
        "samples_per_second": samples / seconds if samples and seconds else None,
        "versions": None if versions is None else json.dumps(versions, sort_keys=True),
        "git_commit": git_commit(),
        "started_at": utc(outcome.get("started")),
        "ended_at": utc(outcome.get("ended")),
    }


def _summed(events: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [float(e[name]) for e in events if e.get(name) is not None]
    return sum(known) if known else None


def metric_rows(sweep: str, slot: Slot, outcome: Mapping[str, Any]) -> list[Row]:
    """The `metrics` rows of one trial, one an epoch."""
    head = {"sweep": sweep, "trial_id": slot.trial_id, "cell_id": slot.cell_id, "attempt": outcome.get("attempt", 1)}
    return [
        {**head, "epoch": event["epoch"], **{name: event.get(name) for name in _METRICS}}
        for event in outcome.get("events") or ()
    ]


def prediction_row(sweep: str, slot: Slot, outcome: Mapping[str, Any]) -> Row | None:
    """The `predictions` row of a CONFIRM trial that evaluated test; `correct` is base64 of the packed bits."""
    result = outcome.get("result") or {}
    if outcome["status"] != "finished" or result.get("correct") is None:
        return None
    names = ("n_examples", "correct", "examples_hash")
    head = {"sweep": sweep, "trial_id": slot.trial_id, "cell_id": slot.cell_id}
    return {**head, **{name: result.get(name) for name in names}}


def choice_row(sweep: str, cell_id: str, choice: Choice, seconds: float, before: Row | None = None) -> Row:
    """The `choices` row of one cell.

    Args:
        seconds: since 1970, by a clock that may have been set back.
        before: the cell's last choice: the new one gets the next number, and a later time.
    """
    at = datetime.fromtimestamp(seconds, UTC)
    if before is not None:
        last = before["chosen_at"]
        last = datetime.fromisoformat(last) if isinstance(last, str) else last
        at = max(at, last + timedelta(microseconds=1))
    return {
        "sweep": sweep,
        "cell_id": cell_id,
        "lr": choice.lr,
        "hyperparameters": extra_json(choice.extra),
        "mean_val": choice.mean_val,
        "n_trials": choice.n_trials,
        "n_rerun_seeds": choice.n_rerun_seeds,
        "edge": choice.edge,
        "chosen_at": at.isoformat(),
        "sequence": 1 + ((before or {}).get("sequence") or 0),
    }


@cache
def git_commit() -> str | None:
    """Commit of the checkout that this package runs from, with '-dirty' where files differ; None when it is not one."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder.parent / ".git").exists():
        return None
    try:
        told = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(told, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
