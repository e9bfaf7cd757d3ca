"""The progress of a results folder: only the last run has a speed. `test_which_count` compares it with the engine's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from analysis import open_store
from sweeps.progress.of_folder import read_progress
from sweeps.progress.progress import SweepProgress
from sweeps.records.journal import Journal
from sweeps.records.ledger import Ledger
from sweeps.records.locks import write_identity
from sweeps.records.sealing import Sealer
from sweeps.search.stages import SweepState
from tests.fakes import fake_plan
from tests.sweeps.support import PAIR
from trainables.training.measured import Measured, Result

START = datetime(2026, 1, 1, tzinfo=UTC)
RUN = {"ev": "sweep", "at": START.isoformat(), "lanes": [{}, {}]}


def read(folder: Path, *events: Any) -> SweepProgress:
    """The progress of a folder with a journal of these events. A number is a trial that ends after so many seconds."""
    plan = fake_plan(folder, PAIR)
    state = SweepState(plan.feasible, plan.spec)
    folder.mkdir()
    write_identity(folder, plan.spec.identity())
    with Journal(folder / "journal.jsonl") as journal:
        sealer = Sealer(folder)
        sealer.write_cells(cell.row() for cell in state.cells.values())
        ledger = Ledger(state, journal, sealer, folder, "none")
        for event in events:
            if isinstance(event, dict):
                journal.write(event)
            elif (slot := state.next_slot()) is not None:
                ledger.ask(slot)
                result = Result(Measured(val_score=0.5, test_score=0.5, epochs=1, samples=1, seconds_setup=20.0))
                times = {"started": START.timestamp() + event - 25, "ended": START.timestamp() + event}
                ledger.finish(slot, {"status": "finished", "result": result, "seconds_total": 25.0, **times})
    return read_progress(open_store(folder), running=False)


def test_only_the_last_run_has_a_speed(tmp_path: Path) -> None:
    now = read(tmp_path / "a", RUN, -90, RUN, 85, 90)
    assert (now.finished, now.this_run, now.at_once) == (3, 2, 2)
    assert now.per_minute == pytest.approx(60 * 2 / (90 - 60 - 20))  # from the end of the first one's set-up
    assert sum(cell.pace.seconds for cell in now.cells) == 2 * 5
    assert now.seconds_left is None  # no run is in progress


def test_the_speed_does_not_depend_on_the_drivers_clock(tmp_path: Path) -> None:
    ahead = RUN | {"at": (START + timedelta(hours=1)).isoformat()}
    assert read(tmp_path / "a", ahead, 85, 90).per_minute == read(tmp_path / "b", RUN, 85, 90).per_minute


def test_the_lanes_of_the_last_run_say_how_many_trials_run_at_once(tmp_path: Path) -> None:
    grown = {"ev": "workers", "at": START.isoformat(), "workers": 4}  # nodes have joined
    packed = RUN | {"lanes": [{"workers": 4, "group": False}], "pack": 2}  # a pack's trials have their share each
    group = RUN | {"lanes": [{"workers": 4, "group": True}]}
    asked = {"packed": (packed,), "group": (group,), "grown": (RUN, grown), "earlier": (grown, RUN)}
    assert {name: read(tmp_path / name, *events).at_once for name, events in asked.items()} == {
        "packed": 4, "group": 1, "grown": 4, "earlier": 2,
    }  # fmt: skip
