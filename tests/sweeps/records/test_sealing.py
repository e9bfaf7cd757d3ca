from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.errors import StoreError
from analysis.format import finite
from analysis.store.journal import journal_line
from analysis.store.store import open_store
from analysis.store.tables import part_paths, scan_parts
from sweeps.records import sealing
from sweeps.records.journal import Journal
from sweeps.records.ledger import Ledger, pruned_outcome
from sweeps.records.replay import replay
from sweeps.records.rows import choice_row, trial_row
from sweeps.records.sealing import Sealer
from sweeps.search.stages import Choice, Slot, SweepState
from tests.fakes import FakeCell, FakeTrain, fake_plan, fake_row
from tests.sweeps.inline import go_inline
from tests.sweeps.records.support import finish_events, small


def test_rows_are_sealed_in_parts_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "SEAL_EVERY", 4)
    folder, made = tmp_path / "r", finish_events(tmp_path, 10)
    (folder / "tables").mkdir(parents=True)
    sealer = Sealer(folder)
    for event in made:
        sealer.add(event)
    assert len(part_paths(folder, "trials")) == 2
    sealer.seal()
    sealer.seal()
    assert len(part_paths(folder, "trials")) == 3
    again = Sealer(folder)
    for event in made:  # the journal is replayed at every start
        again.add(event)
    again.seal()
    assert len(part_paths(folder, "trials")) == 3
    assert set(again.rows) == {event.row.trial_id for event in made}
    store = open_store(folder)
    assert [store.table(name).num_rows for name in ("trials", "metrics", "predictions")] == [10, 30, 10]
    first = store.table("trials").to_pylist()[0]
    assert first["seconds_total"] == 2.0
    assert first["started_at"].timestamp() == 1.7e9
    assert first["samples_per_second"] == pytest.approx(200)
    assert first["versions"] == '{"python": "3"}'


def test_rows_that_no_part_has_yet_are_read_from_the_journal(tmp_path: Path) -> None:
    folder, made = tmp_path / "r", finish_events(tmp_path, 3)
    folder.mkdir(exist_ok=True)
    lines = [journal_line({"ev": "sweep", "name": "fake"}), *(journal_line(event.event()) for event in made)]
    (folder / "journal.jsonl").write_bytes(b"".join(lines))
    store = open_store(folder)
    assert [store.table(name).num_rows for name in ("trials", "metrics", "predictions")] == [3, 9, 3]
    sealer = Sealer(folder)
    for event in made:
        sealer.add(event)
    sealer.seal()
    sealed = open_store(folder)  # what is in both counts once
    for name in ("trials", "metrics", "predictions"):
        assert sealed.table(name).num_rows == store.table(name).num_rows


def test_a_crash_between_two_tables_repeats_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, made = tmp_path / "r", finish_events(tmp_path, 3)
    folder.mkdir()
    real = sealing.write_part

    def crash(where: Path, name: str, rows: Any) -> Path:
        if name == "trials":
            raise OSError("No space left on device")
        return real(where, name, rows)

    sealer = Sealer(folder)
    for event in made:
        sealer.add(event)
    monkeypatch.setattr(sealing, "write_part", crash)
    with pytest.raises(OSError, match="No space"):
        sealer.seal()
    monkeypatch.setattr(sealing, "write_part", real)
    sealer = Sealer(folder)
    for event in made:
        sealer.add(event)
    sealer.seal()
    assert [len(part_paths(folder, name)) for name in ("trials", "metrics", "predictions")] == [1, 1, 1]


def test_cells_are_written_when_they_change(tmp_path: Path) -> None:
    cells = [FakeCell("lora"), FakeCell("vera")]
    Sealer(tmp_path).write_cells(cell.row() for cell in cells)
    Sealer(tmp_path).write_cells(cell.row() for cell in cells)
    assert len(part_paths(tmp_path, "cells")) == 1
    Sealer(tmp_path).write_cells([FakeCell("lora", tune_trials=9).row(), cells[1].row(), FakeCell("nola").row()])
    table = open_store(tmp_path).table("cells").to_pylist()
    assert {row["method"]: row["tune_trials"] for row in table} == {"lora": 9, "vera": 0, "nola": 0}


