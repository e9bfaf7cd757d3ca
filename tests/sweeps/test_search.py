from __future__ import annotations

import itertools
import math

import pytest

from sweeps.errors import SpecError
from sweeps.search import Tried, ask_seed, check_sampler, grid_points, propose, should_stop

LOW, HIGH = 1e-5, 1e-2
SAMPLERS = ("grid", "qmc", "random", "tpe", "gp")


def fixed(sampler: str, count: int, cell: str = "cell", seed: int = 0) -> list[float]:
    """The rates of a cell whose trials never report anything."""
    tried: list[Tried] = []
    for slot in range(count):
        lr = propose(sampler, seed, cell, slot, count, LOW, HIGH, tried)
        tried.append(Tried(slot, lr, None, "running"))
    return [t.lr for t in tried]


def test_grid_is_even_on_the_log_range_with_both_ends() -> None:
    points = fixed("grid", 7)
    assert points == grid_points(7, LOW, HIGH)
    assert (points[0], points[-1]) == (LOW, HIGH)
    steps = [math.log(b / a) for a, b in itertools.pairwise(points)]
    assert steps == pytest.approx([steps[0]] * 6, rel=1e-5)
    assert grid_points(1, LOW, HIGH) == [pytest.approx(math.sqrt(LOW * HIGH), rel=1e-5)]


@pytest.mark.parametrize("sampler", ["grid", "qmc", "random"])
def test_fixed_samplers_are_functions_of_seed_cell_and_slot(sampler: str) -> None:
    rates = fixed(sampler, 8)
    told = [Tried(k, lr, 0.1 * k, "finished") for k, lr in enumerate(rates)]
    for slot, lr in enumerate(rates):  # neither the order of asks nor what the others scored matters
        assert propose(sampler, 0, "cell", slot, 8, LOW, HIGH, told[:slot]) == lr
        if sampler != "grid":
            assert propose(sampler, 0, "cell", slot, 8, LOW, HIGH, []) == lr
            assert propose(sampler, 1, "cell", slot, 8, LOW, HIGH, []) != lr
            assert propose(sampler, 0, "other", slot, 8, LOW, HIGH, []) != lr


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_rate_repeats_after_a_kill_before_the_first_tell(sampler: str) -> None:
    asked: list[Tried] = []
    for slot in range(6):  # every ask is made by a driver that knows only what the journal says
        lr = propose(sampler, 0, "cell", slot, 6, LOW, HIGH, asked)
        assert LOW <= lr <= HIGH
        assert lr not in {t.lr for t in asked}
        asked.append(Tried(slot, lr, None, "running"))


def test_sobol_points_fill_the_range_evenly() -> None:
    rates = fixed("qmc", 8)
    eighths = [math.floor(8 * math.log(lr / LOW) / math.log(HIGH / LOW)) for lr in rates]
    assert sorted(eighths) == list(range(8))


def test_adaptive_samplers_use_results() -> None:
    def next_rate(best: float) -> float:
        points = grid_points(8, LOW, HIGH)
        tried = [Tried(k, lr, -abs(math.log10(lr / best)), "finished") for k, lr in enumerate(points)]
        return propose("tpe", 0, "cell", 8, 20, LOW, HIGH, tried)

    assert next_rate(2e-5) < next_rate(5e-3)


def test_a_grown_grid_keeps_its_rates_and_halves_the_widest_gaps() -> None:
    old = grid_points(4, LOW, HIGH)
    tried = [Tried(k, lr, 0.5, "finished") for k, lr in enumerate(old)]
    added = []
    for slot in range(4, 7):
        lr = propose("grid", 0, "cell", slot, 7, LOW, HIGH, tried)
        tried.append(Tried(slot, lr, 0.5, "finished"))
        added.append(lr)
    assert sorted(t.lr for t in tried) == pytest.approx(grid_points(7, LOW, HIGH), rel=1e-4)
    assert not set(added) & set(old)


def test_seeds_differ_by_slot_and_cell() -> None:
    seeds = {ask_seed(0, cell, slot, retry) for cell in ("a", "b") for slot in range(20) for retry in range(2)}
    assert len(seeds) == 80
    assert all(0 <= s < 2**31 for s in seeds)


def test_cmaes_is_refused_with_the_nearest_choice() -> None:
    with pytest.raises(SpecError, match=r"search.sampler.*two or more.*tpe"):
        check_sampler("cmaes")
    for sampler in SAMPLERS:
        check_sampler(sampler)


def test_asha_keeps_the_best_third_at_its_rungs() -> None:
    peers = [{1: 0.5, 2: 0.6}, {1: 0.4}]
    assert not should_stop("asha", 1, {1: 0.1}, [])  # the first to get there has no one to lose to
    assert should_stop("asha", 1, {1: 0.3}, peers)
    assert not should_stop("asha", 1, {1: 0.6}, peers)
    assert not should_stop("asha", 2, {1: 0.3, 2: 0.1}, peers)  # not a rung
    assert should_stop("asha", 3, {3: 0.3}, [{3: 0.5}])


def test_median_needs_peers_and_a_warm_up() -> None:
    peers = [{1: 0.5, 2: 0.6}, {1: 0.4, 2: 0.5}, {1: 0.3, 2: 0.4}]
    assert should_stop("median", 2, {1: 0.1, 2: 0.2}, peers)
    assert not should_stop("median", 2, {1: 0.1, 2: 0.46}, peers)
    assert not should_stop("median", 1, {1: 0.1}, peers)
    assert not should_stop("median", 2, {1: 0.1, 2: 0.2}, peers[:2])
    assert not should_stop("none", 2, {1: 0.1, 2: 0.2}, peers)
