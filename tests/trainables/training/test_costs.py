"""Costs of a training step, found without values: against counts by hand, and against what a real step takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from randlora import LoraConfig, attach
from randlora.methods.registry import METHODS, get_method
from sweeps.plan.base_model import BaseModelInfo
from tests.trainables.support import run
from tests.trainables.tiny_images import save_dinov2
from trainables.config import TrainSettings, TrialConfig
from trainables.models.loading import input_side
from trainables.training import fake_steps
from trainables.training.costs import CostModel, UncountableError
from trainables.training.fake_steps import Costs, FakeModel

ROWS, INSIDE, OUT = 6, 24, 16


class Chain(nn.Module):
    """Blocks of two linear layers each."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(INSIDE, OUT, bias=False), nn.ReLU(), nn.Sequential(nn.Linear(OUT, INSIDE)))
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def layer_flops(method: str, capacity: int, **options: Any) -> int:
    """Operations of a step through one adapted layer, whose input needs a gradient."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(INSIDE, OUT, bias=False))
    attach(model, get_method(method).config.from_options(capacity, options), ["0"])
    return FakeModel(model).step(lambda: model(torch.empty(ROWS, INSIDE, requires_grad=True)).sum()).flops


FROZEN = 2 * 2 * ROWS * INSIDE * OUT
"""Operations of a frozen layer: the output, and the gradient of the input."""


@pytest.mark.parametrize("capacity", [1, 3])
def test_operations_of_methods_against_a_count_by_hand(capacity: int) -> None:
    r, n, d, o = capacity, ROWS, INSIDE, OUT
    down, up = 2 * n * d * r, 2 * n * r * o
    # three products for each factor: the output, the gradient of the input and that of the factor
    assert layer_flops("lora", r) == FROZEN + 3 * (down + up)
    # PiSSA takes its frozen start off again, as one product of twice the rank
    assert layer_flops("pissa", r) == FROZEN + 6 * (down + up)
    # DoRA makes B A once more, for the norms of the weight, which are constants of the backward pass
    assert layer_flops("dora", r) == FROZEN + 3 * (down + up) + 2 * d * r * o
    # VeRA: the scales of r and of out entries are no products, so the two frozen matrices are applied and gone back
    assert layer_flops("vera", r) == FROZEN + 2 * (down + up)
    # RandLoRA in the order that is cheapest for few rows: x B and its way back are products with the large basis of
    # q = n r columns; three products are with M: the output, the gradient of x B and that of M
    q = -(-o // r) * r
    assert layer_flops("randlora", r) == FROZEN + 2 * (2 * n * d * q) + 3 * (2 * n * q * o)


def test_operations_of_full_training_and_of_the_forward_pass() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(INSIDE, OUT, bias=False))
    fake = FakeModel(model)

    def loss() -> Tensor:
        return model(torch.empty(ROWS, INSIDE, requires_grad=True)).sum()

    assert fake.step(loss).flops == 3 * FROZEN // 2
    assert fake.forward_flops(loss) == FROZEN // 2


@pytest.mark.parametrize("ranks", [{}, {"blocks.3.0.weight": 5, "blocks.8.0.weight": 5}])
def test_blocks_that_are_left_out_cost_as_if_they_were_run(
    ranks: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def costs() -> Costs:
        with torch.device("meta"):
            model = Chain(12)
        attach(model, LoraConfig(2), ["0.weight"], capacities=ranks)
        fake, runs = FakeModel(model), []

        def loss() -> Tensor:
            runs.append(len(model.blocks))
            return model(torch.empty(ROWS, INSIDE)).sum()

        found = fake.step(loss)
        assert len(model.blocks) == 12
        assert (max(runs) < 12) == (fake_steps._FEWEST < 12)
        return found

    few = costs()
    monkeypatch.setattr(fake_steps, "_FEWEST", 13)
    whole = costs()
    assert few.flops == whole.flops
    assert abs(few.memory / whole.memory - 1) < 0.03  # with few blocks the most may be held at another moment


def test_a_model_that_asks_for_its_blocks_by_number_is_run_whole() -> None:
    class Numbered(Chain):
        def forward(self, x: Tensor) -> Tensor:
            for index in range(10):
                x = x + self.blocks[index](x)
            return x

    found = []
    for kind in (Chain, Numbered):
        with torch.device("meta"):
            model = kind(10)
        found.append(FakeModel(model).step(lambda model=model: model(torch.empty(ROWS, INSIDE)).sum()))
    assert found[0].flops == found[1].flops
    assert abs(found[0].memory / found[1].memory - 1) < 0.03


def test_memory_of_one_layer_by_hand() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(INSIDE, OUT, bias=False))
    costs = FakeModel(model).step(lambda: model(torch.empty(ROWS, INSIDE)).sum())
    weight, x, scalar = 4 * INSIDE * OUT, 4 * ROWS * INSIDE, 4
    # the weight, two moments and their count of steps; most when the gradient is there, with the input that it needs,
    # the loss and the gradient of the loss
    assert costs.memory == 3 * weight + scalar + (weight + x + 2 * scalar)


def trial_of(model: str, method: str, adapt: str, dataset: str, **train: Any) -> tuple[CostModel, TrialConfig]:
    info = BaseModelInfo(model)
    shapes = info.method_shapes(method, info.target_shapes(info.default_targets, "both" if adapt == "all" else adapt))
    settings = {"epochs": 1, "global_batch_size": 48, "eval_batch_size": 8, "precision": "fp32"} | train
    trial = TrialConfig(
        stage="TUNE", cell_id="", model=model, adapt=adapt, targets=info.default_targets, dataset=dataset,
        train_size="16-shot", method=method, capacities=tuple(dict.fromkeys(shapes, 4).items()), lr=1e-4, data_seed=0,
        init_seed=0, basis_seed=0, train=TrainSettings(**settings),
    )  # fmt: skip
    return CostModel(info.module, info.kind, side=input_side(model, info.module), classes=10), trial


@pytest.mark.parametrize("method", ["lora", "randlora"])
def test_memory_is_within_5_percent_of_what_a_trial_takes(method: str, tmp_path: Path) -> None:
    """benchmarks/step_memory.py has more models and methods."""
    data = "embedded:fashion-mnist-turned"
    costs, trial = trial_of(f"local:{save_dinov2(tmp_path / 'model')}", method, "all", data, global_batch_size=24)
    warm: dict[str, Any] = {}
    run(trial, tmp_path / "first", warm)  # loads the model and the data, which the second run then has
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run(trial, tmp_path / "second", warm)
    recorded.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    now = most = 0
    for _, change in sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]"):
        now += change
        most = max(most, now)
    (loaded,) = warm["models"].values()
    tensors = [*loaded.module.parameters(), *loaded.module.buffers()]
    measured = most + sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
    assert abs(costs.step(trial).memory_bytes / measured - 1) < 0.05


# AutoLoRA has no costs (below), and HydraLoRA cannot adapt the attention of an open_clip model
@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("autolora", "hydralora")])
def test_every_method_has_its_costs_on_a_clip(method: str) -> None:
    costs, trial = trial_of("embedded:tiny-clip", method, "vision", "embedded:fashion-mnist-turned")
    found = costs.step(trial)
    assert found.flops > 1.5 * found.forward_flops > 0
    assert found.memory_bytes > 4 * costs._module.get_parameter("positional_embedding").numel()
    assert costs.saved_bytes(trial) > 0


@pytest.mark.parametrize("method", ["autolora", "peft:adamss"])
def test_what_depends_on_values_is_said(method: str) -> None:
    costs, trial = trial_of("embedded:tiny-clip", method, "vision", "embedded:fashion-mnist-turned")
    with pytest.raises(UncountableError, match=method):
        costs.step(trial)
