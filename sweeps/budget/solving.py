"""Every budget of a sweep file solved for one method, pinned capacities included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from randlora.methods.registry import METHODS
from sweeps.budget.solver import Infeasible, Solution, reference_budget, solve, solve_pinned
from sweeps.errors import Problem
from sweeps.spec.methods import full_rank, has_budget
from sweeps.spec.sections import MethodSection
from sweeps.spec.spec import SweepSpec

Shapes = Mapping[str, tuple[int, int]]


def rank_problems(spec: SweepSpec, shapes: Shapes) -> list[Problem]:
    """LoRA ranks of the budgets that no target weight has."""
    largest = max(min(shape) for shape in shapes.values())
    rule = f"is above the largest rank of the target weights, {largest}"
    return [Problem("budgets.lora_rank", r, rule, str(largest)) for r in spec.budgets.lora_rank or () if r > largest]


@dataclass(frozen=True)
class Solved:
    """A budget and what the solver said of it; `reason` where no setting reaches it."""

    reference: str | None
    budget: int | None
    answer: Solution | Infeasible | None
    reason: str | None


def solutions(name: str, section: MethodSection, spec: SweepSpec, shapes: Shapes) -> list[Solved]:
    """A method's settings for all its budgets; one without a budget for a method that has none."""
    name = spec.base(name)
    if not has_budget(name):
        return [Solved(None, None, None, None)]
    solved = []
    options = section.options
    budgets = _budgets(spec, shapes)
    for reference in section.budgets or spec.budgets.references():
        budget = budgets[reference]
        if section.capacity is not None:  # pinned: one cell, at the budget nearest to its own count
            answer: Solution | Infeasible = solve_pinned(name, shapes, section.capacity, budget, options=options)
        else:
            allocation = section.allocation or spec.budgets.allocation
            tolerance = None if section.unmatched else spec.budgets.tolerance
            answer = solve(name, shapes, budget, allocation, tolerance=tolerance, options=options)
        reason = _reason(answer) if isinstance(answer, Infeasible) else None
        solved.append(Solved(reference, budget, answer, reason))
    if section.capacity is not None:
        return [min(solved, key=lambda s: abs(s.answer.residual) if isinstance(s.answer, Solution) else 0)]
    return solved


def update_rank(method: str, shapes: Shapes, capacities: Mapping[str, int], options: Mapping[str, Any]) -> float | None:
    """The largest rank that the update of a target weight can have, mean over the target weights.

    Args:
        capacities: of every target weight; empty for a method without a budget.

    Returns:
        None where nothing of the target weights trains, or where the update is no matrix.
    """
    if full_rank(method):
        return fmean(min(shape) for shape in shapes.values())
    ranks = [METHODS[method].rank(shapes[name], capacity, **options) for name, capacity in capacities.items()]
    known = [rank for rank in ranks if rank is not None]
    return fmean(known) if known else None


def _reason(answer: Infeasible) -> str:
    return f"{answer.reason}; {answer.lever}" if answer.lever else answer.reason


def _budgets(spec: SweepSpec, shapes: Shapes) -> dict[str, int]:
    references = spec.budgets.references()
    if spec.budgets.lora_rank is not None:
        return dict(zip(references, (reference_budget(shapes, r) for r in spec.budgets.lora_rank), strict=True))
    if spec.budgets.params is not None:
        return dict(zip(references, spec.budgets.params, strict=True))
    total = sum(rows * columns for rows, columns in shapes.values())
    return dict(zip(references, (round(total * p / 100) for p in spec.budgets.percent or ()), strict=True))
