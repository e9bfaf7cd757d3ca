"""The notebook runs, on made-up results and on trained ones."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest

from analysis import open_store
from analysis.diagnostics.bench import bench_of
from analysis.errors import StoreError
from tests.analysis.diagnostics.support import tiny_results
from tests.support import ROOT

NOTEBOOK = ROOT / "examples" / "notebooks" / "explore_results.py"


def test_on_synthetic_results(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(folder, tmp_path / "r")
    monkeypatch.setattr("sys.argv", [str(NOTEBOOK)])
    monkeypatch.setenv("RESULTS", str(folder))
    runpy.run_path(str(NOTEBOOK))
    said = capsys.readouterr().out
    assert "RandLoRA" in said and "99 % of full fine-tuning" in said
    assert "no adapter was kept" in said
    (folder / "figures" / "notebook_curve.png").unlink()


def test_on_trained_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tiny_results(tmp_path / "tiny")
    monkeypatch.setattr("sys.argv", [str(NOTEBOOK), str(results)])
    runpy.run_path(str(NOTEBOOK))
    said = capsys.readouterr().out
    assert "accuracy on 20 training images: 0." in said and "with it" in said
    with pytest.raises(StoreError, match="no trained weights of trial 'nothing'"):
        bench_of(open_store(results), "nothing")
    assert (results / "figures" / "notebook_curve.png").is_file()
