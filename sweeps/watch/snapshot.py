"""Counts the trials of a sweep in progress from its state. A cell is counted again only if it has changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from sweeps.search.stages import CellState, SweepState
from sweeps.watch.counts import PHASES, seconds_left


@dataclass(frozen=True)
class Best:
    """The best validation score so far of one cell.

    Attributes:
        data: data set and training size.
        method: the cell's method.
        reference: the name of its budget; "" if it has none.
        score: the score as a fraction; None if no trial has finished.
        phase: the cell's phase.
    """

    data: str
    method: str
    reference: str
    score: float | None
    phase: str


@dataclass(frozen=True)
class Failure:
    """A failed trial.

    Attributes:
        trial_id: the trial.
        label: the name of its cell.
        reason: the exception's type and the first line of its message.
        where: where it was raised; None if that is not known.
    """

    trial_id: str
    label: str
    reason: str
    where: str | None = None

    def __str__(self) -> str:
        return f"{self.label}: {self.reason}" + (f" ({self.where})" if self.where else "")


@dataclass(frozen=True)
class Snapshot:
    """The counts of a sweep in progress.

    Attributes:
        done: number of planned trials that have ended.
        total: number of planned trials. It may fall if failures leave fewer rates to run again.
        running: number of trials that run.
        cells: number of cells by phase.
        best: the best score of every cell, in the plan's order.
        failures: failed trials, ordered by cell.
        per_minute: trials per minute in this run; None before the first has ended.
        seconds_left: estimated from the seconds of each method's trials; None before the first has ended.
        seconds: seconds since this run began.
        accelerator_hours: hours that all runs of the sweep used; None outside a run.
        cost: their cost; None if `limits.price_per_hour` is not set.
    """

    done: int
    total: int
    running: int
    cells: dict[str, int]
    best: tuple[Best, ...]
    failures: tuple[Failure, ...]
    per_minute: float | None
    seconds_left: float | None
    seconds: float
    accelerator_hours: float | None = None
    cost: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as JSON values: failures as their number, and without cells that have no score."""
        values = asdict(self)
        values["best"] = [asdict(b) for b in self.best if b.score is not None]
        values["failures"] = len(self.failures)
        return values


@dataclass(frozen=True)
class _Cell:
    """The counts of one cell."""

    counted: int
    missing: int
    best: Best
    failures: tuple[Failure, ...]
    seconds: tuple[float, int]
    """The sum over trials without set-up, which only a worker's first trial has; and the number of these trials."""


class Counting:
    """Takes snapshots of a state, which may change between them."""

    def __init__(self, state: SweepState) -> None:
        self._state = state
        self._cells: dict[str, tuple[int, _Cell]] = {}
        self.done_before = 0

    def begin(self) -> None:
        """Count the trials that have ended now as trials of earlier runs."""
        self.done_before = sum(cell.counted for cell in self._count())

    def _count(self) -> Iterable[_Cell]:
        for cell_id, cell in self._state.cells.items():
            cached = self._cells.get(cell_id)
            if cached is None or cached[0] != cell.version:
                cached = self._cells[cell_id] = (cell.version, _count_cell(cell))
            yield cached[1]

    def snapshot(self, seconds: float) -> Snapshot:
        """Return the counts now. `seconds`: seconds since this run began."""
        cells = list(self._count())
        done = sum(c.counted for c in cells)
        done_now = done - self.done_before
        missing: Counter[str] = Counter()
        spent: dict[str, list[float]] = {}
        for c in cells:
            missing[c.best.method] += c.missing
            total = spent.setdefault(c.best.method, [0.0, 0])
            total[0] += c.seconds[0]
            total[1] += c.seconds[1]
        remaining_seconds = seconds_left(missing, spent, self._state.workers) if done_now > 0 else None
        used = self._state.used
        phases = Counter(c.best.phase for c in cells)
        return Snapshot(
            done=done,
            total=done + sum(missing.values()),
            running=self._state.running,
            cells={phase: phases[phase] for phase in PHASES if phases[phase]},
            best=tuple(c.best for c in cells),
            failures=tuple(f for c in cells for f in c.failures),
            per_minute=60 * done_now / seconds if done_now > 0 and seconds > 0 else None,
            seconds_left=remaining_seconds,
            seconds=seconds,
            accelerator_hours=None if used is None else used.accelerator_hours,
            cost=None if used is None else used.cost,
        )


def _count_cell(cell: CellState) -> _Cell:
    rows = list(cell.rows.values())
    seconds = [row.seconds_total - (row.seconds_setup or 0.0) for row in rows if row.seconds_total is not None]
    failed = [row for row in rows if row.status == "failed"]
    c = cell.cell
    return _Cell(
        counted=cell.counted(),
        missing=sum(cell.left()),
        best=Best(f"{c.dataset} {c.train_size}", c.method, c.reference or "", cell.best, cell.phase),
        failures=tuple(
            Failure(row.trial_id, c.label, str(row.reason), cell.raised.get(row.trial_id)) for row in failed
        ),
        seconds=(sum(seconds), len(seconds)),
    )
