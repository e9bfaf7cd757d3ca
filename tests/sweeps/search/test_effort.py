"""How much a cell tries: warm starts, points past an edge, allowances in samples, more than one hyperparameter."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.store.rows import TrialRow
from analysis.store.slot_kinds import SlotKind
from sweeps.search.stages import Slot
from sweeps.spec.sections import TUNE_SEED
from sweeps.spec.space import Dimension
from tests.fakes import FakeCell, FakeConfirm, FakePlan, FakeSamples, FakeSearch, fake_plan
from tests.sweeps.search.support import Bench, at, search, tune

ALPHA = Dimension("alpha", values=(4, 8, 16))


BUDGETS = (1000, 4000, 16000)


def family(**values: Any) -> tuple[FakeCell, ...]:
    return tuple(FakeCell("lora", budget, **values) for budget in BUDGETS)


@pytest.mark.parametrize("sampler", ["grid", "qmc", "tpe"])
@pytest.mark.parametrize("parallel", [1, 4])
def test_warm_starts_come_first_count_and_are_flagged(tmp_path: Path, sampler: str, parallel: int) -> None:
    plan = fake_plan(tmp_path, family(), search=search(sampler=sampler, warm_start=("published", "neighbour")))
    bench = Bench(at(3.7e-4), parallel=parallel)
    state = bench.run(plan)
    for budget, smaller in zip(BUDGETS, (None, *BUDGETS[:-1]), strict=True):
        slots = tune(state, f"lora-{budget}")
        assert len(slots) == 6  # the allowance, warm starts and the re-run included
        assert len({(s.lr, s.seeds) for s in slots}) == 6
        assert (slots[0].lr, slots[0].origin) == (1e-3, "published")
        choice = None if smaller is None else state.cells[f"lora-{smaller}"].choice
        if choice is None or slots[1].origin is None:  # no smaller budget, or its choice was tried here already
            assert choice is None or choice.lr in {s.lr for s in slots}
        else:
            assert (slots[1].lr, slots[1].origin) == (choice.lr, "neighbour")
    assert all(cell.phase == "done" for cell in state.cells.values())


def test_a_cell_waits_for_its_neighbour_with_that_slot_alone(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, family(), search=search(sampler="qmc", warm_start=("neighbour",)))
    bench = Bench(at(1e-3), parallel=100)
    bench.run(plan, limit=0)
    asked = {
        budget: sorted(s.slot for s in bench.slots.values() if s.cell_id == f"lora-{budget}") for budget in BUDGETS
    }
    assert asked == {1000: [0, 1, 2, 3, 4], 4000: [1, 2, 3, 4], 16000: [1, 2, 3, 4]}
    state = bench.run(plan)
    assert {s.origin for s in tune(state, "lora-4000")} == {"neighbour", None}


def test_a_neighbour_that_is_stuck_leaves_the_slot_to_the_sampler(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, family()[:2], search=search(warm_start=("neighbour",)))

    class Failing(Bench):
        def end(self, slot: Slot) -> TrialRow:
            row = super().end(slot)
            if slot.cell_id == "lora-1000":
                row = replace(row, status="failed", val_score=None)
            return row

    state = Failing(at(1e-3)).run(plan)
    assert [cell.phase for cell in state.cells.values()] == ["stuck", "done"]
    assert {s.origin for s in tune(state, "lora-4000")} == {None}


@pytest.mark.parametrize("limit", [0, 3, 8, 13])
def test_warm_starts_and_widening_resume(tmp_path: Path, limit: int) -> None:
    cells = family(lr_low=1e-4, lr_high=1e-2)
    plan = fake_plan(tmp_path, cells, search=search(sampler="qmc", warm_start=("published", "neighbour"), widen=3))
    whole, parts = Bench(at(1e-1)), Bench(at(1e-1))
    whole.run(plan)
    for steps in (limit, 5, 10**6):
        parts.run(plan, steps)
    assert {(s.trial_id, s.slot, s.origin) for s in whole.slots.values()} == {
        (s.trial_id, s.slot, s.origin) for s in parts.slots.values()
    }


def test_widening_goes_on_past_the_edge_at_the_same_density(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, (FakeCell("lora", lr_low=1e-4, lr_high=1e-2),), search=search(trials=6, widen=5))
    state = Bench(at(1e-1)).run(plan)
    slots = tune(state, "lora-1000")
    past = [s for s in slots if s.origin == "widened"]
    assert [s.slot for s in past] == [SlotKind.WIDENED.slot(k) for k in range(3)]
    step = 10**0.5  # two decades, five rates
    assert [s.lr for s in past] == pytest.approx([1e-2 * step ** (k + 1) for k in range(3)], rel=1e-4)
    choice = state.cells["lora-1000"].choice
    assert choice is not None
    assert (choice.lr, choice.edge) == (pytest.approx(1e-1, rel=1e-4), None)  # the third step is past the best
    assert choice.n_trials == 6 + 3
    assert state.cells["lora-1000"].planned() == state.cells["lora-1000"].counted() == 6 + 3 + 2


def test_widening_stops_at_its_limit_and_where_the_best_is_inside(tmp_path: Path) -> None:
    cells = (FakeCell("lora", lr_low=1e-4, lr_high=1e-2), FakeCell("vera"))
    state = Bench(at(1.0)).run(fake_plan(tmp_path, cells[:1], search=search(widen=2)))
    choice = state.cells["lora-1000"].choice
    assert choice is not None
    assert choice.edge == "high"
    assert len(tune(state, "lora-1000")) == 8
    state = Bench(at(1e-3)).run(fake_plan(tmp_path, cells[1:], search=search(widen=2)))
    assert len(tune(state, "vera-1000")) == 6


def later(slot: Slot) -> float:
    """A score that is best inside the range on TUNE's first seed, and at 1e-1 on all others."""
    return at(5e-3 if slot.seeds[0] == TUNE_SEED else 1e-1)(slot)


