"""What a sweep declares before its test scores are seen; what is changed afterwards is on record.

The record is in the journal, and in `declared.json` for copies, which have no journal.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from analysis.store.journal import Finish
from analysis.store.remote import DECLARED
from analysis.store.rows import TrialRow
from analysis.store.store import declarations
from sweeps.records.journal import Journal, write_atomically
from sweeps.records.rows import utc
from sweeps.spec.spec import SweepSpec


def declare(spec: SweepSpec, journal: Journal, sealed: Mapping[str, TrialRow], cells: Iterable[str]) -> None:
    """Write a sweep's `declare` event, where it differs from the last one.

    `scored` in it is how many test scores were there to be seen: none at first. A folder from before these events gets
    a first one with the seeds and cells that it ran, as soon as more is asked of it.

    Args:
        spec: the sweep.
        journal: it is written there; its `finish` events have rows too.
        sealed: rows of `trials`, by trial.
        cells: ids of the cells that can run. Those of the first declaration are the declared analysis; its verdicts
            are computed from these alone (`analysis.statistics.declared`).

    Raises:
        StoreError: a damaged `declared.json` in a folder whose journal declares nothing.
    """
    file = journal.path.with_name(DECLARED)
    known = [event for event in journal.events if event["ev"] == "declare"]
    if not known:  # as in a copy that a sweep goes on from
        known = declarations(file.parent)
        for event in known:
            journal.write(event)
    confirm = spec.confirm
    now: dict[str, Any] = {name: getattr(confirm, name) for name in ("max_seeds", "margin", "question")}
    now["seeds"], now["cells"] = sorted(confirm.seeds), sorted(cells)
    rows = _rows(journal, sealed, spec.name)
    compared = [row for row in rows if row.stage == "CONFIRM" and row.lr is not None]  # what trains nothing has none
    scored = sum(row.test_score is not None for row in compared)
    before = {name: known[-1].get(name) for name in now} if known else None
    if scored and (before is None or before["cells"] is None):  # a folder of an older version: what it ran
        ran: dict[str, Any] = {"cells": sorted({row.cell_id for row in rows} & set(now["cells"]))}
        if before is None:
            seeds = sorted(confirm.seeds)[: len({row.slot for row in compared})]
            ran |= {"seeds": seeds, "margin": None, "question": None}
        before = (before or now) | ran
        if before != now:
            known.append(_write(journal, spec.name, before, 0))
    if before != now:
        known.append(_write(journal, spec.name, now, scored))
    text = json.dumps(known, indent=1) + "\n"
    if known and not (file.is_file() and file.read_text(encoding="utf-8") == text):
        write_atomically(file, text)


def _rows(journal: Journal, sealed: Mapping[str, TrialRow], sweep: str) -> Iterable[TrialRow]:
    """Return the rows of all trials, also of those that left the sweep file: their scores were there to be seen."""
    ended = (Finish.of(event, sweep).row for event in journal.events if event["ev"] == "finish")
    return (dict(sealed) | {row.trial_id: row for row in ended}).values()


def _write(journal: Journal, name: str, what: Mapping[str, Any], scored: int) -> dict[str, Any]:
    event = {"ev": "declare", "name": name, "at": utc(time.time()), **what, "scored": scored}
    journal.write(event)
    return event
