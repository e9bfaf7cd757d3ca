"""The estimated cost of a sweep against its actual cost, in time, memory, disk and money.

The estimate is in the journal (event `estimate`), written when a run starts. The actual numbers are in the table
`trials` and on disk.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pyarrow as pa

from analysis.findings.finding import Finding
from analysis.format import Row
from analysis.sheets.columns import METHOD
from analysis.sheets.sheet import Column, Sheet, number
from analysis.store.columns import REAL, TEXT, typed
from analysis.store.store import Store

SCHEMA = pa.schema([*typed(TEXT, "quantity", "method", "unit"), *typed(REAL, "estimated", "actual", "ratio")])
Line = tuple[str, str | None, str, float | None, float | None]
"""Quantity, method, unit, estimated, actual."""
_READ = ["trial_id", "method", "started_at", "ended_at", "seconds_total", "peak_memory_bytes"]
"""Columns of `trials` that are read."""


def estimate_table(store: Store) -> pa.Table:
    """Return the estimated and the actual cost of the last run that was estimated and has finished a trial.

    Columns: quantity ('trials', 'seconds per trial', 'wall time', 'accelerator time', 'cost', 'peak memory', 'disk'),
    method (null for the sweep), unit, estimated, actual, ratio (actual / estimated). The actual wall time is null if
    the run has not finished all trials of the estimate. The actual seconds include the set-up of workers; the estimated
    ones do not. The table is empty if no run was estimated.
    """
    estimates = store.events("estimate")
    rows = store.table("trials").select(_READ).to_pylist() if estimates else []
    for event in reversed(estimates):
        since = datetime.fromisoformat(event["at"])
        run_rows = [r for r in rows if r["started_at"] is not None and r["started_at"] >= since]
        if run_rows and event["estimate"]["trials_left"]:
            lines = _lines(event["estimate"], run_rows, since, _bytes(store))
            return pa.Table.from_pylist([_row(line) for line in lines], schema=SCHEMA)
    return SCHEMA.empty_table()


def _lines(estimate: dict[str, Any], rows: list[Row], since: datetime, size: int) -> Iterator[Line]:
    hours = sum(r["seconds_total"] or 0.0 for r in rows) / 3600
    each = estimate["accelerators"]
    over = len({r["trial_id"] for r in rows})  # a try after a failure is the same trial
    finished_all = over >= estimate["trials_left"]
    wall = (max(r["ended_at"] for r in rows) - since).total_seconds() if finished_all else None
    price = estimate["cost"] / estimate["accelerator_hours"] if estimate["cost"] else None
    peak = max((r["peak_memory_bytes"] for r in rows if r["peak_memory_bytes"]), default=None)
    yield "trials", None, "", estimate["trials_left"], over
    yield "wall time", None, "s", estimate["seconds"], wall
    yield "accelerator time", None, "h", estimate["accelerator_hours"], hours * each
    if price is not None:
        yield "cost", None, "", estimate["cost"], hours * each * price
    yield "peak memory", None, "MiB", _mib(estimate["memory_bytes"]), _mib(peak)
    yield "disk", None, "MiB", _mib(estimate["disk_bytes"]), _mib(size)
    for method in estimate["methods"]:
        took = [r["seconds_total"] for r in rows if r["method"] == method["method"] and r["seconds_total"] is not None]
        actual = statistics.fmean(took) if took else None
        yield "seconds per trial", method["method"], "s", method["seconds_per_trial"], actual


def _row(line: Line) -> Row:
    estimated, actual = line[3:]
    ratio = actual / estimated if actual is not None and estimated else None
    return dict(zip(SCHEMA.names, (*line, ratio), strict=True))


def _mib(size: float | None) -> float | None:
    return None if size is None else size / 2**20


def _bytes(store: Store) -> int:
    """Return the bytes of the journal, the tables and the kept adapters, without figures and reports."""
    return sum(
        path.stat().st_size
        for folder in store.paths
        for part in ("journal.jsonl", "tables/**/*", "adapters/**/*")
        for path in folder.glob(part)
        if path.is_file()
    )


def estimate_sheet(store: Store) -> Sheet:
    """Return the table of estimated and actual cost of the last run of the sweep."""
    rows = estimate_table(store).to_pylist()
    columns = [
        Column("quantity", lambda r: r["quantity"] + (f", {r['unit']}" if r["unit"] else "")),
        METHOD,
        number("estimated", "estimated"),
        number("actual", "actual"),
        number("actual / estimated", "ratio"),
    ]
    return Sheet("estimate", "What the last run was estimated to cost, and what it cost", columns, rows)


FINDING = Finding("cost", ("estimate",), lambda store, _: [estimate_sheet(store)])
