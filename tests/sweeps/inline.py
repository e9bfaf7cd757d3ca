"""Whole sweeps of the fake trial without Ray: this process is the lane; folder, journal and tables are the engine's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sweeps.cluster.resources import LaneShape
from sweeps.engine import run as engine
from sweeps.engine.run import RunSummary, run
from sweeps.lanes.reports import facts, failed, keep, load_trial
from sweeps.records.ledger import Ledger
from tests.fakes import TRIAL, FakePlan
from trainables.config import TrialConfig


class Inline:
    """What the engine asks of a pool. `before`: called before every trial, with the number of those that ended."""

    shapes = (LaneShape(workers=1, group=False, per_worker={"CPU": 1.0}, isolated=False),)
    trials, busy, measured, address = 1, 0, None, None

    def __init__(self, before: Callable[[int], None] = lambda _: None) -> None:
        self.before = before

    def drive(self, ledger: Ledger, pool: Any, trial: str, changed: Any, stop: Any, packed: int) -> None:
        while (slot := ledger.state.next_slot()) is not None:
            self.before(len(ledger.finished))
            ledger.ask(slot)
            directory, kept = ledger.trial_folder(slot), ledger.kept_folder(slot)
            outcome: dict[str, Any] = {"status": "finished"}
            try:
                directory.mkdir(parents=True, exist_ok=True)
                config = TrialConfig.model_validate(slot.config)
                events = list(load_trial(trial)(config, warm={}, directory=directory, keep=kept is not None))
                outcome |= {"result": events[-1].pop("result"), "events": events}
                keep({"keep": None if kept is None else str(kept)}, directory)
            except ValueError as error:
                outcome |= failed(error, directory)
            ledger.finish(slot, outcome | facts(1.7e9, 2.0))


def go_inline(
    plan: FakePlan, before: Callable[[int], None] = lambda _: None, trial: str = TRIAL, **how: Any
) -> RunSummary:
    """`sweeps.engine.run.run`, the lanes aside, and waiting for the disk."""
    pool: Any = Inline(before)
    with patch.object(engine, "drive", pool.drive), patch.object(os, "fsync", lambda _: None):
        return run(plan, trial=trial, progress=False, pool=pool, **how)


def lines(folder: Path) -> list[bytes]:
    """The journal's lines."""
    return (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
