"""Where the learning rate of a TUNE slot comes from, as its number says."""

from __future__ import annotations

from enum import Enum


class SlotKind(Enum):
    """Where the learning rate of a TUNE slot comes from. The value is the first slot number of the kind.

    Results folders store these numbers, so they stay as they are.

    Attributes:
        PLANNED: it is in the allowance: warm starts, the sampler's points, and re-runs of the best of them.
        WIDENED: it lies past the edge of the range, because the best point was at that edge.
        WIDENED_LATE: it lies past the edge of the range, because the re-runs chose a point at that edge. It has
            re-runs itself, with the numbers that follow.
        REFINED: it is in the allowance, and lies where a local fit of the points before it expects the best rate.
    """

    PLANNED = 0
    WIDENED = 100_000
    WIDENED_LATE = 200_000
    REFINED = 300_000

    @classmethod
    def of(cls, number: int) -> SlotKind:
        """Return the kind of a slot number."""
        return max((kind for kind in cls if kind.value <= number), key=lambda kind: kind.value)

    @classmethod
    def within(cls, points: int, refined: int) -> set[int]:
        """Return the slots that a cell's allowance has on TUNE's first seed.

        Args:
            points: number of rates that are tried on it. refined: how many of these a local fit proposes.
        """
        return {*range(points - refined), *(cls.REFINED.slot(k) for k in range(refined))}

    def slot(self, index: int) -> int:
        """Return the slot number of the kind's point `index`, counted from 0."""
        return self.value + index
