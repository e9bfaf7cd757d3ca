"""A journal that was written before rows were dataclasses (`before/`): it replays to the same rows, and goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.store.journal import Finish, choice_of, read_journal
from analysis.store.store import open_store
from sweeps.records.replay import replay
from sweeps.records.sealing import Sealer
from sweeps.search.stages import SweepState
from tests.fakes import FakeCell, FakePlan, FakeSearch, fake_plan
from tests.sweeps.inline import go_inline, lines
from tests.sweeps.support import events

BEFORE = Path(__file__).with_name("before")
TABLES: dict[str, list[dict[str, Any]]] = json.loads((BEFORE / "tables.json").read_text(encoding="utf-8"))
"""The journal's rows as the version that wrote it read them; instants as ISO text, bits in hexadecimal."""


def plan_in(folder: Path, **search: Any) -> FakePlan:
    """The plan that the journal is of, in a folder with it."""
    folder.mkdir()
    for name in ("journal.jsonl", "spec.json"):
        shutil.copy(BEFORE / name, folder)
    cell = FakeCell("lora", options=(("fail_above", 1e-2),))
    return fake_plan(folder, (cell,), search=FakeSearch(**{"trials": 4, **search}))


def plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value.isoformat() if hasattr(value, "isoformat") else value


def as_before(row: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the columns that came later, which are null."""
    assert all(row[name] is None for name in row.keys() - before.keys())
    return {name: row[name] for name in before}


def test_its_events_are_read_and_written_as_they_were() -> None:
    for event in read_journal(BEFORE / "journal.jsonl").events:
        if event["ev"] == "finish":
            finish = Finish.of(event, "fake")
            written = finish.event()
            written["row"] = as_before(written["row"], event["row"])
            assert written == {name: value for name, value in event.items() if name != "used"}
        elif event["ev"] == "choose":
            row = choice_of(event, "fake")
            assert row.sequence == 1 and row.lr == event["row"]["lr"]


def test_it_replays_to_the_same_rows(tmp_path: Path) -> None:
    plan = plan_in(tmp_path / "r")
    state, sealer = SweepState(plan.feasible, plan.spec), Sealer(tmp_path / "r")
    assert replay(state, sealer, read_journal(tmp_path / "r" / "journal.jsonl").events, {}) == []
    (cell,) = state.cells.values()
    assert len(cell.rows) == len(TABLES["trials"])
    for row in TABLES["trials"]:
        found = {name: plain(value) for name, value in vars(cell.rows[row["trial_id"]]).items()}
        assert as_before(found, row) == row | {"versions": json.loads(row["versions"] or "null")}
    assert state.next_slot() is None and cell.settle() is None and cell.finished
    sealer.seal()
    store = open_store(tmp_path / "r")
    for name, rows in TABLES.items():
        table = store.table(name).to_pylist()
        found_rows = [{column: plain(value) for column, value in row.items()} for row in table]
        assert [as_before(row, before) for row, before in zip(found_rows, rows, strict=True)] == rows


def test_it_resumes_and_grows(tmp_path: Path) -> None:
    plan = plan_in(tmp_path / "r")
    before = lines(tmp_path / "r")
    summary = go_inline(plan)
    assert (summary.finished, summary.failed, summary.skipped) == (0, 0, len(TABLES["trials"]))
    assert events(tmp_path / "r", "finish") == events(BEFORE, "finish")  # nothing is repeated
    grown = fake_plan(tmp_path / "r", (FakeCell("lora"),), search=FakeSearch(trials=6))
    assert go_inline(grown).finished > 0
    assert lines(tmp_path / "r")[: len(before)] == before
    assert open_store(tmp_path / "r").table("trials").num_rows > len(TABLES["trials"])
