"""For any shapes and budget: the solved count is what the module counts once built, and no capacity is nearer."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

from randlora import attach
from randlora.adapted.gradients import zero_gradients
from randlora.methods.registry import METHODS
from sweeps.budget.reach import mix
from sweeps.budget.solver import ALLOCATIONS, solve
from sweeps.spec.solution import Solution

METHOD = st.sampled_from(sorted(METHODS))
SIDE = st.integers(1, 24)
SHAPES = st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=6)


def named(shapes: list[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    return {f"layers.{i}.weight": shape for i, shape in enumerate(shapes)}


class Stack(nn.Module):
    """Linear layers of given shapes, never run."""

    def __init__(self, shapes: list[tuple[int, int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(columns, rows) for rows, columns in shapes)


@settings(max_examples=60, deadline=None)
@given(method=METHOD, shapes=SHAPES, budget=st.integers(1, 4000), allocation=st.sampled_from(ALLOCATIONS))
@example(method="nola", shapes=[(1, 1), (1, 2)], budget=5, allocation="per-layer")  # one uses more than all can
@example(method="lora-ga", shapes=[(1, 1), (3, 2)], budget=5, allocation="uniform")  # starts from gradients
def test_the_count_is_what_the_built_module_trains(
    method: str, shapes: list[tuple[int, int]], budget: int, allocation: str
) -> None:
    answer = solve(method, named(shapes), budget, allocation, tolerance=None)
    assert isinstance(answer, Solution)
    model = Stack(shapes)
    entry = METHODS[method]
    config = entry.config.from_options(next(iter(answer.capacities.values())), {})
    gradients = zero_gradients(entry, {name: named(shapes)[name] for name in answer.capacities})
    adapted = attach(model, config, list(answer.capacities), capacities=answer.capacities, gradients=gradients)
    assert adapted.count() == answer.count
    assert answer.residual == answer.count - budget
    built = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # a rank schedule starts above its budget and ends at it
    assert built == answer.count or (entry.scheduled and built > answer.count)


@settings(max_examples=200, deadline=None)
@given(method=METHOD, shapes=SHAPES, budget=st.integers(1, 6000))
def test_no_uniform_capacity_is_nearer_and_of_equals_the_smaller_wins(
    method: str, shapes: list[tuple[int, int]], budget: int
) -> None:
    answer = solve(method, named(shapes), budget, "uniform", tolerance=None)
    assert isinstance(answer, Solution)
    assert answer.capacity is not None
    entry = METHODS[method]
    totals = {c: entry.total(shapes, c) for c in range(entry.min_capacity, entry.max_capacity(shapes) + 1)}
    assert answer.count == totals[answer.capacity]
    assert answer.capacity == min(totals, key=lambda c: (abs(totals[c] - budget), c))
    below = [t for t in totals.values() if t < answer.count]
    above = [t for t in totals.values() if t > answer.count]
    assert (answer.below.count if answer.below else None) == (max(below) if below else None)
    assert (answer.above.count if answer.above else None) == (min(above) if above else None)


@settings(max_examples=200, deadline=None)
@given(method=METHOD, shapes=SHAPES, budget=st.integers(1, 6000))
def test_fill_comes_within_half_a_weights_step(method: str, shapes: list[tuple[int, int]], budget: int) -> None:
    answer = solve(method, named(shapes), budget, "fill", tolerance=None)
    assert isinstance(answer, Solution)
    entry = METHODS[method]
    totals = sorted({entry.total(shapes, c) for c in range(entry.min_capacity, entry.max_capacity(shapes) + 1)})
    if not totals[0] <= budget <= totals[-1]:
        assert answer.count == (totals[0] if budget < totals[0] else totals[-1])
        return
    used = sorted(set(answer.capacities.values()))
    assert len(used) <= 2
    low, high = used[0], used[-1]
    steps = [abs(entry.count(s, high) - entry.count(s, low)) for s in shapes]
    if len(used) == 2:
        assert 2 * abs(answer.residual) <= max(steps)
        ends = sorted(entry.total(shapes, c) for c in used)
        assert ends[0] < budget < ends[1]
        assert not any(ends[0] < t < ends[1] for t in totals)


@settings(max_examples=200, deadline=None)
@given(
    groups=st.lists(st.tuples(st.integers(-50, 200), st.integers(1, 40)), min_size=1, max_size=16),
    share=st.fractions(0, 1),
)
def test_mixing_many_groups_keeps_the_bound_and_the_proportion(groups: list[tuple[int, int]], share: Fraction) -> None:
    steps, sizes = [s for s, _ in groups], [n for _, n in groups]
    span = sum(s * n for s, n in groups)
    assume(span >= 2)  # the upper total lies above the lower
    wanted = min(max(int(span * share), 1), span - 1)
    taken = mix(steps, sizes, wanted, span)
    total = sum(n * s for n, s in zip(taken, steps, strict=True))
    assert 2 * abs(total - wanted) <= max(abs(s) for s in steps)
    assert all(abs(n * span - size * wanted) < span for n, size in zip(taken, sizes, strict=True))
