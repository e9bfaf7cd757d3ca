"""Cells for which a method has no setting close enough to the budget."""

from __future__ import annotations

from analysis.findings.finding import Finding
from analysis.format import amount, listed, off_budget
from analysis.sheets.columns import BUDGET, METHOD, origins, where
from analysis.sheets.sheet import Column, Sheet, number, text
from analysis.store.columns import limited
from analysis.store.store import Store
from analysis.verdict.runs import group_by


def infeasible_sheet(store: Store) -> Sheet:
    """Return the table of cells for which a method has no setting close enough to the budget."""
    cells = [r for r in store.table("cells").to_pylist() if not r["feasible"] and not r["absent"]]
    alike = group_by(cells, "sweep", "model", "method", "reference", "reason")
    rows = [same[0] | {"places": listed([where(r) for r in same])} for same in alike.values()]
    columns = [
        *origins(rows),
        METHOD,
        BUDGET,
        text("data", "places", "long"),
        Column(
            f"budget aimed at, {limited(r['reference'] for r in rows)}",
            lambda r: amount(r["budget"], r["reference"]),
            "number",
        ),
        number("nearest number of parameters", "count"),
        number("distance from the budget", "residual_fraction", off_budget),
        text("why", "reason", "long"),
    ]
    return Sheet("infeasible", "Infeasible cells", columns, rows)


FINDING = Finding("failures", ("infeasible",), lambda store, _: [infeasible_sheet(store)])
