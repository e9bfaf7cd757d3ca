"""Solves all budgets of a sweep file for one method, also those of capacities that the user chose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from itertools import islice
from statistics import fmean
from typing import Any

from randlora.adapter import Shape
from randlora.errors import AdapterError
from randlora.methods.method import Method
from randlora.methods.registry import METHODS
from sweeps.budget.currencies import Currency, PerWeight, Shapes, UnknownCountError
from sweeps.budget.reach import AllCounts, Reach
from sweeps.budget.solver import reference_budget, solve, solve_pinned, unknown_count
from sweeps.errors import Problem, reason
from sweeps.spec.methods import capacity_reference, full_rank, has_budget
from sweeps.spec.solution import Answer, Solution
from sweeps.spec.spec import SweepSpec
from trainables.models.families import ModelError

MethodShapes = Callable[[str, Shapes], Shapes]
"""Returns the shapes that a method counts on, from its name and the shapes of the target weights.

Raises ModelError if the method cannot be put into the model.
"""
_MOST = 50  # the number of counts of a method that are tried as a budget for all


def rank_problems(spec: SweepSpec, shapes: Shapes, method_shapes: MethodShapes) -> list[Problem]:
    """Return the problems of budgets and pinned capacities that the target weights can't have.

    These are LoRA ranks above the weights' own, percentages that give less than one parameter, and capacities beyond a
    method's reach.
    """
    largest = max(min(shape) for shape in shapes.values())
    rule = f"is above the largest rank of the target weights, {largest}"
    ranks = spec.budgets.lora_rank or ()
    problems = [Problem("budgets.lora_rank", r, rule, str(largest)) for r in ranks if r > largest]
    total = sum(rows * columns for rows, columns in shapes.values())
    rule = f"is less than one of the {total:,} adapted weights"
    shares = [p for p in spec.budgets.percent or () if round(total * p / 100) < 1]
    problems += [Problem("budgets.percent", p, rule, f"{100 / total:.3g}") for p in shares]
    for name, section in spec.methods.items():
        if not has_budget(spec.base(name)):
            continue
        entry = METHODS[spec.base(name)]
        try:
            named = method_shapes(entry.name, shapes)
            own = tuple(named.values())
            most = entry.max_capacity(own, **section.options)
            counted = entry.total(own, entry.min_capacity, **section.options)  # for prompts, the model knows the limits
        except (ModelError, AdapterError) as error:
            problems.append(Problem(f"methods.{name}", None, str(error)))
            continue
        except (ValueError, ArithmeticError) as error:  # a method of the user's own may not check its options
            rule = f"can't be counted with these options ({reason(error)})"
            problems.append(Problem(f"methods.{name}", section.options, rule))
            continue
        if section.options and (most < entry.min_capacity or counted < 1):
            rule = f"has {counted:,} parameters at its smallest capacity {entry.min_capacity}; the largest is {most:,}"
            problems.append(Problem(f"methods.{name}", section.options, f"{rule}: an option is too small"))
            continue
        if (refusal := entry.refuses(named, **section.options)) is not None:
            problems.append(Problem(f"methods.{name}", None, refusal.reason, refusal.remedy))
            continue
        if section.capacity is None:
            continue
        rule = f"is above the largest that {name} is built with on these weights, {most:,}"
        pinned = section.capacity if isinstance(section.capacity, tuple) else (section.capacity,)
        problems += [
            Problem(f"methods.{name}.capacity", c, rule, str(most)) for c in pinned if c > most and not entry.open_ended
        ]
        least, rule = entry.min_capacity, f"is below the smallest of {name}, {entry.min_capacity}"
        problems += [Problem(f"methods.{name}.capacity", c, rule, str(least)) for c in pinned if c < least]
        problems += _illegal(name, entry, set(own), section.options, pinned, range(least, most + 1))
    return problems


def _illegal(
    name: str, entry: Method, shapes: Set[Shape], options: Mapping[str, Any], pinned: Sequence[int], reach: range
) -> Iterator[Problem]:
    """Yield the pinned capacities that none of the weights can have. The method would silently build another one."""
    if (legal := entry.legal) is None:
        return

    def built(capacity: int) -> set[int]:
        return {legal(shape, capacity, **options) for shape in shapes}

    for capacity in pinned:
        if capacity in reach and capacity not in (instead := built(capacity)):
            sides = range(capacity, reach.start - 1, -1), range(capacity, reach.stop)
            near = [str(n) for side in sides for n in islice((n for n in side if n in built(n)), 1)]
            rule = f"no target weight can have this {entry.capacity_field}, but {', '.join(map(str, sorted(instead)))}"
            yield Problem(f"methods.{name}.capacity", capacity, f"{rule} in its place", " or ".join(near))


def solutions(
    name: str, spec: SweepSpec, shapes: Shapes, method_shapes: MethodShapes, currency: Currency, own: Currency
) -> list[tuple[str | None, Answer | None]]:
    """Return (name of the budget, the solver's answer) for each budget of a method; [(None, None)] if it has none.

    Args:
        name: the method's name in the sweep file.
        spec: the sweep.
        shapes: (out, in) of every target weight, by name.
        method_shapes: returns the shapes that a method counts on.
        currency: what the budgets limit. LoRA's budgets are counted in it.
        own: the same currency with the method's own micro-batch size, in which the method is counted.
    """
    section, method = spec.methods[name], spec.base(name)
    if not has_budget(method):
        return [(None, None)]
    budgets = _budgets(spec, shapes, currency)
    options = section.options
    shapes = method_shapes(method, shapes)
    references = section.budgets or spec.budgets.references()
    if section.capacity is not None:
        try:
            return _pinned(name, section.capacity, method, shapes, {r: budgets[r] for r in references}, options, own)
        except UnknownCountError as error:
            return [(r, unknown_count(method, budgets[r], error)) for r in references]
    return [
        (
            r,
            solve(
                method,
                shapes,
                budgets[r],
                section.allocation or spec.budgets.allocation,
                tolerance=spec.budgets.tolerance,
                nearest=section.unmatched,
                options=options,
                currency=own,
                section=name,
            ),
        )
        for r in references
    ]


def _pinned(
    name: str,
    capacity: int | tuple[int, ...],
    method: str,
    shapes: Shapes,
    budgets: Mapping[str, int],
    options: Mapping[str, Any],
    currency: Currency,
) -> list[tuple[str | None, Answer | None]]:
    """Return the answers for a method whose capacity the user chose.

    For each capacity in a list, the budget is its own count. A single capacity gets the budget nearest to its count.
    """
    if isinstance(capacity, tuple):
        return [
            (capacity_reference(name, c, currency.name), _pinned_at_its_own(method, shapes, c, options, currency))
            for c in capacity
        ]
    pinned = {
        r: solve_pinned(method, shapes, capacity, b, options=options, currency=currency) for r, b in budgets.items()
    }
    return [min(pinned.items(), key=lambda item: abs(item[1].residual))]


def _pinned_at_its_own(
    method: str, shapes: Shapes, capacity: int, options: Mapping[str, Any], currency: Currency
) -> Solution:
    """Return the solution for a capacity whose budget is its own count."""
    beyond = solve_pinned(method, shapes, capacity, 1, options=options, currency=currency).residual
    return solve_pinned(method, shapes, capacity, 1 + beyond, options=options, currency=currency)


def reached_by_all(
    spec: SweepSpec, shapes: Shapes, method_shapes: MethodShapes, reference: str, currency: Currency
) -> str | None:
    """Return the nearest budget that all methods reach, as a line of a sweep file.

    For a budget that is a LoRA rank, the nearest other rank is returned. For other budgets it is the nearest count that
    one of the methods has with one capacity for all weights.

    Args:
        spec: the sweep.
        shapes: (out, in) of every target weight, by name.
        method_shapes: returns the shapes that a method counts on.
        reference: the name of a budget.
        currency: what the budgets limit.

    Returns:
        The line; None if all methods reach the budget, if no budget between half and twice of it will do, or if the
        currency is memory, operations or bytes, which take too long to try.
    """
    if not isinstance(currency, PerWeight):  # it runs a model's step for each try
        return None
    asked = [
        (spec.base(name), section)
        for name, section in spec.methods.items()
        if has_budget(spec.base(name)) and section.capacity is None and not section.unmatched
        if reference in (section.budgets or (reference,))
    ]
    budget = _budgets(spec, shapes, currency)[reference]

    method_shapes_of = {method: method_shapes(method, shapes) for method, _ in asked}

    def all_reach(count: int) -> bool:
        return all(
            isinstance(
                solve(
                    method,
                    method_shapes_of[method],
                    count,
                    section.allocation or spec.budgets.allocation,
                    tolerance=spec.budgets.tolerance,
                    options=section.options,
                    currency=currency,
                ),
                Solution,
            )
            for method, section in asked
        )

    if all_reach(budget):
        return None
    if spec.budgets.lora_rank is not None:
        largest = max(min(shape) for shape in shapes.values())
        ranks = {r: reference_budget(shapes, r, currency) for r in range(1, largest + 1)}
        near = sorted(
            (r for r, b in ranks.items() if budget <= 2 * b <= 4 * budget), key=lambda r: abs(ranks[r] - budget)
        )
        rank = next((r for r in near if all_reach(ranks[r])), None)
        return None if rank is None else f"budgets.lora_rank = [{rank}]"
    counts = {
        count
        for method, section in asked
        for count in _counted(method, section.options, method_shapes_of[method], budget, currency)
    }
    params = next((c for c in sorted(counts, key=lambda c: abs(c - budget)) if all_reach(c)), None)
    return None if params is None else f"budgets.params = [{params}]"


def _counted(
    method: str, options: Mapping[str, Any], shapes: Shapes, budget: int, currency: PerWeight
) -> Iterator[int]:
    """Yield the `_MOST` nearest counts of a method between half and twice a budget; none if they are unknown."""
    try:
        curve = Reach(method, shapes, options, currency).curve
    except UnknownCountError:
        return
    assert isinstance(curve, AllCounts), "a currency that is a sum over weights counts every capacity"
    totals = curve.between(-(-budget // 2), 2 * budget)
    yield from sorted(set(totals), key=lambda t: abs(t - budget))[:_MOST]


def update_rank(method: str, shapes: Shapes, capacities: Mapping[str, int], options: Mapping[str, Any]) -> float | None:
    """Return the largest rank that the update of a target weight can have, as the mean over the target weights.

    Args:
        method: the method's name.
        shapes: (out, in) of every target weight, by name.
        capacities: the capacity of every target weight, by name; empty for a method without a budget.
        options: the method's options.

    Returns:
        The mean; None if no target weight is trained, or if the update is not a matrix.
    """
    if full_rank(method):
        return fmean(min(shape) for shape in shapes.values())
    on_weights = [(shapes[name], capacity) for name, capacity in capacities.items() if name in shapes]
    ranks = [METHODS[method].rank(shape, capacity, **options) for shape, capacity in on_weights]
    known_ranks = [rank for rank in ranks if rank is not None]
    return fmean(known_ranks) if known_ranks else None


def _budgets(spec: SweepSpec, shapes: Shapes, currency: Currency) -> dict[str, int]:
    """Return the budgets of a sweep file as counts, by their names."""
    section = spec.budgets
    references = section.references()
    if section.lora_rank is not None:
        return {n: reference_budget(shapes, r, currency) for n, r in zip(references, section.lora_rank, strict=True)}
    if section.percent is not None:
        total = sum(rows * columns for rows, columns in shapes.values())
        return {n: round(total * p / 100) for n, p in zip(references, section.percent, strict=True)}
    return dict(zip(references, section.amounts(), strict=True))
