"""Makes rows of the results tables from the outcomes of trials."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from analysis.format import finite
from analysis.store.codec import TableRow
from analysis.store.rows import ChoiceRow, MetricRow, PredictionRow, TrialRow
from sweeps.search.slots import Choice, Slot
from sweeps.spec.cell import Cell
from sweeps.spec.space import extra_json
from trainables.training.measured import Epoch, Measured, Result

R = TypeVar("R", bound=TableRow)


def instant(seconds: float | None) -> datetime | None:
    """Return seconds since 1970 as a time in UTC; None if `seconds` is None."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def utc(seconds: float | None) -> str | None:
    """Return seconds since 1970 as ISO text in UTC; None if `seconds` is None."""
    at = instant(seconds)
    return None if at is None else at.isoformat()


def trial_row(sweep: str, cell: Cell, slot: Slot, outcome: Mapping[str, Any]) -> TrialRow:
    """Make the `trials` row of one attempt.

    Args:
        sweep: name of the sweep.
        cell: the trial's cell.
        slot: its number, seeds and learning rate.
        outcome: the outcome from the backend: `status`, `reason`, `result` (a `Result` or None), `events` (one for each
            epoch), `attempt`, `host`, `processor`, `device`, `started`, `ended` (seconds since 1970), `seconds_total`
            (of the worker's time), `micro_batch_size`, `packed` and `workers`.
    """
    result: Result | None = outcome.get("result")
    measured = _measured_by_epochs(outcome) if result is None else result.measured
    samples, seconds = measured.samples, measured.seconds_train
    measured = dataclasses.replace(
        measured,
        seconds_total=outcome.get("seconds_total"),
        samples_per_second=samples / seconds if samples and seconds else None,
        micro_batch_size=outcome.get("micro_batch_size"),
        packed=outcome.get("packed"),
        workers=outcome.get("workers"),
        device=measured.device or outcome.get("device"),
        processor=outcome.get("processor"),
        host=outcome.get("host"),
    )
    data_seed, init_seed, basis_seed = slot.seeds
    row = TrialRow(
        **vars(measured),
        sweep=sweep,
        trial_id=slot.trial_id,
        cell_id=slot.cell_id,
        attempt=outcome.get("attempt", 1),
        stage=slot.stage,
        slot=slot.slot,
        model=cell.model,
        adapt=cell.adapt,
        dataset=cell.dataset,
        train_size=str(cell.train_size),
        method=cell.method,
        allocation=None if cell.solved is None else cell.solved.allocation,
        reference=cell.reference,
        budget=cell.budget,
        capacity=None if cell.solved is None else cell.solved.capacity,
        lr=slot.lr,
        global_batch_size=None if slot.lr is None else slot.config.get("train", {}).get("global_batch_size"),
        hyperparameters=extra_json(slot.extra),
        origin=slot.origin,
        data_seed=data_seed,
        init_seed=init_seed,
        basis_seed=basis_seed,
        status=outcome["status"],
        reason=outcome.get("reason"),
        git_commit=git_commit(),
        started_at=instant(outcome.get("started")),
        ended_at=instant(outcome.get("ended")),
    )
    return _finite(row)


def _measured_by_epochs(outcome: Mapping[str, Any]) -> Measured:
    """Return the measured numbers of a trial without a result, from the epochs that it reported."""
    events: Sequence[Mapping[str, Any]] = outcome.get("events") or ()
    last: Mapping[str, Any] = events[-1] if events else {}
    return Measured(
        val_score=None if outcome["status"] == "failed" else last.get("val_score"),
        train_loss=last.get("train_loss"),
        epochs=last.get("epoch"),
        samples=last.get("samples"),
        seconds_train=_summed(events, "seconds"),
        seconds_eval=_summed(events, "seconds_eval"),
    )


def _summed(events: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Return the sum of a number over the events that have it; None if no event has it."""
    values = [float(e[name]) for e in events if e.get(name) is not None]
    return sum(values) if values else None


def _finite(row: R) -> R:
    """Return the row with None in place of every number that is not finite."""
    numbers = {name: value for name, value in vars(row).items() if isinstance(value, float | Mapping)}
    return dataclasses.replace(row, **finite(numbers))


def metric_rows(sweep: str, slot: Slot, outcome: Mapping[str, Any]) -> list[MetricRow]:
    """Make the `metrics` rows of one attempt, one for each epoch. Columns are a report's values of the same names."""
    attempt = outcome.get("attempt", 1)
    names = [field.name for field in dataclasses.fields(Epoch)]
    return [
        _finite(
            MetricRow(
                sweep=sweep,
                trial_id=slot.trial_id,
                cell_id=slot.cell_id,
                attempt=attempt,
                **{name: event.get(name) for name in names},
            )
        )
        for event in outcome.get("events") or ()
    ]


def prediction_row(sweep: str, slot: Slot, outcome: Mapping[str, Any]) -> PredictionRow | None:
    """Make the `predictions` row of a CONFIRM trial; None if it did not record which test answers are right."""
    result: Result | None = outcome.get("result")
    if outcome["status"] != "finished" or result is None or result.predicted.correct is None:
        return None
    return PredictionRow(**vars(result.predicted), sweep=sweep, trial_id=slot.trial_id, cell_id=slot.cell_id)


def choice_row(sweep: str, cell_id: str, choice: Choice, seconds: float, before: ChoiceRow | None = None) -> ChoiceRow:
    """Make the `choices` row of one cell.

    Args:
        sweep: name of the sweep.
        cell_id: the cell.
        choice: its choice.
        seconds: the time now, in seconds since 1970. The clock may have been set back.
        before: the cell's last choice. The new one gets the next number, and a later time.
    """
    at = datetime.fromtimestamp(seconds, UTC)
    if before is not None:
        at = max(at, before.chosen_at + timedelta(microseconds=1))
    return ChoiceRow(
        sweep=sweep,
        cell_id=cell_id,
        lr=choice.lr,
        hyperparameters=extra_json(choice.extra),
        mean_val=choice.mean_val,
        n_trials=choice.n_trials,
        n_rerun_seeds=choice.n_rerun_seeds,
        edge=choice.edge,
        chosen_at=at,
        sequence=1 + ((before.sequence if before is not None else None) or 0),
    )


@cache
def git_commit() -> str | None:
    """Return the commit of the checkout that this package runs from, with '-dirty' if files differ.

    Return None if it does not run from a checkout.
    """
    folder = Path(__file__).resolve().parents[1]
    if not (folder.parent / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
