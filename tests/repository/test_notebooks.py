"""The quickstart's notebook runs from its first cell to its last, and what it shows is what a reader came for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

NOTEBOOK = ROOT / "examples" / "notebooks" / "quickstart.ipynb"


def test_it_is_kept_without_outputs_and_installs_first() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert "%pip install -q randlora-sweeps" in "".join(code[0]["source"])
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_it_runs_on_two_cores_and_shows_tables_bars_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown: dict[str, list[dict[str, Any]]] = {
        cell.source.splitlines()[-1].partition("(")[0]: [o.data for o in cell.outputs if "data" in o]
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    for last in ("spec", "plan", "store", "adapted", "store.sql"):
        assert "<table>" in shown[last][-1]["text/html"], last
    assert "image/png" in shown["draw_scaling"][-1]
    bar = shown["store"][0]["text/html"]
    assert '<progress value="16" max="16">' in bar and "16/16 trials" in bar  # of each method 5 and 3 seeds
    assert (tmp_path / "results" / "notebook" / "journal.jsonl").is_file()
