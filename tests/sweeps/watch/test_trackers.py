"""Trackers: real TensorBoard event files, the others where they are installed, and what is said where they are not."""

from __future__ import annotations

import struct
import sys
import types
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.store.rows import TrialRow
from sweeps.cli.run import watchers
from sweeps.errors import SpecError
from sweeps.search.stages import Slot, SweepState
from sweeps.watch.observers import Observer, seen_in
from sweeps.watch.trackers import TRACKERS, SentLog, make_tracker
from tests.fakes import FakeCell, FakeConfirm, FakePlan, FakeSearch, fake_plan, fake_row

Runs = dict[str, dict[str, Any]]


def tiny(folder: Path) -> FakePlan:
    search = FakeSearch(trials=2, rerun_rates=0, rerun_seeds=0)
    return fake_plan(folder, (FakeCell("lora"), FakeCell("vera")), search=search, confirm=FakeConfirm((0,)))


def row_of(slot: Slot, status: str = "finished") -> TrialRow:
    confirm = slot.stage == "CONFIRM"
    scores = {"val_score": 0.5 + slot.slot / 10, "test_score": 0.4 if confirm else None}
    reason = None if status == "finished" else "ValueError: too much"
    return fake_row(slot, status, **scores, adapter_params=1000, epochs=3, reason=reason)


def drive(plan: FakePlan, observer: Observer, *, pause_after: int = 1) -> SweepState:
    """A whole sweep, told to an observer that is closed and opened again in the middle of a trial."""
    state = SweepState(plan.feasible, plan.spec)
    observer.start(seen_in(state))
    number = 0
    while (slot := state.next_slot()) is not None:
        cell = state.cells[slot.cell_id]
        state.start(slot)
        observer.asked(cell.cell, slot)
        for epoch in (1, 2, 3):
            state.report(slot.cell_id, slot.trial_id, epoch, 0.1 * epoch)
            observer.reported(slot, {"epoch": epoch, "train_loss": 1.0 / epoch, "val_score": 0.1 * epoch})
            if number == pause_after and epoch == 2:
                observer.close()
                observer.start(seen_in(state))
                observer.asked(cell.cell, slot)
        row = row_of(slot, "failed" if number == 0 else "finished")
        state.finish(row)
        observer.finished(slot, row)
        cell.choice = cell.settle() or cell.choice
        number += 1
    observer.close()
    return state


def rows_in(state: SweepState) -> dict[str, TrialRow]:
    return {trial_id: row for cell in state.cells.values() for trial_id, row in cell.rows.items()}


def test_tensorboard_event_files(tmp_path: Path) -> None:
    plan = tiny(tmp_path)
    state = drive(plan, make_tracker("tensorboard", "fake", tmp_path))
    late = tmp_path / "late"
    tracker = make_tracker("tensorboard", "fake", late)
    tracker.start(seen_in(state))  # nothing is there yet: everything is put in
    tracker.close()
    for folder in (tmp_path, late):
        found = tensorboard_scalars(folder / "tensorboard")
        assert found.keys() == rows_in(state).keys()
        for trial_id, row in rows_in(state).items():
            assert found[trial_id]["val_score"] == pytest.approx({1: 0.1, 2: 0.2, 3: 0.3})
            assert found[trial_id]["outcome/val_score"] == pytest.approx({3: row.val_score})
            assert ("outcome/test_score" in found[trial_id]) == (row.stage == "CONFIRM")
            assert ("train_loss" in found[trial_id]) == (folder == tmp_path)


