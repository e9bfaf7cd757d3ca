"""What a sweep declares before its test scores are seen; what is changed afterwards is on record.

The record is in the journal, and in `declared.json` for copies, which have no journal.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from analysis.store.journal import Finish
from analysis.store.remote import DECLARED
from analysis.store.rows import TrialRow
from analysis.store.store import declarations
from sweeps.records.journal import Journal, write_atomically
from sweeps.records.rows import utc
from sweeps.spec.spec import SweepSpec


def declare(spec: SweepSpec, journal: Journal, sealed: Mapping[str, TrialRow]) -> None:
    """Write a sweep's `declare` event, where it differs from the last one.

    `scored` in it is how many test scores were there to be seen: none at first. A folder from before these events gets
    a first one with the seeds that it ran, as soon as more is asked of it.

    Args:
        spec: the sweep.
        journal: it is written there; its `finish` events have rows too.
        sealed: rows of `trials`, by trial.

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
    now["seeds"] = sorted(confirm.seeds)
    now |= {"methods": sorted(spec.methods), "budgets": list(spec.budgets.references())}
    now |= {"datasets": list(spec.data.datasets), "train_size": [str(size) for size in spec.data.train_size]}
    compared = _compared(journal, sealed, spec.name)
    scored = sum(row.test_score is not None for row in compared)
    before = {name: known[-1].get(name) for name in now} if known else None
    if before is None and scored:
        ran = {row.slot for row in compared}
        before = {**now, "seeds": sorted(confirm.seeds)[: len(ran)], "margin": None, "question": None}
        if before != now:
            known.append(_write(journal, spec.name, before, 0))
    if before != now:
        known.append(_write(journal, spec.name, now, scored))
    text = json.dumps(known, indent=1) + "\n"
    if known and not (file.is_file() and file.read_text(encoding="utf-8") == text):
        write_atomically(file, text)


def _compared(journal: Journal, sealed: Mapping[str, TrialRow], sweep: str) -> list[TrialRow]:
    """Return CONFIRM's rows, without those of methods that train nothing.

    Trials that left the sweep file are among them: their scores were there to be seen.
    """
    ended = (Finish.of(event, sweep).row for event in journal.events if event["ev"] == "finish")
    rows = dict(sealed) | {row.trial_id: row for row in ended}
    return [row for row in rows.values() if row.stage == "CONFIRM" and row.lr is not None]


def _write(journal: Journal, name: str, what: Mapping[str, Any], scored: int) -> dict[str, Any]:
    event = {"ev": "declare", "name": name, "at": utc(time.time()), **what, "scored": scored}
    journal.write(event)
    return event
