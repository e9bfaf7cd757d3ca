"""Which trials count, what is left to run, and how far the sweep is: a folder says what the engine says.

This is tested on random sweeps. What is left is not compared while a cell with a choice is tuned further: the folder's
tables still have that choice. Nor if the next trial is a rate past the edge of the range: the folder does not know it.
"""

from __future__ import annotations

import os
import random
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.store.slot_kinds import SlotKind
from analysis.store.store import open_store
from sweeps.progress.of_folder import read_progress
from sweeps.progress.of_state import StateReader, ended_trials
from sweeps.progress.progress import CellProgress, SweepProgress
from sweeps.records.journal import Journal
from sweeps.records.ledger import Ledger
from sweeps.records.locks import write_identity
from sweeps.records.replay import replay, stored_state
from sweeps.records.sealing import Sealer
from sweeps.search.rules import RULES
from sweeps.search.slots import Slot
from sweeps.search.stages import CellState, SweepState
from tests.fakes import FakeCell, FakeConfirm, FakePlan, FakeSearch, fake_plan
from trainables.training.measured import Measured, Result

CELLS = (FakeCell("lora"), FakeCell("vera"), FakeCell("zero-shot", None, lr_low=None, lr_high=None, lr_centre=None))


@st.composite
def runs(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A sweep's runs: the sweep file of each, and after how many trials it was stopped."""
    reruns = draw(st.sampled_from([{"rerun_rates": n, "rerun_seeds": 2 // n if n else 0} for n in (0, 1, 2)]))
    beside = {"widen": draw(st.integers(0, 2)), "refine": draw(st.sampled_from([0, "auto"]))}
    run = st.fixed_dictionaries(
        {
            "trials": st.integers(4, 7),
            "seeds": st.sets(st.integers(0, 4), min_size=1, max_size=4),
            "limit": st.integers(0, 25),
            "sealed": st.booleans(),
        }
    )
    return [one | reruns | beside for one in draw(st.lists(run, min_size=1, max_size=3))]


START = datetime(2026, 1, 1, tzinfo=UTC)


def outcome_of(slot: Slot, luck: int, failing: float) -> dict[str, Any]:
    """The outcome of a trial, which depends on the trial and on nothing else."""
    drawn = random.Random(f"{luck} {slot.trial_id}")
    began, seconds = START.timestamp() + drawn.randrange(1000), 1.0 + drawn.randrange(100)
    times = {"started": began, "ended": began + seconds, "seconds_total": seconds}
    if drawn.random() < failing:
        return {"status": "failed", "reason": f"bad luck of {slot.stage}", **times}
    score = drawn.random()
    measured = Measured(val_score=score, test_score=score, epochs=3, samples=300, seconds_setup=drawn.random())
    return {"status": "finished", "result": Result(measured), **times}


def go_on(
    plan: FakePlan, folder: Path, limit: int, luck: int, failing: float, *, sealed: bool
) -> tuple[SweepState, StateReader]:
    """One run of a sweep, two trials at once, stopped after `limit` trials: its state, and what reads its progress."""
    drawn = random.Random(luck)
    state, sealer = SweepState(plan.feasible, plan.spec), Sealer(folder)
    write_identity(folder, plan.spec.identity())
    with Journal(folder / "journal.jsonl") as journal:
        replay(state, sealer, journal.events, sealer.rows)
        journal.write({"ev": "sweep", "at": START.isoformat(), "lanes": [{}, {}]})
        state.workers, reader = 2, StateReader(state, ended_trials(state))
        sealer.write_cells(replace(cell.row(), seed_rule=RULES["seed_rule"]) for cell in state.cells.values())
        ledger = Ledger(state, journal, sealer, folder, "none")
        for cell_id in state.cells:
            ledger.settle(cell_id)
        running: list[Slot] = []
        for _ in range(limit):
            while len(running) < 2 and (slot := state.next_slot()) is not None:
                ledger.ask(slot)
                running.append(slot)
            if not running:
                break
            slot = running.pop(drawn.randrange(len(running)))
            ledger.finish(slot, outcome_of(slot, luck, failing))
        if sealed:
            ledger.seal()
    return state, reader


def confirmed_by(cell: CellState) -> set[str]:
    """The finished CONFIRM trials that count: at the journaled choice, or without one, on seeds of the sweep file."""
    point = None if cell.choice is None else cell.choice.point
    seeds = [cell.seeds(seed) for seed in cell.spec.confirm.seeds] if point is not None else [cell.seeds(0)]
    rows = {t for t, row in cell.rows.items() if row.status == "finished" and row.stage == "CONFIRM"}
    at = {t for t in rows if (slot := cell.asked[t]).seeds in seeds and (slot.point if slot.lr else None) == point}
    if cell.phase in ("confirming", "done"):
        assert at == rows & cell.confirming
    return at


PAST = (SlotKind.WIDENED, SlotKind.WIDENED_LATE)


def past_an_edge(cell: CellState) -> bool:
    """Whether a point past an edge is next, of which the folder knows nothing before it is asked."""
    return any(slot is None for number, slot in cell._points().items() if SlotKind.of(number) in PAST)


def known_to(folder: CellProgress, engine: CellProgress, cell: CellState) -> CellProgress:
    """Return what the folder says of a cell, with the engine's numbers where the folder can't know them."""
    if (cell.phase == "tuning" and cell.choice is not None) or past_an_edge(cell):
        return replace(folder, left=engine.left, scored=engine.scored)
    if cell.settle() is not None:  # its new choice is journaled when its next trial ends
        return replace(folder, scored=engine.scored)
    return folder


def check_agreement(told: SweepProgress, shown: SweepProgress, state: SweepState) -> None:
    """Check that the folder and the engine say the same of every cell and failure, and that the totals follow."""
    cells = [known_to(f, e, state.cells[e.cell_id]) for f, e in zip(told.cells, shown.cells, strict=True)]
    assert cells == list(shown.cells)
    told = replace(told, cells=tuple(cells))
    failures = ({(f.trial_id, f.label, f.reason) for f in p.failures} for p in (told, shown))
    assert next(failures) == next(failures)
    totals = ((p.done, p.total, p.failed, p.phases, p.this_run, p.per_minute, p.seconds_left) for p in (told, shown))
    assert next(totals) == next(totals)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(runs(), st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.4, 1.0]))
def test_the_search_and_sql_count_the_same_trials(given_runs: list[dict[str, Any]], luck: int, failing: float) -> None:
    with tempfile.TemporaryDirectory() as place, patch.object(os, "fsync", lambda _: None):
        folder = Path(place)
        for run in given_runs:
            search = {name: run[name] for name in ("trials", "rerun_rates", "rerun_seeds", "widen", "refine")}
            plan = fake_plan(
                folder, CELLS, search=FakeSearch(**search), confirm=FakeConfirm(tuple(sorted(run["seeds"])))
            )
            state, reader = go_on(plan, folder, run["limit"], luck, failing, sealed=run["sealed"])
            store = open_store(folder)
            confirmed = {r["trial_id"] for r in store.table("confirmed").to_pylist()}
            told = read_progress(store, running=True)
            assert told.now is not None
            check_agreement(told, reader.progress(told.now), state)
            found = stored_state(plan.feasible, plan.spec)  # as the estimate asks, which writes nothing
            assert {c: cell.left() for c, cell in found.cells.items()} == {c: s.left() for c, s in state.cells.items()}
            for cell_id, cell in state.cells.items():
                mine = {t for t, row in cell.rows.items() if row.stage == "CONFIRM"} & confirmed
                if cell.settle() is None:  # else its new choice is journaled when its next trial ends
                    assert mine == confirmed_by(cell), cell_id
