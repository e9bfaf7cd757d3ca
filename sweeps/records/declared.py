"""Records what a sweep declares before its test scores are seen, and every later change of that.

The record is in the journal. It is also in `declared.json`, for copies of the folder, which have no journal.
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
    """Write a sweep's `declare` event into the journal, if it differs from the last one.

    Its field `scored` is the number of test scores that could be seen at that time (0 at first). If an older version
    wrote the folder without such events, it gets a first one with the seeds and cells that it ran, as soon as the sweep
    file asks for more.

    Args:
        spec: the sweep.
        journal: the journal. Its `finish` events have rows that may not be sealed yet.
        sealed: sealed rows of `trials`, by trial id.
        cells: ids of the cells that can run. Those of the first declaration form the declared analysis, and its
            verdicts are computed from these alone (`analysis.verdict.looks`).

    Raises:
        StoreError: a damaged `declared.json` in a folder whose journal declares nothing.
    """
    file = journal.path.with_name(DECLARED)
    declared = [event for event in journal.events if event["ev"] == "declare"]
    if not declared:  # the folder may be a copy, which has no journal
        declared = declarations(file.parent)
        for event in declared:
            journal.write(event)
    confirm = spec.confirm
    asked: dict[str, Any] = {name: getattr(confirm, name) for name in ("max_seeds", "margin", "question")}
    asked["seeds"] = sorted(confirm.seeds)
    asked["cells"] = sorted(cells)
    rows = _rows(journal, sealed, spec.name)
    compared = [row for row in rows if row.stage == "CONFIRM" and row.lr is not None]  # no rate: nothing was trained
    scored = sum(row.test_score is not None for row in compared)
    before = {name: declared[-1].get(name) for name in asked} if declared else None
    if scored and (before is None or before["cells"] is None):  # a folder of an older version: what it ran
        ran: dict[str, Any] = {"cells": sorted({row.cell_id for row in rows} & set(asked["cells"]))}
        if before is None:
            seeds = sorted(confirm.seeds)[: len({row.slot for row in compared})]
            ran |= {"seeds": seeds, "margin": None, "question": None}
        before = (before or asked) | ran
        if before != asked:
            declared.append(_write(journal, spec.name, before, 0))
    if before != asked:
        declared.append(_write(journal, spec.name, asked, scored))
    text = json.dumps(declared, indent=1) + "\n"
    if declared and not (file.is_file() and file.read_text(encoding="utf-8") == text):
        write_atomically(file, text)


def _rows(journal: Journal, sealed: Mapping[str, TrialRow], sweep: str) -> Iterable[TrialRow]:
    """Return the rows of all trials, even of those that are no longer in the sweep file: their scores were visible."""
    ended = (Finish.of(event, sweep).row for event in journal.events if event["ev"] == "finish")
    return (dict(sealed) | {row.trial_id: row for row in ended}).values()


def _write(journal: Journal, name: str, what: Mapping[str, Any], scored: int) -> dict[str, Any]:
    """Write a `declare` event into the journal, and return it."""
    event = {"ev": "declare", "name": name, "at": utc(time.time()), **what, "scored": scored}
    journal.write(event)
    return event
