"""The order in which cells are served."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from sweeps.interfaces import Cell

Order = Literal["spread", "methods", "budgets"]


def spread(count: int) -> list[int]:
    """Numbers 0 to count - 1 so that every prefix covers the range evenly: the ends, the middle, the quarters, ..."""
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
    """Ids of the cells in the order to serve them.

    Args:
        cells: in the plan's order: by method, then budget, data set, training size.
        order: "methods": as in the plan. "budgets": the smallest budgets first, all methods of one. "spread": the
            smallest budget first, then the largest, then those between, all methods, data sets and sizes of each: so
            every figure has all its curves early, and they grow finer together. Cells without a budget come first.
    """
    listed = list(cells)
    if order == "methods":
        return [cell.cell_id for cell in listed]
    budgets = sorted({cell.budget for cell in listed if cell.budget is not None})
    places: Sequence[int] = spread(len(budgets)) if order == "spread" else range(len(budgets))
    rank = {budgets[place]: number for number, place in enumerate(places)}
    return [c.cell_id for c in sorted(listed, key=lambda c: -1 if c.budget is None else rank[c.budget])]
