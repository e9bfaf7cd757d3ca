"""The answers of the budget solver: the capacities of a method at a budget, or why no capacity is near enough."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Neighbour:
    """A count that is reached with one capacity for all weights.

    Attributes:
        capacity: the smallest uniform capacity with that count.
        count: number of trainable adapter parameters, or amount of another currency.
        residual: count - budget.
    """

    capacity: int
    count: int
    residual: int


@dataclass(frozen=True)
class Solution:
    """The capacities of a method at a budget.

    Attributes:
        method: the method's name.
        allocation: "uniform", "per-layer" or "fill". For "auto" it is the one that was chosen.
        capacity: the capacity (r; k for NoLA) if all weights share it; None if they differ.
        capacities: the capacity of every target weight by name, in model order.
        count: number of trainable adapter parameters.
        budget: the budget, in its currency.
        residual: the count in the budget's currency, minus the budget.
        below, above: the nearest counts of uniform capacities strictly below and above; None at the end of the reach.
    """

    method: str
    allocation: str
    capacity: int | None
    capacities: dict[str, int]
    count: int
    budget: int
    residual: int
    below: Neighbour | None
    above: Neighbour | None


@dataclass(frozen=True)
class Infeasible:
    """The answer if no capacity is within the tolerance of the budget.

    Attributes:
        method: the method's name.
        budget: the budget, in its currency.
        reason: why it can't be reached, with the numbers.
        below, above: the nearest counts of uniform capacities on either side of the budget; None beyond the reach.
        lever: what to change so that it can be reached.
    """

    method: str
    budget: int
    reason: str
    below: Neighbour | None
    above: Neighbour | None
    lever: str


Answer = Solution | Infeasible
