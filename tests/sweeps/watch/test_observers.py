"""What watches a sweep: the Optuna mirror through a kill, and an observer that fails or is slow."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest

from analysis.store.rows import TrialRow
from sweeps.backends.ray.backend import using
from sweeps.backends.ray.pool import Pool
from sweeps.engine.run import run
from sweeps.errors import SpecError
from sweeps.search.stages import Slot, SweepState
from sweeps.spec.cell import Cell
from sweeps.spec.space import Dimension
from sweeps.watch.mirror import StudyMirror, close_storage, open_storage
from sweeps.watch.observers import Observers, Seen
from tests.fakes import TRIAL, FakeCell, FakeConfirm, FakeSearch, fake_plan, fake_row
from tests.support import ROOT, gone, wait_for
from tests.sweeps.support import events, rows, searched

DRIVER = """
import sys
from pathlib import Path
from sweeps.engine.run import run
from sweeps.watch.mirror import StudyMirror
from tests.fakes import TRIAL
from tests.sweeps.support import searched

plan = searched(Path(sys.argv[1]), delay=0.8)
run(plan, trial=TRIAL, progress=False, observers=[StudyMirror(sys.argv[2], "fake")])
"""


def mirrored(where: str, cell_id: str) -> optuna.Study:
    """The study of a cell, read from the storage into memory."""
    storage = open_storage(where)
    stored = optuna.load_study(study_name=f"fake/{cell_id}", storage=storage)
    study = optuna.create_study(direction=stored.direction)
    study.add_trials(stored.trials)
    close_storage(storage)
    return study


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_driver_killed_before_the_first_tell_repeats_no_rate_and_the_mirror_agrees(
    tmp_path: Path, pool: Pool
) -> None:
    folder, where = tmp_path / "r", str(tmp_path / "studies.log")
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(folder), where], cwd=ROOT)
    try:
        wait_for(lambda: len(events(folder, "report")) >= 2, "the first reports", 400)
        family = psutil.Process(driver.pid).children(recursive=True)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    wait_for(lambda: gone(family), "the killed driver's processes to end", 60)
    asked = {e["trial_id"]: e["config"]["lr"] for e in events(folder, "ask")}
    assert len(asked) >= 2
    assert not events(folder, "finish")
    summary = run(
        searched(folder), trial=TRIAL, progress=False, backend=using(pool), observers=[StudyMirror(where, "fake")]
    )
    assert (summary.finished, summary.failed) == (12, 0)
    tuned = [t for t in rows(folder, "trials") if t["stage"] == "TUNE"]
    for cell_id in ("lora-1000", "vera-1000"):
        mine = {t["trial_id"]: t for t in tuned if t["cell_id"] == cell_id}
        assert len({t["lr"] for t in mine.values()}) == len(mine) == 5
        study = mirrored(where, cell_id)
        assert study.direction == optuna.study.StudyDirection.MAXIMIZE
        shown = {t.user_attrs["trial_id"]: t for t in study.trials}
        assert shown.keys() == mine.keys()
        assert len(study.trials) == 5
        for trial_id, trial in shown.items():
            assert trial.state == optuna.trial.TrialState.COMPLETE
            assert trial.params == {"lr": mine[trial_id]["lr"]}
            assert trial.value == mine[trial_id]["val_score"]
            assert set(trial.intermediate_values) == {1, 2, 3}
        assert study.best_trial.user_attrs["trial_id"] in mine
    assert asked.items() <= {t["trial_id"]: t["lr"] for t in tuned}.items()  # what was begun is what was finished


def test_pruned_and_failed_trials_and_a_sweep_mirrored_late(tmp_path: Path, pool: Pool) -> None:
    """The mirror starts after the sweep has ended: all of it is put in, and CONFIRM is not."""
    cells = (FakeCell("lora", options=(("fail_above", 1e-2),)), FakeCell("vera"))
    search = FakeSearch(trials=8, pruner="asha", rerun_rates=0, rerun_seeds=0)
    plan = fake_plan(tmp_path / "r", cells, search=search, confirm=FakeConfirm((0,)))
    run(plan, trial=TRIAL, progress=False, backend=using(pool))
    where = f"sqlite:///{tmp_path / 'studies.db'}"
    for _ in range(2):  # the second time finds everything there
        run(plan, trial=TRIAL, progress=False, observers=[StudyMirror(where, "fake")])
    wanted = Counter((t["cell_id"], t["status"]) for t in rows(tmp_path / "r", "trials") if t["stage"] == "TUNE")
    names = {"finished": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    for cell_id in ("lora-1000", "vera-1000"):
        shown = Counter(t.state.name for t in mirrored(where, cell_id).trials)
        assert shown == {names[s]: n for (c, s), n in wanted.items() if c == cell_id}
    assert {s for _, s in wanted} == set(names)


def test_a_mirror_takes_no_trial_for_another(tmp_path: Path) -> None:
    """One that another version left waiting in the study, as its driver was killed between two calls."""
    plan, where = fake_plan(tmp_path, (FakeCell("lora"),)), str(tmp_path / "studies.log")
    state = SweepState(plan.feasible, plan.spec)
    slots = [state.next_slot() for _ in range(2)]
    mirror = StudyMirror(where, "fake")
    for slot in filter(None, slots):
        if not mirror._trials:
            mirror._study(state.cells[slot.cell_id].cell).enqueue_trial({"lr": 0.5})
        mirror.asked(state.cells[slot.cell_id].cell, slot)
        mirror.reported(slot, {"epoch": 1, "val_score": 0.5})
        mirror.finished(slot, fake_row(slot, val_score=0.25))
    shown = {t.user_attrs.get("trial_id"): t for t in mirrored(where, "lora-1000").trials}
    for slot in filter(None, slots):
        trial = shown[slot.trial_id]
        assert (trial.state.name, trial.value, trial.params) == ("COMPLETE", 0.25, {"lr": slot.lr})
        assert trial.datetime_start is not None
        assert trial.intermediate_values == {1: 0.5}
    assert shown[None].state.name == "WAITING"


def test_a_trial_that_is_asked_again_is_mirrored_once(tmp_path: Path) -> None:
    plan, where = fake_plan(tmp_path, (FakeCell("lora"),)), str(tmp_path / "studies.log")
    state = SweepState(plan.feasible, plan.spec)
    slot = state.next_slot()
    assert slot is not None
    mirror = StudyMirror(where, "fake")
    for _ in range(2):  # as after a backend was lost
        mirror.asked(state.cells[slot.cell_id].cell, slot)
        mirror.reported(slot, {"epoch": 1, "val_score": 0.5})
    mirror.finished(slot, fake_row(slot, val_score=0.25))
    assert [t.state.name for t in mirrored(where, "lora-1000").trials] == ["COMPLETE"]


def test_a_value_that_rounding_puts_below_its_range_is_mirrored(tmp_path: Path) -> None:
    decay = Dimension("weight_decay", low=1 / 3000, high=0.1, log=True)
    plan = fake_plan(tmp_path, (FakeCell("lora", dimensions=(decay,)),))
    slot = SweepState(plan.feasible, plan.spec).next_slot()
    assert slot is not None
    low = replace(slot, extra=(("weight_decay", decay.ends[0]),))
    mirror = StudyMirror(str(tmp_path / "studies.log"), "fake")
    mirror.asked(plan.cells[0], low)
    (trial,) = mirrored(str(tmp_path / "studies.log"), "lora-1000").trials
    assert trial.params["weight_decay"] == decay.ends[0] < 1 / 3000


def test_a_storage_that_cannot_be_opened_is_bad_input(tmp_path: Path) -> None:
    for where in ("nosuchdatabase://x", str(tmp_path)):
        with pytest.raises(SpecError, match=r"--optuna-storage.*can't be opened"):
            StudyMirror(where, "fake")


class Recorder:
    """Writes down what it is told; raises at its `fails`-th event."""

    name = "the recorder"

    def __init__(self, fails: int | None = None) -> None:
        self.fails, self.told = fails, []

    def _tell(self, what: str) -> None:
        if self.fails is not None and len(self.told) >= self.fails:
            raise ConnectionError("the server is gone\nand more")
        self.told.append(what)

    def start(self, seen: Sequence[Seen]) -> None:
        self._tell(f"start {len(seen)}")

    def asked(self, cell: Cell, slot: Slot) -> None:
        self._tell(f"asked {slot.trial_id}")

    def reported(self, slot: Slot, values: Mapping[str, Any]) -> None:
        self._tell(f"reported {slot.trial_id} {values['epoch']}")

    def finished(self, slot: Slot, row: TrialRow) -> None:
        self._tell(f"finished {slot.trial_id}")

    def close(self) -> None:
        self._tell("close")


def test_observers_are_told_everything_in_order_and_a_broken_one_is_left_out(tmp_path: Path, pool: Pool) -> None:
    notes: list[str] = []

    class Notes:
        def start(self, state: Any) -> None: ...
        def update(self, state: Any) -> None: ...
        def stop(self, state: Any) -> None: ...
        def note(self, text: str) -> None:
            notes.append(text)

    good, bad = Recorder(), Recorder(fails=5)
    plan = fake_plan(tmp_path / "r", (FakeCell("lora"),), confirm=FakeConfirm((0,)))
    summary = run(plan, trial=TRIAL, progress=Notes(), backend=using(pool), observers=[bad, good])
    assert summary.complete
    assert (good.told[0], good.told[-1]) == ("start 0", "close")
    assert Counter(line.split()[0] for line in good.told[1:-1]) == {"asked": 7, "reported": 7 * 3, "finished": 7}
    for line in good.told:
        if line.startswith("finished"):
            trial_id = line.split()[1]
            mine = [other.split()[0] for other in good.told if trial_id in other]
            assert (mine[0], mine[-1]) == ("asked", "finished")
    assert len(bad.told) == 5
    assert notes == ["the recorder is left out from here on (ConnectionError: the server is gone); the sweep goes on"]


def test_no_observers_no_thread(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path)
    observers = Observers()
    observers.start(SweepState(plan.feasible, plan.spec))
    observers.close()
    assert observers._thread is None
