"""A cell that ran off its budget (`unmatched = true`) is marked wherever its score stands beside others."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from analysis import Store, StoreError, open_store, print_results_table, results_table
from analysis.findings.results.finding import results_sheet
from tests.analysis.synthetic import make_results


def made(folder: Path, tolerance: object) -> Store:
    path = make_results(folder) / "spec.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    spec.setdefault("identity", {})["budgets"] = {"tolerance": tolerance}
    path.write_text(json.dumps(spec), encoding="utf-8")
    return open_store(folder)


@pytest.mark.parametrize("tolerance", ["0.05", True, [0.05], -1, 1.5])
def test_a_tolerance_that_is_no_fraction_is_refused(tmp_path: Path, tolerance: object) -> None:
    with pytest.raises(StoreError, match=re.escape(f"budgets.tolerance is {tolerance!r}; it must be a fraction")):
        results_table(made(tmp_path / "made", tolerance))


@pytest.mark.parametrize("tolerance", [1.0, 0.0])
def test_a_cell_off_its_budget_is_marked(tmp_path: Path, tolerance: float) -> None:
    store = made(tmp_path / "made", tolerance)
    cells = {
        (c["method"], c["reference"]): c["residual_fraction"] for c in store.table("cells").to_pylist() if c["feasible"]
    }
    off = {k: v for k, v in cells.items() if v} if tolerance == 0 else {}
    assert tolerance or off
    rows = results_table(store).to_pylist()
    assert {(r["method"], r["reference"]): r["off_budget"] for r in rows if r["off_budget"]} == off
    print_results_table(store, Console(file=(said := io.StringIO()), width=200))
    assert said.getvalue().count("\N{DAGGER}") == (len(off) + 1 if off else 0)  # and the line that explains it
    assert ("\N{DAGGER}" in results_sheet(store).legend) == bool(off)
