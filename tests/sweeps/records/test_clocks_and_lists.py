"""Neither a clock that is set back nor what was once in the sweep file decides what counts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.store.store import open_store
from analysis.store.tables import part_paths, write_part
from sweeps.plan.estimate import _left
from sweeps.records import ledger
from sweeps.records.sealing import Sealer
from sweeps.spec.space import Dimension
from tests.fakes import FakeCell, FakeConfirm, FakePlan, FakeSearch, analytic_trial, fake_plan
from tests.sweeps.inline import go_inline
from tests.sweeps.records.support import FRAGILE, assert_retried, edit, without
from tests.sweeps.support import PAIR, events, rows
from trainables.config import TrialConfig


@pytest.fixture
def back(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the driver's clock back by seconds."""
    clock = [1.8e9]
    monkeypatch.setattr(ledger, "time", SimpleNamespace(time=lambda: clock[0]))
    return lambda seconds: clock.__setitem__(0, clock[0] - seconds)


def longer(folder: Path, cells: tuple[FakeCell, ...] = PAIR) -> FakePlan:
    return fake_plan(folder, cells, search=FakeSearch(trials=9, sampler="qmc"))


def shorter(folder: Path, cells: tuple[FakeCell, ...] = PAIR) -> FakePlan:
    return fake_plan(folder, cells, search=FakeSearch(trials=4, sampler="qmc"))


@pytest.mark.parametrize("lost", ["", "journal.jsonl", "tables"])
def test_a_clock_that_is_set_back_changes_no_result(tmp_path: Path, back: Callable[[float], None], lost: str) -> None:
    folder = tmp_path / "r"
    go_inline(shorter(folder))
    before = open_store(folder).table("chosen").to_pylist()
    back(3600.0)
    go_inline(longer(folder))
    if lost:
        without(lost)(folder)
        go_inline(longer(folder))
    go_inline(longer(tmp_path / "undisturbed"))
    now = open_store(folder)
    assert now.table("chosen").column("lr").to_pylist() != [r["lr"] for r in before]
    for view in ("confirmed", "scaling", "tuned"):
        kept = [n for n in now.table(view).column_names if n not in ("started_at", "ended_at")]
        order = [(n, "ascending") for n in ("cell_id", "trial_id") if n in kept]
        expected = open_store(tmp_path / "undisturbed").table(view).select(kept).sort_by(order)
        assert now.table(view).select(kept).sort_by(order).equals(expected), view
    stamps = [r["chosen_at"] for r in now.table("choices").to_pylist() if r["cell_id"] == "lora-1000"]
    assert stamps == sorted(set(stamps))


@pytest.mark.parametrize("lost", ["", "journal.jsonl", "tables"])
def test_failed_trials_are_tried_again_by_a_clock_that_is_set_back(
    tmp_path: Path, back: Callable[[float], None], lost: str
) -> None:
    folder, before, whole = tmp_path / "r", tmp_path / "shorter", tmp_path / "longer"
    go_inline(shorter(before))
    go_inline(longer(whole))
    go_inline(shorter(folder, FRAGILE))
    back(3600.0)
    assert go_inline(longer(folder, FRAGILE)).failed
    if lost:
        without(lost)(folder)
    back(3600.0)
    assert assert_retried(longer(folder, FRAGILE), whole, before).finished


def test_an_old_folder_of_a_wrong_clock_goes_by_the_order_of_lines(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    go_inline(shorter(folder))
    go_inline(longer(folder))
    good = open_store(folder).table("confirmed").num_rows, open_store(folder).table("chosen").to_pylist()

    def change(found: list[dict[str, Any]]) -> None:
        for k, event in enumerate(e for e in found if e["ev"] == "choose"):
            del event["row"]["sequence"]
            event["row"]["chosen_at"] = f"2026-01-01T{20 - k:02d}:00:00+00:00"

    edit(folder, change)
    shutil.rmtree(folder / "tables" / "choices")
    for _ in range(2):  # as it is, and after a run that seals it
        now = open_store(folder)
        assert now.table("confirmed").num_rows == good[0]
        assert [r["lr"] for r in now.table("chosen").to_pylist()] == [r["lr"] for r in good[1]]
        assert go_inline(longer(folder)).finished == 0


def test_a_part_written_later_sorts_later(tmp_path: Path) -> None:
    ahead = tmp_path / "tables" / "cells" / "part-29991231T235959999999-0123abcd.parquet"
    for tolerated in range(3):
        path = write_part(tmp_path, "cells", [FakeCell("lora", tune_trials=tolerated).row()])
        if not tolerated:
            path.rename(ahead)
    assert part_paths(tmp_path, "cells")[0] == ahead
    assert open_store(tmp_path).table("cells").column("tune_trials").to_pylist() == [2]


def seeds(folder: Path, *wanted: int) -> FakePlan:
    search = FakeSearch(trials=2, rerun_rates=0, rerun_seeds=0)
    return fake_plan(folder, PAIR, search=search, confirm=FakeConfirm(wanted))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2, 0), (2, 1, 0), (1, 3)])