@pytest.mark.parametrize("limit", [0, 8, 9, 11, 16])
def test_an_edge_that_the_reruns_choose_is_widened_and_run_again(tmp_path: Path, limit: int) -> None:
    cells = (FakeCell("lora", lr_low=1e-4, lr_high=1e-2),)
    plan = fake_plan(tmp_path, cells, search=search(trials=9, rerun_rates=2, rerun_seeds=2, widen=5))
    bench = Bench(later)
    for steps in (limit, 3, 10**6):
        state = bench.run(plan, steps)
    past = [s for s in tune(state, "lora-1000") if s.origin == "widened"]
    assert [s.slot for s in past] == [SlotKind.WIDENED_LATE.slot(k) for k in range(9)]  # each with its two re-runs
    assert [s.lr for s in past[::3]] == pytest.approx([10**-1.5, 1e-1, 10**-0.5], rel=1e-4)
    cell = state.cells["lora-1000"]
    choice = cell.settle() or cell.choice
    assert choice is not None
    assert (choice.lr, choice.edge, choice.n_trials) == (pytest.approx(1e-1, rel=1e-4), None, 9 + 9)
    assert cell.planned() == cell.counted() == 9 + 9 + 2
    assert {s.lr for s in bench.slots.values() if s.stage == "CONFIRM"} == {choice.lr}


def test_points_past_an_edge_that_reruns_chose_keep_to_the_limit_and_displace_none(tmp_path: Path) -> None:
    cells = (FakeCell("lora", lr_low=1e-4, lr_high=1e-2),)
    given = {"trials": 9, "rerun_rates": 2, "rerun_seeds": 2}
    state = Bench(later).run(fake_plan(tmp_path, cells, search=search(**given, widen=1)))
    slots, choice = tune(state, "lora-1000"), state.cells["lora-1000"].choice
    assert choice is not None
    assert (len(slots), choice.lr, choice.edge) == (9 + 3, pytest.approx(10**-1.5, rel=1e-4), "high")

    def first(slot: Slot) -> float:  # past the edge it is second on the first seed, and last on the others
        return -1.0 if slot.point.lr > 2e-2 and slot.seeds[0] != TUNE_SEED else later(slot) + (slot.point.lr > 2e-2) / 2

    state = Bench(first).run(fake_plan(tmp_path, cells, search=search(**given, widen=5)))
    choice = state.cells["lora-1000"].choice
    assert choice is not None
    assert (len(tune(state, "lora-1000")), choice.lr) == (9 + 3, pytest.approx(1e-2))


def test_widening_a_finished_sweep_only_adds_and_what_is_there_still_counts_without_it(tmp_path: Path) -> None:
    cells = (FakeCell("lora", lr_low=1e-4, lr_high=1e-2),)
    bench = Bench(at(1e-1))
    bench.run(fake_plan(tmp_path, cells, search=search()))
    before = set(bench.slots)
    state = bench.run(fake_plan(tmp_path, cells, search=search(widen=4)))
    assert before < set(bench.slots)
    wide = state.cells["lora-1000"].choice
    again = bench.run(fake_plan(tmp_path, cells, search=search()))
    assert again.cells["lora-1000"].settle() == wide  # a new driver has none journaled in this loop
    assert again.cells["lora-1000"].finished