def tensorboard_scalars(folder: Path) -> dict[str, dict[str, dict[int, float]]]:
    """Trial id to tag to step to value, from TensorBoard's record files: length, checksum, event, checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for path in folder.glob("*/*/events.*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found[path.parent.name.rpartition("-")[2]][value.tag][event.step] = value.simple_value
    return found


@pytest.mark.filterwarnings("ignore")  # SQLAlchemy's, about MLflow's code
def test_mlflow_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (extra: mlflow)")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    state = drive(tiny(tmp_path), make_tracker("mlflow", "fake", tmp_path))
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("fake").experiment_id])
    assert len(runs) == len(rows_in(state)) == 6
    for run in runs:
        row = rows_in(state)[run.data.tags["trial_id"]]
        assert run.info.status == ("FAILED" if row.status == "failed" else "FINISHED")
        assert run.data.metrics["outcome_val_score"] == row.val_score
        assert float(run.data.params["lr"]) == row.lr
        assert [m.step for m in client.get_metric_history(run.info.run_id, "val_score")] == [1, 2, 3]


def test_trackio_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    trackio = pytest.importorskip("trackio", reason="trackio is not installed (extra: trackio)")
    state = drive(tiny(tmp_path), make_tracker("trackio", "fake", tmp_path))
    runs = {run.name.rpartition(" ")[2]: run for run in trackio.Api().runs("fake")}
    assert runs.keys() == rows_in(state).keys()
    for trial_id, row in rows_in(state).items():
        assert runs[trial_id].config["lr"] == row.lr


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed (extra: wandb)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    state = drive(tiny(tmp_path), make_tracker("wandb", "fake", tmp_path))
    ids = {path.stem.removeprefix("run-") for path in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")}
    assert ids == rows_in(state).keys()


class FakeWandb(types.ModuleType):
    """W&B's calls that we use, kept in memory."""

    class Error(Exception):
        """As W&B's."""

    def __init__(self, key: bool = True) -> None:
        super().__init__("wandb")
        self.key, self.sent = key, Runs()

    def login(self) -> bool:
        return self.key

    def Settings(self, **values: Any) -> dict[str, Any]:
        return values

    def init(self, **values: Any) -> Any:
        kept = self.sent.setdefault(values["id"], {"log": {}, "steps": [], "summary": {}, "exit": []})
        kept["config"] = values["config"]

        def log(numbers: dict[str, float], step: int) -> None:
            kept["log"].setdefault(step, {}).update(numbers)
            kept["steps"].append(step)

        return types.SimpleNamespace(
            log=log,
            summary=kept["summary"],
            finish=lambda exit_code=0: kept["exit"].append(exit_code),
        )


def test_wandb_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", library)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    state = drive(tiny(tmp_path), make_tracker("wandb", "fake", tmp_path))
    assert library.sent.keys() == rows_in(state).keys()
    for trial_id, row in rows_in(state).items():
        told = library.sent[trial_id]
        assert set(told["log"]) == {1, 2, 3}
        assert told["config"]["lr"] == row.lr
        assert told["summary"]["val_score"] == row.val_score
        assert told["exit"][-1] == int(row.status == "failed")
    assert sum(len(t["exit"]) for t in library.sent.values()) == 6 + 1  # one was left open and taken up again


def untracked(plan: FakePlan, tracker: Callable[[], Observer]) -> SweepState:
    """A sweep of which a tracker sees the first trial's first attempt, which fails, and the beginning of the second.

    What follows runs without it: both trials end, one of the others is stopped by the pruner, and the first trial is
    tried again. At last a tracker is started, twice.
    """
    state = SweepState(plan.feasible, plan.spec)
    seeing: Observer | None = tracker()
    seeing.start(seen_in(state))
    number, first = 0, None
    while (slot := state.next_slot()) is not None:
        cell = state.cells[slot.cell_id]
        state.start(slot)
        if seeing is not None:
            seeing.asked(cell.cell, slot)
        for epoch in (1, 2, 3):
            state.report(slot.cell_id, slot.trial_id, epoch, 0.1 * epoch)
            if seeing is not None:
                seeing.reported(slot, {"epoch": epoch, "train_loss": None, "val_score": 0.1 * epoch})
            if seeing is not None and (number, epoch) == (1, 2):
                seeing.close()
                seeing = None
        row = row_of(slot, {0: "failed", 2: "pruned"}.get(number, "finished"))
        state.finish(row)
        if seeing is not None:
            seeing.finished(slot, row)
        first = first or slot
        cell.choice = cell.settle() or cell.choice
        number += 1
    assert first is not None
    state.finish(replace(row_of(first), attempt=2))
    for _ in range(2):
        last = tracker()
        last.start(seen_in(state))
        last.close()
    return state


