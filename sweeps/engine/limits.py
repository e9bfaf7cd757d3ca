"""Measures what a sweep uses, and compares it with `[limits]`: its hours, its accelerator time and its cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sweeps.progress.used import used_seconds
from sweeps.search.stages import SweepState
from sweeps.spec.resources import LimitsSection


class Meter:
    """Measures what a sweep has used so far, and compares it with its limits.

    Accelerator time counts for each trial from when a worker gets it to its outcome, over all runs of the sweep. Idle
    workers do not count. Wall time is that of this run alone.

    Attributes:
        seconds: worker-seconds of all trials in all runs.
        each: number of accelerators that one trial holds.

    Args:
        limits: `[limits]`.
        state: the sweep.
        each: number of accelerators that one trial holds.
        begun: when this run began, by `clock`.
        busy: returns the number of workers or groups that have a trial or a pack now.
        clock: returns the time in seconds.
        events: the journal's events, which say what earlier runs used. Rows lack attempts that were lost or run again.
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
        trial_seconds = [row.seconds_total for cell in state.cells.values() for row in cell.rows.values()]
        self.seconds, self._held = used_seconds(trial_seconds, events, self.each)
        self._last = clock()

    def tick(self) -> None:
        """Add the time since the last call. To be called about every second."""
        now = self._clock()
        worker_seconds = self._busy() * (now - self._last)
        self.seconds += worker_seconds
        self._held += worker_seconds * self.each
        self._last = now

    @property
    def hours(self) -> float:
        """Return the wall time of this run, in hours."""
        return (self._clock() - self._begun) / 3600

    @property
    def accelerator_hours(self) -> float:
        """Return the accelerator time of the sweep, in hours."""
        return self._held / 3600

    @property
    def cost(self) -> float | None:
        """Return the cost of the sweep so far; None if `price_per_hour` is not set."""
        price = self._limits.price_per_hour
        return None if price is None else self.accelerator_hours * price

    def reached(self) -> str | None:
        """Return the limit that is reached, in words; None if no limit is reached."""
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
