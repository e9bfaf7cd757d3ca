"""What was equal over the methods of a sweep is said, and what was not is said of the verdict too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from analysis import open_store
from analysis.findings.all import pick
from analysis.findings.answer.answer import conclusion
from analysis.findings.batch_sizes import batches_say
from analysis.findings.parity.finding import fairness_says
from analysis.findings.parity.words import devices_apart, looks_says, parity_says, versions_apart
from analysis.imports.importing import import_published
from analysis.report.facts import facts
from analysis.report.page import render
from analysis.store.store import Store
from analysis.store.tables import write_part
from analysis.verdict.looks import Looks
from tests.support import sweeps


def moved(folder: Path, tmp_path: Path, method: str, **ran_on: object) -> Store:
    """The same results, where one method ran elsewhere."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    rows = open_store(folder).table("trials").to_pylist()
    (copy / "journal.jsonl").unlink()
    shutil.rmtree(copy / "tables" / "trials")
    write_part(copy, "trials", [row | (ran_on if row["method"] == method else {}) for row in rows])
    return open_store(copy)


def test_equal_devices_are_said_once(store: Store) -> None:
    said = parity_says(store.table("parity").to_pylist())
    assert "Devices and precision: every method ran on cpu fp32." in said
    assert "NOT equal" not in conclusion(store)


@pytest.mark.parametrize(
    ("ran_on", "where"),
    [({"device": "NVIDIA H100", "precision": "bf16"}, "NVIDIA H100 bf16"), ({"precision": "bf16"}, "cpu bf16")],
)
def test_a_method_that_ran_elsewhere_is_named_in_parity_and_verdict(
    folder: Path, tmp_path: Path, ran_on: dict[str, str], where: str
) -> None:
    store = moved(folder, tmp_path, "lora", **ran_on)
    (said,) = [line for line in parity_says(store.table("parity").to_pylist()) if line.startswith("Devices")]
    assert said.startswith("Devices and precision: NOT equal, ")
    assert f"LoRA on {where}" in said and "on cpu fp32" in said
    verdict = conclusion(store)
    assert "Devices or precision are NOT equal: " in verdict and f"LoRA on {where}" in verdict
    assert f"LoRA on {where}" in str(facts(store)["concluded"])


def test_a_third_method_elsewhere_leaves_the_verdict_on_two_alone(folder: Path, tmp_path: Path) -> None:
    store = moved(folder, tmp_path, "nola", device="NVIDIA H100", precision="bf16")
    parity = store.table("parity").to_pylist()
    assert "NoLA on NVIDIA H100 bf16" in str(devices_apart(parity))
    assert devices_apart(parity, ("lora", "randlora")) is None
    assert "NOT equal" not in conclusion(store)


def test_what_is_not_known_is_not_called_unequal(folder: Path, tmp_path: Path) -> None:
    parity = [r | {"computed_on": None} for r in open_store(folder).table("parity").to_pylist()]
    assert devices_apart(parity) is None
    assert not [line for line in parity_says(parity) if line.startswith("Devices")]


def test_imported_counts_were_predicted_by_none(tmp_path: Path) -> None:
    store = open_store(import_published(tmp_path / "paper", ["fig1-clip"]))
    assert not [line for line in fairness_says(store) if line.startswith("Counts")]
    assert "0 tuning trials" not in render(store)


def test_one_of_a_kind_is_no_plural_and_points_past_an_edge_are_said(store: Store) -> None:
    rows = [r | {"epochs": 1, "decades": 1.0, "allowance": 1, "widened": 0} for r in store.table("parity").to_pylist()]
    said = " ".join([*parity_says(rows), *looks_says([Looks((1,), 1)])])
    for text in ("are 1 decade wide", "trained 1 epoch.", "given 1 trial;", "one, at 1 seed;"):
        assert text in said
    wider = " ".join(parity_says([r | {"widened": int(r["method"] == "lora")} for r in rows]))
    assert "past an edge" not in said and "; points past an edge came on top." in wider


def test_methods_and_budgets_of_infeasible_cells_are_not_counted(store: Store, tmp_path: Path) -> None:
    cells = [
        r | {"feasible": r["method"] != "vera" and r["reference"] != "lora-16"}
        for r in store.table("cells").to_pylist()
    ]
    (tmp_path / "tables").mkdir()
    write_part(tmp_path, "cells", cells)
    (said,) = facts(open_store(tmp_path))["setting"]
    left = [r for r in cells if r["feasible"]]
    methods, budgets = ({r[key] for r in left} - {None} for key in ("method", "reference"))
    assert len(methods) < len({r["method"] for r in cells})
    assert len(budgets) < len({r["reference"] for r in cells} - {None})
    assert f" {len(methods)} methods at {len(budgets)} budgets " in said


