"""The budget solver: which capacity gives a method as many trainable parameters as a budget allows, exactly.

A method's capacity is one integer per target weight: the rank r, or k for NoLA. Every capacity within the method's
reach is counted, in integers, and the nearest taken; of two equally near, the smaller. Nothing is inverted in closed
form: RandLoRA's count falls with its rank only on the whole, since n = ceil(m / r) makes it a sawtooth.

Allocations:
    uniform: one capacity for all target weights, as papers take it.
    per-layer: each weight matched to its own reference, its share of the budget under LoRA: (out + in) / sum(out + in).
    fill: two capacities whose uniform totals are neighbours on either side of the budget, mixed. The weights of one
        shape form a group; the same fraction of every group, rounded up or down, takes the upper one, the roundings
        chosen for the total nearest to the budget. Within a group they are spread evenly in model order. The total lies
        within half of one weight's step.
    auto: uniform where it lies within the tolerance, else fill.
A method whose weights share trainables has one capacity: it takes uniform, whatever is asked.
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
"""How far from its budget a count may lie by default, as a fraction of the budget."""


def reference_budget(shapes: Shapes, lora_rank: int, currency: Currency = PARAMETERS) -> int:
    """Return what LoRA counts at one rank on the target weights.

    That is lora_rank * sum(out + in) trainable parameters, or the amount of another currency that LoRA takes then.
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
    """The capacities that bring a method nearest to a budget.

    Arguments:
        method: a name in `randlora.methods.registry.METHODS`.
        shapes: (out, in) of every target weight by qualified name, in model order.
        budget: trainable adapter parameters aimed at, or as much of another currency.
        allocation: see the module's head.
        tolerance: |count - budget| / budget allowed; None allows any, so that the nearest is always a solution.
        nearest: take the nearest also beyond the tolerance, by which "auto" still decides.
        options: the method's own options that its count depends on; others do no harm.
        currency: what the budget limits.
        section: its name under `[methods]` of the sweep file, for messages; None: the method's.

    Returns:
        A `Solution`, or `Infeasible` if the nearest count lies beyond the tolerance, or if the method cannot adapt
        these weights at any capacity.

    Raises:
        ValueError: an unknown method or allocation, no shapes, a budget below 1 or a negative tolerance.
    """
    if allocation not in ALLOCATIONS:
        raise ValueError(f"unknown allocation {allocation!r}; known: {', '.join(ALLOCATIONS)}")
    if budget < 1:
        raise ValueError(f"a budget is at least 1 parameter, got {budget}")
    if tolerance is not None and tolerance < 0:
        raise ValueError(f"a tolerance is a fraction of the budget, at least 0, got {tolerance}")
    if (found := get_method(method).refuses(shapes, **(options or {}))) is not None:
        return Infeasible(method, budget, found.reason, None, None, f"take {found.remedy}")
    try:
        return _solve(Reach(method, shapes, options, currency), budget, allocation, tolerance, section, nearest=nearest)
    except UnknownCountError as error:
        return unknown_count(method, budget, error)


def _solve(
    counts: Reach, budget: int, allocation: str, tolerance: float | None, section: str | None, *, nearest: bool
) -> Answer:
    # without a tolerance any uniform count would do, and auto never come to fill: there the default decides
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
    """Return the answer for a method whose count cannot be found, so that it cannot run at a budget."""
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
    """A capacity that the user chose, with its count and its residual to a budget, however large.

    It may lie beyond the reach, as the NoLA paper's k does on narrow layers: the count is then larger than what the
    method can make use of, but it is the count. Raises ValueError: a capacity below the method's smallest.
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
    """Every method and allocation at one budget, ready for JSON.

    Arguments:
        reference: what the budget is, in a word: "lora-32".
        methods: names; None: all that tables list.
        own: of a method's name, what it counts on where that is not `shapes`.

    Returns:
        `{reference, budget, methods: [...]}`. An entry has `method`, `allocation`, `ranks` (as built: one number where
        all weights share it, else one per weight by name), `count`, `residual`, `dof`, `dof_measured` and
        `dof_at_most` (null where not known), `below` and `above` (null, or `capacity`, `count`, `residual`): the
        nearest there is, within the tolerance or not. `feasible` says which; if not, `below` and `above` enclose the
        budget instead of the count, and `reason` and `lever` say why. `chosen` is the allocation that "auto" took. A
        method that cannot adapt these weights at any capacity has null for all numbers.
    """
    rows = []
    for method, allocation in itertools.product(METHODS if methods is None else methods, allocations):
        on = shapes if own is None else own(method)
        answer = solve(method, on, budget, allocation)
        nearest = solve(method, on, budget, allocation, tolerance=None)
        shown = next((a for a in (answer, nearest) if isinstance(a, Solution)), None)
        found = None if shown is None else degrees(method, on, shown.capacities)
        row: dict[str, Any] = {
            "method": method,
            "allocation": allocation,
            "chosen": None if shown is None else shown.allocation,
            "ranks": None if shown is None else _ranks(METHODS[method].built(on, shown.capacities)),
            "count": None if shown is None else shown.count,
            "residual": None if shown is None else shown.residual,
            "dof": None if found is None else found.count,
            "dof_measured": None if found is None else found.measured,
            "dof_at_most": None if found is None else found.at_most,
            "below": _as_dict(answer.below),
            "above": _as_dict(answer.above),
            "feasible": isinstance(answer, Solution),
            "reason": answer.reason if isinstance(answer, Infeasible) else None,
            "lever": answer.lever if isinstance(answer, Infeasible) else None,
        }
        rows.append(row)
    return {"reference": reference, "budget": budget, "methods": rows}


def _ranks(built: Mapping[str, int]) -> int | dict[str, int]:
    """One capacity if all weights share it, else each by name."""
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
    if above is None and below is not None:
        named, what = below.count, f"the largest {noun} of {method} on these targets"
        key = f'"{section}"' if ":" in section else section  # as a sweep file writes it
        options = counts.widening(budget - Fraction(str(tolerance)) * budget)
        wider = "".join(f", or raise methods.{key}.{option}" for option in options)
        lever = f"lower the budget to {below.count:,}, or adapt more weights{wider}"
    elif below is None and above is not None:
        named, what = above.count, f"the smallest {noun} of {method} on these targets"
        lever = f"raise the budget to {above.count:,}, or adapt fewer weights"
    else:
        assert below is not None
        assert above is not None
        named, what = nearest.residual + budget, f"the nearest {nearest.allocation} {noun} of {method}"
        mixed = nearest if counts.shared else _solution(counts, "fill", counts.fill(budget), budget)
        if abs(mixed.residual) <= Fraction(str(tolerance)) * budget:
            lever = f"allocation = 'fill' reaches {mixed.residual + budget:,} ({mixed.residual / budget:+.2%})"
        else:
            lever = f"move the budget to {below.count:,} or {above.count:,}, or raise the tolerance"
    off = (named - budget) / budget
    side = "above" if off > 0 else "below"
    reason = f"{what} is {named:,}, {abs(off):.1%} {side} the budget {budget:,} (tolerance {100 * tolerance:.3g}%)"
    return Infeasible(method, budget, reason, below, above, lever)


def _as_dict(neighbour: Neighbour | None) -> dict[str, int] | None:
    return None if neighbour is None else dataclasses.asdict(neighbour)
