"""A search over few capacities finds the same answers as counting every capacity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from randlora.methods.registry import Method
from sweeps.budget.currencies import PARAMETERS, Counted, Shapes, UnknownCountError
from sweeps.budget.solver import reference_budget, solve
from sweeps.spec.solution import Infeasible, Solution
from tests.sweeps.budget.shapes import clip_tower

SHAPES = clip_tower("", 4, 192)


class Searched:
    """Trainable parameters on top of a base, as a currency that only knows totals; it notes what it is asked."""

    name: Counted = "memory"
    noun = "memory"

    def __init__(self, base: int = 0) -> None:
        self.base, self.asked = base, 0

    def total(self, entry: Method, shapes: Shapes, capacities: Mapping[str, int], options: Mapping[str, Any]) -> int:
        self.asked += 1
        return self.base + PARAMETERS.total(entry, shapes, capacities, options)


@pytest.mark.parametrize("method", ["lora", "dora", "vera", "nola", "peft:vblora"])
@pytest.mark.parametrize("allocation", ["uniform", "fill"])
@pytest.mark.parametrize("budget", [500, 20_000, 123_457, 10**9])
def test_a_search_finds_what_counting_everything_finds(method: str, allocation: str, budget: int) -> None:
    base, searched = 3_000_000, Searched(3_000_000)
    counted = solve(method, SHAPES, budget, allocation, tolerance=None)
    found = solve(method, SHAPES, base + budget, allocation, tolerance=None, currency=searched)
    assert isinstance(counted, Solution)
    assert isinstance(found, Solution)
    assert (found.count, found.residual) == (counted.count, counted.residual)
    if allocation == "uniform":
        assert found.capacities == counted.capacities
        assert [n and n.capacity for n in (found.below, found.above)] == [
            n and n.capacity for n in (counted.below, counted.above)
        ]
    assert searched.asked < 60  # of 192 capacities and more


@pytest.mark.parametrize("rank", [1, 8, 40])
def test_randlora_whose_count_is_a_sawtooth_comes_as_near_as_it_can(rank: int) -> None:
    budget = reference_budget(SHAPES, rank)
    counted, found = solve("randlora", SHAPES, budget), solve("randlora", SHAPES, budget, currency=Searched())
    assert isinstance(counted, Solution)
    assert isinstance(found, Solution)
    assert abs(found.residual) <= 0.05 * budget


def test_per_layer_shares_out_what_lies_above_the_smallest_capacities() -> None:
    budget = reference_budget(SHAPES, 8)
    plain = solve("lora", SHAPES, budget, "per-layer")
    found = solve("lora", SHAPES, 10**6 + budget, "per-layer", currency=Searched(10**6))
    assert isinstance(plain, Solution)
    assert isinstance(found, Solution)
    assert found.capacities == plain.capacities


def test_a_budget_below_the_base_is_infeasible_and_names_the_nearest() -> None:
    answer = solve("lora", SHAPES, 10**6, currency=Searched(3 * 10**6))
    assert isinstance(answer, Infeasible)
    assert answer.below is None
    assert answer.above is not None
    assert (answer.above.capacity, answer.above.count) == (1, 3 * 10**6 + reference_budget(SHAPES, 1))


def test_what_cannot_be_found_is_infeasible_with_its_reason() -> None:
    class Unknown(Searched):
        def total(self, *_: Any, **__: Any) -> int:
            raise UnknownCountError("it depends on the data")

    answer = solve("lora", SHAPES, 10**6, currency=Unknown())
    assert isinstance(answer, Infeasible)
    assert answer.reason == "it depends on the data"
