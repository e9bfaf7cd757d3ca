"""Sweeps that really train, packed and not: the same trials, and the same numbers up to the order of sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.store.store import open_store
from sweeps.backends.ray.backend import using
from sweeps.backends.ray.pool import Pool
from sweeps.engine.run import run
from sweeps.plan.estimate import estimate_plan
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.sweeps.lanes.support import check_equal

METHODS: dict[str, dict[str, Any]] = {"lora": {}, "randlora": {}, "vera": {"unmatched": True}, "full": {}}


def planned(folder: Path, pack: int, **given: Any) -> Plan:
    tree = {
        "name": "packed",
        "output": str(folder),
        "model": {"id": "embedded:tiny-clip", "adapt": "vision", "targets": ["attn.in_proj_weight"]},
        "data": {"datasets": ["embedded:fashion-mnist-turned"], "train_size": ["2-shot"]},
        "budgets": {"lora_rank": [8]},
        "methods": {**METHODS, "zero-shot": {}},
        "search": {"trials": 4, "rerun_rates": 1, "rerun_seeds": 1},
        "confirm": {"seeds": 2},
        "train": {"epochs": 2, "global_batch_size": 10},
        "resources": {"pack": pack},
        "keep": {"adapters": "confirm"},
    }
    return Plan.from_spec(SweepSpec.parse(tree | given))


@pytest.mark.slow
def test_a_packed_sweep_trains_to_the_same_numbers(tmp_path: Path, pool: Pool) -> None:
    summary = run(planned(tmp_path / "r", 4), progress=False, backend=using(pool))
    assert (summary.finished, summary.failed) == (4 * 6 + 1, 0)
    assert run(planned(tmp_path / "whole", 1), progress=False, backend=using(pool)).complete
    check_equal(tmp_path / "r", tmp_path / "whole", score=0.004, test=0.004)
    trials = open_store(tmp_path / "r").table("trials").to_pylist()
    assert {t["method"] for t in trials if t["packed"] > 1} == {"lora", "randlora", "vera"}
    kept = {path.parent.name for path in (tmp_path / "r" / "adapters").glob("*/adapter.safetensors")}
    assert kept == {t["trial_id"] for t in trials if t["stage"] == "CONFIRM" and t["method"] in METHODS} - {
        t["trial_id"] for t in trials if t["method"] == "full"
    }


def test_the_estimate_probes_packs(tmp_path: Path) -> None:
    given = {"methods": {"lora": {}, "full": {}}}
    estimate = estimate_plan(planned(tmp_path / "r", 3, **given))
    assert estimate.pack == 3
    assert {m.method for m in estimate.methods} == {"lora", "full"}
    assert all(m.seconds_per_trial > 0 for m in estimate.methods)
    assert estimate_plan(planned(tmp_path / "r", 1, **given)).pack == 1
