"""How far a sweep is, from its results folder alone: works while another process runs it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from analysis import open_store
from analysis.journal_reader import read_events
from sweeps.locks import holder


def progress_of(folder: Path) -> dict[str, Any]:
    """Counts of trials and cells by state; per method the cells confirmed and the best validation score so far."""
    store = open_store(folder)
    events = read_events(folder / "journal.jsonl")
    asked = {e["trial_id"] for e in events if e["ev"] == "ask"}
    cells = [c for c in store.table("cells").to_pylist() if c["feasible"]]
    trials = {row["trial_id"]: row for row in store.table("trials").to_pylist()}  # the last attempt wins
    states = Counter(row["status"] for row in trials.values())
    confirmed = Counter(
        row["cell_id"] for row in trials.values() if row["stage"] == "CONFIRM" and row["status"] == "finished"
    )
    done = {c["cell_id"] for c in cells if confirmed[c["cell_id"]] >= c["confirm_seeds"]}
    return {
        "sweep": cells[0]["sweep"] if cells else folder.name,
        "folder": str(folder),
        "running": holder(folder) is not None,
        "trials": sum(c["tune_trials"] + c["confirm_seeds"] for c in cells),
        "finished": states["finished"] + states["pruned"],
        "failed": states["failed"],
        "unfinished": len(asked - set(trials)),
        "cells": len(cells),
        "cells_confirmed": len(done),
        "methods": [_method(name, cells, done, trials) for name in dict.fromkeys(c["method"] for c in cells)],
    }


def _method(
    name: str, cells: list[dict[str, Any]], done: set[str], trials: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    mine = [c["cell_id"] for c in cells if c["method"] == name]
    scores = [t["val_score"] for t in trials.values() if t["cell_id"] in mine and t["val_score"] is not None]
    return {
        "method": name,
        "cells": len(mine),
        "confirmed": sum(c in done for c in mine),
        "best_val_score": max(scores, default=None),
    }
