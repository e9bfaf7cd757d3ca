"""A results folder that was written before the packages were cut into rooms opens, resumes and extends.

`tests/data/old_folder` is what `sweeps run old.toml` of commit 16c7401 left: its journal names the trial function by
its module of then, and there is an adapter of each method.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from analysis import open_store
from randlora import load
from sweeps import Plan, SweepSpec
from sweeps.engine.run import run
from sweeps.lanes.pool import Pool
from tests.support import ROOT
from trainables.config import TrialConfig
from trainables.models.loading import load_model

OLD = ROOT / "tests" / "data" / "old_folder"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def plan(folder: Path, *more: str) -> Plan:
    return Plan.from_spec(SweepSpec.load(folder / "old.toml", [f"output={folder}", *more]))


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()]


def asked(folder: Path) -> list[dict[str, Any]]:
    return [event for event in events(folder) if event["ev"] == "ask"]


def by_id(table: pa.Table) -> dict[str, dict[str, object]]:
    return {row["trial_id"]: row for row in table.to_pylist()}


def test_it_opens_with_and_without_its_tables(folder: Path) -> None:
    sealed = open_store(folder)
    trials, scaling = by_id(sealed.table("trials")), sealed.table("scaling").to_pylist()
    assert len(trials) == 10 and {row["status"] for row in trials.values()} == {"finished"}
    assert sealed.sql("select count(*) as n from confirmed").to_pylist() == [{"n": 4}]
    shutil.rmtree(folder / "tables" / "trials")
    journalled = open_store(folder)
    assert by_id(journalled.table("trials")) == trials
    assert journalled.table("scaling").to_pylist() == scaling


def test_cells_and_trials_keep_their_ids(folder: Path) -> None:
    cells = {row["cell_id"] for row in open_store(folder).table("cells").to_pylist()}
    assert {cell.cell_id for cell in plan(folder).cells} == cells
    assert len(asked(folder)) == 10
    for event in asked(folder):
        assert TrialConfig.model_validate(event["config"]).trial_id == event["trial_id"]


def test_its_adapters_load() -> None:
    for directory in sorted((OLD / "adapters").iterdir()):
        model = load_model("embedded:tiny-clip").module
        assert load(model, directory).count() == 2304


def test_finished_it_has_nothing_left_to_run(folder: Path) -> None:
    before = events(folder)
    summary = run(plan(folder), progress=False)  # starts no Ray: nothing is missing
    assert (summary.finished, summary.skipped, summary.complete) == (0, 10, True)
    assert events(folder) == before


def test_cut_off_it_goes_on_and_a_third_seed_extends_it(folder: Path, pool: Pool) -> None:
    lines = (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    finishes = [n for n, line in enumerate(lines) if json.loads(line)["ev"] == "finish"]
    (folder / "journal.jsonl").write_text("".join(lines[: finishes[5] + 1]), encoding="utf-8")
    shutil.rmtree(folder / "tables")
    kept = by_id(open_store(folder).table("trials"))
    assert len(kept) == 6
    summary = run(plan(folder, "confirm.seeds=3"), progress=False, pool=pool)
    assert (summary.finished, summary.skipped, summary.failed) == (6, 6, 0)
    now = by_id(open_store(folder).table("trials"))
    assert {name: now[name] for name in kept} == kept
    assert by_id(open_store(OLD).table("trials")).keys() - now.keys() == set()
    third = [
        event["config"] for event in asked(folder) if event["trial_id"] not in by_id(open_store(OLD).table("trials"))
    ]
    assert [(c["data_seed"], c["init_seed"], c["basis_seed"]) for c in third] == [
        (2, 2, 2)
    ] * 2  # as it always had them
    assert open_store(folder).seed_rule == "shared"
