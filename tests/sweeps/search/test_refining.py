"""Where the local fit puts the last rates of TUNE. Restarts and the order of results must not change these."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.store.rows import TrialRow
from analysis.store.slot_kinds import SlotKind
from sweeps.search.refining import GOLDEN, next_log_rate
from sweeps.search.slots import Slot
from sweeps.spec.search import SearchSection
from sweeps.spec.space import Dimension
from tests.fakes import FakeCell, FakeConfirm, fake_plan
from tests.sweeps.search.support import Bench, Score, search, tune


def peak(best: float, cliff: float = 1.0) -> Score:
    """A score that falls with the square of the distance from a best rate, above it `cliff` times as fast."""

    def score(slot: Slot) -> float:
        apart = math.log10(slot.point.lr / best)
        return 0.8 - 0.4 * apart**2 * (cliff if apart > 0 else 1.0)

    return score


def proposed(log_rates: list[float], scores: list[float]) -> float:
    best = np.array(int(np.argmax(scores)))
    return float(next_log_rate(np.array(log_rates), np.array(scores), best))


def test_the_vertex_of_a_parabola_is_found_over_unequal_steps() -> None:
    rates = [-4.0, -3.2, -2.6, -1.0]
    assert proposed(rates, [-((x + 3.0) ** 2) for x in rates]) == pytest.approx(-3.0)


def test_a_vertex_at_the_best_rate_leads_into_the_wider_gap() -> None:
    assert proposed([-4.0, -3.0, -2.0], [0.0, 1.0, 0.0]) == pytest.approx(-3.0 + GOLDEN)
    assert proposed([-5.0, -3.0, -2.0], [0.0, 1.0, 0.6]) == pytest.approx(-3.0 - 2 * GOLDEN)
    assert proposed([-4.0, -3.0, -2.0], [0.5, 0.5, 0.5]) == pytest.approx(-5.0)  # the first of equals is at the end


def test_a_best_rate_at_an_end_leads_outside() -> None:
    assert proposed([-4.0, -3.0, -2.5], [0.1, 0.2, 0.3]) == pytest.approx(-2.0)
    assert proposed([-4.0, -3.0, -2.5], [0.3, 0.2, 0.1]) == pytest.approx(-5.0)


def test_tables_are_searched_at_once_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    rates, scores = np.sort(rng.normal(size=(4, 5, 7)), axis=-1), rng.normal(size=(4, 5, 7))
    found = next_log_rate(rates, scores, scores.argmax(axis=-1))
    alone = [
        next_log_rate(x, y, np.array(y.argmax()))
        for x, y in zip(rates.reshape(-1, 7), scores.reshape(-1, 7), strict=True)
    ]
    assert found.ravel() == pytest.approx(np.array(alone))


@pytest.mark.parametrize("best", [1.5e-3, 2.1e-4, 4e-3])
@pytest.mark.parametrize("cliff", [1.0, 5.0])
def test_the_choice_is_nearer_to_the_best_rate_than_a_grid_of_as_many(
    tmp_path: Path, best: float, cliff: float
) -> None:
    missed = {}
    for refine in (0, 4):
        made = search(trials=10, rerun_rates=1, rerun_seeds=1, refine=refine)
        state = Bench(peak(best, cliff)).run(fake_plan(tmp_path / str(refine), (FakeCell("lora"),), search=made))
        cell = state.cells["lora-1000"]
        assert cell.choice is not None and len(tune(state, "lora-1000")) == cell.choice.n_trials == 10
        assert cell.planned() == cell.counted() == 10 + 2
        missed[refine] = abs(math.log10(cell.choice.lr / best))
    assert missed[4] < 0.04 and missed[4] < missed[0]


def test_its_trials_are_numbered_and_named_and_come_last(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, (FakeCell("lora"),), search=search(trials=9, refine=3))
    slots = tune(Bench(peak(1e-3)).run(plan), "lora-1000")
    first = [s for s in slots if s.origin == "refined"]
    assert [s.slot for s in first] == [SlotKind.REFINED.slot(k) for k in range(3)]
    assert [s.slot for s in slots if s.origin is None] == [0, 1, 2, 3, 4, 5]  # five rates of the grid and the re-run
    assert SlotKind.of(SlotKind.REFINED.slot(5)) is SlotKind.REFINED


@pytest.mark.parametrize("parallel", [2, 7])
@pytest.mark.parametrize("limit", [0, 2, 5, 6, 8])
def test_restarts_and_the_order_of_results_change_nothing(tmp_path: Path, parallel: int, limit: int) -> None:
    cells = (FakeCell("lora"), FakeCell("vera"))
    plan = fake_plan(tmp_path, cells, search=search(trials=9, rerun_rates=2, rerun_seeds=1, refine=3, widen=2))
    whole, parts = Bench(peak(3e-2, 3.0)), Bench(peak(3e-2, 3.0), parallel=parallel)
    whole.run(plan)
    for steps in (limit, 3, 10**6):
        parts.run(plan, steps)
    assert {(s.trial_id, s.slot, s.origin) for s in whole.slots.values()} == {
        (s.trial_id, s.slot, s.origin) for s in parts.slots.values()
    }


def test_rates_past_an_edge_come_before_it(tmp_path: Path) -> None:
    cell = FakeCell("lora", lr_low=1e-4, lr_high=1e-2)
    plan = fake_plan(tmp_path, (cell,), search=search(trials=8, refine=3, widen=3))
    bench = Bench(peak(5e-2))
    state = bench.run(plan)
    origins = [s.origin for s in bench.order if s.stage == "TUNE" and s.origin is not None]
    assert origins == ["widened"] * origins.count("widened") + ["refined"] * 3
    choice = state.cells["lora-1000"].choice
    assert choice is not None and abs(math.log10(choice.lr / 5e-2)) < 0.1
    assert choice.n_trials == 8 + origins.count("widened")


def test_without_widening_it_steps_outside_within_the_allowance(tmp_path: Path) -> None:
    cell = FakeCell("lora", lr_low=1e-4, lr_high=1e-2)
    state = Bench(peak(5e-2)).run(fake_plan(tmp_path, (cell,), search=search(trials=8, refine=4)))
    slots = tune(state, "lora-1000")
    assert len(slots) == 8 and max(s.point.lr for s in slots) > 5e-2


class Failing(Bench):
    """Trials above a rate fail."""

    limit = 1e-3

    def end(self, slot: Slot) -> TrialRow:
        row = super().end(slot)
        return replace(row, status="failed", val_score=None) if slot.point.lr > self.limit else row


def test_rates_that_fail_bound_the_search(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, (FakeCell("lora"),), search=search(trials=9, refine=3))
    state = Failing(peak(2e-3)).run(plan)
    slots = tune(state, "lora-1000")
    assert len(slots) == len({(s.lr, s.seeds) for s in slots}) == 9
    choice = state.cells["lora-1000"].choice
    assert choice is not None and choice.lr <= 1e-3


def test_a_cell_all_of_whose_rates_fail_is_stuck_without_it(tmp_path: Path) -> None:
    bench = Failing(peak(1e-3))
    bench.limit = 0.0
    state = bench.run(fake_plan(tmp_path, (FakeCell("lora"),), search=search(trials=9, refine=3)))
    cell = state.cells["lora-1000"]
    assert cell.phase == "stuck" and cell.finished and len(bench.rows) == 5


@pytest.mark.parametrize(("before", "after"), [(9, 13), (13, 9)])
def test_an_allowance_that_changes_keeps_equal_numbers(tmp_path: Path, before: int, after: int) -> None:
    cells = (FakeCell("lora"), FakeCell("vera"))
    bench = Bench(peak(2e-3))
    for trials, limit in ((before, 15), (after, 10**6)):
        made = search(trials=trials, refine="auto")
        state = bench.run(fake_plan(tmp_path, cells, search=made, confirm=FakeConfirm((0, 1))), limit)
    counts = [state.cells[c].planned() for c in ("lora-1000", "vera-1000")]
    assert counts[0] == counts[1] and all(c.counted() == c.planned() for c in state.cells.values())


@pytest.mark.parametrize("limit", [10, 10**6])
def test_a_lowered_allowance_gives_every_cell_as_many_rates_with_a_local_fit_and_without(
    tmp_path: Path, limit: int
) -> None:
    cells = (FakeCell("lora", dimensions=(Dimension("alpha", values=(4, 8, 16)),)), FakeCell("vera"), FakeCell("dora"))
    bench = Bench(peak(2e-3))
    for trials, most in ((13, limit), (9, 10**6)):
        made = search(trials=trials, rerun_rates=2, rerun_seeds=2, refine="auto")
        state = bench.run(fake_plan(tmp_path, cells, search=made, confirm=FakeConfirm((0, 1))), most)
    assert [len(cell._points()) for cell in state.cells.values()] == [5] * 3
    assert [cell.row().tune_points for cell in state.cells.values()] == [5] * 3
    assert all(cell.phase == "done" for cell in state.cells.values())


def test_a_cell_that_searches_more_than_the_rate_leaves_the_trials_to_the_sampler(tmp_path: Path) -> None:
    cell = FakeCell("lora", dimensions=(Dimension("alpha", values=(4, 8)),))
    slots = tune(Bench(peak(1e-3)).run(fake_plan(tmp_path, (cell,), search=search(trials=9, refine=3))), "lora-1000")
    assert len(slots) == 9 and {s.origin for s in slots} == {None}


@pytest.mark.parametrize(
    ("trials", "given", "refined"),
    [
        (13, {}, 4),
        (9, {"rerun_seeds": 1}, 3),
        (7, {"rerun_seeds": 1}, 2),
        (5, {"rerun_rates": 0}, 2),
        (3, {"rerun_rates": 0}, 0),
        (40, {}, 4),
        (13, {"sampler": "tpe"}, 0),
        (13, {"warm_start": ("published", "neighbour")}, 3),
        (13, {"refine": 0}, 0),
        (13, {"refine": 6}, 6),
    ],
)
def test_how_many_trials_it_has(trials: int, given: dict[str, object], refined: int) -> None:
    made = SearchSection.model_validate({"trials": trials, **given})
    assert made.refined(trials) == refined


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"trials": 10, "refine": 4}, "trials = 11"),
        ({"refine": 3, "sampler": "gp"}, "leave refine out"),
        ({"refine": -1}, "greater than or equal to 0"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SearchSection.model_validate(given)
