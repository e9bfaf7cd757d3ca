"""The solver against known answers, its allocations, and what it says when a budget can't be met."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from randlora import attach
from randlora.methods.bridge.kinds import KINDS
from randlora.methods.registry import METHODS, get_method
from sweeps.budget.reach import AllCounts, Reach
from sweeps.budget.solver import (
    ALLOCATIONS,
    budget_table,
    reference_budget,
    solve,
    solve_pinned,
)
from sweeps.spec.solution import Infeasible, Solution
from tests.sweeps.budget.shapes import clip_b32, clip_tower, llama3_8b

Shape = tuple[int, int]


def solved(*args: object, **kwargs: object) -> Solution:
    answer = solve(*args, **kwargs)  # type: ignore[arg-type]
    assert isinstance(answer, Solution), answer
    return answer


def curve_of(*args: Any) -> Any:
    """What a method counts at every capacity."""
    curve = Reach(*args).curve
    assert isinstance(curve, AllCounts)
    return curve.counts


def refused(*args: object, **kwargs: object) -> Infeasible:
    answer = solve(*args, **kwargs)  # type: ignore[arg-type]
    assert isinstance(answer, Infeasible), answer
    return answer


@pytest.mark.parametrize(("layers", "width", "rank"), [(12, 768, 6), (24, 1024, 8), (32, 1280, 10)])
def test_the_papers_clip_ranks_match_the_vision_towers_packed_qkv(layers: int, width: int, rank: int) -> None:
    shapes = clip_tower("visual.", layers, width, "qkv")
    answer = solved("randlora", shapes, reference_budget(shapes, 32))
    assert (answer.capacity, answer.allocation) == (rank, "uniform")
    assert answer.residual / answer.budget == pytest.approx(0.0078, abs=1e-4)


@pytest.mark.parametrize(
    ("lora_rank", "rank", "count"), [(16, 61, 28_317_376), (32, 30, 56_626_112), (64, 15, 112_723_968)]
)
def test_llama3_8b(lora_rank: int, rank: int, count: int) -> None:
    shapes = llama3_8b()
    answer = solved("randlora", shapes, reference_budget(shapes, lora_rank), "uniform")
    assert (answer.capacity, answer.count) == (rank, count)
    assert set(answer.capacities) == set(shapes)


def test_llama3_8b_solves_quickly_with_cold_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.budget.reach import _curves

    shapes, counted = llama3_8b(), 0
    _curves.cache_clear()
    for name, method in METHODS.items():

        def count(*args: Any, of: Any = method.count, **options: Any) -> int:
            nonlocal counted
            counted += 1
            return int(of(*args, **options))

        monkeypatch.setitem(METHODS.registered, name, replace(method, count=count))
        for allocation in ALLOCATIONS:
            solve(name, shapes, reference_budget(shapes, 32), allocation)
    assert 0 < counted < 1_000_000  # of each layer by itself it would be 32 times as many


def test_clip_b32_misses_with_one_rank_and_fill_closes_the_gap() -> None:
    shapes = clip_b32()
    budget = reference_budget(shapes, 32)
    assert budget == 6_881_280
    nearest = solved("randlora", shapes, budget, "uniform", tolerance=None)
    assert (nearest.capacity, nearest.count, nearest.residual) == (5, 6_202_548, 6_202_548 - budget)

    one_rank = refused("randlora", shapes, budget, "uniform")
    assert one_rank.below is not None
    assert one_rank.above is not None
    assert (one_rank.below.capacity, one_rank.above.capacity) == (5, 4)
    assert one_rank.above.residual == one_rank.above.count - budget
    assert "6,202,548" in one_rank.reason
    assert "9.9% below" in one_rank.reason
    assert "fill" in one_rank.lever

    mixed = solved("randlora", shapes, budget, "fill")
    assert mixed.capacity is None
    assert set(mixed.capacities.values()) == {4, 5}
    assert abs(mixed.residual) < 6000  # the smallest weight's step is about 13,000
    assert solved("randlora", shapes, budget, "auto") == mixed


def test_auto_keeps_one_rank_where_it_is_within_the_tolerance() -> None:
    shapes = clip_b32()
    budget = reference_budget(shapes, 8)
    answer = solved("randlora", shapes, budget)
    assert (answer.allocation, answer.capacity) == ("uniform", 19)
    assert solved("randlora", shapes, budget, tolerance=0.01).allocation == "fill"
    assert solved("randlora", shapes, budget, tolerance=None) == answer


def test_the_nearest_is_chosen_by_the_tolerance_it_need_not_meet() -> None:
    shapes = clip_b32()
    for tolerance in (0.001, 0.01, 0.05, 0.2):
        for lora_rank in (8, 32, 128):
            answer = solve("randlora", shapes, reference_budget(shapes, lora_rank), tolerance=tolerance)
            nearest = solved("randlora", shapes, reference_budget(shapes, lora_rank), tolerance=tolerance, nearest=True)
            assert isinstance(answer, Infeasible) or nearest == answer
    assert solved("vera", shapes, 3_440_640, nearest=True) == solved("vera", shapes, 3_440_640, tolerance=None)


def test_a_solution_names_the_counts_on_either_side() -> None:
    shapes = llama3_8b()
    answer = solved("randlora", shapes, reference_budget(shapes, 16))
    assert answer.below is not None
    assert answer.above is not None
    assert (answer.above.capacity, answer.above.count) == (60, 28_778_112)
    assert answer.below.count < answer.count < answer.above.count
    assert answer.above.residual == answer.above.count - answer.budget


@pytest.mark.parametrize("lora_rank", [1, 4, 8, 16, 32, 64])
def test_lora_meets_its_own_budget_in_every_allocation(lora_rank: int) -> None:
    shapes = clip_b32()
    for allocation in ALLOCATIONS:
        answer = solved("lora", shapes, reference_budget(shapes, lora_rank), allocation)
        assert (answer.capacity, answer.residual) == (lora_rank, 0)
        assert answer.count == 215_040 * lora_rank


def test_per_layer_matches_every_weight_to_its_own_reference() -> None:
    shapes = clip_b32()
    answer = solved("randlora", shapes, reference_budget(shapes, 32), "per-layer")
    count = METHODS["randlora"].count
    for name, shape in shapes.items():
        own = 32 * sum(shape)
        off = abs(count(shape, answer.capacities[name]) - own)
        assert all(abs(count(shape, r) - own) >= off for r in range(1, min(shape) + 1)), name
    assert answer.capacities["visual.0.qkv"] == 6  # the paper's own match for this weight
    assert answer.count == sum(count(shapes[n], r) for n, r in answer.capacities.items())


def test_fill_spreads_the_upper_rank_evenly_over_each_shape() -> None:
    shapes = {f"layer{i}": (64, 64) for i in range(12)}
    step = 128
    for extra in range(13):
        answer = solved("lora", shapes, 12 * step * 2 + extra * step, "fill")
        upper = [i for i in range(12) if answer.capacities[f"layer{i}"] == 3]
        assert answer.residual == 0
        assert len(upper) == extra
        gaps = {b - a for a, b in itertools.pairwise(upper)}
        assert not gaps or max(gaps) - min(gaps) <= 1
    assert [i for i in range(12) if solved("lora", shapes, 25 * step, "fill").capacities[f"layer{i}"] == 3] == [5]


def test_fill_gives_every_tower_its_share() -> None:
    shapes = clip_b32()
    answer = solved("randlora", shapes, reference_budget(shapes, 32), "fill")
    upper: dict[tuple[int, int], int] = {}
    for name, shape in shapes.items():
        upper[shape] = upper.get(shape, 0) + (answer.capacities[name] == 4)
    assert max(upper.values()) - min(upper.values()) <= 1


def test_vera_and_nola_move_in_single_parameters_per_weight() -> None:
    shapes = clip_b32()
    vera = solved("vera", shapes, 150_001, "fill")
    assert vera.residual == 0
    nola = solved("nola", shapes, 20_001, "fill")
    assert nola.residual == 0
    assert max(nola.capacities.values()) - min(nola.capacities.values()) == 1


@pytest.mark.parametrize("allocation", ["auto", "fill", "per-layer"])
def test_weights_that_share_trainables_take_one_capacity_whatever_is_asked(allocation: str) -> None:
    shapes = clip_tower("visual.", 12, 384)
    for method in ("peft:vblora", "peft:lily"):
        answer = solve(method, shapes, reference_budget(shapes, 8), allocation)
        assert isinstance(answer, Solution)
        assert answer.allocation == "uniform"
        assert answer.count == METHODS[method].total(shapes, answer.capacity or 0)
        missed = solve(method, shapes, 10 * reference_budget(shapes, 64))
        assert isinstance(missed, Infeasible)


def test_beyond_the_reach_the_answer_says_what_would_help() -> None:
    shapes = clip_b32()
    low, high = curve_of("vera", shapes)[[0, -1]]
    too_much = refused("vera", shapes, 3_440_640)
    assert too_much.above is None
    assert too_much.below is not None
    assert too_much.below.count == high
    assert f"{high:,}" in too_much.reason
    assert "more weights" in too_much.lever

    too_little = refused("vera", shapes, 10_000)
    assert too_little.below is None
    assert too_little.above is not None
    assert too_little.above.count == low
    assert "fewer weights" in too_little.lever

    assert "or raise methods.nola.r" in refused("nola", shapes, 150_000).lever
    assert "or raise methods.big.r" in refused("nola", shapes, 150_000, section="big").lever
    assert "methods" not in refused("nola", shapes, 10**9).lever  # at no r: it has so many bases and no more
    assert "methods" not in refused("peft:vblora", shapes, 10**9).lever
    assert 'or raise methods."peft:vblora".r' in refused("peft:vblora", shapes, 20_000_000).lever
    assert 'or raise methods."peft:tinylora".r' in refused("peft:tinylora", shapes, 10**9).lever
    assert "methods" not in refused("vera", shapes, 10**9).lever
    huge = refused("randlora", shapes, 10**30)
    assert huge.below is not None
    assert huge.below.residual == huge.below.count - 10**30


def test_a_step_wider_than_the_tolerance_asks_for_another_budget() -> None:
    shapes = {"only": (64, 64)}
    answer = refused("lora", shapes, 192, "auto")
    assert answer.below is not None
    assert answer.above is not None
    assert (answer.below.count, answer.above.count) == (128, 256)
    assert "128" in answer.lever
    assert "256" in answer.lever


def test_ties_go_to_the_smaller_rank() -> None:
    assert solved("lora", {"only": (64, 64)}, 192, "uniform", tolerance=None).capacity == 1


def test_a_pinned_rank_is_counted_as_it_is() -> None:
    shapes = clip_b32()
    answer = solve_pinned("randlora", shapes, 6, reference_budget(shapes, 32))
    assert (answer.capacity, answer.count) == (6, 5_170_320)
    assert answer.residual / answer.budget == pytest.approx(-0.249, abs=5e-4)
    assert set(answer.capacities.values()) == {6}
    beyond = solve_pinned("nola", shapes, 2048, 1000)  # the paper's k: more than the text tower's width can use
    assert beyond.count == 147_456
    assert beyond.above is None
    with pytest.raises(ValueError, match="at least 2, got 1"):
        solve_pinned("nola", shapes, 1, 1000)


def test_options_reach_the_count() -> None:
    small = {"only": (8, 8)}
    least, most = curve_of("nola", small)[[0, -1]]
    assert curve_of("nola", small, {"r": 4}).max() > most
    assert least >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("randlro", {"a": (4, 4)}, 10), r"randlro.*nearest.*randlora"),
        (("lora", {"a": (4, 4)}, 10, "even"), r"'even'.*uniform"),
        (("lora", {"a": (4, 4)}, 0), "at least 1"),
        (("lora", {}, 10), "no target weights"),
    ],
)
def test_bad_input_is_named(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(*arguments)  # type: ignore[arg-type]


def test_bad_tolerance_and_reference_are_named() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        solve("lora", {"a": (4, 4)}, 10, tolerance=-0.1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        reference_budget({"a": (4, 4)}, 0)
    with pytest.raises(ValueError, match="no target weights"):
        reference_budget({}, 1)


def test_the_table_lists_every_method_and_allocation() -> None:
    shapes = clip_b32()
    table = json.loads(json.dumps(budget_table(shapes, reference_budget(shapes, 32), "lora-32")))
    assert table["reference"] == "lora-32"
    assert table["budget"] == 6_881_280
    rows = {(row["method"], row["allocation"]): row for row in table["methods"]}
    assert set(rows) == {(method, allocation) for method in METHODS for allocation in ALLOCATIONS}
    uniform = rows["randlora", "uniform"]
    assert (uniform["ranks"], uniform["count"], uniform["feasible"]) == (5, 6_202_548, False)
    assert uniform["residual"] == uniform["count"] - table["budget"]
    assert (uniform["below"]["capacity"], uniform["above"]["capacity"]) == (5, 4)
    auto = rows["randlora", "auto"]
    assert (auto["chosen"], auto["feasible"], auto["reason"]) == ("fill", True, None)
    assert set(auto["ranks"]) == set(shapes)
    assert rows["lora", "auto"]["ranks"] == 32
    assert rows["vera", "auto"]["above"] is None
    assert "largest count" in rows["vera", "auto"]["reason"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("shapes", [[(29, 13), (13, 29)], [(64, 31)], [(8, 1)]])
def test_peft_builds_what_is_called_feasible(name: str, shapes: list[Shape]) -> None:
    """On sides that have few divisors."""
    pytest.importorskip("peft")
    method, named = f"peft:{name}", {f"{i}.weight": shape for i, shape in enumerate(shapes)}
    for budget in (29, 84, 500):
        answer = solve(method, named, budget)
        if isinstance(answer, Solution):
            model = nn.Sequential(*(nn.Linear(width, out) for out, width in shapes))
            config = get_method(method).config.from_options(max(answer.capacities.values()), {})
            assert attach(model, config, list(named), capacities=answer.capacities).count() == answer.count


@pytest.mark.parametrize(
    ("method", "options", "shapes", "reason", "lever"),
    [
        ("gralora", {}, {"a": (28, 14), "b": (29, 14)}, "gralora_k = 2 must divide 29", "gralora_k = 1"),
        ("gralora", {"gralora_k": 4}, {"a": (12, 6)}, "gralora_k = 4 must divide 6", "gralora_k = 3"),
        ("road", {}, {"a": (96, 13)}, "group_size = 64 must divide 96", "group_size = 48"),
        ("road", {}, {"a": (29, 64)}, "group_size = 64 must divide 29", "targets without such weights"),
        ("miss", {"init_weights": "mini", "mini_r": 2}, {"a": (9, 8)}, "mini_r = 2 must divide 9", "mini_r = 1"),
        (
            "frod",
            {},
            {f"layers.{i}.blocks.0.attn.qkv.weight": (3 * d, d) for i, d in enumerate((16, 32))},
            "layers.0.blocks.0.attn.qkv.weight has 16 and layers.1.blocks.0.attn.qkv.weight has 32",
            "targets with one number of inputs",
        ),
        ("hra", {}, {"a": (8, 1)}, "r is at least 2, and these weights allow 1", "weights with more"),
    ],
)
def test_weights_that_a_method_cannot_adapt_at_any_capacity(
    method: str, options: dict[str, Any], shapes: dict[str, Shape], reason: str, lever: str
) -> None:
    pytest.importorskip("peft")
    answer = refused(f"peft:{method}", shapes, 100, options=options, tolerance=None)
    assert reason in answer.reason and lever in answer.lever
    row = budget_table({"a": (29, 13)}, 84, "params-84", methods=["peft:gralora"], allocations=["auto"])["methods"][0]
    assert (row["feasible"], row["count"], row["ranks"], row["chosen"]) == (False, None, None, None)


def test_frod_takes_layers_of_several_widths_with_names_of_their_own() -> None:
    pytest.importorskip("peft")
    mlp = {
        f"layers.{i}.mlp.{name}.weight": shape for i in range(2) for name, shape in (("up", (8, 4)), ("down", (4, 8)))
    }
    assert isinstance(solve("peft:frod", mlp, 100), Solution)


@pytest.mark.parametrize(("method", "budget"), [("randlora", 2260), ("randlora", 228), ("randlora-a", 6182)])
def test_what_is_said_of_budgets_that_a_share_for_each_layer_misses(method: str, budget: int) -> None:
    """The count that is named is off by more than the tolerance, and what is offered works."""
    sides = [(48, 16), (16, 16), (64, 16), (16, 64)] * 2
    shapes = {f"w{k}": each for k, each in enumerate(sides)}
    answer = refused(method, shapes, budget, allocation="per-layer")
    said = re.search(r"is ([\d,]+), ([\d.]+)% (above|below)", answer.reason)
    assert said is not None and float(said[2]) > 5 and "per-layer" in answer.reason
    if offered := re.search(r"allocation = '(uniform|fill)' reaches ([\d,]+)", answer.lever):
        found = solved(method, shapes, budget, allocation=offered[1])
        assert found.residual + budget == int(offered[2].replace(",", ""))
    else:
        assert "allocation = 'auto'" in answer.lever
