"""Sweeps of models of text that really train, packed and not: the same trials, and the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.store.store import open_store
from sweeps.backends.ray.backend import using
from sweeps.backends.ray.pool import Pool
from sweeps.engine.run import run
from sweeps.packing.words import packing_words
from sweeps.plan.estimate import estimate_plan
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.sweeps.lanes.support import check_equal
from tests.trainables.tiny_language import save_model, write_rows
from tests.trainables.tiny_sentences import save_encoder, write_sst2


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed-text-sweeps")
    save_model(folder / "llama", "llama")
    save_encoder(folder / "bert", "bert", dropout=0.1)
    write_rows(folder / "rows")
    write_sst2(folder / "SST-2")
    return folder


def planned(place: Path, folder: Path, pack: int, model: str, data: str, **given: Any) -> Plan:
    tree = {
        "name": "packed-text",
        "output": str(folder),
        "model": {"id": f"local:{place / model}"},
        "data": {"datasets": [data]},
        "budgets": {"lora_rank": [2]},
        "methods": {"lora": {}, "adalora": {"unmatched": True}, "autolora": {"unmatched": True}},
        "search": {"trials": 3, "rerun_rates": 1, "rerun_seeds": 1},
        "confirm": {"seeds": 2},
        "train": {"epochs": 1, "global_batch_size": 16},
        "resources": {"pack": pack},
    }
    return Plan.from_spec(SweepSpec.parse(tree | given))


def test_a_plan_says_what_is_packed_of_text(place: Path, tmp_path: Path) -> None:
    plan = planned(place, tmp_path, 3, "llama", f"json:{place / 'rows'}")
    assert packing_words(plan.spec, plan.feasible) == [
        "packing   up to 3 trials of a cell share a worker: lora, adalora",
        "          one by one: autolora, which holds some rows of each batch out, other numbers in every trial",
    ]
    saving = {"epochs": 1, "gradient_checkpointing": True}
    plan = planned(place, tmp_path, 3, "bert", f"glue:{place / 'SST-2'}", train=saving)
    said = packing_words(plan.spec, plan.feasible)
    assert said[0].endswith("no method of this sweep")
    assert "lora, which trains a model with dropout under train.gradient_checkpointing" in said[1]


def test_the_estimate_probes_packs_of_text(place: Path, tmp_path: Path) -> None:
    few = {"lora": {}, "autolora": {"unmatched": True}}
    estimate = estimate_plan(planned(place, tmp_path, 3, "bert", f"glue:{place / 'SST-2'}", methods=few))
    assert estimate.pack == 3
    assert all(m.seconds_per_trial > 0 for m in estimate.methods)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "data"), [("llama", "json:rows"), ("bert", "glue:SST-2")])
def test_a_packed_sweep_of_text_trains_to_the_same_numbers(
    place: Path, tmp_path: Path, pool: Pool, model: str, data: str
) -> None:
    form, _, name = data.partition(":")
    of = f"{form}:{place / name}"
    summary = run(planned(place, tmp_path / "r", 3, model, of), progress=False, backend=using(pool))
    assert summary.failed == 0
    assert run(planned(place, tmp_path / "whole", 1, model, of), progress=False, backend=using(pool)).complete
    check_equal(tmp_path / "r", tmp_path / "whole", score=1e-3, test=1e-3)
    trials = open_store(tmp_path / "r").table("trials").to_pylist()
    assert {t["method"] for t in trials if t["packed"] > 1} == {"lora", "adalora"}
