"""Finished trials from the journal into immutable Parquet parts, and the check of the parts at the start of a run."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from analysis.format import Row
from analysis.store.schemas import TABLES
from analysis.store.store import open_store
from analysis.store.tables import scan_parts, set_aside, to_table, write_part

SEAL_EVERY = 256
_DRAFT = re.compile(r"\.[\w.]+\.(\d{1,9})\.tmp")
_TABLES = ("predictions", "metrics", "trials")  # trials last: a trial whose row is sealed has all its rows sealed


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
        self._sealed: dict[str, set[Any]] = {}
        self._waiting: dict[str, list[Row]] = {name: [] for name in (*_TABLES, "choices")}
        self.rows: dict[str, Row] = {}
        self.choices: dict[str, Row] = {}  # the last one of each cell
        for name in (*_TABLES, "choices", "cells"):
            table, damaged = scan_parts(folder, name)
            for part in damaged:
                set_aside(part)
                self.damaged.append(str(part))
            if name == "trials":
                attempts = sorted(table.to_pylist(), key=lambda r: r["attempt"] or 1)
                self.rows = {row["trial_id"]: row for row in attempts}
            if name == "choices":
                for row in sorted(table.to_pylist(), key=lambda r: r["chosen_at"]):  # numbers are newer than this rule
                    self._chosen(row)
            if name == "cells":
                self._cells = {row["cell_id"]: row for row in table.to_pylist()}
            else:
                self._sealed[name] = {_key(name, row) for row in table.to_pylist()}

    def add(self, event: Mapping[str, Any]) -> None:
        """Take a `finish` or `choose` event; its rows are written with the next part, unless they have been."""
        with self._lock:
            if event["ev"] == "choose":
                self._put("choices", [event["row"]])
                self._chosen(event["row"])
                return
            if not self._waiting["trials"]:
                self._oldest = time.monotonic()
            prediction = event.get("prediction")
            self._put("predictions", [] if prediction is None else [prediction])
            self._put("metrics", event.get("metrics") or [])
            self._put("trials", [event["row"]])
            if len(self._waiting["trials"]) >= SEAL_EVERY:
                self.seal()

    def seal_if_late(self) -> None:
        """Write the waiting rows where the oldest has waited too long; to be called every second or so."""
        with self._lock:
            if self._every is not None and self._waiting["trials"] and time.monotonic() - self._oldest >= self._every:
                self.seal()

    def seal(self) -> None:
        """Write all waiting rows, one part a table."""
        with self._lock:
            for name in (*_TABLES, "choices"):
                rows = self._waiting[name]
                if rows:
                    write_part(self.folder, name, rows)
                    self._sealed[name].update(_key(name, row) for row in rows)
                    rows.clear()

    def write_cells(self, rows: Iterable[Row]) -> None:
        """Write rows of the `cells` table, a function of the plan, that are not there as they should be.

        Of cells that the plan has no more nothing will run: what they have is all that was planned, and those without a
        confirmed score are infeasible.
        """
        wanted = {row["cell_id"]: row for row in to_table("cells", rows).to_pylist()}
        if any(row["feasible"] for cell_id, row in self._cells.items() if cell_id not in wanted):
            missing = [r for r in open_store(self.folder).table("coverage").to_pylist() if r["missing"]]
            gone = {"feasible": False, "reason": "taken out of the sweep file"}
            left = {
                r["cell_id"]: {
                    "tune_trials": min(r["tune_planned"], r["tune_done"]),
                    "confirm_seeds": min(r["confirm_planned"], r["confirm_done"]),
                }
                if r["confirm_done"]
                else gone
                for r in missing
            }
            wanted = {i: self._cells[i] | now for i, now in left.items()} | wanted
        changed = [row for row in wanted.values() if self._cells.get(row["cell_id"]) != row]
        if changed:
            write_part(self.folder, "cells", changed)
            self._cells.update({row["cell_id"]: row for row in changed})

    def _chosen(self, row: Row) -> None:
        before = self.choices.get(row["cell_id"], {})
        if (row.get("sequence") or 0) >= (before.get("sequence") or 0):
            self.choices[row["cell_id"]] = row

    def _put(self, name: str, rows: Iterable[Row]) -> None:
        sealed = self._sealed[name]
        self._waiting[name] += [row for row in rows if _key(name, row) not in sealed]


def _clear_drafts(folder: Path) -> None:
    """Remove files that a killed driver left half written. Whoever calls holds the folder, so no driver writes them."""
    drafts = [draft for name in (*_TABLES, "choices", "cells") for draft in (folder / "tables" / name).glob("*.tmp")]
    for draft in folder.glob(".*.tmp"):
        of = _DRAFT.fullmatch(draft.name)  # `sweeps report` and other commands write some without holding the folder
        if of is not None and not psutil.pid_exists(int(of[1])):
            drafts.append(draft)
    for draft in drafts:
        draft.unlink(missing_ok=True)


def _key(name: str, row: Mapping[str, Any]) -> Any:
    """What identifies a row in the folder of one sweep; the journal has instants as text."""
    values = {column: row[column] for column in TABLES[name].key if column != "sweep"}
    if isinstance(values.get("chosen_at"), str):
        values["chosen_at"] = datetime.fromisoformat(values["chosen_at"])
    return tuple(values.values())
