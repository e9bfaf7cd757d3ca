"""`SweepProgress`: how far each cell of a sweep is, and the totals, the speed and the time left that follow.

`of_state` and `of_folder` read the cells. Everything that is the same for both is computed here.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from analysis.store.left import PHASES, Left, Phase, phase_of
from sweeps.progress.failures import Failure


@dataclass(frozen=True)
class Timed:
    """Times of one trial that ended in this run, by the clock of its worker.

    Attributes:
        began: when it began.
        ended: when it ended.
        seconds_setup: seconds of set-up, which only a worker's first trial has.
        seconds_total: all of its seconds; None if that is not known.
    """

    began: datetime
    ended: datetime
    seconds_setup: float | None
    seconds_total: float | None

    @property
    def seconds(self) -> float:
        """Return the trial's seconds without set-up."""
        return max(0.0, (self.seconds_total or 0.0) - (self.seconds_setup or 0.0))


@dataclass(frozen=True)
class Pace:
    """How long the trials of one cell took that ended in this run, without set-up.

    Attributes:
        trials: number of these trials.
        seconds: sum over them.
        first: the trial that began first; None if there is none.
        last: when the last one ended; None if there is none.
    """

    trials: int = 0
    seconds: float = 0.0
    first: Timed | None = None
    last: datetime | None = None

    @classmethod
    def of(cls, timed: Iterable[Timed]) -> Pace:
        """Return the pace of trials."""
        trials = list(timed)
        if not trials:
            return cls()
        first = min(trials, key=lambda t: t.began)
        return cls(len(trials), sum(t.seconds for t in trials), first, max(t.ended for t in trials))


@dataclass(frozen=True)
class CellProgress:
    """How far one cell is.

    Attributes:
        cell_id, label, method, data: the cell. `data` is its data set and training size.
        reference: the name of its budget; "" if it has none.
        finished: number of trials that ended with a score or were stopped by the pruner. Rates past the edge of the
            range count, and runs of a rate that is no longer chosen.
        failed: number of trials that failed. A trial that is tried again is neither finished nor failed.
        left: numbers of TUNE and CONFIRM trials that are to come; None if nothing will run, since no rate finished.
        begun: whether a trial was ever started.
        scored: whether each seed of stage CONFIRM has a score.
        best: the best validation score so far, as a fraction; None if there is none.
        pace: how long its trials took that ended in this run.
    """

    cell_id: str
    label: str
    method: str
    data: str
    reference: str
    finished: int
    failed: int
    left: Left
    begun: bool
    scored: bool
    best: float | None
    pace: Pace = Pace()

    @property
    def phase(self) -> Phase:
        """Return the phase of the cell."""
        return phase_of(self.left, begun=self.begun)

    @property
    def to_come(self) -> int:
        """Return the number of trials that are to come, those that run included."""
        return sum(self.left or ())

    @property
    def confirmed(self) -> bool:
        """Return whether nothing of the cell is left to run, and each of its seeds has a score."""
        return self.phase == "done" and self.scored


@dataclass(frozen=True)
class SweepProgress:
    """How far a sweep is.

    Attributes:
        cells: the feasible cells, in the plan's order.
        failures: failed trials.
        running: number of trials that began and have not ended.
        at_once: number of trials that this run trains at once.
        now: the time; None if no run is in progress.
        accelerator_hours: hours that all runs of the sweep used; None if they are not measured.
        cost: their cost; None if `limits.price_per_hour` is not set.
    """

    cells: tuple[CellProgress, ...]
    failures: tuple[Failure, ...]
    running: int
    at_once: int
    now: datetime | None
    accelerator_hours: float | None = None
    cost: float | None = None

    @property
    def finished(self) -> int:
        """Return the number of trials that ended and did not fail."""
        return sum(c.finished for c in self.cells)

    @property
    def failed(self) -> int:
        """Return the number of trials that failed."""
        return sum(c.failed for c in self.cells)

    @property
    def done(self) -> int:
        """Return the number of trials that have ended."""
        return self.finished + self.failed

    @property
    def total(self) -> int:
        """Return the number of trials that have ended or are to come. It may fall if failures leave fewer re-runs."""
        return self.done + sum(c.to_come for c in self.cells)

    @property
    def phases(self) -> dict[str, int]:
        """Return the number of cells in each phase that some cell is in."""
        phases = Counter(c.phase for c in self.cells)
        return {phase: phases[phase] for phase in PHASES if phases[phase]}

    @property
    def this_run(self) -> int:
        """Return the number of trials that ended in this run, or in the last one."""
        return sum(c.pace.trials for c in self.cells)

    @property
    def per_minute(self) -> float | None:
        """Return the trials per minute of this run (or the last one); None before its first trial has ended.

        The start of Ray and of workers does not count.
        """
        firsts = [c.pace.first for c in self.cells if c.pace.first is not None]
        lasts = [c.pace.last for c in self.cells if c.pace.last is not None]
        if not firsts or not lasts:
            return None
        first = min(firsts, key=lambda t: t.began)
        seconds = ((self.now or max(lasts)) - first.began).total_seconds() - (first.seconds_setup or 0.0)
        return 60 * self.this_run / seconds if seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Return the seconds until the sweep is done; None if no run is in progress, or none of its trials has ended.

        Each trial counts with the mean seconds of its method, or of all methods if its method has none yet.
        """
        seconds: dict[str, float] = defaultdict(float)
        trials: Counter[str] = Counter()
        for c in self.cells:
            seconds[c.method] += c.pace.seconds
            trials[c.method] += c.pace.trials
        means = {method: seconds[method] / n for method, n in trials.items() if n}
        if self.now is None or not means:
            return None
        overall = statistics.fmean(means.values())
        busy = sum(c.to_come * means.get(c.method, overall) for c in self.cells)
        return busy / max(1, min(self.at_once, sum(c.to_come for c in self.cells)))
