"""What several workers of a trial can't share is refused with the plan, and not by every trial."""

from __future__ import annotations

from typing import Any

import pytest

from sweeps.errors import SpecError
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec


def plan(**sections: Any) -> Plan:
    usual = {
        "name": "s",
        "model": {"id": "embedded:tiny-clip"},
        "data": {"datasets": ["embedded:fashion-mnist"]},
        "budgets": {"lora_rank": [1]},
        "methods": {"lora": {}, "full": {}},
    }
    return Plan.from_spec(SweepSpec.parse(usual | sections))


def test_all_that_workers_cannot_share_at_once() -> None:
    train = {"global_batch_size": 4, "parallel": "fsdp"}
    with pytest.raises(SpecError) as caught:
        plan(train=train, resources={"workers": 8})
    whole, batch, parallel = map(str, caught.value.problems)
    assert whole.startswith("resources.workers = 8: model.adapt = 'both' compares all images of a batch")
    assert whole.endswith("Nearest: 1.")
    assert batch == "train.global_batch_size = 4: is less than resources.workers = 8, which share a batch. Nearest: 8."
    assert parallel.startswith("train.parallel = 'fsdp': splits the weights of a language model")
    assert "is of kind clip" in parallel and parallel.endswith("Nearest: replicate.")
    assert plan(train=train).feasible  # one worker shares nothing


def test_one_tower_is_shared() -> None:
    vision = {"id": "embedded:tiny-clip", "adapt": "vision"}
    train = {"global_batch_size": 2}
    assert plan(model=vision, train=train, resources={"workers": 2}).feasible
    assert plan(model=vision, methods={"lora": {}}, train={"parallel": "fsdp"}, resources={"workers": 2}).feasible
