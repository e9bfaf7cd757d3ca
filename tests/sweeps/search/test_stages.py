"""The slots of a sweep, run by a loop instead of an engine."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.store.rows import TrialRow
from sweeps.search.slots import Choice, Slot
from sweeps.search.stages import SweepState
from sweeps.spec.sections import TUNE_SEED
from tests.fakes import FakeCell, FakeConfirm, FakePlan, FakeSamples, FakeSearch, fake_plan
from tests.sweeps.search.support import Rows, drive, keys, row_of, seeds_of, simulate


@pytest.mark.parametrize("sampler", ["grid", "qmc", "random", "tpe"])
def test_every_cell_gets_its_exact_allowance(tmp_path: Path, sampler: str) -> None:
    plan = fake_plan(tmp_path, search=FakeSearch(trials=8, sampler=sampler, rerun_rates=2, rerun_seeds=2))
    rows: Rows = {}
    state = simulate(plan, rows, parallel=3)
    tune = Counter(r.cell_id for r in rows.values() if r.stage == "TUNE")
    confirm = Counter(r.cell_id for r in rows.values() if r.stage == "CONFIRM")
    trained = {c.cell_id for c in plan.cells if c.lr_centre is not None}
    assert tune == dict.fromkeys(trained, 8)
    assert confirm == {**dict.fromkeys(trained, 2), "zero-shot-None": 1}
    assert all(cell.phase == "done" and cell.finished for cell in state.cells.values())
    assert sum(c.counted() for c in state.cells.values()) == len(rows) == sum(c.planned() for c in state.cells.values())
    for cell_id in trained:
        mine = [r for r in rows.values() if r.cell_id == cell_id and r.stage == "TUNE"]
        assert sorted(r.slot for r in mine) == list(range(8))
        rates = {r.lr for r in mine if r.data_seed == TUNE_SEED}
        reruns = Counter(r.lr for r in mine if r.data_seed > TUNE_SEED)
        assert len(rates) == 4
        assert sorted(reruns.values()) == [2, 2]
        assert set(reruns) <= rates


def test_choice_is_the_best_mean_over_seeds_of_the_rates_run_again(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, (FakeCell("lora"),), search=FakeSearch(trials=9, rerun_rates=2, rerun_seeds=2))
    rows: Rows = {}
    choice = simulate(plan, rows).cells["lora-1000"].choice
    tune = [r for r in rows.values() if r.stage == "TUNE"]
    again = {r.lr for r in tune if r.data_seed != TUNE_SEED}
    means = {lr: sum(r.val_score for r in tune if r.lr == lr) / 3 for lr in again}
    assert choice is not None
    assert choice.lr == max(means, key=lambda lr: means[lr])
    assert choice.mean_val == pytest.approx(means[choice.lr])
    assert (choice.n_trials, choice.n_rerun_seeds, choice.edge) == (9, 2, None)
    assert {r.lr for r in rows.values() if r.stage == "CONFIRM"} == {choice.lr}


def test_a_choice_is_told_once(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, (FakeCell("lora"),), search=FakeSearch(trials=6))
    cell = simulate(plan, {}).cells["lora-1000"]
    assert cell.choice is not None
    assert cell.settle() is None
    cell.choice = None
    assert cell.settle() is not None


@pytest.mark.parametrize(("low", "high", "edge"), [(1e-3, 1e-1, "low"), (1e-5, 1e-3, "high"), (1e-5, 1e-1, None)])
def test_a_best_rate_at_the_edge_is_flagged(tmp_path: Path, low: float, high: float, edge: str | None) -> None:
    plan = fake_plan(tmp_path, (FakeCell("lora", lr_low=low, lr_high=high),), search=FakeSearch(trials=6))
    choice = simulate(plan, {}).cells["lora-1000"].choice
    assert choice is not None
    assert choice.edge == edge


@pytest.mark.parametrize("sampler", ["grid", "qmc", "random"])
@pytest.mark.parametrize("stop_after", [0, 1, 5, 9, 17, 26, 33])
def test_an_interrupted_sweep_equals_an_undisturbed_one(tmp_path: Path, sampler: str, stop_after: int) -> None:
    plan = fake_plan(tmp_path, search=FakeSearch(sampler=sampler))
    whole: Rows = {}
    simulate(plan, whole)
    parts: Rows = {}
    for limit in (stop_after, 4, 10**6):
        simulate(plan, parts, parallel=3, limit=limit)
    assert keys(parts) == keys(whole)


@pytest.mark.parametrize("sampler", ["qmc", "grid", "tpe"])
def test_a_longer_allowance_only_adds(tmp_path: Path, sampler: str) -> None:
    cells = (FakeCell("lora"), FakeCell("vera"))
    rows: Rows = {}
    simulate(fake_plan(tmp_path, cells, search=FakeSearch(trials=5, sampler=sampler)), rows)
    before = keys(rows)
    state = simulate(fake_plan(tmp_path, cells, search=FakeSearch(trials=9, sampler=sampler)), rows)
    assert before <= keys(rows)
    for cell in state.cells.values():
        assert cell.choice is not None
        assert cell.choice.n_trials == 9
        confirmed = [r for r in cell.rows.values() if r.stage == "CONFIRM" and r.lr == cell.choice.lr]
        assert len(confirmed) == 2  # CONFIRM is run again when the choice has changed
    if sampler != "tpe":  # whose points do not hang on the allowance: what counts equals a sweep begun with it
        fresh = simulate(fake_plan(tmp_path, cells, search=FakeSearch(trials=9, sampler=sampler)), {})
        assert [c.choice for c in fresh.cells.values()] == [c.choice for c in state.cells.values()]


def chosen(state: SweepState) -> list[Choice | None]:
    """The choice of every cell; a loop of these tests journals none of earlier runs."""
    return [cell.settle() or cell.choice for cell in state.cells.values()]


def rates(rows: Rows, cell_id: str) -> set[float]:
    return {r.lr for r in rows.values() if r.cell_id == cell_id and r.stage == "TUNE"}


@pytest.mark.parametrize("sampler", ["grid", "qmc"])
def test_a_method_that_joins_a_longer_allowance_tries_the_rates_of_the_others(tmp_path: Path, sampler: str) -> None:
    lora, vera = FakeCell("lora"), FakeCell("vera")
    rows: Rows = {}
    simulate(fake_plan(tmp_path, (lora,), search=FakeSearch(trials=6, sampler=sampler)), rows)
    both = fake_plan(tmp_path, (lora, vera), search=FakeSearch(trials=8, sampler=sampler))
    state = simulate(both, rows)
    if sampler == "grid":  # Sobol points have a seed of the cell's own
        assert rates(rows, "lora-1000") == rates(rows, "vera-1000")
    assert chosen(simulate(both, {})) == chosen(state)


@pytest.mark.parametrize("allowance", ["trials", "samples"])
def test_a_lowered_allowance_keeps_what_every_cell_knows(tmp_path: Path, allowance: str) -> None:
    """Of trials at the best rates, the last ones of a grid, nothing may be lost."""
    lora, vera, dora = (FakeCell(m, epoch_samples=100, lr_low=1e-6, lr_high=1e-2) for m in ("lora", "vera", "dora"))

    def plan(trials: int, *cells: FakeCell) -> FakePlan:
        given = {"trials": trials} if allowance == "trials" else {"allowance": FakeSamples(300 * trials)}
        return fake_plan(tmp_path, cells, search=FakeSearch(**given))

    rows: Rows = {}
    before = chosen(simulate(plan(9, lora, vera), rows))
    assert len(rates(rows, "lora-1000")) == 8
    state = simulate(plan(6, lora, vera), rows)
    assert chosen(state) == before
    state = simulate(plan(6, lora, vera, dora), rows)  # one that knows less: then what all know counts, and no more
    assert [len(c.effort.points(c._first_seeds(), c.rows)) for c in state.cells.values()] == [5, 5, 5]
    assert rates(rows, "dora-1000") == {1e-4, 1e-6, 1e-2, 1e-5, 1e-3}
    assert chosen(simulate(plan(6, lora, vera, dora), {})) == chosen(state)


def test_more_seeds_only_add_confirm_trials(tmp_path: Path) -> None:
    rows: Rows = {}
    simulate(fake_plan(tmp_path, confirm=FakeConfirm((0, 1))), rows)
    before = keys(rows)
    simulate(fake_plan(tmp_path, confirm=FakeConfirm((0, 1, 2))), rows)
    added = [r for r in rows.values() if (r.trial_id, r.slot, r.val_score) not in before]
    assert before <= keys(rows)
    assert {(r.stage, seeds_of(r)) for r in added} == {("CONFIRM", (2, 2, 2))}
    assert len(added) == 5


def test_a_failed_rate_counts_and_the_cell_goes_on(tmp_path: Path) -> None:
    rows: Rows = {}
    plan = fake_plan(tmp_path, (FakeCell("lora"),), search=FakeSearch(trials=6))
    state = simulate(plan, rows, fails=lambda slot: slot.lr is not None and slot.lr > 1e-3)
    assert Counter(r.status for r in rows.values() if r.stage == "TUNE") == {"finished": 4, "failed": 2}
    assert state.cells["lora-1000"].phase == "done"


@pytest.mark.parametrize("status", ["failed", "finished"])  # finished without a score that is a number
def test_a_rate_without_a_score_on_a_further_seed_loses(tmp_path: Path, status: str) -> None:
    plan = fake_plan(tmp_path, (FakeCell("lora"),), search=FakeSearch(trials=7, rerun_rates=2, rerun_seeds=1))
    unharmed = simulate(plan, {}).cells["lora-1000"].choice
    assert unharmed is not None
    lost = unharmed.lr

    def end(slot: Slot) -> TrialRow:
        hurt = slot.lr == lost and slot.seeds[0] == TUNE_SEED + 1
        return replace(row_of(slot, "failed"), status=status) if hurt else row_of(slot)

    state = drive(SweepState(plan.feasible, plan.spec), {}, end, parallel=1, limit=10**6)
    choice = state.cells["lora-1000"].choice
    assert choice is not None
    assert choice.lr != unharmed.lr


def test_a_cell_without_a_finished_rate_is_stuck_and_the_others_go_on(tmp_path: Path) -> None:
    rows: Rows = {}
    plan = fake_plan(tmp_path, (FakeCell("lora"), FakeCell("vera")))
    state = simulate(plan, rows, fails=lambda slot: slot.cell_id.startswith("lora"))
    assert [cell.phase for cell in state.cells.values()] == ["stuck", "done"]
    assert all(cell.finished for cell in state.cells.values())
    assert state.cells["lora-1000"].choice is None


def test_held_seeds_are_held_in_both_stages(tmp_path: Path) -> None:
    rows: Rows = {}
    hold = {"data_seed": 7, "init_seed": 8}
    simulate(fake_plan(tmp_path, (FakeCell("lora"),), confirm=FakeConfirm((0, 1), hold)), rows)
    assert {seeds_of(r)[:2] for r in rows.values()} == {(7, 8)}
    everything = {**hold, "basis_seed": 9}
    rows = {}
    state = simulate(fake_plan(tmp_path, (FakeCell("lora"),), confirm=FakeConfirm((0, 1), everything)), rows)
    assert state.cells["lora-1000"].phase == "done"  # re-runs and further seeds are the same trial
    assert Counter(r.stage for r in rows.values()) == {"TUNE": 5, "CONFIRM": 1}


def test_without_tuning_the_centre_is_confirmed(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, (FakeCell("lora"),))
    cell = FakeCell("lora", confirm_seeds=2)
    rows: Rows = {}
    state = simulate(FakePlan(plan.spec, (cell,)), rows)
    assert {(r.stage, r.lr) for r in rows.values()} == {("CONFIRM", 1e-3)}
    assert state.cells["lora-1000"].choice == Choice(1e-3, None, 0, 0, None)


def test_cells_are_served_so_that_each_runs_nearly_one_trial_after_another(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path)
    state = SweepState(plan.feasible, plan.spec)
    first = []
    for _ in range(3):
        slot = state.next_slot()
        assert slot is not None
        state.start(slot)
        first.append(slot.cell_id)
    assert first == ["lora-1000", "randlora-1000", "lora-8000"]
    state.release("randlora-1000", next(iter(state.cells["randlora-1000"].running)))
    again = state.next_slot()
    assert again is not None
    assert (again.cell_id, again.slot) == ("randlora-1000", 0)  # unfinished, so issued again unchanged


def test_a_cell_is_confirmed_while_others_are_still_tuned(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, (FakeCell("lora"), FakeCell("vera")))
    state = SweepState(plan.feasible, plan.spec)
    rows: Rows = {}
    held = None  # vera's first trial never ends
    stages = []
    while (slot := state.next_slot()) is not None and len(stages) < 40:
        state.start(slot)
        if slot.cell_id.startswith("vera"):
            held = held or slot
            if slot is held or len(state.cells[slot.cell_id].running) > 1:
                continue
        rows[slot.trial_id] = row_of(slot)
        state.finish(rows[slot.trial_id])
        stages.append((slot.cell_id, slot.stage))
    assert held is not None
    assert state.cells["vera-1000"].phase == "tuning"
    assert state.cells["lora-1000"].phase == "done"
    assert stages.count(("lora-1000", "CONFIRM")) == len(plan.spec.confirm.seeds)


def tied(state: SweepState, losses: dict[float, float | None]) -> tuple[float, list[float]]:
    """Run TUNE with all validation scores equal and the training losses of each rate; the choice, and the re-runs."""
    rows: Rows = {}

    def end(slot: Slot) -> TrialRow:
        return replace(row_of(slot), val_score=0.5, train_loss=losses.get(slot.point.lr))

    cell = drive(state, rows, end, parallel=1, limit=10**6).cells["lora-1000"]
    assert cell.choice is not None
    again = [s.point.lr for s in cell.asked.values() if s.stage == "TUNE" and s.seeds[0] > TUNE_SEED]
    return cell.choice.lr, again


@pytest.mark.parametrize("reruns", [0, 2])
@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        ({1e-1: 0.2, 1e-5: 0.3, 1e-3: 0.4}, 1e-1),  # rates without a loss come last
        ({}, 1e-3),
    ],
)
def test_equal_scores_are_told_apart_by_loss_then_by_the_centre(
    tmp_path: Path, losses: dict[float, float | None], chosen: float, reruns: int
) -> None:
    cells = (FakeCell("lora", lr_low=1e-5, lr_high=1e-1),)
    search = FakeSearch(trials=5 + reruns, sampler="grid", rerun_rates=2 if reruns else 1, rerun_seeds=bool(reruns))
    plan = fake_plan(tmp_path, cells, search=search)
    lr, again = tied(SweepState(plan.feasible, plan.spec), losses)
    assert lr == pytest.approx(chosen)
    assert len(again) == reruns
    assert not again or again[0] == pytest.approx(chosen)


def test_widening_past_equal_scores_goes_from_the_point_that_leads(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, (FakeCell("lora"),), search=FakeSearch(trials=5, sampler="grid", widen=1))
    state = SweepState(plan.feasible, plan.spec)
    top = max(s.point.lr for s in state.cells["lora-1000"].peek(9))
    lr, _ = tied(SweepState(plan.feasible, plan.spec), {top: 0.1})
    assert lr == pytest.approx(top)
