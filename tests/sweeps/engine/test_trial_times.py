"""What is known of a trial's time when its worker can't tell: it was stopped, its worker died, or the driver did."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from sweeps.backends.ray.lanes.broker import Broker
from sweeps.backends.ray.lanes.leases import MAX_ATTEMPTS
from sweeps.records.journal import Journal
from sweeps.records.ledger import Ledger, pruned_outcome
from sweeps.records.replay import replay
from sweeps.records.sealing import Sealer
from sweeps.search.stages import SweepState
from tests.fakes import FakeResources, FakeSearch, fake_plan

W0 = "lane0/0"
HERE = {"host": "here", "processor": "a CPU", "device": "cpu"}


async def broker(*keys: str, pack: bool = False) -> Broker:
    made = Broker()
    await made.hello(W0, "t", where=HERE)
    if pack:
        await made.submit({key: {} for key in keys}, None)
    else:
        for key in keys:
            await made.submit({key: {}}, None)
    return made


async def taken(made: Broker, key: str) -> dict[str, Any]:
    outcome = await made.take(key)
    assert outcome is not None
    return outcome


def test_of_a_trial_that_is_taken_from_its_worker() -> None:
    async def scenario() -> None:
        made = await broker("a", "never")
        await made.next(W0, "t", 1)
        await asyncio.sleep(0.1)
        outcome = await taken(made, "a")
        assert outcome.items() >= HERE.items()
        assert outcome["seconds_total"] >= 0.1
        assert outcome["ended"] - outcome["started"] == pytest.approx(outcome["seconds_total"], abs=1e-4)
        assert "seconds_total" not in await taken(made, "never")

    asyncio.run(scenario())


def test_of_a_trial_whose_workers_died() -> None:
    async def scenario() -> None:
        made = await broker("a")
        for attempt in range(MAX_ATTEMPTS):
            await made.next(W0, "t" if attempt == 0 else str(attempt), 1)
            await asyncio.sleep(0.05)
            await made.hello(W0, str(attempt + 1), None, where=HERE)
        outcome = await taken(made, "a")
        assert outcome["state"] == "failed"
        assert outcome.items() >= HERE.items()
        assert outcome["seconds_total"] >= 0.05 * MAX_ATTEMPTS  # all attempts

    asyncio.run(scenario())


def test_of_a_pack_each_has_its_share() -> None:
    async def scenario() -> None:
        made = await broker("a", "b", pack=True)
        begun = time.time()
        await made.next(W0, "t", 1)
        await asyncio.sleep(0.2)
        both = [await taken(made, key) for key in ("a", "b")]
        assert all(0.1 <= o["seconds_total"] <= (time.time() - begun) / 2 for o in both)

    asyncio.run(scenario())


def test_what_the_worker_says_goes_first() -> None:
    async def scenario() -> None:
        made = await broker("a")
        await made.next(W0, "t", 1)
        await made.finish(W0, "t", "a", None, {"status": "finished", "seconds_total": 7.0, "host": "there"})
        outcome = await taken(made, "a")
        assert (outcome["seconds_total"], outcome["host"], outcome["device"]) == (7.0, "there", "cpu")

    asyncio.run(scenario())


def test_a_stopped_trial_whose_row_was_not_written_keeps_the_time_that_stands_in_the_journal(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, search=FakeSearch(pruner="asha"), resources=FakeResources(workers=2))
    with Journal(tmp_path / "journal.jsonl") as journal:
        state = SweepState(plan.feasible, plan.spec)
        ledger = Ledger(state, journal, Sealer(tmp_path), tmp_path, "none")
        slot = state.next_slot()
        assert slot is not None
        ledger.ask(slot)
        state.report(slot.cell_id, slot.trial_id, 1, 0.25)
        ledger.report(slot, {"epoch": 1, "train_loss": 1.0, "val_score": 0.25}, stop=True, seconds=12.5)
    with Journal(tmp_path / "journal.jsonl") as journal:  # the driver was killed here
        state = SweepState(plan.feasible, plan.spec)
        sealer = Sealer(tmp_path)
        ((found, trained),) = replay(state, sealer, journal.events, {})
        assert (found.trial_id, trained) == (slot.trial_id, 12.5)
        Ledger(state, journal, sealer, tmp_path, "none").finish(
            found, pruned_outcome(state, found, {"seconds_total": trained})
        )
    (row,) = state.cells[slot.cell_id].rows.values()
    assert (row.status, row.seconds_total, row.workers, row.epochs) == ("pruned", 12.5, 2, 1)