def test_outcomes_of_trials_that_ended_untracked_are_put_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", library)
    monkeypatch.setenv("WANDB_MODE", "offline")
    state = untracked(tiny(tmp_path), lambda: make_tracker("wandb", "fake", tmp_path))
    rows = rows_in(state)
    assert library.sent.keys() == rows.keys() and {row.status for row in rows.values()} == {"finished", "pruned"}
    begun = {trial_id: len(told["exit"]) for trial_id, told in library.sent.items()}
    assert sorted(begun.values()) == [1] * (len(rows) - 2) + [2, 2]  # failed and again; left and ended
    for trial_id, row in rows.items():
        told = library.sent[trial_id]
        assert told["summary"]["status"] == row.status and told["summary"]["reason"] == row.reason
        assert told["exit"][-1] == 0
        again = trial_id == next(iter(rows))
        assert told["steps"] == [1, 2, 3] * (1 + again)  # no epoch twice, but those of a second attempt


def test_tensorboard_gets_outcomes_of_trials_that_ended_untracked(tmp_path: Path) -> None:
    state = untracked(tiny(tmp_path), lambda: make_tracker("tensorboard", "fake", tmp_path))
    found = tensorboard_scalars(tmp_path / "tensorboard")
    assert found.keys() == rows_in(state).keys()
    assert all(found[i]["outcome/val_score"] == {3: pytest.approx(r.val_score)} for i, r in rows_in(state).items())


def test_tensorboard_folders_are_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = drive(tiny(tmp_path), make_tracker("tensorboard", "fake", tmp_path))
    patterns: list[str] = []
    real = Path.glob

    def glob(path: Path, pattern: str, **how: Any) -> Any:
        patterns.append(pattern)
        return real(path, pattern, **how)

    monkeypatch.setattr(Path, "glob", glob)
    tracker = make_tracker("tensorboard", "fake", tmp_path)
    tracker.start(seen_in(state))
    tracker.close()
    assert len(rows_in(state)) > 1 and len(patterns) == 1


@pytest.mark.filterwarnings("ignore")
def test_mlflow_gets_outcomes_of_trials_that_ended_untracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (extra: mlflow)")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    state = untracked(tiny(tmp_path), lambda: make_tracker("mlflow", "fake", tmp_path))
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("fake").experiment_id])
    assert {run.data.tags["trial_id"]: run.data.tags["status"] for run in runs} == {
        trial_id: row.status for trial_id, row in rows_in(state).items()
    }
    steps = [[m.step for m in client.get_metric_history(run.info.run_id, "val_score")] for run in runs]
    assert sorted(map(len, steps)) == [3] * (len(runs) - 1) + [6]


def test_trackio_gets_outcomes_of_trials_that_ended_untracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio", reason="trackio is not installed (extra: trackio)")
    state = untracked(tiny(tmp_path), lambda: make_tracker("trackio", "late", tmp_path))
    runs = {run.name.rpartition(" ")[2] for run in trackio.Api().runs("late")}
    assert runs == rows_in(state).keys()


def test_what_a_tracker_was_told_survives_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "tracked" / "x.jsonl"
    told = SentLog(path)
    told.write("a", 2)
    told.write("b", 3, 1)
    path.write_text(path.read_text() + '{"trial_id": "c", "epo')
    again = SentLog(path)
    assert (again.epoch("a"), again.attempt("a")) == (2, None) and (again.epoch("b"), again.attempt("b")) == (3, 1)
    assert "c" not in again


def test_wandb_without_an_account_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(key=False))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(SpecError, match="wandb login"):
        make_tracker("wandb", "fake", tmp_path)


def test_what_is_missing_or_unknown_is_said_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("mlflow", "trackio"):
        monkeypatch.setitem(sys.modules, package, None)  # importing it raises ImportError
    names = ["mlflow", "tensorbord", "trackio"]
    with pytest.raises(SpecError) as caught:
        watchers(fake_plan(tmp_path).spec, "nosuchdatabase://x", names)
    said = [str(problem) for problem in caught.value.problems]
    assert len(said) == 4
    assert "pip install 'randlora-sweeps[mlflow]'" in said[0]
    assert "Nearest: tensorboard" in said[1]
    assert "pip install 'randlora-sweeps[trackio]'" in said[2]
    assert "--optuna-storage" in said[3]
    assert set(TRACKERS) == {"tensorboard", "mlflow", "wandb", "trackio"}
