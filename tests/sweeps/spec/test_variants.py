"""Variants: one method twice in a sweep file, under names of their own; and hub models whose shapes are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.store.store import open_store
from sweeps.backends.ray.backend import using
from sweeps.backends.ray.pool import Pool
from sweeps.engine.run import run
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.sweeps.spec.support import Wrong, refused
from trainables.models.shapes import known_configs, meta_model


def tree(**methods: Any) -> dict[str, Any]:
    return {
        "name": "variants",
        "model": {"id": "embedded:tiny-clip", "adapt": "vision", "targets": ["mlp.c_fc"]},
        "data": {"datasets": ["embedded:fashion-mnist"], "train_size": ["1-shot"]},
        "budgets": {"lora_rank": [8]},
        "methods": methods,
        "search": {"trials": 1, "rerun_rates": 0, "rerun_seeds": 0},
        "confirm": {"seeds": 1},
        "train": {"epochs": 1},
    }


STABLE = {"method": "lora", "rank_stabilised": True, "lr": 2e-3}


def test_two_variants_of_a_method_run_side_by_side(tmp_path: Path, pool: Pool) -> None:
    whole = tree(lora={}, **{"lora-stable": STABLE}) | {"output": str(tmp_path / "r")}
    plan = Plan.from_spec(SweepSpec.parse(whole))
    plain, stable = plan.cells
    assert (plain.method, plain.base, stable.method, stable.base) == ("lora", "lora", "lora-stable", "lora")
    assert plain.count == stable.count == plain.budget
    assert stable.lr_centre == pytest.approx(2e-3)
    one, other = (cell.trial("CONFIRM", 1e-3, (0, 0, 0), plan.spec.train) for cell in plan.cells)
    assert (one.method, other.method) == ("lora", "lora")
    assert (dict(one.options), dict(other.options)) == ({}, {"rank_stabilised": True})
    assert one.trial_id != other.trial_id
    summary = run(plan, progress=False, backend=using(pool))
    assert (summary.finished, summary.failed) == (4, 0)
    found = open_store(tmp_path / "r").sql("select distinct method, adapter_params from trials order by 1").to_pylist()
    assert found == [{"method": m, "adapter_params": plain.count} for m in ("lora", "lora-stable")]


def test_a_variant_can_be_searched_by_its_methods_own_options() -> None:
    whole = tree(lora={}, wide={"method": "randlora", "space": {"distribution": ["uniform", "normal"]}})
    whole["search"] |= {"trials": 2}
    (_, wide) = Plan.from_spec(SweepSpec.parse(whole)).cells
    assert [d.name for d in wide.dimensions] == ["distribution"]


def test_a_sweep_without_variants_keeps_its_identity() -> None:
    assert "method" not in SweepSpec.parse(tree(lora={})).identity()["methods"]["lora"]
    first, second = (SweepSpec.parse(tree(mine={"method": m})) for m in ("lora", "dora"))
    assert first.identity() != second.identity()
    assert Plan.from_spec(first).cells[0].cell_id != Plan.from_spec(second).cells[0].cell_id


@pytest.mark.parametrize(
    ("name", "section", "wrong"),
    [
        ("lora-x", {}, Wrong("methods.lora-x", "lora-x", "lora-xs", ("method = NAME in [methods.lora-x]",))),
        ("mine", {"method": "full"}, Wrong("methods.mine.method", "full", names=("adalora",))),
        ("mine", {"method": "lore"}, Wrong("methods.mine.method", "lore", "lora", ("adalora",))),
        ("vera", {"method": "lora"}, Wrong("methods.vera.method", "lora", names=("vera",))),
        ("My LoRA", {"method": "lora"}, Wrong("methods.My LoRA", "My LoRA", names=("'.', '+' and '-'",))),
        ("mine", {"method": "lora", "n": 3}, Wrong("methods.mine.n", 3, names=("alpha, budgets",))),
        ("mine", {"method": "lora", "space": {"n": [3]}}, Wrong("methods.mine.space.n", "n", names=("mine", "alpha"))),
    ],
)
def test_what_a_variant_may_not_be(name: str, section: dict[str, Any], wrong: Wrong) -> None:
    (found,) = refused(lambda: SweepSpec.parse(tree(**{name: section})))
    wrong.check(found)


def test_hub_models_of_the_recipes_have_their_published_sizes_without_a_network() -> None:
    published = {
        "facebook/dinov2-base": 86_580_480,
        "Qwen/Qwen2-0.5B-Instruct": 494_032_768,
        "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
        "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
        "meta-llama/Llama-3.2-3B": 3_217_599_488 - 4_849_664,  # PEFT's total of a run with VB-LoRA, less what it trains
        "FacebookAI/roberta-base": 124_645_632,
        "FacebookAI/roberta-large": 355_359_744,
        "openai-community/gpt2-medium": 354_823_168,
        "facebook/dinov2-small": 22_056_576,
        "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
        "openai-community/gpt2": 124_439_808,
        "Qwen/Qwen3-0.6B-Base": 596_049_920,
        "meta-llama/Llama-3.2-1B": 1_235_814_400,
    }
    assert published.keys() == known_configs().keys()
    for name, count in published.items():
        assert sum(p.numel() for p in meta_model(f"hf:{name}").parameters()) == count
