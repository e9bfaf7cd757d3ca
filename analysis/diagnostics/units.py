"""Units of a diagnostic's work: what one task computes, and which units a results folder already has the rows of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from analysis.errors import StoreError
from analysis.format import Row
from analysis.store.store import Store
from analysis.store.tables import set_aside, write_part

VERSIONS = {
    "cka": 2,
    "landscape": 2,
    "spectrum": 2,
    "approximation": 3,
    "full_rank": 1,
    "tasks": 1,
    "intruders": 1,
    "retention": 1,
}
"""Raised when a table's numbers come about differently: units of an earlier version are then computed again."""


@dataclass(frozen=True)
class Unit:
    """One task.

    Attributes:
        table: the table that its rows go to.
        trials: the kept trials that it looks at, as `kept.Kept.brief` has them; the first one gives the place.
        settings: what its numbers depend on besides.
        facts: of the sweep, what a task is made from (`sweep_facts`).
    """

    table: str
    trials: tuple[Row, ...]
    settings: Row
    facts: Row

    @property
    def unit_id(self) -> str:
        """16 hexadecimal digits: of the sweep, the trials, the settings, and the version of the computation."""
        key = [VERSIONS[self.table], self.table, self.trials[0]["sweep"]]
        text = json.dumps([*key, [t["trial_id"] for t in self.trials], self.settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """The unit in words, for messages."""
        first = self.trials[0]
        parts = [self.table, *(t["method"] for t in self.trials), first["reference"], first["dataset"]]
        return " ".join(p for p in parts if p)

    @property
    def place(self) -> Row:
        """The columns that every diagnostic's rows begin with."""
        first = self.trials[0]
        return {"unit": self.unit_id} | {k: first[k] for k in ("sweep", "model", "dataset", "train_size")}


class Execute(Protocol):
    """Runs units and gives each with its rows as it is done, in any order."""

    def __call__(self, folder: Path, units: Sequence[Unit]) -> Iterable[tuple[Unit, list[Row]]]: ...


def sweep_facts(store: Store) -> Row:
    """What a trial's task needs of the sweep's specification. Raises StoreError: the folder does not have it."""
    identity = store.stored()
    if "train" not in identity:
        raise StoreError(f"{store.path} has no spec.json of its sweep, so what its trials trained on is not known")
    model, data = identity.get("model") or {}, identity.get("data") or {}
    return {
        "train": identity["train"],
        "evaluate": identity.get("evaluate") or {},
        "image_size": model.get("image_size"),
        "skip_bad": bool(data.get("skip_bad", False)),
        "protocol": identity.get("protocol", "standard"),
    }


def compute_missing(store: Store, units: Sequence[Unit], execute: Execute, *, force: bool = False) -> int:
    """Run the units that have no rows in the store yet (with `force` all) and keep each one's rows as it is done.

    A part file that cannot be read is set aside first, so what it held is missing.

    Returns:
        How many were run.
    """
    tables = {u.table for u in units}
    for part in store.damaged:
        if part.table in tables and part.path.is_relative_to(store.path):
            set_aside(part)
    there = {name: set(store.table(name).column("unit").to_pylist()) for name in tables}
    missing = [u for u in units if force or u.unit_id not in there[u.table]]
    if missing:
        done = execute(store.path, missing)
        try:
            for unit, rows in done:
                write_part(store.path, unit.table, [r | {"computed_at": datetime.now(UTC)} for r in rows])
        finally:
            if isinstance(done, Generator):  # an interrupted one ends what it started now, not when it is collected
                done.close()
    return len(missing)


def rows_of(store: Store, units: Sequence[Unit], table: str) -> pa.Table:
    """The rows of these units, in their order."""
    order = {u.unit_id: i for i, u in enumerate(units) if u.table == table}
    whole = store.table(table)
    found = [(order[unit], i) for i, unit in enumerate(whole.column("unit").to_pylist()) if unit in order]
    return whole.take(pa.array([i for _, i in sorted(found)], pa.int64()))
