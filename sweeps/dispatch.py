"""Ray Tune's side of the engine: a searcher that serves all cells, and a scheduler that judges each by itself."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sweeps.interfaces import TUNE_SEED, Row
from sweeps.journal import Journal
from sweeps.rows import choice_row, finite, metric_rows, prediction_row, trial_row
from sweeps.sealing import Sealer
from sweeps.search import should_stop
from sweeps.stages import Slot, SweepState

MAX_PROXY_LOSSES = 3
FULL_METHODS = ("full", "full-targets")  # their weights are the model's own size: one seed, and only when asked for
NEVER_KEPT = (*FULL_METHODS, "zero-shot")


class Ledger:
    """Writes down what happens to a sweep: journal first, then the state in memory, then the tables."""

    def __init__(self, state: SweepState, journal: Journal, sealer: Sealer, folder: Path, keep: str) -> None:
        self.state, self.journal, self.sealer, self.folder = state, journal, sealer, folder
        self.name = state.spec.name
        self.keep = keep
        self.finished: list[Row] = []

    def ask(self, slot: Slot) -> None:
        """A slot is about to run; a new one is on disk before it does."""
        if slot.trial_id not in self.state.cells[slot.cell_id].asked:
            names = {"trial_id": slot.trial_id, "cell_id": slot.cell_id, "stage": slot.stage, "slot": slot.slot}
            self.journal.write({"ev": "ask", **names, "config": dict(slot.config)})
        self.state.start(slot)

    def report(self, slot: Slot, values: dict[str, Any], *, stop: bool = False) -> None:
        """One epoch of a running trial. A decision to stop it is on disk before it is obeyed."""
        event = {"ev": "report", "trial_id": slot.trial_id, "epoch": values["epoch"], "values": finite(values)}
        self.journal.write({**event, "stop": True} if stop else event, sync=stop)

    def finish(self, slot: Slot, outcome: dict[str, Any]) -> None:
        """A trial's outcome: its rows, and the cell's choice when that was its last TUNE trial."""
        cell = self.state.cells[slot.cell_id].cell
        row = finite(trial_row(self.name, cell, slot, outcome))
        event: dict[str, Any] = {
            "ev": "finish",
            "trial_id": slot.trial_id,
            "attempt": row["attempt"],
            "row": row,
            "metrics": finite(metric_rows(self.name, slot, outcome)),
            "prediction": prediction_row(self.name, slot, outcome),
        }
        if outcome.get("traceback"):
            event["traceback"] = outcome["traceback"]
        self.journal.write(event)
        self.state.finish(row)
        self.sealer.add(event)
        self.finished.append(row)
        shutil.rmtree(self.trial_folder(slot), ignore_errors=True)
        self.settle(slot.cell_id)

    def settle(self, cell_id: str) -> None:
        """Write a cell's choice down, when it has a new one."""
        cell = self.state.cells[cell_id]
        choice = cell.settle()
        if choice is not None:
            row = choice_row(self.name, cell_id, choice, time.time())
            names = {"cell_id": cell_id, "lr": choice.lr, "mean_val": choice.mean_val, "trials": choice.n_trials}
            event = {"ev": "choose", **names, "row": row}
            self.journal.write(event)
            self.sealer.add(event)
            cell.choice = choice
        if self.keep == "best" and cell.phase == "done" and cell.cell.method not in NEVER_KEPT:
            self._keep_best(cell_id)

    def _keep_best(self, cell_id: str) -> None:
        rows = [r for r in self.state.cells[cell_id].rows.values() if r["stage"] == "CONFIRM"]
        done = [r for r in rows if r["status"] == "finished" and r["val_score"] is not None]
        best = max(done, key=lambda r: (r["val_score"], -r["slot"]), default=None)
        for row in rows:
            if best is not None and row["trial_id"] != best["trial_id"]:
                shutil.rmtree(self.folder / "adapters" / row["trial_id"], ignore_errors=True)

    def trial_folder(self, slot: Slot) -> Path:
        """Where a trial keeps its checkpoints until it is finished."""
        return self.folder / "work" / "trials" / slot.trial_id

    def kept_folder(self, slot: Slot) -> Path | None:
        """Where a trial's trained weights go; None when they aren't kept."""
        method = self.state.cells[slot.cell_id].cell.method
        if method in FULL_METHODS and self.state.spec.keep.full and (slot.stage, slot.slot) == ("CONFIRM", 0):
            return self.folder / "adapters" / slot.trial_id
        wanted = self.keep == "all" or (self.keep in ("best", "confirm") and slot.stage == "CONFIRM")
        return self.folder / "adapters" / slot.trial_id if wanted and method not in NEVER_KEPT else None


def pruned(state: SweepState, slot: Slot, outcome: dict[str, Any] | None) -> dict[str, Any]:
    """The outcome of a trial that the scheduler stopped: what it reported up to that decision, and nothing after."""
    curve = state.cells[slot.cell_id].curves[slot.trial_id]
    last = max(curve)
    full = {e["epoch"]: e for e in (outcome or {}).get("events") or ()}
    events = [full.get(epoch, {"epoch": epoch, "val_score": curve[epoch]}) for epoch in sorted(curve)]
    kept = {k: v for k, v in (outcome or {}).items() if k in ("attempt", "host")}
    return {**kept, "status": "pruned", "reason": f"stopped by the pruner at epoch {last}", "events": events}


