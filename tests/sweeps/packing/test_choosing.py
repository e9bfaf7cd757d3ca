"""Which trials go to a worker together, how many, and what a plan says about it; nothing is trained."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.errors import SpecError
from sweeps.packing.choosing import Packing, unpackable
from sweeps.packing.sizes import MOST, Measured, gpu_share, pack_size
from sweeps.packing.words import packing_words
from sweeps.plan.plan import Plan
from sweeps.search.stages import Slot, SweepState
from sweeps.spec.resources import ResourceSection
from sweeps.spec.spec import SweepSpec
from tests.fakes import FakeCell, FakePlan, FakeSearch, fake_plan
from tests.sweeps.search.support import Rows, keys, row_of, simulate
from tests.trainables.tiny_sentences import save_encoder
from trainables.packing.alike import alike

GIB = 2**30


def packed_run(plan: FakePlan, packing: Packing, rows: Rows) -> list[list[Slot]]:
    """Run a plan by packs, one of at most `workers` ending at a time; the packs in the order handed out."""
    state, packs, running = SweepState(plan.feasible, plan.spec), [], []
    while True:
        while len(running) < packing.workers and (pack := packing.next(state, len(running))):
            for slot in pack:
                assert slot.trial_id not in rows
                state.start(slot)
            packs.append(pack)
            running.append(pack)
        if not running:
            return packs
        for slot in running.pop(0):
            rows[slot.trial_id] = row_of(slot)
            state.finish(rows[slot.trial_id])


@pytest.mark.parametrize("sampler", ["grid", "qmc", "random"])
@pytest.mark.parametrize(("most", "workers"), [(2, 1), (4, 1), (4, 2), (8, 3)])
def test_packs_run_the_same_trials(tmp_path: Path, sampler: str, most: int, workers: int) -> None:
    plan = fake_plan(tmp_path, search=FakeSearch(trials=8, sampler=sampler, rerun_rates=2, rerun_seeds=2))
    whole: Rows = {}
    simulate(plan, whole)
    rows: Rows = {}
    packs = packed_run(plan, Packing(most, workers), rows)
    assert keys(rows) == keys(whole)
    assert {len(pack) for pack in packs} <= set(range(1, most + 1))
    assert max(len(pack) for pack in packs) > 1
    for pack in packs:
        assert len({str(alike(dict(slot.config))) for slot in pack}) == 1
        if pack[0].cell_id in ("full-None", "zero-shot-None"):
            assert len(pack) == 1


def test_a_cell_is_packed_as_far_as_no_worker_is_without_a_trial(tmp_path: Path) -> None:
    search = FakeSearch(trials=8, rerun_rates=0, rerun_seeds=0)
    sizes = {}
    for cells in (1, 2, 3):
        given = tuple(FakeCell("lora", 1000 * k) for k in range(1, cells + 1))
        state = SweepState((plan := fake_plan(tmp_path, given, search=search)).feasible, plan.spec)
        sizes[cells] = [len(Packing(8, 3).next(state, packs)) for packs in (0, 1, 2, 3)]
    assert sizes == {1: [3, 4, 8, 8], 2: [4, 8, 8, 8], 3: [8, 8, 8, 8]}


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_search_that_learns_is_asked_one_by_one_and_its_seeds_are_packed(tmp_path: Path, sampler: str) -> None:
    search = FakeSearch(trials=8, sampler=sampler, rerun_rates=2, rerun_seeds=1)
    plan = fake_plan(tmp_path, (FakeCell("lora"),), search=search)
    whole: Rows = {}
    simulate(plan, whole)
    rows: Rows = {}
    packs = packed_run(plan, Packing(4, 1), rows)
    assert keys(rows) == keys(whole)
    assert [len(pack) for pack in packs] == [1] * 6 + [2, 2]


def test_trials_that_may_be_pruned_are_not_packed(tmp_path: Path) -> None:
    search = FakeSearch(trials=6, pruner="asha", rerun_rates=2, rerun_seeds=1)
    packs = packed_run(fake_plan(tmp_path, (FakeCell("lora"),), search=search), Packing(4, 1), {})
    assert [len(pack) for pack in packs] == [1] * 4 + [2, 2]


def test_a_pack_that_did_not_do_makes_later_ones_smaller(tmp_path: Path) -> None:
    packing = Packing(8, 1)
    for nothing in ("uneven", "storage"):
        packing.shrink_packs("lora-1000", {"cause": nothing, "packed": 8})
    assert packing.limits == {}
    packing.shrink_packs("lora-1000", {"cause": "memory", "packed": 8})
    packing.shrink_packs("vera-1000", {"cause": "refused", "packed": 8})
    search = FakeSearch(trials=8, rerun_rates=0, rerun_seeds=0)
    plan = fake_plan(tmp_path, (FakeCell("lora"), FakeCell("vera")), search=search)
    assert Counter(len(pack) for pack in packed_run(plan, packing, {})) == {4: 2, 2: 1, 1: 10}


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("lora", None),
        ("adalora", None),
        ("full", "adds no adapter"),
        ("zero-shot", "adds no adapter"),
        ("autolora", "holds some rows of each batch out"),
        ("peft:lily", "mixes the rows of a batch"),
    ],
)
def test_what_is_packed(method: str, words: str | None) -> None:
    why = unpackable(method)
    assert (why is None) if words is None else (why is not None and words in why)


def test_trials_beside_base_weights_in_8_bits_are_not_packed(tmp_path: Path) -> None:
    """Neither by the plan's words nor by the driver, before a worker would refuse the pack."""
    plan = fake_plan(tmp_path, (FakeCell("lora"),), search=FakeSearch(trials=8, rerun_rates=0, rerun_seeds=0))
    state = SweepState(plan.feasible, plan.spec)
    slot = state.next_slot()
    assert slot is not None
    for held, packed in (("nf4", True), ("int8", False)):
        assert (unpackable("lora", base_weights=held) is None) == packed
        one = replace(slot, config={"method": "lora", "train": {"base_weights": held}})
        assert Packing(2, 1)._may_pack(state.cells[slot.cell_id], one) == packed