def test_choices_are_sealed_once_each(tmp_path: Path) -> None:
    rows = [choice_row("fake", "lora-1000", Choice(lr, 0.5, n, 1, None), 1.7e9) for lr, n in ((1e-3, 4), (1e-4, 8))]
    for _ in range(2):
        sealer = Sealer(tmp_path)
        for row in rows:
            sealer.add_choice(row)
        sealer.seal()
    assert len(part_paths(tmp_path, "choices")) == 1
    assert open_store(tmp_path).table("choices").num_rows == 2


def test_the_latest_choice_of_a_cell_counts_in_any_order(tmp_path: Path) -> None:
    first = choice_row("fake", "lora-1000", Choice(1e-3, 0.5, 4, 1, None), 1.7e9)
    second = choice_row("fake", "lora-1000", Choice(1e-4, 0.6, 8, 1, None), 1.7e9, before=first)
    for name, order in (("forwards", (first, second)), ("backwards", (second, first))):
        folder = tmp_path / name
        folder.mkdir()
        sealer = Sealer(folder)
        for row in order:
            sealer.add_choice(row)
        assert sealer.choices["lora-1000"] == second
        sealer.seal()
        assert Sealer(folder).choices["lora-1000"] == second  # from the parts


@pytest.mark.parametrize(("keep", "stages"), [("none", ""), ("best", "C"), ("confirm", "C"), ("all", "TC")])
def test_what_is_kept_goes_by_stage_and_method(tmp_path: Path, keep: str, stages: str) -> None:
    plan = fake_plan(tmp_path, (FakeCell("lora"), FakeCell("full", None)))
    state = SweepState(plan.feasible, plan.spec)
    with Journal(tmp_path / "journal.jsonl") as journal:
        ledger = Ledger(state, journal, Sealer(tmp_path), tmp_path, keep)
    kept = ""
    for cell in plan.cells:
        for stage in ("TUNE", "CONFIRM"):
            trial = cell.trial(stage, 1e-3, (0, 0, 0), FakeTrain())
            slot = Slot(cell.cell_id, stage, 0, trial.trial_id, trial.model_dump(), 1e-3, (0, 0, 0))
            kept += stage[0] if ledger.kept_folder(slot) == tmp_path / "adapters" / trial.trial_id else ""
    assert kept == stages


def test_the_best_is_of_the_present_choice_and_has_weights(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, (FakeCell("lora"),))
    state = SweepState(plan.feasible, plan.spec)
    with Journal(tmp_path / "journal.jsonl") as journal:
        ledger = Ledger(state, journal, Sealer(tmp_path), tmp_path, "best")
    scores = {"old rate": 0.9, "one": 0.7, "two": 0.8, "from before they were kept": 0.95}
    rows = {
        name: fake_row(Slot("lora-1000", "CONFIRM", 0, name, {}, 1e-3, (0, 0, 0)), val_score=score)
        for name, score in scores.items()
    }
    for name in list(scores)[:3]:
        (tmp_path / "adapters" / name).mkdir(parents=True)
    counted = set(scores) - {"old rate"}
    state.cells["cell"] = SimpleNamespace(rows=rows, confirming=counted)  # type: ignore[assignment]
    ledger._keep_best("cell")
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == ["two"]


def test_numbers_that_are_not_finite_become_null() -> None:
    values = {"a": float("nan"), "b": [1.0, float("inf")], "c": ("x", None)}
    assert finite(values) == {"a": None, "b": [1.0, None], "c": ["x", None]}


@pytest.mark.parametrize(
    ("event", "lacking"),
    [
        ({"ev": "ask", "cell_id": "c"}, r"stage \(str\)"),
        ({"ev": "report", "trial_id": "t", "epoch": "1", "values": {}}, r"epoch \(int\)"),
        ({"ev": "finish", "row": {"trial_id": "t", "status": "finished"}}, "row .*'cell_id'"),
        ({"ev": "choose", "cell_id": "c", "row": {"cell_id": "c", "lr": 0.1, "n_trials": 1}}, "row .*'chosen_at'"),
        ({"ev": "finish", "row": {"trial_id": "t", "cell_id": "c", "attempt": "first"}}, "row .*'attempt'"),
    ],
)
def test_an_event_without_its_keys_is_named(tmp_path: Path, event: dict[str, object], lacking: str) -> None:
    plan, sealer = fake_plan(tmp_path / "r", (FakeCell("lora"),)), Sealer(tmp_path)
    state = SweepState(plan.feasible, plan.spec)
    with pytest.raises(StoreError, match=rf"event '{event['ev']}' of line 2 has .*{lacking}"):
        replay(state, sealer, [{"ev": "sweep"}, event], sealer.rows)


