"""An allowance in seconds: what counts, how many points it holds, and that the clock changes but their number."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeps.errors import SpecError
from sweeps.plan.plan import Plan
from sweeps.search.effort import WIDENED
from sweeps.search.seconds import HOPELESS, room, spent
from sweeps.search.stages import Slot, SweepState
from sweeps.spec.space import Dimension
from sweeps.spec.spec import SweepSpec
from tests.fakes import FakeCell, FakePlan, FakeSamples, fake_plan
from tests.sweeps.search.support import Bench, at, search, tune

Took = Callable[[Slot], float]


class Timed(Bench):
    """A bench whose trials take time; `fails` ones end with a failure after it."""

    def __init__(self, took: Took, *, fails: Callable[[Slot], bool] | None = None, **how: Any) -> None:
        super().__init__(at(1e-3), **how)
        self.took, self.fails = took, fails

    def end(self, slot: Slot) -> dict[str, Any]:
        row = super().end(slot)
        took = self.took(slot) * row["epochs"] / slot.config["train"]["epochs"]
        row |= {"seconds_total": took + 3.0, "seconds_setup": 3.0, "seconds_train": 0.9 * took, "seconds_eval": 0.0}
        if self.fails is not None and self.fails(slot):
            row |= {"status": "failed", "val_score": None, "epochs": None, "seconds_train": None, "seconds_setup": None}
        return row

    def spent(self, state: SweepState, cell_id: str = "lora-1000") -> float:
        return sum(spent(self.rows[s.trial_id]) or 0.0 for s in tune(state, cell_id))


def in_seconds(
    folder: Path, seconds: float, cells: tuple[FakeCell, ...] = (FakeCell("lora"),), **more: Any
) -> FakePlan:
    given = {"sampler": "qmc", "trials": 2, **more}
    return fake_plan(folder, cells, search=search(allowance=FakeSamples(seconds=seconds), **given))


def always(seconds: float) -> Took:
    return lambda slot: seconds


def points(state: SweepState, cell_id: str = "lora-1000") -> list[float]:
    """Rates of the first seeds, by slot."""
    cell = state.cells[cell_id]
    return [s.point.lr for s in tune(state, cell_id) if s.seeds == cell.seeds(1_000_000)]


@pytest.mark.parametrize(
    ("row", "seconds"),
    [
        ({"seconds_total": 10.0, "seconds_setup": 4.0, "seconds_train": 5.0, "seconds_eval": 0.5}, 6.0),
        ({"seconds_total": 3.0, "seconds_setup": 1.0, "seconds_train": 5.0, "seconds_eval": 0.5}, 5.5),  # gone on with
        ({"seconds_total": 10.0, "seconds_setup": None, "workers": 4}, 40.0),
        ({"seconds_total": 9.0, "seconds_train": 5.0, "seconds_eval": 0.5}, 5.5),  # pruned: its set-up is not known
        ({"seconds_total": 9.0, "seconds_train": 0.0, "seconds_eval": 0.0}, 9.0),
        ({"seconds_total": None, "seconds_train": 5.0}, 5.0),
        ({"seconds_total": None}, None),
    ],
)
def test_what_a_trial_has_spent(row: dict[str, Any], seconds: float | None) -> None:
    assert spent(row) == seconds


@pytest.mark.parametrize("sampler", ["qmc", "random", "tpe"])
def test_points_begin_until_the_time_is_spent_with_the_reruns_set_aside(tmp_path: Path, sampler: str) -> None:
    bench = Timed(always(10))
    state = bench.run(in_seconds(tmp_path, 100, sampler=sampler))
    assert len(points(state)) == 9  # they begin at 0, 10, ..., 80, and a re-run at 90
    assert bench.spent(state) == pytest.approx(100)
    assert state.cells["lora-1000"].phase == "done"
    assert state.cells["lora-1000"].planned() == state.cells["lora-1000"].counted() == 10 + 2
    state = Timed(always(10)).run(in_seconds(tmp_path, 101, sampler=sampler))
    assert len(points(state)) == 10  # the last begins before the time is spent, and runs to its end


@pytest.mark.parametrize("sampler", ["qmc", "random"])
def test_the_clock_decides_how_many_points_and_not_which(tmp_path: Path, sampler: str) -> None:
    found = [points(Timed(always(t)).run(in_seconds(tmp_path, 300, sampler=sampler))) for t in (7, 10, 31, 299, 1000)]
    assert [len(rates) for rates in found] == [42, 29, 9, 1, 1]
    for longer, shorter in itertools.pairwise(found):
        assert longer[: len(shorter)] == shorter


@pytest.mark.parametrize("parallel", [1, 4, 30])
@pytest.mark.parametrize("seed", range(4))
def test_no_point_begins_after_the_time_is_spent(tmp_path: Path, parallel: int, seed: int) -> None:
    draw = random.Random(seed)
    times: dict[str, float] = {}

    def took(slot: Slot) -> float:
        return times.setdefault(slot.trial_id, draw.uniform(5, 15))

    bench = Timed(took, parallel=parallel)
    state = bench.run(in_seconds(tmp_path, 200))
    cell = state.cells["lora-1000"]
    mine = [bench.rows[s.trial_id] for s in tune(state, "lora-1000") if s.seeds == cell.seeds(1_000_000)]
    by_points = sum(spent(row) or 0.0 for row in mine)
    mean = by_points / len(mine)
    assert by_points + mean >= 200  # with what a re-run is thought to take
    late = 0 if parallel == 1 else 3 * mean  # what runs is counted as the mean trial until it ends
    assert by_points + mean < 200 + 15 + late
    whole = points(Timed(always(1)).run(in_seconds(tmp_path, 200)))
    assert points(state) == whole[: len(mine)]


def test_as_many_points_run_at_once_as_have_ended(tmp_path: Path) -> None:
    bench = Timed(always(10), parallel=30)
    state = bench.run(in_seconds(tmp_path, 100, (FakeCell("lora"), FakeCell("vera"))), limit=0)
    assert state.running == 2
    state = bench.run(in_seconds(tmp_path, 100, (FakeCell("lora"), FakeCell("vera"))), limit=1)
    assert sorted(len(cell.asked) for cell in state.cells.values()) == [1, 2]
    assert sorted(cell.planned() for cell in state.cells.values()) == [1 + 1 + 2, 9 + 1 + 2]
    state = bench.run(in_seconds(tmp_path, 100, (FakeCell("lora"), FakeCell("vera"))), limit=4)
    assert {len(cell.rows): len(cell.running) for cell in state.cells.values()} in ({2: 2, 3: 3}, {1: 1, 4: 4})


def test_what_pruning_saves_buys_more_points(tmp_path: Path) -> None:
    bench = Timed(always(30), prune=lambda slot: 3 if slot.slot % 3 == 0 else 1)
    state = bench.run(in_seconds(tmp_path, 300, pruner="asha"))
    assert len(points(state)) > 15 > 300 / 30
    assert 300 - 30 <= bench.spent(state) <= 300 + 30


def test_a_trial_that_fails_early_buys_no_further_one(tmp_path: Path) -> None:
    bench = Timed(lambda slot: 0.01 if slot.slot % 2 else 10, fails=lambda slot: slot.slot % 2 == 1)
    state = bench.run(in_seconds(tmp_path, 100))
    assert len(points(state)) == 9  # as many as if none had failed
    assert state.cells["lora-1000"].phase == "done"


@pytest.mark.parametrize("parallel", [1, 20])
def test_a_cell_of_which_everything_fails_at_once_ends(tmp_path: Path, parallel: int) -> None:
    state = Timed(always(0.001), fails=lambda slot: True, parallel=parallel).run(in_seconds(tmp_path, 10_000))
    assert len(tune(state, "lora-1000")) == HOPELESS
    assert state.cells["lora-1000"].phase == "stuck"


def test_reruns_of_any_length_leave_the_number_of_points_as_it_was(tmp_path: Path) -> None:
    for seconds in (0.1, 10, 500):
        bench = Timed(lambda slot, s=seconds: 10 if slot.seeds[0] == 1_000_000 else s)  # type: ignore[misc]
        state = bench.run(in_seconds(tmp_path, 100, rerun_rates=2, rerun_seeds=2))
        assert len(points(state)) == 6
        assert len(tune(state, "lora-1000")) == 6 + 4


@pytest.mark.parametrize("limit", [0, 1, 3, 8, 11])
def test_a_killed_driver_goes_on_with_the_seconds_of_the_journal(tmp_path: Path, limit: int) -> None:
    cells = (FakeCell("lora"), FakeCell("vera"))
    whole, parts = (Timed(lambda slot: 7 + slot.slot % 3) for _ in range(2))
    end = whole.run(in_seconds(tmp_path, 90, cells))
    for most in (limit, 4, 10**6):
        state = parts.run(in_seconds(tmp_path, 90, cells), most)
    assert {(s.trial_id, s.slot, s.stage) for s in parts.slots.values()} == {
        (s.trial_id, s.slot, s.stage) for s in whole.slots.values()
    }
    for cell_id in state.cells:
        assert parts.spent(state, cell_id) == whole.spent(end, cell_id)
        assert 80 < parts.spent(state, cell_id) < 100


@pytest.mark.parametrize("limit", [2, 6, 9])
def test_a_killed_driver_with_several_workers_keeps_to_the_sequence_and_the_time(tmp_path: Path, limit: int) -> None:
    bench = Timed(lambda slot: 7 + slot.slot % 3, parallel=4)
    for most in (limit, 3, 10**6):
        state = bench.run(in_seconds(tmp_path, 90), most)
    assert points(state) == points(Timed(always(1)).run(in_seconds(tmp_path, 90)))[: len(points(state))]
    assert 80 < bench.spent(state) < 90 + 9 * 2
    assert state.cells["lora-1000"].phase == "done"


def test_a_larger_allowance_only_adds_and_a_smaller_one_takes_nothing(tmp_path: Path) -> None:
    bench = Timed(always(10))
    first = points(bench.run(in_seconds(tmp_path, 60)))
    before = set(bench.slots)
    state = bench.run(in_seconds(tmp_path, 150))
    assert before < set(bench.slots)
    assert points(state)[: len(first)] == first
    assert len(points(state)) == 14
    after = set(bench.slots)
    state = bench.run(in_seconds(tmp_path, 30))
    assert set(bench.slots) == after
    assert state.cells["lora-1000"].phase == "done"


def test_warm_starts_and_one_more_are_tried_in_any_case(tmp_path: Path) -> None:
    cells = tuple(FakeCell("lora", budget) for budget in (1000, 4000))
    plan = in_seconds(tmp_path, 15, cells, warm_start=("published", "neighbour"), sampler="qmc")
    state = Timed(always(10), parallel=3).run(plan)
    assert [cell.phase for cell in state.cells.values()] == ["done", "done"]
    small, large = (tune(state, cell_id) for cell_id in state.cells)
    assert [s.origin for s in small[:3]] == ["published", None, None]  # there is no smaller budget
    assert len({s.lr for s in small[:3]}) == 3
    choice = state.cells["lora-1000"].choice
    assert choice is not None
    assert choice.lr in {s.lr for s in large[:3]}
    assert len(small) == len(large) == 3 + 1


def test_longer_trials_are_expected_where_epochs_are_searched(tmp_path: Path) -> None:
    cell = FakeCell("lora", dimensions=(Dimension("epochs", values=(1, 9)),))
    bench = Timed(lambda slot: 10.0 * slot.config["train"]["epochs"])
    state = bench.run(in_seconds(tmp_path, 600, (cell,)))
    assert 600 - 90 <= bench.spent(state) <= 600 + 90


def test_widening_comes_on_top(tmp_path: Path) -> None:
    cell = FakeCell("lora", lr_low=1e-6, lr_high=1e-4)  # the best rate lies above it
    state = Timed(always(10)).run(in_seconds(tmp_path, 70, (cell,), widen=2))
    assert len([s for s in tune(state, "lora-1000") if s.slot < WIDENED]) == 6 + 1
    assert [s.origin for s in tune(state, "lora-1000")].count("widened") == 2


def test_times_that_are_missing_or_nothing_end_too() -> None:
    row = {"status": "finished", "epochs": 3, "seconds_total": 0.0}
    assert room(1e9, {0: (3, row)}, fewest=1, longest=3, reruns=1).in_all == 10_000
    assert room(60, {0: (3, {**row, "seconds_total": None})}, fewest=1, longest=3, reruns=1).now == 2
    hole = {1: (3, {**row, "seconds_total": 30.0})}  # slot 0 waits for its neighbour, and is thought to take as long
    assert room(100, hole, fewest=2, longest=3, reruns=0).in_all == 2 + 2


TREE: dict[str, Any] = {
    "name": "t",
    "model": {"id": "embedded:tiny-clip"},
    "data": {"datasets": ["embedded:fashion-mnist"], "train_size": ["4-shot"]},
    "budgets": {"lora_rank": [1]},
    "methods": {"lora": {}, "full": {}, "zero-shot": {}},
    "search": {"allowance": {"seconds": 600}, "sampler": "qmc", "rerun_rates": 2, "rerun_seeds": 1},
}


def test_a_sweep_file_with_seconds() -> None:
    spec = SweepSpec.parse(TREE)
    in_trials = {**TREE["search"], "trials": 12}
    del in_trials["allowance"]
    assert spec.identity() == SweepSpec.parse({**TREE, "search": in_trials}).identity()  # so it may be changed
    plan = Plan.from_spec(spec)
    assert {c.method: (c.tune_trials, c.allowance_seconds) for c in plan.cells} == {
        "lora": (3, 600.0),
        "full": (3, 600.0),
        "zero-shot": (0, None),
    }
    assert plan.table().column("allowance_seconds").to_pylist() == [600.0, 600.0, None]
    samples = Plan.from_spec(SweepSpec.parse({**TREE, "search": {**TREE["search"], "allowance": {"samples": 9000}}}))
    assert samples.table().column("allowance_samples").to_pylist() == [9000, 9000, None]
    ids = {c.cell_id for c in samples.cells}
    assert {c.cell_id for c in plan.cells} == ids


def test_what_does_not_go_with_seconds_is_refused_all_at_once() -> None:
    search = {"allowance": {"seconds": 600}}
    with pytest.raises(SpecError) as caught:
        SweepSpec.parse({**TREE, "search": search, "resources": {"pack": "auto"}})
    said = [str(p) for p in caught.value.problems]
    assert [s.partition(":")[0] for s in said] == ["search.sampler = 'grid'", "resources.pack = 'auto'"]
    assert "fixed by its number of points" in said[0]
    assert said[0].endswith("Nearest: qmc.")
    assert said[1].endswith("Nearest: pack = 1.")
    assert SweepSpec.parse({**TREE, "search": search, "protocol": "paper"}).search.sampler == "grid"  # nothing is tuned
    for allowance, message in (
        ({"seconds": 1, "samples": 1}, "give either samples or seconds"),
        ({}, "give either samples or seconds"),
        ({"seconds": 0}, "above 0"),
        ({"second": 5}, "known: samples, seconds.*Nearest: seconds"),
    ):
        with pytest.raises(SpecError, match=message):
            SweepSpec.parse({**TREE, "search": {**TREE["search"], "allowance": allowance}})
    with pytest.raises(SpecError, match="give trials or allowance"):
        SweepSpec.parse({**TREE, "search": {**TREE["search"], "trials": 4}})
