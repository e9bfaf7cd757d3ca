"""The numbers of a sweep in progress, counted from its state; a cell is counted again only when it has changed."""

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
        method, reference: of the cell; `reference` is empty without a budget.
        score: a fraction; None where no trial has finished.
        phase: where the cell stands.
    """

    data: str
    method: str
    reference: str
    score: float | None
    phase: str


@dataclass(frozen=True)
class Failure:
    """A failed trial: its cell in words, the reason (the exception's type and first line), and where it was raised."""

    trial_id: str
    label: str
    reason: str
    where: str | None = None

    def __str__(self) -> str:
        return f"{self.label}: {self.reason}" + (f" ({self.where})" if self.where else "")


@dataclass(frozen=True)
class Snapshot:
    """Numbers of a sweep in progress.

    Attributes:
        done, total: trials of the plan; `total` may fall when failures leave fewer rates to run again.
        running: trials handed to the lanes.
        cells: cells by phase.
        best: every cell, in the plan's order.
        failures: failed trials, those of one cell together.
        per_minute: trials a minute of this run; None before the first.
        seconds_left: estimate from the seconds of each method's trials; None before the first.
        seconds: since this run began.
        accelerator_hours: what all runs of the sweep took; None outside a run.
        cost: its price; None where `limits.price_per_hour` is not given.
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
        """JSON-able; failures as their number, cells without a score left out."""
        values = asdict(self)
        values["best"] = [asdict(b) for b in self.best if b.score is not None]
        values["failures"] = len(self.failures)
        return values


@dataclass(frozen=True)
class _Cell:
    """One cell, counted."""

    counted: int
    missing: int
    best: Best
    failures: tuple[Failure, ...]
    seconds: tuple[float, int]  # of trials, without the set-up that the first trial of a worker pays for all; their sum


class Counting:
    """Takes snapshots of one state, which may go on between them."""

    def __init__(self, state: SweepState) -> None:
        self._state = state
        self._cells: dict[str, tuple[int, _Cell]] = {}
        self.done_before = 0

    def begin(self) -> None:
        """Count what is finished now as earlier work."""
        self.done_before = sum(cell.counted for cell in self._count())

    def _count(self) -> Iterable[_Cell]:
        for cell_id, cell in self._state.cells.items():
            known = self._cells.get(cell_id)
            if known is None or known[0] != cell.version:
                known = self._cells[cell_id] = (cell.version, _count_cell(cell))
            yield known[1]

    def snapshot(self, seconds: float) -> Snapshot:
        """Count. `seconds`: since this run began."""
        cells = list(self._count())
        done = sum(c.counted for c in cells)
        fresh = done - self.done_before
        missing: Counter[str] = Counter()
        spent: dict[str, list[float]] = {}
        for c in cells:
            missing[c.best.method] += c.missing
            total = spent.setdefault(c.best.method, [0.0, 0])
            total[0] += c.seconds[0]
            total[1] += c.seconds[1]
        left = seconds_left(missing, spent, self._state.workers) if fresh > 0 else None
        used = self._state.used
        phases = Counter(c.best.phase for c in cells)
        return Snapshot(
            done=done,
            total=done + sum(missing.values()),
            running=self._state.running,
            cells={phase: phases[phase] for phase in PHASES if phases[phase]},
            best=tuple(c.best for c in cells),
            failures=tuple(f for c in cells for f in c.failures),
            per_minute=60 * fresh / seconds if fresh > 0 and seconds > 0 else None,
            seconds_left=left,
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
