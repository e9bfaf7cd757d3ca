"""How many trials share a GPU. There is none here: its memory is told, and Ray is told that it has some."""

from __future__ import annotations

from typing import Any

import pytest

from sweeps.backends.resources import LaneShape, Node, ResourceError, plan_lanes
from sweeps.packing.sizes import CONTEXT_BYTES, Measured, gpu_share, least_share
from sweeps.plan.estimate import _Probe, probe_gpu
from sweeps.plan.plan import Plan
from sweeps.spec.cell import Cell
from sweeps.spec.spec import SweepSpec
from tests.fakes import FakeResources

GIB = 2**30


@pytest.mark.parametrize(
    ("peak", "cpus_per_gpu", "cpus", "share"),
    [
        (60 * GIB, 8, 1, 1.0),
        (30 * GIB, 8, 1, 1 / 2),
        (GIB, 16, 1, 1 / 8),  # the most that pays
        (GIB, 4, 1, 1 / 4),  # no CPUs for more
        (GIB, 4, 2, 1 / 2),
        (GIB, 0.5, 1, 1.0),
        (200 * GIB, 8, 1, 1.0),  # it will say so itself
    ],
)
def test_memory_and_cpus_decide(peak: int, cpus_per_gpu: float, cpus: float, share: float) -> None:
    assert gpu_share(Measured(peak, 80 * GIB), cpus_per_gpu, cpus) == share


def test_trials_that_share_fit() -> None:
    for peak in range(GIB, 80 * GIB, GIB):
        share = gpu_share(Measured(peak, 80 * GIB), 64, 1)
        assert share == 1 or (peak + CONTEXT_BYTES) / share <= 80 * GIB


def test_lanes_take_the_share_and_groups_whole_gpus() -> None:
    auto = FakeResources(gpus_per_worker="auto")
    assert plan_lanes(auto, [Node(16, 2)], 0.25) == [LaneShape(8, False, {"CPU": 1.0, "GPU": 0.25})]
    assert plan_lanes(auto, [Node(16, 0)], 0.25) == [LaneShape(16, False, {"CPU": 1.0})]
    groups = FakeResources(gpus_per_worker="auto", workers=2)
    assert plan_lanes(groups, [Node(16, 2)], 0.25) == [LaneShape(2, True, {"CPU": 1.0, "GPU": 1.0})]


def test_what_fits_once_a_gpu_is_shared_is_not_refused_before_the_probe() -> None:
    asked = FakeResources(gpus_per_worker="auto", concurrent=2)
    with pytest.raises(ResourceError, match="concurrent = 1"):
        plan_lanes(asked, [Node(16, 1)])
    assert plan_lanes(asked, [Node(16, 1)], least_share(asked))[0].trials == 2
    assert least_share(FakeResources(gpus_per_worker="auto", workers=2)) == least_share(FakeResources()) == 1


def test_the_probe_measures_every_method(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {
        "name": "probed",
        "model": {"id": "embedded:tiny-clip", "adapt": "vision", "targets": ["attn.in_proj_weight"]},
        "data": {"datasets": ["embedded:fashion-mnist-turned"], "train_size": ["1-shot"]},
        "budgets": {"lora_rank": [1]},
        "methods": {"lora": {}, "zero-shot": {}},
        "train": {"global_batch_size": 16},
    }
    probed = []

    def measure(cell: Cell, plan: Plan, warm: dict[str, Any]) -> _Probe:
        probed.append(cell.method)
        return _Probe(0.0, 0.0, {"lora": 7, "zero-shot": 5}[cell.method])

    monkeypatch.setattr(_Probe, "of", measure)
    assert probe_gpu(Plan.from_spec(SweepSpec.parse(tree))).peak == 7
    assert sorted(probed) == ["lora", "zero-shot"]
