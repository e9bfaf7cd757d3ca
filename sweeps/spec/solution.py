"""What the budget solver answers: the capacities that a method takes at a budget, or why none comes near it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Neighbour:
    """A count that one uniform capacity reaches.

    Attributes:
        capacity: the (smallest) uniform capacity with that count.
        count: trainable adapter parameters, or degrees of freedom where a budget limits these.
        residual: count - budget.
    """

    capacity: int
    count: int
    residual: int


@dataclass(frozen=True)
class Solution:
    """What a method takes at a budget.

    Attributes:
        allocation: "uniform", "per-layer" or "fill"; never "auto", but what it chose.
        capacity: the one capacity (r; k for NoLA) where all weights share it; None where they differ.
        capacities: the capacity of every target weight, in model order.
        count: trainable adapter parameters.
        residual: what is counted, these or degrees of freedom, less the budget.
        below, above: nearest of what a uniform capacity counts, strictly below and above; None where the reach ends.
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
    """No capacity comes within the tolerance of the budget.

    Attributes:
        reason: what can't be reached, with the numbers.
        below, above: the nearest counts of a uniform capacity on either side of the budget; None beyond the reach.
        lever: what to change so that it can be reached.
    """

    method: str
    budget: int
    reason: str
    below: Neighbour | None
    above: Neighbour | None
    lever: str


Answer = Solution | Infeasible