def test_a_base_model_may_keep_its_trials_apart(tmp_path: Path) -> None:
    """By its config alone: dropout is told apart, but not with checkpointing, and layers left out never."""
    drops = f"local:{save_encoder(tmp_path / 'bert', 'bert', dropout=0.1)}"
    plain = f"local:{save_encoder(tmp_path / 'plain', 'bert')}"
    assert [unpackable("lora", model) for model in (drops, plain, "embedded:tiny-clip", "local:nowhere")] == [None] * 4
    assert unpackable("lora", plain, True) is None
    assert unpackable("lora", drops, True) == "trains a model with dropout under train.gradient_checkpointing"
    config = {"model_type": "opt", "layerdrop": 0.1, "dropout": 0.0, "num_hidden_layers": 1, "architectures": []}
    config |= {"hidden_size": 8, "word_embed_proj_dim": 8, "ffn_dim": 8, "num_attention_heads": 2}
    config |= {"vocab_size": 20, "max_position_embeddings": 16, "architectures": ["OPTForCausalLM"]}
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    why = unpackable("lora", f"local:{tmp_path / 'opt'}")
    assert why is not None
    assert "leaves out parts of itself at random (model.decoder.layerdrop = 0.1)" in why


def test_the_size_of_a_pack() -> None:
    auto = ResourceSection(pack="auto")
    assert pack_size(ResourceSection(pack=3), None) == 3
    assert pack_size(auto, None) == 1
    assert pack_size(auto, Measured(peak=1 * GIB, device=80 * GIB)) == MOST
    assert pack_size(auto, Measured(peak=20 * GIB, device=80 * GIB)) == 3
    assert pack_size(auto, Measured(peak=20 * GIB, device=80 * GIB), share=0.5) == 1
    assert gpu_share(Measured(peak=4 * GIB, device=80 * GIB), 16, 1) == 1 / 8
    assert gpu_share(Measured(peak=4 * GIB, device=80 * GIB), 16, 1, packed=8) == 1 / 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pack": 0}, r"resources\.pack = 0: a number of trials, at least 1, or 'auto'"),
        ({"pack": "all"}, r"resources\.pack = 'all': a number of trials"),
        ({"pack": 4, "workers": 2}, r"resources.*pack = 4 puts several trials on a worker, and workers = 2"),
        ({"pack": 4, "isolated": True}, r"pack = 4 .* isolated = true is a process of its own for every trial"),
    ],
)
def test_what_a_sweep_file_may_not_ask(given: dict[str, Any], words: str) -> None:
    tree = {
        "name": "s",
        "model": {"id": "embedded:tiny-clip", "adapt": "vision"},
        "data": {"datasets": ["embedded:fashion-mnist"]},
        "budgets": {"lora_rank": [1]},
        "methods": {"lora": {}},
        "resources": given,
    }
    with pytest.raises(SpecError, match=words):
        SweepSpec.parse(tree)
    assert ResourceSection(pack="auto", workers=2).pack == "auto"
    assert ResourceSection().pack == 1


def test_a_plan_says_what_is_packed_and_why_not() -> None:
    tree: dict[str, Any] = {
        "name": "s",
        "model": {"id": "embedded:tiny-clip", "adapt": "vision"},
        "data": {"datasets": ["embedded:fashion-mnist"]},
        "budgets": {"lora_rank": [1]},
        "methods": {"lora": {}, "zero-shot": {}},
    }

    def said(pack: int | str, **search: Any) -> list[str]:
        spec = SweepSpec.parse(tree | {"resources": {"pack": pack}, "search": search})
        return packing_words(spec, Plan.from_spec(spec).feasible)

    assert said(1) == []
    assert said(4) == [
        "packing   up to 4 trials of a cell share a worker: lora",
        "          one by one: zero-shot, which adds no adapter to the base model",
    ]
    assert said("auto")[0].startswith("packing   auto: on CPUs none, on GPUs up to 8, as many as the memory holds")
    assert "search.sampler = 'tpe'" in said(4, sampler="tpe")[-1]
    assert "search.pruner = 'asha'" in said(4, pruner="asha")[-1]
