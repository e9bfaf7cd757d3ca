"""Base weights in 4 or 8 bits: a sweep from its file to a prediction, and what is refused before it starts."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from analysis.store.store import open_store
from sweeps.engine.run import run
from sweeps.errors import SpecError
from sweeps.exporting.kept import kept_trial
from sweeps.plan.inputs import check_inputs, needs_of
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.sweeps.support import language_tree
from tests.trainables.tiny_language import save_model, write_rows
from trainables.models.base_weights import held_bytes
from trainables.predicting.answers import answers
from trainables.predicting.trained import load_trained


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised-sweep")
    save_model(folder / "llama", "llama")
    write_rows(folder / "rows")
    return folder


def planned(place: Path, held: str, **given: Any) -> Plan:
    return Plan.from_spec(SweepSpec.parse(language_tree(place, train={"epochs": 2, "base_weights": held}, **given)))


def problems(place: Path, held: str, **given: Any) -> list[tuple[str, str | None]]:
    with pytest.raises(SpecError) as caught:
        planned(place, held, **given)
    return [(p.field, p.nearest) for p in caught.value.problems]


@pytest.mark.parametrize("held", ["nf4", "int8"])
def test_all_methods_that_cannot_act_there_are_named_with_what_they_need(place: Path, held: str) -> None:
    pytest.importorskip("peft")
    methods: dict[str, dict[str, Any]] = {
        "lora": {}, "full": {}, "peft:ia3": {}, "mine": {"method": "peft:lily"}, "peft:lora": {}
    }  # fmt: skip
    assert problems(place, held, methods=methods) == [
        ("methods.full", 'train.base_weights = "fp32"'),
        ("methods.peft:ia3", 'train.base_weights = "bf16"'),
        ("methods.mine", 'train.base_weights = "bf16"'),
    ]


def test_only_language_models_take_it(place: Path) -> None:
    given = {"model": {"id": "embedded:tiny-clip"}, "data": {"datasets": ["embedded:fashion-mnist"]}}
    assert problems(place, "nf4", **given) == [("train.base_weights", None)]


def test_a_sweep_is_planned_without_bitsandbytes_and_not_begun(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = {held: planned(place, held) for held in ("fp32", "nf4", "int8")}
    counts = {held: [c.count for c in plan.cells] for held, plan in plans.items()}
    assert counts["nf4"] == counts["int8"] == counts["fp32"]
    assert len({json.dumps(plan.spec.identity(), default=str) for plan in plans.values()}) == 3
    assert "bitsandbytes" in needs_of(plans["nf4"], "a:b").modules
    assert "bitsandbytes" not in needs_of(plans["fp32"], "a:b").modules
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    with pytest.raises(SpecError) as caught:
        check_inputs(plans["nf4"])
    (problem,) = caught.value.problems
    assert (problem.field, problem.value, problem.nearest) == ("train.base_weights", "nf4", "bf16")
    assert "randlora-sweeps[quantised]" in problem.rule


def test_memory_counts_packed_weights(place: Path) -> None:
    """A budget below the packed model's own weights is refused."""
    asked = {"lora_rank": [2], "costs": True}
    plans = {held: planned(place, held, budgets=asked) for held in ("fp32", "bf16", "int8", "nf4")}
    module = plans["nf4"].base_model.module
    own = {held: held_bytes(module, held) for held in plans}
    assert own["fp32"] == 2 * own["bf16"] and own["bf16"] > own["int8"] > own["nf4"]
    for method in ("lora", "randlora"):
        step = {
            held: cell.step_memory_bytes
            for held, plan in plans.items()
            for cell in plan.cells
            if cell.method == method and cell.step_memory_bytes is not None
        }
        assert step["fp32"] > step["bf16"]
        for held in ("int8", "nf4"):
            assert step["bf16"] - step[held] == own["bf16"] - own[held]
    assert "budgets.memory" in dict(problems(place, "nf4", budgets={"memory": ["0.01 MiB"]}))


@pytest.mark.parametrize("held", ["nf4", "int8"])
def test_a_sweep_end_to_end(place: Path, held: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra `quantised`)")
    plan = planned(
        place,
        held,
        output=str(tmp_path / "r"),
        search={"trials": 1, "rerun_rates": 0, "rerun_seeds": 0},
        confirm={"seeds": 1},
    )
    check_inputs(plan)
    summary = run(plan, progress=False, backend="inline")
    assert (summary.finished, summary.failed) == (2 * 2 + 1, 0)
    store = open_store(tmp_path / "r")
    trials = [t for t in store.table("trials").to_pylist() if t["stage"] == "CONFIRM"]
    cells = {cell.method: cell.count for cell in plan.cells}
    assert all(t["adapter_params"] == (cells[t["method"]] or 0) for t in trials)
    assert all("bitsandbytes" in json.loads(t["versions"]) for t in trials)
    for row in (t for t in trials if t["method"] != "zero-shot"):
        kept = kept_trial(tmp_path / "r", row["trial_id"])
        rows = json.loads((place / "rows" / "test.json").read_text())
        said = answers(load_trained(kept.config, kept.folder), [r["instruction"] for r in rows])
        right = sum(a.answer == r["answer"] for a, r in zip(said, rows, strict=True))
        assert abs(right / len(rows) - row["test_score"]) <= 1 / len(rows) + 1e-9  # bfloat16 against float32
    assert run(plan, progress=False, backend="inline").finished == 0  # it is complete