def test_a_further_attempt_that_was_stopped_keeps_its_number(tmp_path: Path) -> None:
    """The driver is killed before its row is written, and the next run tries nothing again."""
    plan = fake_plan(tmp_path, (FakeCell("lora"),))

    def opened(journal: Journal, *, retry: bool) -> tuple[Ledger, list[tuple[Slot, float | None]]]:
        state, sealer, earlier = SweepState(plan.feasible, plan.spec), Sealer(tmp_path), dict[str, int]()
        unfinished = replay(state, sealer, journal.events, sealer.rows, earlier if retry else None)
        return Ledger(state, journal, sealer, tmp_path, "none", earlier), unfinished

    with Journal(tmp_path / "journal.jsonl") as journal:
        ledger, _ = opened(journal, retry=False)
        slot = ledger.state.next_slot()
        assert slot is not None
        ledger.ask(slot)
        ledger.finish(slot, {"status": "failed", "reason": "boom"})
        ledger.seal()
    with Journal(tmp_path / "journal.jsonl") as journal:
        opened(journal, retry=True)[0].report(slot, {"epoch": 1, "val_score": 0.1}, stop=True, seconds=3.0)
    with Journal(tmp_path / "journal.jsonl") as journal:
        ledger, ((stopped, trained),) = opened(journal, retry=False)
        ledger.finish(stopped, pruned_outcome(ledger.state, stopped, {"seconds_total": trained}))
        ledger.seal()
    rows = scan_parts(tmp_path, "trials")[0].to_pylist()
    assert [(r["attempt"], r["status"]) for r in rows] == [(1, "failed"), (2, "pruned")]
    assert [r["recovered"] for r in open_store(tmp_path).table("failures").to_pylist()] == [False]
    assert (rows[1]["seconds_total"], rows[1]["seconds_train"], rows[1]["seconds_eval"]) == (3.0, None, None)


def test_a_finished_trial_leaves_no_checkpoint(tmp_path: Path) -> None:
    folder, left = tmp_path / "r", list[str]()

    def before(ended: int) -> None:
        left.extend(path.name for path in (folder / "work" / "trials").glob("*"))

    assert go_inline(small(folder), before=before).complete
    assert not left


@pytest.mark.parametrize(("status", "score"), [("failed", None), ("pruned", 0.4)])
def test_a_failed_trial_has_no_score_and_a_stopped_one_its_last(status: str, score: float | None) -> None:
    cell = FakeCell("lora")
    trial = cell.trial("TUNE", 1e-3, (0, 0, 0), FakeTrain())
    slot = Slot(cell.cell_id, "TUNE", 0, trial.trial_id, trial.model_dump(), 1e-3, (0, 0, 0))
    reported = [{"epoch": 1, "val_score": 0.3, "train_loss": 2.0}, {"epoch": 2, "val_score": 0.4, "train_loss": 1.0}]
    row = trial_row("fake", cell, slot, {"status": status, "reason": "boom", "events": reported})
    assert (row.status, row.val_score, row.train_loss, row.epochs) == (status, score, 1.0, 2)


@pytest.mark.parametrize(
    ("method", "keep", "full", "slot", "kept"),
    [
        ("full", "none", True, 0, True),
        ("full", "all", True, 1, False),
        ("full", "all", False, 0, False),
        ("full-targets", "best", True, 0, True),
        ("zero-shot", "all", True, 0, False),
        ("lora", "confirm", True, 1, True),
        ("lora", "none", True, 0, False),
    ],
)
def test_full_weights_are_kept_for_one_seed_when_asked(
    method: str, keep: str, full: bool, slot: int, kept: bool, tmp_path: Path
) -> None:
    spec = SimpleNamespace(name="s", keep=SimpleNamespace(adapters=keep, full=full))
    state: Any = SimpleNamespace(spec=spec, cells={"c": SimpleNamespace(cell=SimpleNamespace(method=method))})
    nothing: Any = None
    ledger = Ledger(state, nothing, nothing, tmp_path, keep)
    one: Any = SimpleNamespace(cell_id="c", stage="CONFIRM", slot=slot, trial_id="t")
    assert (ledger.kept_folder(one) is not None) == kept
