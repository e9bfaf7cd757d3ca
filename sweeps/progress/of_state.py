"""Reads the progress of a running engine from its state. A cell is counted again only if it has changed."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from datetime import datetime

from analysis.store.rows import TrialRow
from sweeps.progress.failures import Failure
from sweeps.progress.progress import CellProgress, Pace, SweepProgress, Timed
from sweeps.search.stages import CellState, SweepState


def ended_trials(state: SweepState) -> frozenset[str]:
    """Return the ids of the trials that have ended."""
    return frozenset(trial_id for cell in state.cells.values() for trial_id in cell.rows)


class StateReader:
    """Reads the progress of a state, which may change between two calls.

    Args:
        state: the sweep.
        earlier: ids of the trials that ended in earlier runs.
    """

    def __init__(self, state: SweepState, earlier: AbstractSet[str] = frozenset()) -> None:
        self._state = state
        self._earlier = earlier
        self._cells: dict[str, tuple[int, CellProgress, tuple[Failure, ...]]] = {}

    def progress(self, now: datetime) -> SweepProgress:
        """Return the progress at the time `now`."""
        for cell_id, cell in self._state.cells.items():
            if cell_id not in self._cells or self._cells[cell_id][0] != cell.version:
                self._cells[cell_id] = cell.version, self._cell(cell), _failures(cell)
        counted = [self._cells[cell_id] for cell_id in self._state.cells]
        used = self._state.used
        return SweepProgress(
            cells=tuple(cell for _, cell, _ in counted),
            failures=tuple(failure for _, _, failures in counted for failure in failures),
            running=self._state.running,
            at_once=self._state.workers,
            now=now,
            accelerator_hours=None if used is None else used.accelerator_hours,
            cost=None if used is None else used.cost,
        )

    def _cell(self, state: CellState) -> CellProgress:
        cell, rows = state.cell, list(state.rows.values())
        failed = sum(row.status == "failed" for row in rows)
        confirmed = [row for row in state.counting() if row.stage == "CONFIRM" and row.status == "finished"]
        return CellProgress(
            cell_id=cell.cell_id,
            label=cell.label,
            method=cell.method,
            data=f"{cell.dataset} {cell.train_size}",
            reference=cell.reference or "",
            finished=len(rows) - failed,
            failed=failed,
            left=state.left(),
            begun=bool(state.asked),
            scored=len(confirmed) >= cell.confirm_seeds,
            best=max((row.val_score for row in rows if row.val_score is not None), default=None),
            pace=Pace.of(timed for row in rows if (timed := self._timed(row)) is not None),
        )

    def _timed(self, row: TrialRow) -> Timed | None:
        """Return the times of a trial; None if it ended in an earlier run or has no times."""
        if row.trial_id in self._earlier or row.started_at is None or row.ended_at is None:
            return None
        return Timed(row.started_at, row.ended_at, row.seconds_setup, row.seconds_total)


def _failures(state: CellState) -> tuple[Failure, ...]:
    return tuple(
        Failure(row.trial_id, state.cell.label, str(row.reason), state.raised.get(row.trial_id))
        for row in state.rows.values()
        if row.status == "failed"
    )