def test_versions_that_differ_are_said_wherever_results_are(folder: Path, tmp_path: Path) -> None:
    """Between two methods, and between trials of one: a folder that was extended after an upgrade."""
    old, new = "2.9.0", "2.13.0"
    store = moved(folder, tmp_path / "a", "lora", versions=json.dumps({"torch": new}))
    on = f"LoRA on torch {new}"
    places = {
        "best": conclusion(store),
        "report": render(store),
        "compare": " ".join(json.loads(sweeps("compare", store.path, "--json").stdout)["says"]),
    }
    for place, text in places.items():
        assert "NOT equal" in text and on in text and f"torch {old}" in text, place
    half = tmp_path / "b"
    shutil.copytree(folder, half)
    rows = open_store(folder).table("trials").to_pylist()
    (half / "journal.jsonl").unlink()
    shutil.rmtree(half / "tables" / "trials")
    ran = ({"torch": new if row["data_seed"] else old} for row in rows)
    write_part(half, "trials", [row | {"versions": json.dumps(v)} for row, v in zip(rows, ran, strict=True)])
    assert f"NOT equal: every method on torch {new} and torch {old}" in conclusion(open_store(half))


def test_versions_that_decide_nothing_are_not_said() -> None:
    row = {"sweep": "s", "dataset": "d", "train_size": "1.0", "method": "lora"}
    ran = [row | {"versions": v} for v in ('{"torch": "2", "rich": "1"}', '{"torch": "2", "rich": "2"}', "{}", None)]
    assert versions_apart(ran) is None
    assert versions_apart([row | {"versions": f'{{"torch": "{k}"}}'} for k in (1, 2)], ["dora"]) is None
    packed = [row | {"versions": f'{{"bitsandbytes": "0.{k}"}}'} for k in (1, 2)]
    assert versions_apart(packed) == "every method on bitsandbytes 0.1 and bitsandbytes 0.2"


def test_cells_without_searched_batch_sizes_are_not_among_those_that_searched_them() -> None:
    row = {"method": "lora", "reference": None, "hyperparameters": None, "dataset": "cifar10"}
    searched = row | {"space": '{"global_batch_size": {"values": [16, 64]}}'}
    assert batches_say([row, row]) == []
    assert "NOT equal" not in batches_say([searched, searched])[0]
    (said,) = batches_say([searched, row | {"space": None}])
    assert "every" not in said and "no batch sizes" in said and "NOT equal" in said


def test_a_chosen_batch_size_names_its_data_set_where_there_are_several() -> None:
    searched = {"method": "lora", "reference": "lora-1", "space": '{"global_batch_size": {"values": [16, 64]}}'}
    rows = [
        searched | {"dataset": name, "hyperparameters": f'{{"global_batch_size": {size}}}'}
        for name, size in (("cifar10", 16), ("folder:my/flowers", 64))
    ]
    (said,) = batches_say(rows)
    assert said.endswith("Chosen: 16 by LoRA at lora-1 on cifar10; 64 by LoRA at lora-1 on flowers.")
    assert batches_say(rows[:1])[0].endswith("Chosen: 16 by LoRA at lora-1.")


def test_a_count_that_does_not_hold_is_said(folder: Path, tmp_path: Path) -> None:
    rows = open_store(folder).table("trials").to_pylist()
    (count,) = {row["adapter_params"] for row in rows if row["method"] == "lora" and row["reference"] == "lora-1"}
    store = moved(folder, tmp_path, "lora", adapter_params=count + 1)
    cells = [r for r in store.table("parity").to_pylist() if r["count_holds"] is False]
    assert {r["method"] for r in cells} == {"lora"}
    said = [line for line in parity_says(store.table("parity").to_pylist()) if line.startswith("Counts")]
    assert said == [
        f"Counts: {len(cells)} cells built another number of parameters than the solver predicted; see the table."
    ]
    (sheet,) = pick(store, ("parity",))
    assert sum("(predicted " in cell for row in sheet.cells for cell in row) == len(cells)
