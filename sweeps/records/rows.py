"""From what a lane sends back to rows of the results tables."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from analysis.format import Row
from sweeps.search.stages import Choice, Slot
from sweeps.spec.cell import Cell
from sweeps.spec.space import extra_json

_FROM_RESULT = [
    "metric",
    "unit",
    "val_score",
    "test_score",
    "adapter_params",
    "head_params",
    "stored_bytes",
    "samples",
    "skipped",
    "seconds_setup",
    "seconds_train",
    "seconds_eval",
    "peak_memory_bytes",
    "device",
    "precision",
    "backend",
]
_METRICS = ["train_loss", "val_score", "seconds", "samples", "samples_per_second"]


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
    row: Row = {
        "sweep": sweep,
        "trial_id": slot.trial_id,
        "cell_id": cell.cell_id,
        "attempt": outcome.get("attempt", 1),
        "stage": slot.stage,
        "slot": slot.slot,
        "model": cell.model,
        "adapt": cell.adapt,
        "dataset": cell.dataset,
        "train_size": str(cell.train_size),
        "method": cell.method,
        "allocation": cell.allocation,
        "reference": cell.reference,
        "budget": cell.budget,
        "capacity": cell.capacity,
        "lr": slot.lr,
        "hyperparameters": extra_json(slot.extra),
        "origin": slot.origin,
        "data_seed": slot.seeds[0],
        "init_seed": slot.seeds[1],
        "basis_seed": slot.seeds[2],
        "status": outcome["status"],
        "reason": outcome.get("reason"),
    }
    row |= {name: result.get(name) for name in _FROM_RESULT}
    if row["val_score"] is None and outcome["status"] != "failed":
        row["val_score"] = last.get("val_score")
    if row["samples"] is None:
        row["samples"] = last.get("samples")
    if row["seconds_train"] is None and events:
        row["seconds_train"] = sum(float(e.get("seconds") or 0.0) for e in events)
    if row["seconds_eval"] is None and events:
        row["seconds_eval"] = sum(float(e.get("seconds_eval") or 0.0) for e in events)
    if row["device"] is None:
        row["device"] = outcome.get("device")
    speed = row["samples"] / row["seconds_train"] if row["samples"] and row["seconds_train"] else None
    versions, further = result.get("versions"), result.get("further")
    return row | {
        "further": json.dumps(further, sort_keys=True) if further else None,
        "train_loss": last.get("train_loss"),
        "epochs": last.get("epoch"),
        "seconds_total": outcome.get("seconds_total"),
        "samples_per_second": speed,
        "micro_batch_size": outcome.get("micro_batch_size"),
        "packed": outcome.get("packed"),
        "workers": outcome.get("workers"),
        "processor": outcome.get("processor"),
        "host": outcome.get("host"),
        "versions": None if versions is None else json.dumps(versions, sort_keys=True),
        "git_commit": git_commit(),
        "started_at": utc(outcome.get("started")),
        "ended_at": utc(outcome.get("ended")),
    }


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


def choice_row(sweep: str, cell_id: str, choice: Choice, seconds: float) -> Row:
    """The `choices` row of one cell."""
    return {
        "sweep": sweep,
        "cell_id": cell_id,
        "lr": choice.lr,
        "hyperparameters": extra_json(choice.extra),
        "mean_val": choice.mean_val,
        "n_trials": choice.n_trials,
        "n_rerun_seeds": choice.n_rerun_seeds,
        "edge": choice.edge,
        "chosen_at": utc(seconds),
    }


def finite(value: Any) -> Any:
    """A JSON-able copy in which a number that is not finite is None (a loss may be; JSON has no such number)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


@cache
def git_commit() -> str | None:
    """Commit of the checkout that this package runs from; None when it is not one."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder.parent / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
