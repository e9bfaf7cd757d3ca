"""The loop of a sweep: takes trials from the search, gives them to the backend, and records what happens to them."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable

from sweeps.backends.backend import Backend, Event, Failed, Finished, Lost, Order, Reported, Stopped
from sweeps.engine.limits import Meter
from sweeps.packing.choosing import TOGETHER, Packing
from sweeps.records.ledger import Ledger, pruned_outcome
from sweeps.records.rows import utc
from sweeps.search.pruning import should_stop
from sweeps.search.slots import Slot
from sweeps.spec.paths import with_absolute_paths

EVERY_S = 0.5
"""Seconds between two checks of signals, journal and limits, if the backend reports nothing."""
END_S = 10.0
"""Seconds that the loop waits for trials to stop at the end of an interrupted run."""


class Stop:
    """Tells whether a sweep is to end: a signal came, or a limit is reached. As a bool it is true if it is to end.

    Args:
        signalled: set when a signal came.
        meter: measures what the sweep has used, and knows its limits.
        check: called at every check. It raises OSError if the journal is gone.

    Attributes:
        limit: the limit that is reached, in words; None if none is.
    """

    def __init__(self, signalled: threading.Event, meter: Meter, check: Callable[[], None]) -> None:
        self.signalled = signalled
        self.limit: str | None = None
        self._meter = meter
        self._check_journal = check
        self._checked_at = -math.inf

    def __bool__(self) -> bool:
        return self.signalled.is_set() or self.limit is not None

    def check(self) -> bool:
        """Check the journal and the limits, at most every `EVERY_S` seconds. Return whether to end."""
        if time.monotonic() - self._checked_at >= EVERY_S:
            self._checked_at = time.monotonic()
            self._meter.tick()
            self._check_journal()
            if not self.signalled.is_set():
                self.limit = self.limit or self._meter.reached()
        return bool(self)


class Loop:
    """Gives trials to a backend until no trial is left, or until the sweep is to stop.

    Args:
        ledger: the state and the journal of the sweep.
        backend: runs the trials.
        function: the trial function, "package.module:function".
        changed: called after every event, for the display.
        stop: tells when to end.
    """

    def __init__(
        self, ledger: Ledger, backend: Backend, function: str, changed: Callable[[], None], stop: Stop
    ) -> None:
        self._ledger = ledger
        self._backend = backend
        self._function = function
        self._changed = changed
        self._stop = stop
        facts = backend.facts
        self._packing = Packing(facts.pack, facts.workers)
        self._running: dict[str, Slot] = {}
        self._started: list[set[str]] = []  # trials that run, by the worker that they share
        self._pruned: set[str] = set()
        self._seconds: dict[str, dict[int, float]] = {}  # of each epoch reported, by trial

    def run(self) -> None:
        """Run the missing trials.

        Raises:
            BackendError: nothing can run trials any more.
            OSError: storage failed for the driver or on all nodes, or the journal is gone.
        """
        try:
            while not self._stop.check():
                self._fill()
                if not self._running:
                    return
                for event in self._backend.events(EVERY_S):
                    self._take(event)
            self._stop_all()
        finally:
            self._release_all()

    def _fill(self) -> None:
        """Start trials as long as the backend takes them and the search has some."""
        workers = self._backend.facts.workers
        if workers != self._packing.workers:
            self._ledger.journal.write({"ev": "workers", "at": utc(time.time()), "workers": workers})
        self._packing.workers = self._ledger.state.workers = workers
        while self._backend.free > 0:
            slots = self._packing.next(self._ledger.state, len(self._started))
            if not slots:
                return
            for slot in slots:
                self._ledger.ask(slot)
                self._running[slot.trial_id] = slot
            self._started.append({slot.trial_id for slot in slots})
            self._backend.start([self._order(slot) for slot in slots])
            self._changed()

    def _order(self, slot: Slot) -> Order:
        state = self._ledger.state
        return Order(
            trial_id=slot.trial_id,
            function=self._function,
            together=TOGETHER.get(self._function),
            config=with_absolute_paths(slot.config),
            directory=self._ledger.trial_folder(slot),
            keep=self._ledger.kept_folder(slot),
            judged=state.cells[slot.cell_id].prunable(slot),
            timeout=state.spec.resources.trial_timeout,
            attempts=state.spec.resources.attempts,
        )

    def _take(self, event: Event) -> None:
        slot = self._running.get(event.trial_id)
        if slot is None:
            return
        if isinstance(event, Reported):
            if self._report(slot, event):
                self._pruned.add(slot.trial_id)
                self._backend.stop(slot.trial_id, over=True)
        else:
            self._end(slot, event)

    def _report(self, slot: Slot, event: Reported) -> bool:
        """Record a report, and return whether the pruner stops the trial. A repeated report is ignored."""
        state = self._ledger.state
        score = event.val_score
        epoch = event.epoch
        epoch_seconds = self._seconds.setdefault(slot.trial_id, {})
        epoch_seconds[epoch] = event.seconds
        if slot.trial_id in self._pruned or score is None or not math.isfinite(score):
            return False
        if not state.report(slot.cell_id, slot.trial_id, epoch, score):
            return False
        cell = state.cells[slot.cell_id]
        stop = False
        if cell.prunable(slot) and epoch < slot.config["train"]["epochs"]:
            others = [trial_id for trial_id in cell.curves if trial_id != slot.trial_id]
            # not compared with re-runs, which have only the best rates
            peers = [cell.curves[i] for i in others if cell.prunable(cell.asked[i])]
            stop = should_stop(state.spec.search.pruner, epoch, cell.curves[slot.trial_id], peers)
        values = {"epoch": epoch, "train_loss": event.train_loss, "val_score": score}
        self._ledger.report(slot, values, stop=stop, seconds=sum(epoch_seconds.values()))
        self._changed()
        return stop

    def _end(self, slot: Slot, event: Finished | Failed | Stopped | Lost) -> None:
        """Record how a trial ended."""
        trial_id = slot.trial_id
        state = self._ledger.state
        del self._running[trial_id]
        self._seconds.pop(trial_id, None)
        self._started = [rest for ids in self._started if (rest := ids - {trial_id})]
        if event.outcome.get("unpacked") is not None:
            self._packing.shrink_packs(slot.cell_id, event.outcome["unpacked"])
        if trial_id in self._pruned:
            self._pruned.remove(trial_id)
            self._ledger.finish(slot, pruned_outcome(state, slot, event.outcome))
        elif isinstance(event, Finished | Failed):
            self._ledger.finish(slot, event.outcome)
        else:  # it goes on from its checkpoint later
            state.release(slot.cell_id, trial_id)
        if isinstance(event, Lost) and event.fault is not None:
            self._note_trouble(event, event.fault)
        self._changed()

    def _note_trouble(self, event: Lost, fault: OSError) -> None:
        """Record that a node's storage failed under a trial.

        Raises:
            OSError: storage also fails for the driver, or on all nodes.
        """
        self._ledger.journal.check()  # if the results folder was moved or removed, this raises an error that says so
        if not event.elsewhere:
            raise fault
        trouble = {"ev": "trouble", "host": event.outcome["host"], "reason": event.outcome["reason"]}
        try:
            self._ledger.journal.write(trouble)
        except OSError as error:
            raise fault from error
        logging.getLogger("sweeps").warning("storage failed on one node; its trial runs on another node: %s", fault)

    def _stop_all(self) -> None:
        """Stop the running trials, and record those that finish meanwhile. Checkpoints are kept."""
        for trial_id in reversed([*self._running]):  # queued trials first, so that none of them starts
            if trial_id not in self._pruned:
                self._backend.stop(trial_id, over=False)
        end = time.monotonic() + END_S
        while self._running and time.monotonic() < end:
            for event in self._backend.events(EVERY_S):
                self._take(event)

    def _release_all(self) -> None:
        """Release the trials that still run, so that a later run starts them again. Record those that were pruned."""
        state = self._ledger.state
        for slot in self._running.values():
            if slot.trial_id not in self._pruned:
                state.release(slot.cell_id, slot.trial_id)
                continue
            trained = sum(self._seconds.get(slot.trial_id, {}).values())
            # after an error the next run writes its row, because the journal has the decision to stop it
            with contextlib.suppress(OSError):
                self._ledger.finish(slot, pruned_outcome(state, slot, {"seconds_total": trained}))
