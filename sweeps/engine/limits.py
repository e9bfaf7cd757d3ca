"""Caps of a sweep, `[limits]`: how long it may run, how much accelerator time it may take, and what it may cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sweeps.spec.resources import LimitsSection

if TYPE_CHECKING:
    from sweeps.search.stages import SweepState  # loads torch, which `status` need not


def used_seconds(
    taken: Iterable[float | None], events: Iterable[Mapping[str, Any]], each: float
) -> tuple[float, float]:
    """Return the worker-seconds and accelerator-seconds that all runs of this sweep used.

    The worker-seconds are what was journaled last, or the sum of the trials' if that is more.

    Args:
        taken: seconds of every trial, as its row has them.
        events: the journal's.
        each: accelerators of a trial if no run's `sweep` event says it.
    """
    seconds = 0.0
    held = 0.0
    now = each
    for event in events:
        if event["ev"] == "sweep":
            now = event.get("accelerators") or each
        more = max(0.0, (event.get("used") or 0.0) - seconds)
        seconds, held = seconds + more, held + more * now
    more = max(0.0, sum(one or 0.0 for one in taken) - seconds)
    return seconds + more, held + more * each


class Meter:
    """What a sweep has used so far, against its limits.

    Accelerator time is what trials hold: from when a trial is given out to its outcome, all runs of the sweep together.
    Idle workers are not in it. Wall time is that of this run.

    Attributes:
        seconds: that trials have held a worker, or their share of one, in all runs.
        each: accelerators that one trial holds.

    Args:
        limits: `[limits]`.
        state: the sweep.
        each: accelerators that one trial holds.
        begun: when this run began, by `clock`.
        busy: tells how many workers, or groups of them, have a trial or a pack now; those of a lost node have none.
        events: the journal's, which say what earlier runs used; rows know nothing of attempts that were lost or tried
            again.
    """

    def __init__(
        self,
        limits: LimitsSection,
        state: SweepState,
        each: float,
        begun: float,
        busy: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        events: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._limits = limits
        self._begun = begun
        self._busy = busy
        self._clock = clock
        self.each = each
        taken = [row.seconds_total for cell in state.cells.values() for row in cell.rows.values()]
        self.seconds, self._held = used_seconds(taken, events, self.each)
        self._last = clock()

    def tick(self) -> None:
        """Count the time since the last call; to be called every second or so."""
        now = self._clock()
        taken = self._busy() * (now - self._last)
        self.seconds += taken
        self._held += taken * self.each
        self._last = now

    @property
    def hours(self) -> float:
        """Wall time of this run."""
        return (self._clock() - self._begun) / 3600

    @property
    def accelerator_hours(self) -> float:
        """Accelerator time of the sweep."""
        return self._held / 3600

    @property
    def cost(self) -> float | None:
        """Its price; None where `price_per_hour` is not given."""
        price = self._limits.price_per_hour
        return None if price is None else self.accelerator_hours * price

    def reached(self) -> str | None:
        """The limit that is reached, in words; None when none is."""
        limits = self._limits
        if limits.max_hours is not None and self.hours >= limits.max_hours:
            return f"limits.max_hours = {limits.max_hours:g}"
        most = limits.max_accelerator_hours
        if most is not None and self.accelerator_hours >= most:
            return f"limits.max_accelerator_hours = {most:g} ({self.accelerator_hours:.3g} used)"
        cost = self.cost
        if limits.max_cost is not None and cost is not None and cost >= limits.max_cost:
            return f"limits.max_cost = {limits.max_cost:g} ({cost:.3g} spent)"
        return None
