"""Writes every event of a running sweep: first to the journal, then to the state in memory, then to the tables."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.format import finite
from analysis.store.journal import Finish, choose_event
from analysis.store.rows import TrialRow
from sweeps.progress.failures import where_raised
from sweeps.records.journal import Journal
from sweeps.records.rows import choice_row, metric_rows, prediction_row, trial_row
from sweeps.records.sealing import Sealer
from sweeps.search.slots import Slot
from sweeps.search.stages import SweepState
from sweeps.watch.observers import Observers
from trainables.config import FULL_METHODS, NO_TRAINING

NEVER_KEPT = (*FULL_METHODS, NO_TRAINING)  # full fine-tuning saves the whole model: only with `keep.full`, for one seed
_OF_A_WORKER = ("attempt", "host", "processor", "device", "started", "ended", "seconds_total")


class Ledger:
    """Records what happens to a sweep.

    Args:
        state: the sweep's state in memory.
        journal: the journal.
        sealer: writes the tables.
        folder: the results folder.
        keep: `keep.adapters` of the sweep file.
        earlier: by trial id, the attempts of trials that failed in earlier runs and are tried again.
    """

    def __init__(
        self,
        state: SweepState,
        journal: Journal,
        sealer: Sealer,
        folder: Path,
        keep: str,
        earlier: Mapping[str, int] | None = None,
    ) -> None:
        self.earlier = dict(earlier or {})
        self.state = state
        self.journal = journal
        self.sealer = sealer
        self.folder = folder
        self.name = state.spec.name
        self.keep = keep
        self.finished: list[TrialRow] = []
        self.observers = Observers()

    def ask(self, slot: Slot) -> None:
        """Record a new slot before it runs."""
        if slot.trial_id not in self.state.cells[slot.cell_id].asked:
            names = {"trial_id": slot.trial_id, "cell_id": slot.cell_id, "stage": slot.stage, "slot": slot.slot}
            names["origin"] = slot.origin
            self.journal.write({"ev": "ask", **names, "seeds": slot.seeds, "config": dict(slot.config)})
        self.state.start(slot)
        self.observers.asked(self.state.cells[slot.cell_id].cell, slot)

    def report(self, slot: Slot, values: dict[str, Any], *, stop: bool = False, seconds: float = 0.0) -> None:
        """Record one epoch of a running trial.

        Args:
            slot: the trial.
            values: the report.
            stop: whether the trial is stopped. This decision is on disk before the trial is told.
            seconds: the seconds that it has trained so far.
        """
        event = {"ev": "report", "trial_id": slot.trial_id, "epoch": values["epoch"], "values": finite(values)}
        self.journal.write({**event, "stop": True, "seconds": seconds} if stop else event, sync=stop)
        self.observers.reported(slot, values)

    def finish(self, slot: Slot, outcome: dict[str, Any]) -> None:
        """Record a trial's outcome: its rows, and the cell's choice if that was its last TUNE trial."""
        cell = self.state.cells[slot.cell_id]
        earlier_row = cell.rows.get(slot.trial_id)  # if it failed, and its next attempt was stopped
        before = self.earlier.get(slot.trial_id) or (earlier_row.attempt if earlier_row is not None else 0)
        outcome = {
            **outcome,
            "attempt": outcome.get("attempt", 1) + before,
            "workers": self.state.spec.resources.workers,
        }
        finish = Finish(
            trial_row(self.name, cell.cell, slot, outcome),
            tuple(metric_rows(self.name, slot, outcome)),
            prediction_row(self.name, slot, outcome),
        )
        event = finish.event()
        if self.state.used is not None:
            event["used"] = self.state.used.seconds
        if outcome.get("traceback"):
            event["traceback"] = outcome["traceback"]
            if (where := where_raised(outcome["traceback"])) is not None:
                cell.raised[slot.trial_id] = where
        for smaller in outcome.get("memory") or ():
            self.journal.write({"ev": "memory", "trial_id": slot.trial_id, **smaller}, sync=False)
        if outcome.get("unpacked") is not None:
            self.journal.write({"ev": "unpack", "trial_id": slot.trial_id, **outcome["unpacked"]}, sync=False)
        self.journal.write(event)
        self.state.finish(finish.row)
        self.sealer.add(finish)
        self.finished.append(finish.row)
        self.observers.finished(slot, finish.row)
        shutil.rmtree(self.trial_folder(slot), ignore_errors=True)
        self.settle(slot.cell_id)

    def settle(self, cell_id: str) -> None:
        """Record a cell's choice, if it has a new one. Remove the weights that are not kept, if the cell is done."""
        cell = self.state.cells[cell_id]
        choice = cell.settle()
        if choice is not None:
            row = choice_row(self.name, cell_id, choice, time.time(), self.sealer.choices.get(cell_id))
            self.journal.write(choose_event(row))
            cell.choice = choice
            self.sealer.add_choice(row)
        if self.keep == "best" and cell.phase == "done" and cell.cell.method not in NEVER_KEPT:
            self._keep_best(cell_id)

    def seal_if_late(self) -> None:
        """Check the journal, and write table rows that have waited too long. May be called from any thread.

        Raises:
            OSError: as `seal`.
        """
        self.journal.check()
        self.sealer.seal_if_late()

    def seal(self) -> None:
        """Check the journal, and write the waiting rows of the tables.

        Raises:
            OSError: the disk is full, or the folder is no longer that of the journal.
        """
        self.journal.check()
        self.sealer.seal()

    def _keep_best(self, cell_id: str) -> None:
        """Remove the kept weights of a cell's CONFIRM trials, except those with the best validation score."""
        cell = self.state.cells[cell_id]
        kept = self.folder / "adapters"
        rows = [row for row in cell.rows.values() if row.stage == "CONFIRM"]
        scored = [
            (row.val_score, -row.slot, row.trial_id)
            for row in rows
            if row.val_score is not None and row.trial_id in cell.confirming and (kept / row.trial_id).is_dir()
        ]
        if scored:
            _, _, best = max(scored)
            for row in rows:
                if row.trial_id != best:
                    shutil.rmtree(kept / row.trial_id, ignore_errors=True)

    def trial_folder(self, slot: Slot) -> Path:
        """Return the folder in which a trial has its checkpoints until it is finished."""
        return self.folder / "work" / "trials" / slot.trial_id

    def kept_folder(self, slot: Slot) -> Path | None:
        """Return the folder for a trial's trained weights; None if they are not kept."""
        method = self.state.cells[slot.cell_id].cell.method
        if method in FULL_METHODS and self.state.spec.keep.full and (slot.stage, slot.slot) == ("CONFIRM", 0):
            return self.folder / "adapters" / slot.trial_id
        is_kept = self.keep == "all" or (self.keep in ("best", "confirm") and slot.stage == "CONFIRM")
        return self.folder / "adapters" / slot.trial_id if is_kept and method not in NEVER_KEPT else None


def pruned_outcome(state: SweepState, slot: Slot, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Return the outcome of a trial that the pruner stopped. Reports after that decision are left out."""
    curve = state.cells[slot.cell_id].curves[slot.trial_id]
    full = {e["epoch"]: e for e in outcome.get("events") or ()}
    events = [full.get(epoch, {"epoch": epoch, "val_score": curve[epoch]}) for epoch in sorted(curve)]
    kept = {k: v for k, v in outcome.items() if k in _OF_A_WORKER}
    return {**kept, "status": "pruned", "reason": f"stopped by the pruner at epoch {max(curve)}", "events": events}