def test_a_failed_point_past_the_edge_ends_the_widening(tmp_path: Path) -> None:
    class Diverging(Bench):
        def end(self, slot: Slot) -> TrialRow:
            row = super().end(slot)
            return replace(row, status="failed", val_score=None) if slot.point.lr > 1e-2 else row

    bench = Diverging(at(1e-1))
    state = bench.run(fake_plan(tmp_path, (FakeCell("lora", lr_low=1e-4, lr_high=1e-2),), search=search(widen=4)))
    assert [s.origin for s in tune(state, "lora-1000")].count("widened") == 1


def test_a_list_of_one_value_leaves_the_local_fit(tmp_path: Path) -> None:
    """It fixes its hyperparameter, so only the rate is searched, as in the cells without the list."""
    cells = (FakeCell("lora", dimensions=(Dimension("alpha", values=(8,)),)), FakeCell("vera"))
    state = Bench(at(1e-3)).run(fake_plan(tmp_path, cells, search=search(trials=9, refine=3)))
    kinds = [sorted(SlotKind.of(s.slot).name for s in tune(state, f"{name}-1000")) for name in ("lora", "vera")]
    assert kinds[0] == kinds[1] and kinds[0].count("REFINED") == 3


@pytest.mark.parametrize("sampler", ["grid", "qmc", "random", "tpe"])
def test_several_hyperparameters_are_chosen_as_a_whole(tmp_path: Path, sampler: str) -> None:
    cell = FakeCell(
        "lora", dimensions=(ALPHA, Dimension("epochs", values=(2, 3))), published=(("alpha", 8), ("epochs", 3))
    )
    values = search(trials=14, sampler=sampler, rerun_rates=2, rerun_seeds=1, warm_start=("published",))
    plan = fake_plan(tmp_path, (cell,), search=values, confirm=FakeConfirm((0, 1)))
    bench = Bench(lambda slot: float(dict(slot.extra)["alpha"]) - abs(math.log10(slot.point.lr / 1e-3)))
    bench.run(plan, limit=7)
    state = bench.run(plan)
    slots = tune(state, "lora-1000")
    assert len(slots) == 14
    assert slots[0].extra == (("alpha", 8), ("epochs", 3))
    assert len({(s.point, s.seeds) for s in slots}) == 14
    for slot in slots:
        assert dict(slot.config["options"])["alpha"] == dict(slot.extra)["alpha"]
        assert slot.config["train"]["epochs"] == dict(slot.extra)["epochs"]
    choice = state.cells["lora-1000"].choice
    assert choice is not None
    assert dict(choice.extra)["alpha"] == 16
    confirmed = [s for s in state.cells["lora-1000"].asked.values() if s.stage == "CONFIRM"]
    assert {s.point for s in confirmed} == {choice.point}
    reruns = [s for s in slots if s.slot >= 12]
    assert len({s.point for s in reruns}) == 2


def in_samples(tmp_path: Path, samples: int, **values: Any) -> FakePlan:
    """Trials of 3 epochs of 100 samples."""
    cell = FakeCell("lora", epoch_samples=100)
    return fake_plan(tmp_path, (cell,), search=FakeSearch(allowance=FakeSamples(samples), **values))


@pytest.mark.parametrize("sampler", ["grid", "qmc", "tpe"])
def test_an_allowance_in_samples_without_pruning_is_as_many_whole_trials(tmp_path: Path, sampler: str) -> None:
    state = Bench(at(1e-3), parallel=3).run(in_samples(tmp_path, 2000, sampler=sampler))
    assert len(tune(state, "lora-1000")) == 6
    assert state.cells["lora-1000"].planned() == 6 + 2


@pytest.mark.parametrize("parallel", [1, 5])
def test_what_pruning_saves_buys_more_points(tmp_path: Path, parallel: int) -> None:
    bench = Bench(at(1e-3), parallel=parallel, prune=lambda slot: 3 if slot.slot % 3 == 0 else 1)
    bench.run(in_samples(tmp_path, 3000), limit=4)
    state = bench.run(in_samples(tmp_path, 3000))
    slots = tune(state, "lora-1000")
    spent = sum(bench.rows[s.trial_id].samples for s in slots)
    assert len(slots) > 10
    assert 3000 - 300 < spent <= 3000
    assert state.cells["lora-1000"].phase == "done"


def test_failed_trials_use_up_an_allowance_in_samples(tmp_path: Path) -> None:
    class Failing(Bench):
        def end(self, slot: Slot) -> TrialRow:
            row = super().end(slot)
            return replace(row, status="failed", val_score=None, samples=None, epochs=None)

    state = Failing(at(1e-3)).run(in_samples(tmp_path, 2000))
    assert len(tune(state, "lora-1000")) == 5
    assert state.cells["lora-1000"].phase == "stuck"
