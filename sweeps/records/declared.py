"""What a sweep declares of stage CONFIRM before its test scores are seen; what is changed afterwards is on record."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.records.journal import Journal
from sweeps.records.rows import utc
from sweeps.search.stages import SweepState


def declare(state: SweepState, journal: Journal) -> None:
    """Write the `declare` event of a sweep whose trials are restored, where it differs from the last one.

    `scored` in it is how many test scores were there to be seen: none at first. A folder from before these events gets
    a first one with the seeds that it ran, as soon as more is asked of it.
    """
    confirm = state.spec.confirm
    now: dict[str, Any] = {"seeds": sorted(confirm.seeds), "max_seeds": confirm.max_seeds, "margin": confirm.margin}
    scored = sum(row.get("test_score") is not None for row in _compared(state))
    before = _last(journal.events, now)
    if before is None and scored:
        ran = {row["slot"] for row in _compared(state)}
        before = {**now, "seeds": sorted(confirm.seeds)[: len(ran)], "margin": None}
        if before != now:
            _write(journal, state.spec.name, before, 0)
    if before != now:
        _write(journal, state.spec.name, now, scored)


def _compared(state: SweepState) -> list[Mapping[str, Any]]:
    """CONFIRM's rows, without those of methods that train nothing."""
    rows = [row for cell in state.cells.values() for row in cell.rows.values()]
    return [row for row in rows if row["stage"] == "CONFIRM" and row["lr"] is not None]


def _last(events: Sequence[Mapping[str, Any]], like: Mapping[str, Any]) -> dict[str, Any] | None:
    found = next((event for event in reversed(events) if event["ev"] == "declare"), None)
    return None if found is None else {name: found.get(name) for name in like}


def _write(journal: Journal, name: str, what: Mapping[str, Any], scored: int) -> None:
    journal.write({"ev": "declare", "name": name, "at": utc(time.time()), **what, "scored": scored})
