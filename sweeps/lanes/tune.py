"""Ray Tune's side of a sweep: a searcher that serves all cells, and a scheduler that judges each."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import ray
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sweeps.lanes.packs import TOGETHER, Packing
from sweeps.records.ledger import Ledger, pruned
from sweeps.search.pruning import should_stop
from sweeps.search.slots import Slot
from sweeps.spec.paths import anchored

F = TypeVar("F", bound=Callable[..., Any])


def _guarded(otherwise: Any) -> Callable[[F], F]:
    """Keep a method's error for the engine and wind the Tuner down: Tune swallows some errors and rewords others."""

    def decorate(method: F) -> F:
        @functools.wraps(method)
        def guarded(self: Dispatcher, *args: Any, **kwargs: Any) -> Any:
            try:
                return method(self, *args, **kwargs)
            except Exception as error:  # noqa: BLE001  # raised again by the engine
                self.error = self.error or error
                self.interrupted = True
                self.broker.interrupt.remote()
                return otherwise

        return cast(F, guarded)

    return decorate


class Dispatcher(Searcher):  # type: ignore[misc]  # Ray's classes carry no types for us
    """Serves slots to Tune. A slot's lease is queued at the broker here, so lanes never wait for Tune.

    Args:
        ledger: state and journal.
        broker: handle of the broker actor; `broker_name` is how Tune's trials find it.
        trial: the trial function, "package.module:function".
        wave: slots to serve before `FINISHED`; Tune keeps every trial in memory, so long sweeps take several Tuners.
        changed: called after every event, for the display.
        packing: how many trials may share a worker.
    """

    def __init__(
        self,
        ledger: Ledger,
        broker: Any,
        broker_name: str,
        trial: str,
        wave: int,
        changed: Callable[[], None],
        packing: Packing,
    ) -> None:
        super().__init__(metric="score", mode="max")
        self.ledger, self.broker, self.broker_name, self.trial = ledger, broker, broker_name, trial
        self.left, self.changed = wave, changed
        self.interrupted = False
        self.dead: str | None = None  # why no lane is left
        self.error: Exception | None = None
        self.slots: dict[str, Slot] = {}
        self._run = f"{time.time_ns():x}"
        self._keys: dict[str, str] = {}
        self._issued = 0
        self._pruned: set[str] = set()
        self._troubled: set[Any] = set()  # hosts, and (worker, host), whose last trial met storage trouble
        self._seconds: dict[str, dict[int, float]] = {}  # of the epochs reported, for trials that may be stopped
        self._packing = packing
        self._waiting: deque[str] = deque()  # keys of slots that are queued at the broker, and not yet with Tune
        self._packs: dict[str, set[str]] = {}  # what is not over, by the key of its first trial

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        return True

    @_guarded(otherwise=str(Searcher.FINISHED))
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next slot as a Tune configuration, None while all cells wait, or FINISHED."""
        if not self._waiting or self.interrupted:
            if self.interrupted or self.left <= 0:
                return str(Searcher.FINISHED)
            if len(self._packs) > self._packing.workers:  # one more than are at work: no lane waits for the next
                return None
            slots = self._packing.next(self.ledger.state, len(self._packs), self.left)
            if not slots:
                return None if self.ledger.state.running else str(Searcher.FINISHED)
            self._submit(slots)
        key = self._keys[trial_id] = self._waiting.popleft()
        self.changed()
        return {"broker": self.broker_name, "key": key}

    def _submit(self, slots: list[Slot]) -> None:
        """Write slots down and queue them, several as a pack."""
        orders = {}
        for slot in slots:
            self.left -= 1
            self._issued += 1
            key = f"{self._run}.{self._issued}"
            self.slots[key] = slot
            orders[key] = self._order(slot)
            self.ledger.ask(slot)
        self._waiting.extend(orders)
        self._packs[next(iter(orders))] = set(orders)
        if len(slots) > 1:
            ray.get(self.broker.submit_pack.remote(orders))
        else:
            ((key, order),) = orders.items()
            window = 1 if self.ledger.state.cells[slots[0].cell_id].prunable(slots[0]) else None
            ray.get(self.broker.submit.remote(key, order, window))

    def _order(self, slot: Slot) -> dict[str, Any]:
        kept, resources = self.ledger.kept_folder(slot), self.ledger.state.spec.resources
        return {
            "trial": self.trial,
            "together": TOGETHER.get(self.trial),
            "config": anchored(slot.config),
            "directory": str(self.ledger.trial_folder(slot)),
            "keep": None if kept is None else str(kept),
            "timeout": resources.trial_timeout,
            "attempts": resources.attempts,
        }

    @_guarded(otherwise=False)
    def saw(self, key: str, result: dict[str, Any]) -> bool:
        """Take one report; returns whether the trial is stopped. Of reports that come twice one counts."""
        slot = self.slots.get(key)
        if slot is None or result["status"] == "stopped":
            return False
        state = self.ledger.state
        epoch, score = int(result["epoch"]), result["score"]
        took = self._seconds.setdefault(key, {})
        took[epoch] = result["seconds"]
        if score is None or not math.isfinite(score) or not state.report(slot.cell_id, slot.trial_id, epoch, score):
            return False
        stop, cell = False, state.cells[slot.cell_id]
        if cell.prunable(slot) and epoch < slot.config["train"]["epochs"]:
            mine, asked = slot.trial_id, cell.asked  # re-runs and CONFIRM train the best rates alone
            peers = [curve for i, curve in cell.curves.items() if i != mine and cell.prunable(asked[i])]
            stop = should_stop(state.spec.search.pruner, epoch, cell.curves[slot.trial_id], peers)
        values = {"epoch": epoch, "train_loss": result["train_loss"], "val_score": score}
        self.ledger.report(slot, values, stop=stop, seconds=sum(took.values()))
        self.changed()
        if stop:
            self._pruned.add(key)
        return stop

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        return None  # the scheduler sees every result; Tune hides the one that stops a trial from searchers

    @_guarded(otherwise=None)
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take a trial's outcome from the broker: it ended, or was stopped."""
        key = self._keys.pop(trial_id, None)
        if key is None:
            return
        slot = self.slots.pop(key)
        self._seconds.pop(key, None)
        self._packs = {first: left for first, keys in self._packs.items() if (left := keys - {key})}
        outcome = ray.get(self.broker.take.remote(key, key in self._pruned)) or {}
        if outcome.get("unpacked") is not None:
            self._packing.learn(slot.cell_id, outcome["unpacked"])
        storage = outcome.get("storage") is not None
        if not storage:
            self._troubled -= {outcome.get("host"), outcome.get("worker")}
        if key in self._pruned:
            self._pruned.remove(key)
            self.ledger.finish(slot, pruned(self.ledger.state, slot, outcome))
        elif storage:  # not the trial's fault: it is tried again
            self.ledger.state.release(slot.cell_id, slot.trial_id)
        elif outcome.get("state") in ("finished", "failed"):
            self.ledger.finish(slot, {"status": outcome["state"], **outcome})
        elif error and not self.interrupted:
            raise RuntimeError(f"Ray Tune gave trial {slot.trial_id} up, and the broker knows no outcome")
        else:  # it goes on from its checkpoint another time
            self.ledger.state.release(slot.cell_id, slot.trial_id)
            if not self.interrupted:
                self.dead = ray.get(self.broker.status.remote())["dead"]
                self.interrupted = self.dead is not None
        if storage:
            self._trouble(outcome)
        self.changed()

    def _trouble(self, outcome: dict[str, Any]) -> None:
        """Note where storage failed under a trial, and go on where other machines can.

        Raises OSError: it fails the driver too, or all machines whose workers are there.
        """
        what = f"{outcome['reason']} (on host {outcome['host']})"
        self._troubled |= {outcome["host"], outcome.get("worker")}  # of a group's further machine the broker knows none
        workers = ray.get(self.broker.status.remote())["workers"]
        if all(host in self._troubled or (name, host) in self._troubled for name, host in workers.items()):
            raise OSError(outcome["storage"], what)
        try:
            self.ledger.journal.write({"ev": "trouble", "host": outcome["host"], "reason": outcome["reason"]})
        except OSError as error:
            raise OSError(outcome["storage"], what) from error
        logging.getLogger("sweeps").warning("storage trouble of one machine, whose trial goes elsewhere: %s", what)

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
