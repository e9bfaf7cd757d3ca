"""`sweeps status` as a process of its own, from another terminal, while a sweep runs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.report.facts import facts
from analysis.store.left import to_come
from analysis.store.store import open_store
from analysis.store.tables import part_paths, write_part
from sweeps.backends.ray.pool import Pool
from sweeps.cli.progress import progress_of
from sweeps.cli.run import _print_results
from sweeps.cli.watching.page import Page
from sweeps.exporting.kept import _by_id
from sweeps.plan.estimate import _left
from sweeps.plan.plan import Plan
from sweeps.records.journal import Journal
from sweeps.search.stages import SweepState
from sweeps.spec.spec import SweepSpec
from tests.analysis.odd import odd_results
from tests.fakes import FakeCell, FakeConfirm, FakeSearch, analytic_trial, fake_plan
from tests.support import ROOT
from tests.sweeps.inline import go_inline
from tests.sweeps.support import PAIR, events, go, logged
from trainables.config import TrialConfig


def status(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "sweeps.cli.main", "status", str(folder), *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=120).stdout


class Terminal(threading.Thread):
    """Asks again and again, from the first finished trial until the sweep is over."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.over = folder, threading.Event()
        self.told: list[dict[str, Any]] = []
        self.text = ""

    def run(self) -> None:
        while not self.over.wait(0.05):
            if not events(self.folder, "finish"):
                continue
            if not self.text:
                self.text = status(self.folder)
            self.told.append(json.loads(status(self.folder, "--json")))


def test_a_sweep_that_ended_is_over_whatever_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(trial: TrialConfig, **how: Any) -> Generator[dict[str, Any], None, None]:
        if (trial.method, trial.stage) == ("vera", "CONFIRM"):
            raise ValueError("this seed is at fault")
        return analytic_trial(trial, **how)

    monkeypatch.setattr("tests.fakes.analytic_trial", fails)
    cells = (*PAIR, FakeCell("nola", options=(("fail_above", 0.0),)))
    go_inline(fake_plan(tmp_path, cells, confirm=FakeConfirm((0,))))
    store = open_store(tmp_path)
    told = progress_of(store)
    assert (told["phases"], told["cells_confirmed"]) == ({"done": 2, "stuck": 1}, 1)
    assert facts(store)["missing"] == 0  # so the report is not preliminary


def test_the_losses_of_ray_are_shown(tmp_path: Path) -> None:
    go_inline(fake_plan(tmp_path, PAIR))
    assert progress_of(open_store(tmp_path))["losses"] == []
    assert "lost" not in status(tmp_path)
    with Journal(tmp_path / "journal.jsonl") as journal:
        for minute, reason in ((4, "Ray's raylet died"), (5, "Ray's gcs_server died")):
            journal.write({"ev": "lost", "at": f"2026-01-02T03:0{minute}:06+00:00", "reason": reason})
    losses = progress_of(open_store(tmp_path))["losses"]
    assert [loss["reason"] for loss in losses] == ["Ray's raylet died", "Ray's gcs_server died"]
    assert "Ray was lost and started again 2 times (last: 2026-01-02 03:05 UTC)\n" in status(tmp_path)


def test_a_cell_that_is_extended_is_not_done(tmp_path: Path) -> None:
    def interrupt(ended: int) -> None:
        if ended == 2:
            raise KeyboardInterrupt

    go_inline(fake_plan(tmp_path, PAIR))
    assert progress_of(open_store(tmp_path))["phases"] == {"done": 2}
    assert go_inline(fake_plan(tmp_path, PAIR, search=FakeSearch(trials=9)), interrupt).interrupted
    told = progress_of(open_store(tmp_path))
    assert (told["phases"], told["cells_confirmed"]) == ({"tuning": 2}, 0)


def test_a_sweep_whose_seeds_are_all_held_ends(tmp_path: Path) -> None:
    """A re-run, and a further seed of CONFIRM, is the trial that was there."""
    held = FakeConfirm((0, 1, 2), {"data_seed": 0, "init_seed": 0, "basis_seed": 0})
    plan = fake_plan(tmp_path, PAIR, confirm=held)
    assert go_inline(plan).complete
    told = progress_of(open_store(tmp_path))
    assert (told["finished"], told["trials"]) == (12, 12)  # of each cell five rates, and CONFIRM
    assert (told["phases"], told["cells_confirmed"]) == ({"done": 2}, 2)
    assert not any(left.trials for left in _left(plan, retry_failed=False))
    state = SweepState(plan.feasible, plan.spec)
    assert [cell.planned() for cell in state.cells.values()] == [6, 6]


def test_a_held_sweep_file_plans_one_trial_of_confirm() -> None:
    asked = ROOT / "examples" / "quickstart.toml"
    held = ["confirm.hold={data_seed=0, init_seed=0, basis_seed=0}"]
    free, fixed, part = (
        Plan.from_spec(SweepSpec.load(asked, given)).feasible for given in ([], held, ["confirm.hold={data_seed=0}"])
    )
    assert [c.cell_id for c in free] == [c.cell_id for c in fixed]
    assert {c.confirm_seeds for c in fixed} == {1}
    assert [c.confirm_seeds for c in free] == [c.confirm_seeds for c in part]


