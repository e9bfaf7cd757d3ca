"""`sweep.json` is for people and for the next run: lost, or another sweep's, it changes nothing that the tables say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis import StoreError, open_store
from analysis.findings.results.numbers import _tolerance
from analysis.store.left import to_come
from analysis.store.store import Store
from analysis.verdict.looks import margin_of
from tests.analysis.synthetic import make_results
from tests.support import ROOT

RESULTS = sorted(path.parent for path in (ROOT / "docs" / "results").glob("*/sweep.json"))
OTHER = {
    "name": "other",
    "protocol": "paper",
    "description": "not this one",
    "budgets": {"tolerance": 0.5},
    "search": {"trials": 9, "rerun_rates": 2, "rerun_seeds": 2},
    "train": {"epochs": 1, "global_batch_size": 1},
    "confirm": {"margin": 0.2, "hold": ["data"]},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_results(tmp_path / "mine")


def decided(folder: Path) -> list[Any]:
    store = open_store(folder)
    return [store.stored(), store.protocol, _tolerance(store), to_come(store), margin_of(store)]


def test_another_sweep_s_file_is_without_effect(folder: Path) -> None:
    before, spec = decided(folder), open_store(folder).spec()
    (folder / "sweep.json").write_text(json.dumps(OTHER))
    assert decided(folder) == before
    assert open_store(folder).spec() == spec


def test_its_own_file_counts_where_it_may_change(folder: Path) -> None:
    before = decided(folder)
    own = {**OTHER, "name": "mine", "confirm": {"seeds": 8, "margin": 0.01}}
    (folder / "sweep.json").write_text(json.dumps(own))
    assert decided(folder) == [*before[:-1], 0.01]
    assert open_store(folder).spec() == own


def test_it_stands_in_for_a_lost_identity(folder: Path) -> None:
    (folder / "sweep.json").write_text(json.dumps(OTHER))
    (folder / "spec.json").unlink()
    store = open_store(folder)
    assert store.stored() == store.spec() == OTHER
    (folder / "sweep.json").unlink()
    assert (store.spec(), store.stored()) == (None, {})


def test_a_file_that_is_no_json_is_named(folder: Path) -> None:
    (folder / "spec.json").write_text("{")
    with pytest.raises(StoreError, match=r"mine/spec\.json: not a JSON file"):
        open_store(folder).stored()


@pytest.mark.parametrize("kept", RESULTS, ids=lambda path: path.name)
def test_kept_results_say_the_same_without_it(kept: Path, tmp_path: Path) -> None:
    whole, alone = Store((kept,)), Store((tmp_path,))
    spec = json.loads((kept / "sweep.json").read_text(encoding="utf-8"))
    assert whole.spec() == spec
    (tmp_path / "spec.json").write_bytes((kept / "spec.json").read_bytes())
    assert alone.stored() == whole.stored() and alone.stored()["train"]["epochs"] == spec["train"]["epochs"]
