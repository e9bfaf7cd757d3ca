"""The slots of a sweep, run by a loop instead of an engine."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from analysis.store.rows import TrialRow
from sweeps.search.slots import Seeds, Slot
from sweeps.search.stages import SweepState
from tests.fakes import FakePlan, FakeSearch, analytic_score, fake_row

Rows = dict[str, TrialRow]
Score = Callable[[Slot], float]


def row_of(slot: Slot, status: str = "finished") -> TrialRow:
    return fake_row(slot, status, val_score=analytic_score(dict(slot.config), 3) if status == "finished" else None)


def drive(
    state: SweepState,
    known: Rows,
    end: Callable[[Slot], TrialRow],
    *,
    parallel: int,
    limit: int,
    begin: Callable[[Slot], None] = lambda slot: None,
) -> SweepState:
    """Run a sweep with `parallel` workers, up to `limit` more trials, in random order; `end` makes their rows."""
    draw = random.Random(parallel + limit)
    running: list[Slot] = []
    while True:
        while len(running) < parallel and (slot := state.next_slot()) is not None:
            assert slot.trial_id not in known, "a finished trial was issued again"
            state.start(slot)
            begin(slot)
            running.append(slot)
        if not running or limit == 0:
            return state
        slot = running.pop(draw.randrange(len(running)))
        known[slot.trial_id] = end(slot)
        state.finish(known[slot.trial_id])
        cell = state.cells[slot.cell_id]
        cell.choice = cell.settle() or cell.choice
        limit -= 1


def simulate(plan: FakePlan, rows: Rows, *, fails: Any = None, parallel: int = 1, limit: int = 10**6) -> SweepState:
    """Run a plan whose trials score as the fakes do; `rows` is the journal."""
    state = SweepState(plan.feasible, plan.spec)
    for row in rows.values():
        state.restore(slot_of(row, plan))
        state.finish(row)
    state.keep_known()

    def end(slot: Slot) -> TrialRow:
        return row_of(slot, "failed" if fails and fails(slot) else "finished")

    return drive(state, rows, end, parallel=parallel, limit=limit)


def seeds_of(row: TrialRow) -> Seeds:
    assert row.data_seed is not None and row.init_seed is not None and row.basis_seed is not None
    return row.data_seed, row.init_seed, row.basis_seed


def slot_of(row: TrialRow, plan: FakePlan) -> Slot:
    cell = next(c for c in plan.cells if c.cell_id == row.cell_id)
    trial = cell.trial(row.stage, row.lr, seeds_of(row), plan.spec.train)
    return Slot(row.cell_id, row.stage, row.slot, row.trial_id, trial.model_dump(), row.lr, seeds_of(row))


def keys(rows: Rows) -> set[tuple[Any, ...]]:
    return {(r.trial_id, r.slot, r.val_score) for r in rows.values()}


class Bench:
    """Runs plans by a loop; `rows` and `slots` are what a journal would hold."""

    def __init__(self, score: Score, *, parallel: int = 1, prune: Callable[[Slot], int] | None = None) -> None:
        self.score, self.parallel, self.prune = score, parallel, prune
        self.rows: Rows = {}
        self.slots: dict[str, Slot] = {}
        self.order: list[Slot] = []

    def run(self, plan: FakePlan, limit: int = 10**6) -> SweepState:
        state = SweepState(plan.feasible, plan.spec)
        for slot in self.slots.values():
            state.restore(replace(slot, extra=(), origin=None))  # a journal has the configuration alone
        for row in self.rows.values():
            state.finish(row)
        state.keep_known()
        return drive(state, self.rows, self.end, parallel=self.parallel, limit=limit, begin=self.begin)

    def begin(self, slot: Slot) -> None:
        self.slots[slot.trial_id] = slot
        self.order.append(slot)

    def end(self, slot: Slot) -> TrialRow:
        whole = slot.config["train"]["epochs"]
        epochs = self.prune(slot) if self.prune is not None and slot.stage == "TUNE" else whole
        status = "finished" if epochs == whole else "pruned"
        score = self.score(slot) if status == "finished" else None
        return fake_row(slot, status, val_score=score, epochs=epochs, samples=100 * epochs)


def at(best: float) -> Score:
    """A score that is best at one rate."""
    return lambda slot: -abs(math.log10(slot.point.lr / best))


def tune(state: SweepState, cell_id: str) -> list[Slot]:
    return sorted((s for s in state.cells[cell_id].asked.values() if s.stage == "TUNE"), key=lambda s: s.slot)


def search(**values: Any) -> FakeSearch:
    return FakeSearch(**{"trials": 6, "rerun_rates": 1, "rerun_seeds": 1, **values})