def test_seeds_taken_out_or_reordered_leave_what_such_a_file_gives(tmp_path: Path, wanted: tuple[int, ...]) -> None:
    folder = tmp_path / "r"
    go_inline(seeds(folder, 0, 1, 2))
    go_inline(seeds(folder, *wanted))
    go_inline(seeds(tmp_path / "undisturbed", *wanted))
    now, expected = open_store(folder), open_store(tmp_path / "undisturbed")
    for name in ("scaling", "coverage"):
        assert now.table(name).equals(expected.table(name)), name
    left = {s for s in (0, 1, 2) if s not in wanted}
    assert {r["data_seed"] for r in now.table("superseded").to_pylist()} == left
    assert go_inline(seeds(folder, 0, 1, 2)).finished == 0
    assert open_store(folder).table("superseded").num_rows == 2 * len(set(wanted) - {0, 1, 2})


@pytest.mark.parametrize("wanted", [(0,), (1,), (2, 0), (2, 1, 0), (1, 3)])
def test_failed_seeds_are_tried_again_where_they_are_still_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: tuple[int, ...]
) -> None:
    folder, before, whole = tmp_path / "r", tmp_path / "before", tmp_path / "whole"
    go_inline(seeds(before, 0, 1, 2))
    go_inline(seeds(whole, *wanted))
    asks = [e for e in events(before, "ask") if e["config"]["stage"] == "CONFIRM"]
    second = next(e["config"]["data_seed"] for e in asks if e["slot"] == 1)

    def second_fails(trial: TrialConfig, **how: Any) -> Generator[dict[str, Any], None, None]:
        if trial.stage == "CONFIRM" and trial.data_seed == second:
            raise ValueError("this seed is at fault")
        return analytic_trial(trial, **how)

    with monkeypatch.context() as patch:
        patch.setattr("tests.fakes.analytic_trial", second_fails)
        assert go_inline(seeds(folder, 0, 1, 2)).failed == 2
    assert assert_retried(seeds(folder, *wanted), whole, before).finished == 2 * len({1, 3} & set(wanted))


def test_a_whole_number_that_was_searched_is_one_choice(tmp_path: Path) -> None:
    """A configuration has 0.0 where the list has 0; so have rows of seeds that 0.1.0 added."""
    folder = tmp_path / "r"
    cell = FakeCell("lora", dimensions=(Dimension("weight_decay", values=(0,)),), published=(("weight_decay", 0),))

    def counted() -> tuple[int, int, int]:
        now = open_store(folder)
        [points] = now.table("tuned")["points_tried"].to_pylist()
        return now.table("confirmed").num_rows, now.table("superseded").num_rows, points

    go_inline(fake_plan(folder, (cell,)))
    go_inline(fake_plan(folder, (cell,), confirm=FakeConfirm((0, 1, 2, 3, 4))))
    assert {r["hyperparameters"] for r in open_store(folder).table("trials").to_pylist()} == {'{"weight_decay": 0}'}
    assert counted() == (5, 0, 5)

    def change(found: list[dict[str, Any]]) -> None:
        for row in [e["row"] for e in found if e["ev"] == "finish"][5:]:  # a re-run, and the seeds
            row["hyperparameters"] = '{"weight_decay": 0.0}'

    edit(folder, change)
    without("tables")(folder)
    assert counted() == (5, 0, 5)


def test_budgets_taken_out_and_put_back_run_nothing_twice(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    cells = tuple(FakeCell("lora", budget) for budget in (1000, 4000))
    go_inline(fake_plan(folder, cells))
    before = rows(folder, "trials")
    for listed in (cells[1:], cells[::-1], cells):
        assert go_inline(fake_plan(folder, listed), retry_failed=True).finished == 0
    assert rows(folder, "trials") == before
    more = fake_plan(folder, (*cells, FakeCell("vera", 1000)))
    Sealer(folder).write_cells(cell.row() for cell in more.cells)  # as of a run that was interrupted
    assert go_inline(fake_plan(folder, cells[1:])).finished == 0
    left = {r["cell_id"]: (r["feasible"], r["missing"]) for r in open_store(folder).table("coverage").to_pylist()}
    assert left == {"lora-1000": (True, 0), "lora-4000": (True, 0), "vera-1000": (False, 0)}
    assert go_inline(more).finished == 8
    assert all(open_store(folder).table("cells").column("feasible").to_pylist())


def test_a_failure_that_no_longer_counts_is_none_of_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: set[int] = set()

    def second_fails(trial: TrialConfig, **how: Any) -> Generator[dict[str, Any], None, None]:
        seeds.update([trial.data_seed] * (trial.stage == "CONFIRM"))
        if len(seeds) > 1:
            raise ValueError("this seed is at fault")
        return analytic_trial(trial, **how)

    def plan(*seeds: int) -> FakePlan:
        return fake_plan(tmp_path / "r", PAIR[:1], confirm=FakeConfirm(seeds))

    monkeypatch.setattr("tests.fakes.analytic_trial", second_fails)
    assert go_inline(plan(0, 1)).failed == 1
    assert go_inline(plan(0, 1)).failed_before == 1
    assert go_inline(plan(0)).complete
    assert [left.confirm for left in _left(plan(0, 2), retry_failed=False)] == [1]


def test_seeds_that_the_sweep_file_lost_are_not_done(tmp_path: Path) -> None:
    """The estimate counts what a run would find: seeds of the file as it is now."""

    def plan(*seeds: int) -> FakePlan:
        return fake_plan(tmp_path / "r", PAIR[:1], confirm=FakeConfirm(seeds))

    assert go_inline(plan(0, 1)).complete
    assert [(left.tune, left.confirm) for left in _left(plan(2, 3, 1), retry_failed=False)] == [(0, 2)]
    assert go_inline(plan(2, 3, 1)).finished == 2
