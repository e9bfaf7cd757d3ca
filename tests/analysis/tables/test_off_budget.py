"""A cell that ran off its budget (`unmatched = true`) is marked wherever its score stands beside others."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from analysis import open_store, print_results_table, results_table
from analysis.tables import results
from tests.analysis.synthetic import make_results


@pytest.mark.parametrize("tolerance", [1.0, 0.0])
def test_a_cell_off_its_budget_is_marked(tmp_path: Path, tolerance: float) -> None:
    make_results(tmp_path / "made")
    path = tmp_path / "made" / "spec.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    spec.setdefault("identity", {})["budgets"] = {"tolerance": tolerance}
    path.write_text(json.dumps(spec), encoding="utf-8")
    store = open_store(tmp_path / "made")
    cells = {
        (c["method"], c["reference"]): c["residual_fraction"] for c in store.table("cells").to_pylist() if c["feasible"]
    }
    off = {k: v for k, v in cells.items() if v} if tolerance == 0 else {}
    assert tolerance or off
    rows = results_table(store).to_pylist()
    assert {(r["method"], r["reference"]): r["off_budget"] for r in rows if r["off_budget"]} == off
    print_results_table(store, Console(file=(said := io.StringIO()), width=200))
    assert said.getvalue().count("\N{DAGGER}") == (len(off) + 1 if off else 0)  # and the line that explains it
    assert ("\N{DAGGER} off its budget" in results.results(store).note) == bool(off)
