"""Failed attempts with their reasons."""

from __future__ import annotations

import shlex

from analysis.findings.finding import Finding
from analysis.sheets.columns import BUDGET, METHOD, PLACE
from analysis.sheets.sheet import Column, Sheet, number, text
from analysis.store.store import Store

MOST_FAILURES = 50


def failures_sheet(store: Store) -> Sheet:
    """Return the table of the first `MOST_FAILURES` failed attempts, with their reasons."""
    rows = store.table("failures").to_pylist()
    columns = [
        METHOD,
        BUDGET,
        PLACE,
        text("stage", "stage"),
        number("learning rate", "lr"),
        number("attempt", "attempt"),
        text("reason", "reason", "long"),
        Column("afterwards", lambda r: "finished on a later attempt" if r["recovered"] else "not recovered", "long"),
        text("trial", "trial_id", "code"),
    ]
    more = len(rows) - MOST_FAILURES
    folder = shlex.quote(str(store.path.resolve()))
    legend = f"{more} more attempts failed. To list them: sweeps query {folder} failures" if more > 0 else ""
    return Sheet("failures", "Failed attempts", columns, rows[:MOST_FAILURES], legend=legend)


FINDING = Finding("failures", ("failures",), lambda store, _: [failures_sheet(store)])
