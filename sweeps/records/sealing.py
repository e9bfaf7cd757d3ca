"""Finished trials from the journal into immutable Parquet parts, and the check of the parts at the start of a run."""

from __future__ import annotations

import dataclasses
import re
import threading
import time
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
    """Writes the tables of one results folder; rows may be added in one thread and sealed in another.

    Args:
        folder: the results folder, held by this process. Drafts of a killed driver are removed, damaged parts set aside
            (their names in `damaged`); rows of theirs that the journal has are written again.
        every: seconds after which `seal_if_late` seals a row that waits, however few there are; None: no limit.
    """

    def __init__(self, folder: Path, every: float | None = None) -> None:
        self.folder = folder
        _clear_drafts(folder)
        self._every, self._oldest = every, 0.0
        self._lock = threading.RLock()
        self.damaged: list[str] = []
        self._waiting: dict[str, list[TableRow]] = {row.table: [] for row in (*_FINISH, ChoiceRow)}
        self._sealed: dict[str, set[Any]] = {name: set() for name in self._waiting}
        self.rows: dict[str, TrialRow] = {}
        for trial in sorted(self._read(TrialRow), key=lambda row: row.attempt):
            self.rows[trial.trial_id] = trial
        self.choices: dict[str, ChoiceRow] = {}
        for choice in sorted(self._read(ChoiceRow), key=lambda row: row.chosen_at):  # numbers are newer than this rule
            self._chosen(choice)
        self._cells = {row.cell_id: row for row in self._read(CellRow)}
        self._read(MetricRow)
        self._read(PredictionRow)

    def _read(self, row: type[R]) -> list[R]:
        """Read the sealed rows of a table. Damaged parts are set aside."""
        table, damaged = scan_parts(self.folder, row.table)
        for part in damaged:
            set_aside(part)
            self.damaged.append(str(part))
        found = [from_values(row, values) for values in table.to_pylist()]
        if row.table in self._sealed:
            self._sealed[row.table] = {_key(each) for each in found}
        return found

    def add(self, finish: Finish) -> None:
        """Take a trial's end. Its rows are written with the next part, unless they have been."""
        with self._lock:
            if not self._waiting[TrialRow.table]:
                self._oldest = time.monotonic()
            self._put([finish.row, *finish.metrics, *([] if finish.prediction is None else [finish.prediction])])
            if len(self._waiting[TrialRow.table]) >= SEAL_EVERY:
                self.seal()

    def add_choice(self, row: ChoiceRow) -> None:
        """Take a cell's choice. It is written with the next part, unless it has been."""
        with self._lock:
            self._put([row])
            self._chosen(row)

    def seal_if_late(self) -> None:
        """Write the waiting rows where the oldest has waited too long; to be called every second or so."""
        with self._lock:
            if self._every is not None and self._waiting["trials"] and time.monotonic() - self._oldest >= self._every:
                self.seal()

    def seal(self) -> None:
        """Write all waiting rows, one part a table."""
        with self._lock:
            for name, rows in self._waiting.items():
                if rows:
                    write_part(self.folder, name, rows)
                    self._sealed[name].update(map(_key, rows))
                    rows.clear()

    def write_cells(self, rows: Iterable[CellRow]) -> None:
        """Write rows of the `cells` table, a function of the plan, that are not there as they should be.

        Of cells that the plan has no more nothing will run: what they have is all that was planned, and those without a
        confirmed score are infeasible.
        """
        wanted = {row.cell_id: row for row in rows}
        if any(row.feasible for cell_id, row in self._cells.items() if cell_id not in wanted):
            missing = [r for r in open_store(self.folder).table("coverage").to_pylist() if r["missing"]]
            left = {r["cell_id"]: _without_the_rest(self._cells[r["cell_id"]], r) for r in missing}
            wanted = left | wanted
        changed = [row for row in wanted.values() if self._cells.get(row.cell_id) != row]
        if changed:
            write_part(self.folder, CellRow.table, changed)
            self._cells.update({row.cell_id: row for row in changed})

    def _chosen(self, row: ChoiceRow) -> None:
        before = self.choices.get(row.cell_id)
        if before is None or (row.sequence or 0) >= (before.sequence or 0):
            self.choices[row.cell_id] = row

    def _put(self, rows: Iterable[TableRow]) -> None:
        for row in rows:
            if _key(row) not in self._sealed[row.table]:
                self._waiting[row.table].append(row)


def _without_the_rest(cell: CellRow, coverage: Row) -> CellRow:
    """Return the row of a cell that left the plan: only what it has is planned. `coverage`: its row of that view."""
    if not coverage["confirm_done"]:
        return dataclasses.replace(cell, feasible=False, reason=TAKEN_OUT)
    return dataclasses.replace(
        cell,
        tune_trials=min(coverage["tune_planned"], coverage["tune_done"]),
        confirm_seeds=min(coverage["confirm_planned"], coverage["confirm_done"]),
    )


def _clear_drafts(folder: Path) -> None:
    """Remove files that a killed driver left half written. Whoever calls holds the folder, so no driver writes them."""
    tables = [folder / "tables" / row.table for row in (*_FINISH, ChoiceRow, CellRow)]
    drafts = [draft for table in tables for draft in table.glob("*.tmp")]
    for draft in folder.glob(".*.tmp"):
        of = _DRAFT.fullmatch(draft.name)  # `sweeps report` and other commands write some without holding the folder
        if of is not None and not psutil.pid_exists(int(of[1])):
            drafts.append(draft)
    for draft in drafts:
        draft.unlink(missing_ok=True)


def _key(row: TableRow) -> tuple[Any, ...]:
    """Return what identifies a row in the folder of one sweep."""
    return tuple(getattr(row, column) for column in row.key if column != "sweep")
