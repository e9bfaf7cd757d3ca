"""A results folder goes on in another working folder: ids have paths as the sweep file writes them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sweeps import Plan, SweepSpec
from sweeps.engine.run import TRIAL
from sweeps.errors import SpecError
from sweeps.plan.inputs import check_inputs, needs_of
from sweeps.search.order import tiers
from sweeps.spec.paths import absolute, with_absolute_paths
from tests.sweeps.inline import go_inline, lines
from tests.sweeps.support import begin
from tests.trainables.tiny_images import write_colours

FILE = """
name = "moved"
output = "results"
[model]
id = "embedded:tiny-clip"
adapt = "vision"
[data]
datasets = ["parquet:data/colours"]
[budgets]
lora_rank = [1]
[methods.lora]
[search]
trials = 4
rerun_rates = 1
rerun_seeds = 1
[confirm]
seeds = SEEDS
"""


def place(folder: Path) -> Path:
    write_colours(folder / "data" / "colours")
    return folder


def plan(seeds: int = 2) -> Plan:
    Path("moved.toml").write_text(FILE.replace("SEEDS", str(seeds)))
    return Plan.from_spec(SweepSpec.load("moved.toml"))


def configs() -> list[dict[str, Any]]:
    events = [json.loads(line) for line in lines(Path("results"))]
    return [event["config"] for event in events if event["ev"] == "ask"]


@pytest.mark.parametrize("journal", [True, False])
def test_a_folder_goes_on_where_it_was_moved(journal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place(tmp_path / "here"))
    assert go_inline(plan()).finished == 6
    assert {config["dataset"] for config in configs()} == {"parquet:data/colours"}
    there = place(tmp_path / "there")
    shutil.copytree("results", there / "results")
    monkeypatch.chdir(there)
    if not journal:
        (there / "results" / "journal.jsonl").unlink()
    summary = go_inline(plan(seeds=3))
    assert (summary.finished, summary.skipped) == (1, 6)
    assert str(tmp_path) not in (there / "results" / "journal.jsonl").read_text()


def test_other_data_at_the_same_path_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place(tmp_path))
    check_inputs(plan())
    begin(plan())
    check_inputs(plan())
    for part in ("train", "test"):
        table = pq.read_table(f"data/colours/{part}.parquet")
        pq.write_table(table.slice(1), f"data/colours/{part}.parquet")
    with pytest.raises(SpecError, match="is not the data"):
        check_inputs(plan())


def test_workers_get_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place(tmp_path))
    (cell,) = plan().cells
    names = with_absolute_paths({"model": "local:models/vit", "dataset": cell.dataset, "lr": 1.0})
    assert names == {"model": f"local:{tmp_path}/models/vit", "dataset": f"parquet:{tmp_path}/data/colours", "lr": 1.0}
    assert with_absolute_paths({"model": "open_clip:A/b", "dataset": "pets"}) == {
        "model": "open_clip:A/b",
        "dataset": "pets",
    }
    assert absolute("local:~/vit") == f"local:{Path('~/vit').expanduser()}"
    assert tiers([cell], ["parquet:./data/colours"]) == {cell.cell_id: 0}


def test_a_symbolic_link_stays_for_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place(tmp_path / "own"))
    (tmp_path / "data").symlink_to("own/data")  # on another machine it may lead elsewhere
    name, followed = f"parquet:{tmp_path}/data/colours", f"parquet:{tmp_path}/own/data/colours"
    (cell,) = plan().cells
    cell = replace(cell, dataset=name)
    assert (
        with_absolute_paths({"model": cell.model, "dataset": name})["dataset"]
        == cell.with_absolute_paths().dataset
        == name
    )
    assert tiers([cell], [followed]) == {cell.cell_id: 0}
    assert needs_of(Plan(plan().spec, (cell,)), TRIAL).paths == (f"{tmp_path}/data/colours",)
