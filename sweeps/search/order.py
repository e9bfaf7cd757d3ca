"""Decides the order in which cells get their trials."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sweeps.spec.cell import Cell
from sweeps.spec.paths import resolved


def spread(count: int) -> list[int]:
    """Return the numbers 0 to count - 1 in an order of which every prefix covers the range evenly.

    First come the ends, then the middle, then the quarters, and so on.
    """
    if count < 3:
        return list(range(count))
    order = [0, count - 1]
    gaps = [(0, count - 1)]
    while gaps:
        low, high = gaps.pop(0)
        middle = (low + high) // 2
        if low < middle < high:
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return order


def ordered(cells: Iterable[Cell], order: str) -> list[str]:
    """Return the ids of the cells in the order to serve them.

    Args:
        cells: the cells in the plan's order: by method, then budget, data set, training size.
        order: "methods": the plan's order. "budgets": the smallest budget first, with all methods. "spread": the
            smallest budget first, then the largest, then those between, each with all methods, data sets and sizes. So
            every figure has all its curves early, and they become finer together. Cells without a budget come first.
    """
    listed = list(cells)
    if order == "methods":
        return [cell.cell_id for cell in listed]
    budgets = sorted({cell.budget for cell in listed if cell.budget is not None})
    places: Sequence[int] = spread(len(budgets)) if order == "spread" else range(len(budgets))
    rank = {budgets[place]: number for number, place in enumerate(places)}
    return [c.cell_id for c in sorted(listed, key=lambda c: -1 if c.budget is None else rank[c.budget])]


def tiers(cells: Iterable[Cell], priority: Sequence[str | float]) -> dict[str, int]:
    """Return the tier of each cell, by id. Cells of tier 0 are served first.

    Args:
        cells: the cells of the plan.
        priority: names of methods, budgets, data sets or training sizes. Cells with the first name come first. Among
            them, and among the others, cells with the second name come first, and so on.
    """
    lacks = {cell.cell_id: tuple(not _matches(cell, name) for name in priority) for cell in cells}
    places = {missing: place for place, missing in enumerate(sorted(set(lacks.values())))}
    return {cell_id: places[missing] for cell_id, missing in lacks.items()}


def _matches(cell: Cell, name: str | float) -> bool:
    """Return whether a name of `resources.priority` names this cell's method, budget, data set or size."""
    if not isinstance(name, str):
        return cell.train_size == name
    named = (cell.method, cell.reference, cell.train_size)
    return name in named or resolved(name) == resolved(cell.dataset)
