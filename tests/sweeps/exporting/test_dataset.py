"""Results exported as a data set have every row that the results folder has."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from analysis import open_store
from sweeps.errors import SpecError
from sweeps.exporting.dataset import export_results
from tests.analysis.synthetic import make_results


def test_rows_that_only_the_journal_has_are_exported(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "r")
    shutil.rmtree(folder / "tables" / "trials")  # as if the run had been killed before it wrote them
    here, there = open_store(folder), open_store(export_results(folder, tmp_path / "out"))
    for name in ("trials", "metrics", "choices", "cells", "scaling"):
        assert here.table(name).num_rows and there.table(name).equals(here.table(name)), name
    assert not (tmp_path / "out" / "journal.jsonl").exists()


def test_a_folder_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "journal.jsonl").touch()
    with pytest.raises(SpecError, match="no rows"):
        export_results(tmp_path / "r", tmp_path / "out")
    assert not (tmp_path / "out").exists()
