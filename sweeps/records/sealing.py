"""Writes the rows of finished trials into immutable Parquet parts, and checks the parts at the start of a run."""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import psutil

from analysis.format import Row
from analysis.store.codec import TableRow, from_values
from analysis.store.columns import TAKEN_OUT
from analysis.store.journal import Finish
from analysis.store.rows import CellRow, ChoiceRow, MetricRow, PredictionRow, TrialRow
from analysis.store.store import open_store
from analysis.store.tables import scan_parts, set_aside, write_part

R = TypeVar("R", bound=TableRow)

SEAL_EVERY = 256
_DRAFT = re.compile(r"\.[\w.]+\.(\d{1,9})\.tmp")
_FINISH = (PredictionRow, MetricRow, TrialRow)  # trials last: a trial whose row is sealed has all its rows sealed


class Sealer:
    """Writes the tables of one results folder. Rows may be added in one thread and written in another.

    Args:
        folder: the results folder, whose lock this process holds. Drafts of a killed driver are removed. Damaged parts
            are set aside, and their rows are written again if the journal has them.
        every: seconds after which `seal_if_late` writes a row that waits. None: no limit.

    Attributes:
        rows: the last sealed row of each trial, by trial id.
        choices: the latest choice of each cell, by cell id.
        curves: the sealed validation scores by epoch, by trial id.
        damaged: names of the parts that were set aside.
    """

    def __init__(self, folder: Path, every: float | None = None) -> None:
        self.folder = folder
        _clear_drafts(folder)
        self._every = every
        self._oldest = 0.0
        self._lock = threading.RLock()
        self.damaged: list[str] = []
        self._waiting: dict[str, list[TableRow]] = {row.table: [] for row in (*_FINISH, ChoiceRow)}
        self._sealed: dict[str, set[Any]] = {name: set() for name in self._waiting}
        self.rows: dict[str, TrialRow] = {}
        for trial in sorted(self._read(TrialRow), key=lambda row: row.attempt):
            self.rows[trial.trial_id] = trial
        self.choices: dict[str, ChoiceRow] = {}
        for choice in sorted(self._read(ChoiceRow), key=lambda row: row.chosen_at):  # older versions wrote no numbers
            self._note_choice(choice)
        self._cells = {row.cell_id: row for row in self._read(CellRow)}
        self.curves: dict[str, dict[int, float | None]] = defaultdict(dict)
        for epoch in sorted(self._read(MetricRow), key=lambda row: row.attempt or 0):
            self.curves[epoch.trial_id][epoch.epoch] = epoch.val_score
        self._read(PredictionRow)

    def _read(self, row: type[R]) -> list[R]:
        """Return the sealed rows of a table. Damaged parts are set aside."""
        table, damaged = scan_parts(self.folder, row.table)
        for part in damaged:
            set_aside(part)
            self.damaged.append(str(part))
        rows = [from_values(row, values) for values in table.to_pylist()]
        if row.table in self._sealed:
            self._sealed[row.table] = {_key(each) for each in rows}
        return rows

    def add(self, finish: Finish) -> None:
        """Queue the rows of a trial that ended, to be written with the next part, unless they are sealed already."""
        with self._lock:
            if not self._waiting[TrialRow.table]:
                self._oldest = time.monotonic()
            self._queue([finish.row, *finish.metrics, *([] if finish.prediction is None else [finish.prediction])])
            if len(self._waiting[TrialRow.table]) >= SEAL_EVERY:
                self.seal()

    def add_choice(self, row: ChoiceRow) -> None:
        """Queue a cell's choice, to be written with the next part, unless it is sealed already."""
        with self._lock:
            self._queue([row])
            self._note_choice(row)

    def seal_if_late(self) -> None:
        """Write the waiting rows if the oldest has waited too long. To be called about every second."""
        with self._lock:
            if self._every is not None and self._waiting["trials"] and time.monotonic() - self._oldest >= self._every:
                self.seal()

    def seal(self) -> None:
        """Write all waiting rows, as one part for each table."""
        with self._lock:
            for name, rows in self._waiting.items():
                if rows:
                    write_part(self.folder, name, rows)
                    self._sealed[name].update(map(_key, rows))
                    rows.clear()

    def write_cells(self, rows: Iterable[CellRow]) -> None:
        """Write the rows of the `cells` table that are new or have changed.

        If a cell is no longer in the plan, none of its trials will run. So its row is changed: only its finished trials
        count as planned, and it is infeasible if it has no confirmed score.

        Args:
            rows: the rows of all cells of the plan.
        """
        by_id = {row.cell_id: row for row in rows}
        if any(row.feasible for cell_id, row in self._cells.items() if cell_id not in by_id):
            missing = [r for r in open_store(self.folder).table("coverage").to_pylist() if r["missing"]]
            removed = {r["cell_id"]: _of_a_removed_cell(self._cells[r["cell_id"]], r) for r in missing}
            by_id = removed | by_id
        changed = [row for row in by_id.values() if self._cells.get(row.cell_id) != row]
        if changed:
            write_part(self.folder, CellRow.table, changed)
            self._cells.update({row.cell_id: row for row in changed})

    def _note_choice(self, row: ChoiceRow) -> None:
        """Put a choice into `choices`, unless a later one of the same cell is there."""
        before = self.choices.get(row.cell_id)
        if before is None or (row.sequence or 0) >= (before.sequence or 0):
            self.choices[row.cell_id] = row

    def _queue(self, rows: Iterable[TableRow]) -> None:
        """Let rows wait for the next part, except those that are sealed already."""
        for row in rows:
            if _key(row) not in self._sealed[row.table]:
                self._waiting[row.table].append(row)


def _of_a_removed_cell(cell: CellRow, coverage: Row) -> CellRow:
    """Return the row of a cell that is no longer in the plan: only its finished trials count as planned.

    Args:
        cell: its row until now.
        coverage: its row of the view `coverage`.
    """
    if not coverage["confirm_done"]:
        return dataclasses.replace(cell, feasible=False, reason=TAKEN_OUT)
    return dataclasses.replace(
        cell,
        tune_trials=min(coverage["tune_planned"], coverage["tune_done"]),
        confirm_seeds=min(coverage["confirm_planned"], coverage["confirm_done"]),
    )


def _clear_drafts(folder: Path) -> None:
    """Remove files that a killed driver left half written. The caller holds the folder's lock."""
    tables = [folder / "tables" / row.table for row in (*_FINISH, ChoiceRow, CellRow)]
    drafts = [draft for table in tables for draft in table.glob("*.tmp")]
    for draft in folder.glob(".*.tmp"):
        match = _DRAFT.fullmatch(draft.name)  # commands such as `sweeps report` write drafts without the lock
        if match is not None and not psutil.pid_exists(int(match[1])):
            drafts.append(draft)
    for draft in drafts:
        draft.unlink(missing_ok=True)


def _key(row: TableRow) -> tuple[Any, ...]:
    """Return the values of the columns that identify a row in the folder of one sweep."""
    return tuple(getattr(row, column) for column in row.key if column != "sweep")
