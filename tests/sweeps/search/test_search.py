from __future__ import annotations

import itertools
import math

import pytest

from sweeps.errors import SpecError
from sweeps.search.grids import nested
from sweeps.search.points import ask_seed, beyond, check_sampler, propose
from sweeps.search.pruning import should_stop
from sweeps.search.samplers import Tried
from sweeps.spec.space import Dimension, Point, Space

LOW, HIGH = 1e-5, 1e-2
SPACE = Space(LOW, HIGH)
MORE = Space(
    LOW,
    HIGH,
    (
        Dimension("alpha", 1.0, 64.0, log=True),
        Dimension("dropout", values=(0.0, 0.05, 0.1)),
        Dimension("epochs", 2, 10, integer=True),
    ),
)
SAMPLERS = ("grid", "qmc", "random", "tpe", "gp")


def rate_steps(rates: int) -> list[float]:
    """Rates at equal steps of the logarithm, both ends included; the middle for a single one."""
    shares = [0.5] if rates == 1 else [k / (rates - 1) for k in range(rates)]
    return [float(f"{LOW * (HIGH / LOW) ** share:.6g}") for share in shares]


def rate(sampler: str, seed: int, cell: str, slot: int, tried: list[Tried]) -> float:
    point = propose(sampler, seed, cell, slot, SPACE, tried)
    assert point.extra == ()
    return point.lr


def fixed(sampler: str, count: int, cell: str = "cell", seed: int = 0) -> list[float]:
    """The rates of a cell whose trials never report anything."""
    tried: list[Tried] = []
    for slot in range(count):
        lr = rate(sampler, seed, cell, slot, tried)
        tried.append(Tried(slot, lr, None, "running"))
    return [t.lr for t in tried]


def first(count: int, space: Space = SPACE) -> list[Point]:
    return list(itertools.islice(nested(space), count))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    "dimension",
    [
        Dimension("alpha", 1 / 3, 2 / 3),
        Dimension("weight_decay", 0.00333333333, 0.0666666666, log=True),
        Dimension("epochs", 0.6, 9.6, log=True, integer=True),
    ],
    ids=lambda d: d.name,
)
def test_ends_of_more_digits_than_values_have(sampler: str, dimension: Dimension) -> None:
    space, ends = Space(LOW, HIGH, (dimension,)), dimension.ends
    tried = [Tried(k, 1e-3, 0.5, "finished", ((dimension.name, end),), warm=True) for k, end in enumerate(ends)]
    for slot in range(6):
        point = propose(sampler, 0, "cell", slot, space, tried)
        assert float(ends[0]) <= float(dict(point.extra)[dimension.name]) <= float(ends[1])
        tried.append(Tried(slot, point.lr, 0.5 + slot / 100, "finished", point.extra))


@pytest.mark.parametrize("count", [1, 3, 5, 9, 17])
def test_a_grid_of_these_many_rates_has_equal_steps_about_its_centre(count: int) -> None:
    assert sorted(fixed("grid", count)) == pytest.approx(rate_steps(count), rel=1e-5)


