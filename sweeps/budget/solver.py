"""The budget solver: finds the capacity whose exact number of trainable parameters is nearest to a budget.

A method's capacity is one integer for each target weight: the rank r, or k for NoLA. Every capacity within the method's
reach is counted, and the nearest is taken; the smaller one if two are equally near. There is no closed formula:
RandLoRA's count falls with its rank only on the whole, since n = ceil(m / r) makes it a sawtooth.

Allocations:

    uniform: one capacity for all target weights, as in papers.
    per-layer: each weight gets the capacity nearest to its share of the budget under LoRA, (out + in) / sum(out + in).
    fill: a mixture of the two capacities whose uniform counts are on either side of the budget. The weights of one
        shape form a group. In every group the same fraction of the weights, rounded up or down, gets the higher
        capacity, so that the total is as near to the budget as possible. They are spread evenly in model order. The
        total differs from the budget by at most half of one weight's step.
    auto: uniform if it is within the tolerance, else fill.

If the weights of a method share trainable tensors, it has one capacity, and the allocation is always uniform.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from randlora.adapted.freedom import degrees
from randlora.methods.registry import METHODS, get_method
from sweeps.budget.currencies import PARAMETERS, Currency, Shapes, UnknownCountError
from sweeps.budget.reach import Reach
from sweeps.spec.solution import Answer, Infeasible, Neighbour, Solution

Allocation = Literal["uniform", "per-layer", "fill", "auto"]
ALLOCATIONS: tuple[Allocation, ...] = ("uniform", "per-layer", "fill", "auto")
TOLERANCE = 0.05
"""The largest allowed |count - budget| / budget, by default."""


def reference_budget(shapes: Shapes, lora_rank: int, currency: Currency = PARAMETERS) -> int:
    """Return the count of LoRA at one rank on the target weights.

    That is lora_rank * sum(out + in) trainable parameters, or the amount of another currency that LoRA needs then.

    Raises:
        ValueError: a rank below 1, or no shapes.
    """
    if lora_rank < 1:
        raise ValueError(f"a LoRA rank is at least 1, got {lora_rank}")
    if not shapes:
        raise ValueError("no target weights: nothing to match a budget on")
    return currency.total(get_method("lora"), shapes, dict.fromkeys(shapes, lora_rank), {})


def solve(
    method: str,
    shapes: Shapes,
    budget: int,
    allocation: str = "auto",
    *,
    tolerance: float | None = TOLERANCE,
    nearest: bool = False,
    options: Mapping[str, Any] | None = None,
    currency: Currency = PARAMETERS,
    section: str | None = None,
) -> Answer:
    """Return the capacities with which a method's count is nearest to a budget.

    Arguments:
        method: a name in `randlora.methods.registry.METHODS`.
        shapes: (out, in) of every target weight by its qualified name, in model order.
        budget: the wanted number of trainable adapter parameters, or amount of another currency.
        allocation: "uniform", "per-layer", "fill" or "auto", as the module's docstring says.
        tolerance: the allowed |count - budget| / budget. None allows any, so that the nearest is always a solution.
        nearest: whether to return the nearest solution even if it is beyond the tolerance. "auto" still uses the
            tolerance to decide.
        options: the method's options. Its count may depend on them.
        currency: what the budget limits.
        section: the name under `[methods]` of the sweep file, for messages; None for the method's name.

    Returns:
        A `Solution`; `Infeasible` if the nearest count is beyond the tolerance, or if the method cannot adapt these
        weights at any capacity.

    Raises:
        ValueError: an unknown method or allocation, no shapes, a budget below 1 or a negative tolerance.
    """
    if allocation not in ALLOCATIONS:
        raise ValueError(f"unknown allocation {allocation!r}; known: {', '.join(ALLOCATIONS)}")
    if budget < 1:
        raise ValueError(f"a budget is at least 1 parameter, got {budget}")
    if tolerance is not None and tolerance < 0:
        raise ValueError(f"a tolerance is a fraction of the budget, at least 0, got {tolerance}")
    if (refusal := get_method(method).refuses(shapes, **(options or {}))) is not None:
        return Infeasible(method, budget, refusal.reason, None, None, f"take {refusal.remedy}")
    try:
        return _solve(Reach(method, shapes, options, currency), budget, allocation, tolerance, section, nearest=nearest)
    except UnknownCountError as error:
        return unknown_count(method, budget, error)


def _solve(
    counts: Reach, budget: int, allocation: str, tolerance: float | None, section: str | None, *, nearest: bool
) -> Answer:
    # without a tolerance, "auto" decides by the default one: otherwise any uniform count would do
    limit = Fraction(str(TOLERANCE if tolerance is None else tolerance)) * budget
    if counts.shared:
        allocation = "uniform"
    if allocation == "per-layer":
        solution = _solution(counts, "per-layer", counts.per_layer(budget), budget)
    elif allocation == "fill":
        solution = _solution(counts, "fill", counts.fill(budget), budget)
    else:
        solution = _solution(counts, "uniform", counts.uniform(budget), budget)
        if allocation == "auto" and abs(solution.residual) > limit:
            solution = _solution(counts, "fill", counts.fill(budget), budget)
    if nearest or tolerance is None or abs(solution.residual) <= limit:
        return solution
    return _infeasible(counts, solution, tolerance, section or counts.entry.name)


def unknown_count(method: str, budget: int, error: UnknownCountError) -> Infeasible:
    """Return the answer for a method whose count cannot be found."""
    return Infeasible(method, budget, str(error), None, None, 'budgets.count = "parameters" needs no such number')


def solve_pinned(
    method: str,
    shapes: Shapes,
    capacity: int,
    budget: int,
    *,
    options: Mapping[str, Any] | None = None,
    currency: Currency = PARAMETERS,
) -> Solution:
    """Return the solution for a capacity that the user chose, whatever its residual to the budget is.

    The capacity may be beyond the reach, such as the NoLA paper's k on narrow layers. The count is then larger than the
    number of parameters that the method can make use of.

    Raises:
        ValueError: a capacity below the method's smallest.
    """
    counts = Reach(method, shapes, options, currency)
    if capacity < counts.least:
        raise ValueError(f"a capacity of {method} is at least {counts.least}, got {capacity}")
    return _solution(counts, "uniform", counts.same(capacity), budget)


def budget_table(
    shapes: Shapes,
    budget: int,
    reference: str,
    *,
    methods: Sequence[str] | None = None,
    allocations: Sequence[str] = ALLOCATIONS,
    own: Callable[[str], Shapes] | None = None,
) -> dict[str, Any]:
    """Return a table of every method and allocation at one budget, as JSON values.

    Arguments:
        shapes: (out, in) of every target weight, by name.
        budget: the number of trainable parameters.
        reference: the name of the budget, such as "lora-32".
        methods: names of methods; None for all of ours.
        allocations: names of allocations.
        own: returns the shapes that a method counts on, by the method's name; None if that is always `shapes`.

    Returns:
        `{reference, budget, methods: [...]}`. An entry is the nearest solution, within the tolerance or not. It has
        `method`, `allocation`, `ranks` (one number if all weights share it, else one for each weight by name), `count`,
        `residual`, `dof`, `dof_measured` and `dof_at_most` (None if not known), `below` and `above` (None, or
        `capacity`, `count`, `residual`). `feasible` says whether it is within the tolerance. If not, `below` and
        `above` enclose the budget instead of the count, `reason` says why, and `lever` what to change. `chosen` is the
        allocation that "auto" took. If a method cannot adapt these weights at any capacity, all numbers are None.
    """
    rows = []
    for method, allocation in itertools.product(METHODS if methods is None else methods, allocations):
        on = shapes if own is None else own(method)
        answer = solve(method, on, budget, allocation)
        nearest = solve(method, on, budget, allocation, tolerance=None)
        shown = next((a for a in (answer, nearest) if isinstance(a, Solution)), None)
        freedom = None if shown is None else degrees(method, on, shown.capacities)
        row: dict[str, Any] = {
            "method": method,
            "allocation": allocation,
            "chosen": None if shown is None else shown.allocation,
            "ranks": None if shown is None else _ranks(METHODS[method].built(on, shown.capacities)),
            "count": None if shown is None else shown.count,
            "residual": None if shown is None else shown.residual,
            "dof": None if freedom is None else freedom.count,
            "dof_measured": None if freedom is None else freedom.measured,
            "dof_at_most": None if freedom is None else freedom.at_most,
            "below": _as_dict(answer.below),
            "above": _as_dict(answer.above),
            "feasible": isinstance(answer, Solution),
            "reason": answer.reason if isinstance(answer, Infeasible) else None,
            "lever": answer.lever if isinstance(answer, Infeasible) else None,
        }
        rows.append(row)
    return {"reference": reference, "budget": budget, "methods": rows}


def _ranks(built: Mapping[str, int]) -> int | dict[str, int]:
    """Return one capacity if all weights share it; else each capacity by name."""
    return dict(built) if len(set(built.values())) > 1 else next(iter(built.values()))


def _solution(counts: Reach, allocation: str, capacities: dict[str, int], budget: int) -> Solution:
    reached = counts.total(capacities)
    distinct = set(capacities.values())
    below, above = counts.beside(reached, budget)
    return Solution(
        method=counts.entry.name,
        allocation=allocation,
        capacity=distinct.pop() if len(distinct) == 1 else None,
        capacities=capacities,
        count=counts.parameters(capacities),
        budget=budget,
        residual=reached - budget,
        below=below,
        above=above,
    )


def _infeasible(counts: Reach, nearest: Solution, tolerance: float, section: str) -> Infeasible:
    budget, method = nearest.budget, counts.entry.name
    noun = counts.currency.noun
    below, above = counts.around(budget)
    if nearest.allocation == "per-layer":
        count, what = nearest.residual + budget, f"the nearest per-layer {noun} of {method}"
        others = (_solution(counts, "uniform", counts.uniform(budget), budget), _mixed(counts, nearest))
        near = [other for other in others if abs(other.residual) <= Fraction(str(tolerance)) * budget]
        lever = _instead(near[0]) if near else "take allocation = 'auto', or raise the tolerance"
    elif above is None and below is not None:
        count, what = below.count, f"the largest {noun} of {method} on these targets"
        key = f'"{section}"' if ":" in section else section  # as a sweep file writes it
        options = counts.widening(budget - Fraction(str(tolerance)) * budget)
        wider = "".join(f", or raise methods.{key}.{option}" for option in options)
        lever = f"lower the budget to {below.count:,}, or adapt more weights{wider}"
    elif below is None and above is not None:
        count, what = above.count, f"the smallest {noun} of {method} on these targets"
        lever = f"raise the budget to {above.count:,}, or adapt fewer weights"
    else:
        assert below is not None
        assert above is not None
        count, what = nearest.residual + budget, f"the nearest {nearest.allocation} {noun} of {method}"
        mixed = _mixed(counts, nearest)
        if abs(mixed.residual) <= Fraction(str(tolerance)) * budget:
            lever = _instead(mixed)
        else:
            lever = f"move the budget to {below.count:,} or {above.count:,}, or raise the tolerance"
    off = (count - budget) / budget
    side = "above" if off > 0 else "below"
    reason = f"{what} is {count:,}, {abs(off):.1%} {side} the budget {budget:,} (tolerance {100 * tolerance:.3g}%)"
    return Infeasible(method, budget, reason, below, above, lever)


def _mixed(counts: Reach, nearest: Solution) -> Solution:
    """Return the solution of the allocation `fill` for the budget of `nearest`."""
    budget = nearest.budget
    return nearest if counts.shared else _solution(counts, "fill", counts.fill(budget), budget)


def _instead(other: Solution) -> str:
    """Return the allocation of a solution that is within the tolerance, and what it reaches."""
    reached = other.residual + other.budget
    return f"allocation = '{other.allocation}' reaches {reached:,} ({other.residual / other.budget:+.2%})"


def _as_dict(neighbour: Neighbour | None) -> dict[str, int] | None:
    return None if neighbour is None else dataclasses.asdict(neighbour)