class Dispatcher(Searcher):  # type: ignore[misc]  # Ray's classes carry no types for us
    """Serves slots to Tune. A slot's lease is queued at the broker here, so lanes never wait for a proxy.

    Args:
        ledger: state and journal.
        broker: handle of the broker actor; `broker_name` is how proxies find it.
        trial: the trial function, "package.module:function".
        wave: slots to serve before `FINISHED`; Tune keeps every trial in memory, so long sweeps take several Tuners.
        changed: called after every event, for the display.
    """

    def __init__(
        self, ledger: Ledger, broker: Any, broker_name: str, trial: str, wave: int, changed: Callable[[], None]
    ) -> None:
        super().__init__(metric="score", mode="max")
        self.ledger, self.broker, self.broker_name, self.trial = ledger, broker, broker_name, trial
        self.left, self.changed = wave, changed
        self.interrupted = False
        self.dead: str | None = None  # why no lane is left
        self.slots: dict[str, Slot] = {}
        self._run = f"{time.time_ns():x}"
        self._keys: dict[str, str] = {}
        self._issued = 0
        self._losses: dict[str, int] = {}
        self._pruned: set[str] = set()

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        state = self.ledger.state
        if self.interrupted or self.left <= 0:
            return str(Searcher.FINISHED)
        slot = state.next_slot()
        if slot is None:
            return None if state.running else str(Searcher.FINISHED)
        self.left -= 1
        self._issued += 1
        self.ledger.ask(slot)
        key = f"{self._run}.{self._issued}"
        self.slots[key], self._keys[trial_id] = slot, key
        kept = self.ledger.kept_folder(slot)
        order = {
            "trial": self.trial,
            "config": dict(slot.config),
            "directory": str(self.ledger.trial_folder(slot)),
            "keep": None if kept is None else str(kept),
        }
        ray.get(self.broker.submit.remote(key, order, 1 if self.prunable(slot) else None))
        self.changed()
        return {"broker": self.broker_name, "key": key}

    def prunable(self, slot: Slot) -> bool:
        """Pruning compares the first trials of a cell's rates; re-runs and CONFIRM always run to the end."""
        first = self.ledger.state.cells[slot.cell_id].seeds(TUNE_SEED)
        return self.ledger.state.spec.search.pruner != "none" and slot.stage == "TUNE" and slot.seeds == first

    def saw(self, key: str, result: dict[str, Any]) -> bool:
        """Take one report; returns whether the trial is stopped. A replaced proxy's reports come twice, count once."""
        slot = self.slots.get(key)
        if slot is None or result["status"] == "stopped":
            return False
        state = self.ledger.state
        epoch, score = int(result["epoch"]), result["score"]
        if score is None or not state.report(slot.cell_id, slot.trial_id, epoch, score):
            return False
        stop = False
        if self.prunable(slot) and epoch < state.spec.train.epochs:
            curves = state.cells[slot.cell_id].curves
            peers = [curve for trial_id, curve in curves.items() if trial_id != slot.trial_id]
            stop = should_stop(state.spec.search.pruner, epoch, curves[slot.trial_id], peers)
        values = {"epoch": epoch, "train_loss": result["train_loss"], "val_score": score}
        self.ledger.report(slot, values, stop=stop)
        if stop:
            self._pruned.add(key)
        return stop

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        return None  # the scheduler sees every result; Tune hides the one that stops a trial from searchers

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        key = self._keys.pop(trial_id, None)
        if key is None:
            return
        slot = self.slots.pop(key)
        outcome = ray.get(self.broker.take.remote(key))
        state = None if outcome is None else outcome["state"]
        if key in self._pruned:
            self._pruned.remove(key)
            self.ledger.finish(slot, pruned(self.ledger.state, slot, outcome))
        elif outcome is not None and state in ("finished", "failed"):
            self.ledger.finish(slot, {"status": state, **outcome})
        elif error and not self.interrupted:
            self._lost(slot)
        else:  # it goes on from its checkpoint another time
            self.ledger.state.release(slot.cell_id, slot.trial_id)
            if not self.interrupted:
                self.dead = ray.get(self.broker.status.remote())["dead"]
                self.interrupted = self.dead is not None
        self.changed()

    def _lost(self, slot: Slot) -> None:
        """Tune gave a proxy up; the trial is issued again, but not for ever."""
        losses = self._losses[slot.trial_id] = self._losses.get(slot.trial_id, 0) + 1
        if losses < MAX_PROXY_LOSSES:
            self.ledger.state.release(slot.cell_id, slot.trial_id)
        else:
            self.ledger.finish(slot, {"status": "failed", "reason": f"its Tune process was lost {losses} times"})

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()  # Tune's snapshot is never read

    def restore(self, checkpoint_path: str) -> None:
        raise RuntimeError("a sweep is resumed from its journal, not from Tune's state")

    def __getstate__(self) -> dict[str, Any]:
        return {"_metric": self._metric, "_mode": self._mode}


class PerCell(FIFOScheduler):  # type: ignore[misc]
    """Passes every result to the dispatcher, which stops a trial by the results of its own cell alone."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__()
        self._dispatcher = dispatcher
        self._metric, self._mode = "score", "max"

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        stop = self._dispatcher.saw(trial.config["key"], result)
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._dispatcher.saw(trial.config["key"], result)  # a result that ends its trial comes here only

    def __getstate__(self) -> dict[str, Any]:
        return {}
