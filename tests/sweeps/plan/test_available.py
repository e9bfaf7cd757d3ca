"""`--available`: what is not on this machine is left out, said everywhere, and added when it is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from analysis.findings.all import pick, pictures, sheets
from analysis.report.page import render
from analysis.store.store import open_store
from sweeps.engine import prepare as engine
from sweeps.errors import SpecError
from sweeps.plan import split_sizes
from sweeps.plan.inputs import available, check_inputs
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.support import sweeps
from tests.sweeps.inline import go_inline
from tests.sweeps.spec.support import refused
from tests.sweeps.support import rows
from tests.trainables.tiny_images import write_colours
from trainables.data.downloads import may_download, offline
from trainables.data.registry import load_dataset, load_text_dataset
from trainables.errors import DataError

SAID = "2 of 3 data sets left out, not at hand: later, ucf101"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep over a data set that is here, one whose folder is not, and a registered one that is not."""
    monkeypatch.setenv("SWEEPS_DATA", str(tmp_path / "nowhere"))
    write_colours(tmp_path / "now")
    tree = {
        "name": "t",
        "output": str(tmp_path / "r"),
        "model": {"id": "embedded:tiny-clip", "adapt": "vision"},
        "data": {"datasets": [f"parquet:{tmp_path}/now", f"parquet:{tmp_path}/later", "ucf101"]},
        "budgets": {"lora_rank": [1]},
        "methods": {"lora": {}, "vera": {}},
        "search": {"trials": 3, "rerun_rates": 0, "rerun_seeds": 0},
        "confirm": {"seeds": 2},
        "train": {"epochs": 1},
    }
    path = tmp_path / "t.json"
    path.write_text(json.dumps(tree))
    return path


def plan(file: Path) -> Plan:
    return available(Plan.from_spec(SweepSpec.load(file), available=True))


def test_a_plan_names_what_is_left_out(file: Path) -> None:
    with pytest.raises(SpecError, match="later"):
        Plan.from_spec(SweepSpec.load(file))
    answer = json.loads(sweeps("plan", str(file), "--available", "--json").stdout)
    assert answer["weak"][0] == SAID
    assert [c["feasible"] for c in answer["cells"]] == [True, False, False] * 2
    assert answer["trials"] == 2 * (3 + 2)
    text = sweeps("plan", str(file), "--available").output
    assert "no data   ucf101: " in text and SAID in text and "left out  " not in text
    assert sweeps("run", str(file), "--available", "--set", "data.datasets=['ucf101']").exit_code == 2


def test_an_allowance_in_samples_is_of_the_data_that_is_here(file: Path) -> None:
    tree = json.loads(file.read_text())
    tree["search"] = {"allowance": {"samples": 6_000}, "rerun_rates": 0, "rerun_seeds": 0}
    file.write_text(json.dumps(tree))
    here, *missing = plan(file).cells[:3]
    assert here.epoch_samples and here.tune_trials == 6_000 // here.epoch_samples
    assert [cell.epoch_samples for cell in missing] == [None, None]
    tree["search"]["allowance"]["samples"] = 1
    file.write_text(json.dumps(tree))
    with pytest.raises(SpecError, match=r"is 0 trials of .* Nearest: samples = "):
        plan(file)