def test_a_grid_of_any_odd_number_has_its_centre_and_is_even_about_it() -> None:
    for count in range(1, 40, 2):
        away = sorted(math.log10(lr / math.sqrt(LOW * HIGH)) for lr in fixed("grid", count))
        assert away[count // 2] == pytest.approx(0.0, abs=1e-5)
        assert away == pytest.approx([-x for x in reversed(away)], abs=1e-5)


def test_a_larger_grid_has_all_points_of_a_smaller_one() -> None:
    for space in (SPACE, MORE):
        points = first(60, space)
        assert len(set(points)) == 60
        for count in range(60):
            assert first(count, space) == points[:count]


def test_a_nested_grid_of_several_ranges_is_their_product() -> None:
    space = Space(LOW, HIGH, (Dimension("dropout", values=(0.0, 0.1)), Dimension("alpha", 1.0, 4.0)))
    points = first(2 * 5 * 5, space)
    for steps in (1, 3, 5):
        part = points[: 2 * steps**2]
        assert {p.lr for p in part} == set(rate_steps(steps))
        assert len({dict(p.extra)["alpha"] for p in part}) == steps
        assert [dict(p.extra)["dropout"] for p in part] == [0.0, 0.1] * steps**2


@pytest.mark.parametrize("count", [3, 5, 9])
@pytest.mark.parametrize("decades", [2, 3])
@pytest.mark.parametrize("centre", [1e-5, 1e-4, 3e-4, 1e-3, 3e-3])
def test_a_step_past_an_end_is_as_far_as_neighbouring_rates_lie_apart(centre: float, decades: int, count: int) -> None:
    half = 10 ** (decades / 2)
    space = Space(centre / half, centre * half)
    step = 10 ** (decades / (count - 1))
    tried = [Tried(k, point.lr, 0.5, "finished") for k, point in enumerate(first(count, space))]
    for far in (1.0, step, step**3):  # also after a step that an older version made too long
        tried.append(Tried(count, float(f"{max(t.lr for t in tried) * far:.6g}"), 0.9, "finished", warm=True))
        best = tried[-1].point
        assert beyond(space, tried, best, "high").lr == pytest.approx(best.lr * step, rel=1e-4)
    assert beyond(space, tried, best, "low").lr == pytest.approx(centre / half / step, rel=1e-4)


def test_a_list_gives_its_own_number_back() -> None:
    assert repr(Dimension("weight_decay", values=(0, 0.1)).nearest(0.0)) == "0"
    assert repr(Dimension("dropout", values=(0, 0.1)).nearest(0.0)) == "0.0"  # an option: its trial has another name


def test_a_grid_goes_on_when_all_whole_numbers_of_a_range_are_tried() -> None:
    space = Space(LOW, HIGH, (Dimension("epochs", 2, 4, integer=True),))
    points = first(9 * 3, space)
    assert {dict(p.extra)["epochs"] for p in points} == {2, 3, 4}
    assert {p.lr for p in points} == set(rate_steps(9))


def test_a_wide_range_takes_no_more_memory_than_a_narrow_one() -> None:
    space = Space(
        LOW, HIGH, (Dimension("grad_clip", 0.1, 1e15, log=True), Dimension("epochs", 1, 10**15, integer=True))
    )
    assert len(set(first(27, space))) == 27


@pytest.mark.parametrize("sampler", ["grid", "qmc", "random"])
def test_fixed_samplers_are_functions_of_seed_cell_and_slot(sampler: str) -> None:
    rates = fixed(sampler, 8)
    told = [Tried(k, lr, 0.1 * k, "finished") for k, lr in enumerate(rates)]
    for slot, lr in enumerate(rates):  # neither the order of asks nor what the others scored matters
        assert rate(sampler, 0, "cell", slot, told[:slot]) == lr
        if sampler != "grid":
            assert rate(sampler, 0, "cell", slot, []) == lr
            assert rate(sampler, 1, "cell", slot, []) != lr
            assert rate(sampler, 0, "other", slot, []) != lr


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_rate_repeats_after_a_kill_before_the_first_tell(sampler: str) -> None:
    asked: list[Tried] = []
    for slot in range(6):  # every ask is made by a driver that knows only what the journal says
        lr = rate(sampler, 0, "cell", slot, asked)
        assert LOW <= lr <= HIGH
        assert lr not in {t.lr for t in asked}
        asked.append(Tried(slot, lr, None, "running"))


def test_sobol_points_fill_the_range_evenly() -> None:
    rates = fixed("qmc", 8)
    eighths = [math.floor(8 * math.log(lr / LOW) / math.log(HIGH / LOW)) for lr in rates]
    assert sorted(eighths) == list(range(8))


def test_adaptive_samplers_use_results() -> None:
    def next_rate(best: float) -> float:
        points = rate_steps(8)
        tried = [Tried(k, lr, -abs(math.log10(lr / best)), "finished") for k, lr in enumerate(points)]
        return rate("tpe", 0, "cell", 8, tried)

    assert next_rate(2e-5) < next_rate(5e-3)


def test_seeds_differ_by_slot_and_cell() -> None:
    seeds = {ask_seed(0, cell, slot, retry) for cell in ("a", "b") for slot in range(20) for retry in range(2)}
    assert len(seeds) == 80
    assert all(0 <= s < 2**31 for s in seeds)


def test_old_rates_are_what_they_were() -> None:
    """Ids of stored trials hang on these digits."""
    assert fixed("grid", 5) == [0.000316228, 1e-05, 0.01, 5.62341e-05, 0.00177828]
    assert fixed("qmc", 4) == [0.00647577, 7.76902e-05, 3.87031e-05, 0.000575984]
    assert fixed("random", 3) == [1.32761e-05, 0.00182305, 0.000696894]
    told = [Tried(k, lr, -abs(math.log10(lr) + 3), "finished") for k, lr in enumerate(rate_steps(5))]
    assert rate("tpe", 0, "cell", 5, told) == 0.0066282


def test_cmaes_is_refused_over_one_hyperparameter_with_the_reason() -> None:
    with pytest.raises(SpecError, match=r"search.sampler.*two or more.*in lora.*tpe"):
        check_sampler("cmaes", [("lora", SPACE, 8)])
    check_sampler("cmaes", [("lora", MORE, 8)])
    for sampler in SAMPLERS:
        check_sampler(sampler, [("lora", SPACE, 8)])


def test_a_grid_of_lists_larger_than_the_allowance_is_refused() -> None:
    with pytest.raises(SpecError, match="lists of lora make 3 combinations, and the allowance leaves 2"):
        check_sampler("grid", [("lora", MORE, 2)])


@pytest.mark.parametrize("space", [Space(1e-3, 1.000001e-3), Space(LOW, HIGH, (Dimension("alpha", 1.0, 1.00001),))])
def test_a_range_with_fewer_values_than_points_is_refused(space: Space) -> None:
    with pytest.raises(SpecError, match=r"search\.(lr|space\.alpha) = .*: too narrow for lora: it has [12] values"):
        check_sampler("grid", [("lora", space, 13)])


def test_a_grid_ends_in_a_range_that_is_barely_wide_enough() -> None:
    space = Space(1e-3, 1.00007e-3)  # eight values of six digits
    check_sampler("grid", [("lora", space, 7)])
    assert len(set(itertools.islice(nested(space), 7))) == 7
    with pytest.raises(SpecError, match="it has 8 values of six digits, and the allowance leaves 8"):
        check_sampler("grid", [("lora", space, 8)])  # values come in pairs, and there is no ninth


def points(sampler: str, count: int, *, score: bool = False, seed: int = 0) -> list[Point]:
    """Points of a cell in four dimensions; with scores, best at alpha 8."""
    tried: list[Tried] = []
    for slot in range(count):
        point = propose(sampler, seed, "cell", slot, MORE, tried)
        value = -abs(math.log(float(dict(point.extra)["alpha"]) / 8)) if score else None
        tried.append(Tried(slot, point.lr, value, "finished" if score else "running", point.extra))
    return [t.point for t in tried]


@pytest.mark.parametrize("sampler", [*SAMPLERS, "cmaes"])
def test_every_sampler_searches_more_than_the_rate(sampler: str) -> None:
    found = points(sampler, 14, score=True)
    assert len(set(found)) == 14
    assert found == points(sampler, 14, score=True)  # a function of the seed and of what is known
    for lr, extra in found:
        values = dict(extra)
        assert list(values) == ["alpha", "dropout", "epochs"]
        assert LOW <= lr <= HIGH
        assert 1 <= float(values["alpha"]) <= 64
        assert values["dropout"] in (0.0, 0.05, 0.1)
        assert isinstance(values["epochs"], int)
        assert 2 <= values["epochs"] <= 10
    assert len({p.lr for p in found}) > 1
    assert len({dict(p.extra)["dropout"] for p in found}) > 1


def test_sobol_fills_lists_evenly() -> None:
    space = Space(LOW, HIGH, (Dimension("init", values=("a", "b")),))
    tried: list[Tried] = []
    for slot in range(8):
        point = propose("qmc", 0, "cell", slot, space, tried)
        tried.append(Tried(slot, point.lr, None, "running", point.extra))
    assert [dict(t.extra)["init"] for t in tried].count("a") == 4


def test_cmaes_moves_towards_what_is_good() -> None:
    space = Space(LOW, HIGH, (Dimension("alpha", 1.0, 64.0, log=True),))
    tried: list[Tried] = []
    for slot in range(30):
        point = propose("cmaes", 0, "cell", slot, space, tried)
        alpha = float(dict(point.extra)["alpha"])
        score = -abs(math.log10(point.lr / 1e-4)) - abs(math.log(alpha / 32))
        tried.append(Tried(slot, point.lr, score, "finished", point.extra))
    early = sum(t.score or 0.0 for t in tried[:12]) / 12
    late = sum(t.score or 0.0 for t in tried[-6:]) / 6
    assert late > early + 0.3


@pytest.mark.parametrize("sampler", [*SAMPLERS, "cmaes"])
def test_no_point_repeats_after_a_kill_before_the_first_tell_in_more_dimensions(sampler: str) -> None:
    assert len(set(points(sampler, 8))) == 8


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
