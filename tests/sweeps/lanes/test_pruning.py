"""What the pruner compares a trial with, without Ray."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.lanes.packs import Packing
from sweeps.lanes.tune import Dispatcher
from sweeps.records.journal import Journal
from sweeps.records.ledger import Ledger
from sweeps.records.sealing import Sealer
from sweeps.search.stages import SweepState
from tests.fakes import TRIAL, FakeCell, FakeSearch, fake_plan


@pytest.mark.parametrize("beside", [{}, {"seeds": (1, 1, 1)}, {"stage": "CONFIRM"}, {"score": math.nan}])
def test_rates_are_judged_against_scores_of_rates_alone(tmp_path: Path, beside: dict[str, Any]) -> None:
    plan = fake_plan(tmp_path, (FakeCell("lora"),), search=FakeSearch(pruner="asha"))
    state = SweepState(plan.feasible, plan.spec)
    slot = state.next_slot()
    assert slot is not None
    best = beside.get("score", 0.9)
    better = replace(slot, trial_id="better", **{k: v for k, v in beside.items() if k != "score"})
    with Journal(tmp_path / "journal.jsonl") as journal:
        ledger = Ledger(state, journal, Sealer(tmp_path), tmp_path, "none")
        told: list[str] = []
        dispatcher = Dispatcher(ledger, None, "broker", TRIAL, 9, lambda: told.append("epoch"), Packing(1, 1, {}))
        for each, score in ((better, best), (slot, 0.5)):
            state.start(each)
            dispatcher.slots[each.trial_id] = each
            report = {"status": "running", "epoch": 1, "score": score, "seconds": 1.0, "train_loss": 0.1}
            stopped = dispatcher.saw(each.trial_id, report)
    assert stopped == (not beside)
    # trials may be long, and displays and logs are not silent meanwhile
    assert told == ["epoch"] * (1 + math.isfinite(best))