def test_failed_trials_that_are_tried_again_are_to_come(tmp_path: Path) -> None:
    """Two cells of six trials of TUNE and CONFIRM each, of which one fails all and the other one rate."""
    cells = (FakeCell("nola", options=(("fail_above", 0.0),)), FakeCell("lora", options=(("fail_above", 1e-2),)))
    plan = fake_plan(tmp_path, cells, search=FakeSearch(trials=4), confirm=FakeConfirm((0,)))
    first = go_inline(plan)
    before = progress_of(open_store(tmp_path))
    assert (before["failed"], before["retried"], before["phases"]) == (first.failed, [], {"done": 1, "stuck": 1})
    told, pages = list[dict[str, Any]](), list[str]()

    def look(ended: int) -> None:
        told.append(progress_of(open_store(tmp_path)))
        pages.append(Page(tmp_path).text_sections()["lanes"])

    mended = go_inline(plan, look, "tests.fakes:mended_trial", retry_failed=True)
    assert mended.complete
    left = [len(t["retried"]) for t in told]
    assert left[0] == first.failed and left == sorted(left, reverse=True)
    assert all(0 <= t["unfinished"] - n <= 1 for t, n in zip(told, left, strict=True))  # the trial that begins
    assert "nola" in pages[0]
    assert (told[0]["failed"], told[0]["phases"]) == (0, {"tuning": 2})
    assert told[0]["trials"] - told[0]["finished"] == mended.finished
    after = progress_of(open_store(tmp_path))
    assert (after["retried"], after["phases"], after["trials"]) == ([], {"done": 2}, after["finished"])