def test_every_reader_says_it_and_data_that_comes_is_added(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, folder = plan(file), file.parent / "r"
    with monkeypatch.context() as patch:
        patch.setattr(engine, "check_inputs", lambda _: None)
        assert go_inline(first).complete
    store = open_store(folder)
    assert all(SAID in sheet.legend for sheet in sheets(store).values())
    assert SAID in pick(store, ["results"])[0].legend
    assert {SAID in picture.caption for picture in pictures(store)} == {True}
    assert SAID in render(store)
    for words in (["status"], ["status", "--json"], ["best"], ["tables"]):
        text = sweeps(words[0], str(folder), *(["results"] if words[0] == "tables" else []), *words[1:]).output
        assert " ".join(SAID.split()) in " ".join(text.split()), words
    before = rows(folder, "trials")
    shutil.copytree(file.parent / "now", file.parent / "later")
    split_sizes.forget()
    second = plan(file)
    assert [c.cell_id for c in second.cells] == [c.cell_id for c in first.cells]
    summary = go_inline(second)
    assert (summary.finished, summary.skipped) == (10, 10)
    assert [row for row in rows(folder, "trials") if row in before] == before
    assert {c["absent"] is None: c["dataset"] for c in open_store(folder).table("cells").to_pylist()}[False] == "ucf101"
    assert "1 of 3 data sets left out, not at hand: ucf101" in sweeps("best", str(folder)).output


def test_a_list_of_capacities_stands_beside_data_that_is_missing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its budgets are the methods' own counts, which no other method is asked for, and no data set's."""
    tree = json.loads(file.read_text())
    tree["methods"] = {"lora": {}, "bases": {"method": "randlora", "capacity": [4, 8]}}
    file.write_text(json.dumps(tree))
    answer = json.loads(sweeps("plan", str(file), "--available", "--json").stdout)
    cells = {(c["method"], c["reference"], c["dataset"]): c for c in answer["cells"]}
    assert len(cells) == 3 * 3 and answer["weak"][0] == SAID
    assert [key[1] for key, c in cells.items() if c["feasible"]] == ["lora-1", "bases-4", "bases-8"]
    for (method, reference, dataset), cell in cells.items():
        here = cells[method, reference, next(iter(cells))[2]]
        assert (cell["count"], cell["capacity"], cell["budget"]) == (here["count"], here["capacity"], here["budget"])
        assert cell["feasible"] or cell["reason"].startswith("no data: "), dataset
    text = sweeps("plan", str(file), "--available").output
    assert SAID in text and "not every method reaches" not in text
    folder = file.parent / "r"
    with monkeypatch.context() as patch:
        patch.setattr(engine, "check_inputs", lambda _: None)
        assert go_inline(plan(file)).complete
    store = open_store(folder)
    shown = [(r["method"], r["reference"]) for r in store.table("scaling").to_pylist()]
    assert sorted(shown) == [("bases", "bases-4"), ("bases", "bases-8"), ("lora", "lora-1")]
    assert all(SAID in sheet.legend for sheet in sheets(store).values())
    assert SAID in render(store)
    for words in (["status"], ["best"], ["best", "--at", "bases-8"]):
        shown_text = sweeps(words[0], str(folder), *words[1:])
        assert shown_text.exit_code == 0 and SAID in " ".join(shown_text.output.split()), words


def test_data_that_trials_saw_is_never_left_out(file: Path) -> None:
    check_inputs(plan(file))
    shutil.rmtree(file.parent / "now")
    split_sizes.forget()
    with pytest.raises(DataError, match="now"):
        check_inputs(plan(file))


@pytest.mark.parametrize("name", ["cifar10", "voc2007", "cub200", "eurosat", "resisc45", "hf:nobody/nothing"])
def test_nothing_is_downloaded_offline(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPS_DATA", str(tmp_path))
    with offline(), pytest.raises(DataError, match=name):
        load_dataset(name)
    assert may_download()


@pytest.mark.parametrize("name", ["arc-easy", "glue-sst2", "e2e"])
def test_no_text_is_downloaded_offline(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPS_DATA", str(tmp_path))
    with offline(), pytest.raises(DataError):
        load_text_dataset(name)


def test_a_folder_of_texts_that_is_missing_is_left_out_too(tmp_path: Path) -> None:
    datasets = [f"json:{tmp_path}/missing", "boolq"]
    tree = {
        "name": "t",
        "output": str(tmp_path / "r"),
        "model": {"id": "hf:microsoft/Phi-3-mini-4k-instruct"},  # only its shapes are read
        "data": {"datasets": datasets},
        "budgets": {"lora_rank": [1]},
        "methods": {"lora": {}},
    }
    (found,) = refused(lambda: Plan.from_spec(SweepSpec.parse(tree)))
    assert found.field == "data.datasets" and "no folder" in found.rule
    assert [cell.dataset for cell in Plan.from_spec(SweepSpec.parse(tree), available=True).cells] == datasets
