"""The units of a diagnostic's work, and which of them a results folder has already."""

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
    "image_retention": 1,
    "curvature": 1,
}
"""Version of the computation of each table. If it is raised, units of an earlier version are computed again."""


@dataclass(frozen=True)
class Unit:
    """A part of a diagnostic that is computed at once, such as the spectrum of one trial.

    Attributes:
        table: the table for its rows.
        trials: the kept trials that it needs, from `weights.Kept.brief`. The first one gives the place.
        settings: what else its numbers depend on.
        facts: settings of the sweep from which a trial's task is made (`sweep_facts`).
    """

    table: str
    trials: tuple[Row, ...]
    settings: Row
    facts: Row

    @property
    def unit_id(self) -> str:
        """16 hexadecimal digits, a hash of the sweep, the trials, the settings and the version of the computation."""
        key = [VERSIONS[self.table], self.table, self.trials[0]["sweep"]]
        text = json.dumps([*key, [t["trial_id"] for t in self.trials], self.settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """The name of the unit in messages."""
        first = self.trials[0]
        parts = [self.table, *(t["method"] for t in self.trials), first["reference"], first["dataset"]]
        return " ".join(p for p in parts if p)

    @property
    def place(self) -> Row:
        """The first columns of every diagnostic's rows."""
        first = self.trials[0]
        return {"unit": self.unit_id} | {k: first[k] for k in ("sweep", "model", "dataset", "train_size")}


class Execute(Protocol):
    """A function that runs units, and yields each with its rows as soon as it is done, in any order."""

    def __call__(self, folder: Path, units: Sequence[Unit]) -> Iterable[tuple[Unit, list[Row]]]: ...


def sweep_facts(store: Store) -> Row:
    """Return the settings of a sweep from which a trial's task is made. Raises StoreError if they are missing."""
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
    """Run the units that have no rows in the store yet, and store the rows of each as soon as it is done.

    A part file that cannot be read is set aside first, so its units count as missing.

    Args:
        store: the results.
        units: the units of a diagnostic.
        execute: runs the units.
        force: run all units.

    Returns:
        The number of units that were run.
    """
    tables = {u.table for u in units}
    for part in store.damaged:
        if part.table in tables and part.path.is_relative_to(store.path):
            set_aside(part)
    known_units = {name: set(store.table(name).column("unit").to_pylist()) for name in tables}
    missing = [u for u in units if force or u.unit_id not in known_units[u.table]]
    if missing:
        done = execute(store.path, missing)
        try:
            for unit, rows in done:
                write_part(store.path, unit.table, [r | {"computed_at": datetime.now(UTC)} for r in rows])
        finally:
            if isinstance(done, Generator):  # if interrupted, it ends what it started now, not at garbage collection
                done.close()
    return len(missing)


def rows_of(store: Store, units: Sequence[Unit], table: str) -> pa.Table:
    """Return the rows of these units, in the order of the units."""
    order = {u.unit_id: i for i, u in enumerate(units) if u.table == table}
    stored = store.table(table)
    positions = [(order[unit], i) for i, unit in enumerate(stored.column("unit").to_pylist()) if unit in order]
    return stored.take(pa.array([i for _, i in sorted(positions)], pa.int64()))