def test_the_last_attempt_counts_in_whatever_order_parts_come(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The part of a first attempt was damaged, and sealed again after the second's."""
    folder, plan = tmp_path / "r", fake_plan(tmp_path / "r", (FakeCell("lora", options=(("fail_above", 1e-2),)),))
    go_inline(plan)
    (first,) = (r for r in open_store(folder).table("trials").to_pylist() if r["status"] == "failed")
    mended = go_inline(plan, trial="tests.fakes:mended_trial", retry_failed=True)
    part = part_paths(folder, "trials")[0]
    part.write_bytes(part.read_bytes()[:-9])
    assert go_inline(plan).damaged
    store = open_store(folder)
    assert [r["attempt"] for r in store.table("trials").to_pylist() if r["trial_id"] == first["trial_id"]] == [2, 1]
    told = progress_of(store)
    assert (told["failed"], told["failures"], told["finished"]) == (0, [], told["trials"])
    assert _by_id(store, first["trial_id"], {first["trial_id"]})["status"] == "finished"
    _print_results(folder, replace(mended, failed_before=1), {})
    assert "failed:" not in capsys.readouterr().err


def test_a_copy_without_a_journal_says_what_was_begun(tmp_path: Path) -> None:
    def interrupt(ended: int) -> None:
        if ended == 9:
            raise KeyboardInterrupt

    assert go_inline(fake_plan(tmp_path, PAIR), interrupt).interrupted
    here = progress_of(open_store(tmp_path))["phase_of"]
    (tmp_path / "journal.jsonl").unlink()
    assert progress_of(open_store(tmp_path))["phase_of"] == here
    assert "waiting" not in here.values()


def test_a_cell_is_tuned_when_what_leads_has_its_reruns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = (FakeCell("lora"),)
    search, more = (FakeSearch(trials=n, rerun_rates=2, rerun_seeds=2) for n in (9, 13))

    def interrupt(ended: int) -> None:
        if ended == 4:  # the new rates; what they change is to come
            raise KeyboardInterrupt

    go_inline(fake_plan(tmp_path / "more", cells, search=search))
    assert progress_of(open_store(tmp_path / "more"))["phases"] == {"done": 1}
    assert go_inline(fake_plan(tmp_path / "more", cells, search=more), interrupt).interrupted
    told = progress_of(open_store(tmp_path / "more"))
    left = go_inline(fake_plan(tmp_path / "more", cells, search=more)).finished
    assert told["phases"] == {"tuning": 1} and told["trials"] - told["finished"] == left == 2
    assert progress_of(open_store(tmp_path / "more"))["phases"] == {"done": 1}

    two = (*cells, FakeCell("vera"))
    assert go_inline(fake_plan(tmp_path / "less", two, search=more), interrupt).interrupted
    go_inline(fake_plan(tmp_path / "less", two, search=FakeSearch(trials=7, rerun_rates=2, rerun_seeds=2)))
    told = progress_of(open_store(tmp_path / "less"))
    assert (told["phases"], told["trials"]) == ({"done": 2}, told["finished"])
    assert to_come(open_store(tmp_path / "less", tmp_path / "more")).keys() >= {("fake", "vera-1000")}

    rates: list[float] = []

    def fails(trial: TrialConfig, **how: Any) -> Generator[dict[str, Any], None, None]:
        if trial.stage == "TUNE":
            rates.append(trial.lr)
        if trial.stage == "TUNE" and trial.lr != rates[0]:
            raise ValueError("this rate is at fault")
        return analytic_trial(trial, **how)

    monkeypatch.setattr("tests.fakes.analytic_trial", fails)
    assert go_inline(fake_plan(tmp_path / "one", cells, search=search)).failed == 4
    store = open_store(tmp_path / "one")
    told = progress_of(store)
    assert (told["phases"], told["cells_confirmed"], told["trials"]) == ({"done": 1}, 1, 5 + 2 + 2)
    assert facts(store)["missing"] == 0


def test_rates_past_an_end_that_reruns_chose_have_reruns_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[int] = []

    def score(config: dict[str, Any], epoch: int) -> float:  # inside on the first seed, past the end on the others
        first.append(config["data_seed"])
        best = -3.4 if config["data_seed"] == first[0] else -1.5
        return 1 - abs(math.log10(config["lr"]) - best) / 9

    def interrupt(ended: int) -> None:
        if ended == 10:  # the point past the end, none of its re-runs
            raise KeyboardInterrupt

    monkeypatch.setattr("tests.fakes.analytic_score", score)
    cells = (FakeCell("lora", lr_low=1e-4, lr_high=1e-2),)
    plan = fake_plan(tmp_path, cells, search=FakeSearch(trials=9, rerun_rates=3, rerun_seeds=2, widen=1))
    assert go_inline(plan, interrupt).interrupted
    assert set(to_come(open_store(tmp_path)).values()) == {(2, 2)}
    go_inline(plan)
    store = open_store(tmp_path)
    assert set(to_come(store).values()) == {(0, 0)}
    told = progress_of(store)
    assert (told["phases"], told["trials"], told["finished"]) == ({"done": 1}, 14, 14)
    assert [r["widened"] for r in store.table("parity").to_pylist()] == [3]


def test_rates_past_an_end_and_replaced_runs_are_beyond_the_plan(tmp_path: Path) -> None:
    """They count among the trials that ended, and for nothing that the plan has still to run."""
    cells = {("lora", "lora-1", "a"): {0: 0.5, 1: 0.6}, ("randlora", "lora-1", "a"): {0: 0.5}}
    folder = odd_results(tmp_path / "r", cells, tune=(0.5, 0.6), seeds=2)
    before = progress_of(open_store(folder))
    assert (before["finished"], before["trials"]) == (7, 8)
    one = next(r for r in open_store(folder).table("trials").to_pylist() if r["stage"] == "TUNE")
    further = one | {"trial_id": "f" * 16, "lr": 9 * one["lr"], "slot": 9, "origin": "widened"}
    replaced = one | {"trial_id": "e" * 16, "stage": "CONFIRM", "lr": 9 * one["lr"], "test_score": 0.4}
    write_part(folder, "trials", [further, replaced])
    store = open_store(folder)
    after = progress_of(store)
    assert (after["finished"], after["trials"]) == (9, 10)
    write_part(folder, "cells", [r | {"tune_trials": 3} for r in store.table("cells").to_pylist()])
    coverage = open_store(folder).table("coverage").to_pylist()
    assert [(r["method"], r["tune_done"], r["missing"]) for r in coverage] == [("lora", 2, 1), ("randlora", 2, 2)]


@pytest.mark.slow
def test_another_terminal_sees_the_numbers_grow(tmp_path: Path, pool: Pool) -> None:
    folder = tmp_path / "r"
    terminal = Terminal(folder)
    terminal.start()
    try:
        summary = go(fake_plan(folder, logged(tmp_path / "log", delay=0.4)), pool)
    finally:
        terminal.over.set()
        terminal.join()
    assert (summary.finished, summary.failed) == (32, 0)
    assert "of 32 trials finished, 0 failed" in terminal.text
    assert "trials of the run at " in terminal.text
    assert "; running" in terminal.text

    during = [told for told in terminal.told if told["running"]]
    finished = [told["finished"] for told in during]
    assert len(during) >= 3
    assert finished == sorted(finished)
    assert 1 <= finished[0] < finished[-1]
    assert {(told["trials"], told["failed"]) for told in during} == {(32, 0)}
    assert all(told["per_minute"] > 0 and told["seconds_left"] is not None for told in during)
    hours = [told["accelerator_hours"] for told in during]
    assert hours == sorted(hours)
    assert hours[0] < hours[-1]
    assert all(sum(told["phases"].values()) == told["cells"] == 4 for told in during)
    assert any(told["unfinished"] for told in during)

    after = json.loads(status(folder, "--json"))
    assert (after["running"], after["finished"], after["unfinished"]) == (False, 32, 0)
    assert (after["cells_confirmed"], after["seconds_left"]) == (4, None)
    assert "; not running, last event " in status(folder)
