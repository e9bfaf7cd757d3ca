"""PEFT as the oracle of AdaLoRA (forward, penalty and rank allocation, step for step), PiSSA, and sparse bases."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from randlora import AdaLoraConfig, PissaConfig, RandLoraConfig, attach
from randlora.methods.lowrank.starts import Started
from randlora.methods.scheduled.adalora import AdaLora, Allocator
from tests.randlora.files.support import gradients, inputs, layers, load_in_peft
from tests.randlora.support import perturb

peft = pytest.importorskip("peft")


class WithLoss(nn.Module):
    """PEFT adds AdaLoRA's penalty to the `loss` of what a model returns."""

    def __init__(self) -> None:
        super().__init__()
        self.body = layers(torch.float64)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return SimpleNamespace(loss=(self.body(x) - y).square().mean())


def data(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 14, generator=generator, dtype=torch.float64)
    return x, torch.randn(8, 14, generator=generator, dtype=torch.float64) * 3.0


def pairs(adapted: Any, reference: Any) -> list[tuple[Tensor, Tensor]]:
    """(ours, PEFT's): the same trainables, in PEFT's layout."""
    theirs = dict(reference.named_parameters())
    found = []
    for name, adapter in adapted.adapters.items():
        assert isinstance(adapter, AdaLora)
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        for key, ours in (("A", adapter.a.t()), ("B", adapter.b), ("E", adapter.e.unsqueeze(1))):
            found.append((ours, theirs[f"{layer}.lora_{key}.default"]))
    return found


def test_adalora_step_for_step() -> None:
    total, init_r, final_r = 24, 6, 3
    config = AdaLoraConfig(final_r, alpha=6.0, initial=2.0, start=0.125, stop=0.75, interval=4, allocate="ranks")
    model = WithLoss()
    adapted = attach(model, config, ["*"])
    peft_config = peft.AdaLoraConfig(
        init_r=init_r,
        target_r=final_r,
        tinit=3,
        tfinal=6,
        deltaT=4,
        total_step=total,
        lora_alpha=init_r + 1e-5,  # PEFT divides by init_r + 1e-5
        target_modules=["0", "2", "4"],
    )
    reference = peft.get_peft_model(WithLoss(), peft_config).double()
    with torch.no_grad():
        for ours, theirs in pairs(adapted, reference):
            theirs.copy_(ours)
    mine = torch.optim.AdamW(adapted.parameters(), lr=0.05)
    for name, parameter in reference.named_parameters():
        if "ranknum" in name:  # PEFT 0.21.2 leaves this divisor of the scale to the optimiser
            parameter.requires_grad_(False)
    other = torch.optim.AdamW([p for p in reference.parameters() if p.requires_grad], lr=0.05)
    ranks = []
    for step in range(1, total + 1):
        x, y = data(step)
        penalty = adapted.hooks.regulariser()
        assert penalty is not None
        ours, theirs = model(x, y).loss + penalty, reference.base_model(x, y).loss
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        ours.backward()
        theirs.backward()
        mine.step()
        other.step()
        adapted.hooks.on_step(step, total)
        reference.base_model.update_and_allocate(step)
        mine.zero_grad()
        other.zero_grad()
        for a, b in pairs(adapted, reference):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
        ranks.append(sum(int((a.e != 0).sum()) for a in adapted.adapters.values()))  # type: ignore[union-attr]
    assert ranks[0] == 18 and ranks[3] < 18
    assert ranks[17:] == [9] * 7


def test_pissa_starts_and_trains_as_pefts() -> None:
    plain, model = layers(torch.float32), layers(torch.float64)
    adapted = attach(model, PissaConfig(4, alpha=6.0), ["*"])
    config = peft.LoraConfig(r=4, lora_alpha=6.0, init_lora_weights="pissa", target_modules=["0", "2", "4"])
    reference = peft.get_peft_model(plain, config)
    theirs = dict(reference.named_parameters())
    start = layers(torch.float64)
    for index, adapter in zip((0, 2, 4), adapted.adapters.values(), strict=True):
        assert isinstance(adapter, Started)
        layer = f"base_model.model.{index}"
        a, b = theirs[f"{layer}.lora_A.default.weight"], theirs[f"{layer}.lora_B.default.weight"]
        product = adapter.b_start @ adapter.a_start.t()
        torch.testing.assert_close((b @ a).detach().double(), product, rtol=1e-5, atol=1e-5)
        residual = theirs[f"{layer}.base_layer.weight"]
        torch.testing.assert_close(
            residual.detach().double(), start[index].weight - 1.5 * product, rtol=1e-5, atol=1e-5
        )
    # PEFT decomposes in float32: with the float64 tensors put in, the two train alike
    reference.double()
    perturb(adapted)
    theirs = dict(reference.named_parameters())
    with torch.no_grad():
        for index, adapter in zip((0, 2, 4), adapted.adapters.values(), strict=True):
            assert isinstance(adapter, Started)
            layer = f"base_model.model.{index}"
            product = adapter.b_start @ adapter.a_start.t()
            theirs[f"{layer}.base_layer.weight"].copy_(start[index].weight - 1.5 * product)
            theirs[f"{layer}.lora_A.default.weight"].copy_(adapter.a.t())
            theirs[f"{layer}.lora_B.default.weight"].copy_(adapter.b)
    x = inputs(torch.float64)
    ours, other = model(x), reference(x)
    torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-10)
    ours.square().sum().backward()
    other.square().sum().backward()
    for index, adapter in zip((0, 2, 4), adapted.adapters.values(), strict=True):
        assert isinstance(adapter, Started)
        layer = f"base_model.model.{index}"
        for mine, grad in (
            (adapter.a.grad, theirs[f"{layer}.lora_A.default.weight"].grad.t()),
            (adapter.b.grad, theirs[f"{layer}.lora_B.default.weight"].grad),
        ):
            torch.testing.assert_close(mine, grad, rtol=1e-9, atol=1e-9 * float(grad.abs().max()))


@pytest.mark.parametrize("sparsity", [2.0, 6.0, "sqrt"])
def test_sparse_randlora(sparsity: Any, tmp_path: Path) -> None:
    model = layers(torch.float32)
    adapted = attach(model, RandLoraConfig(4, distribution="ternary", sparsity=sparsity), ["*"])
    perturb(adapted)
    adapted.export_peft(tmp_path)
    reference = load_in_peft(tmp_path, torch.float32)
    ours, theirs = model(inputs(torch.float32)), reference(inputs(torch.float32))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    ours.sum().backward()
    theirs.sum().backward()
    for mine, other in gradients(adapted, reference):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_the_budget_is_met_in_parameters_whatever_wins() -> None:
    """Two kinds of weights, the larger ones far more important: ranks alone would end above the budget."""
    model = nn.ModuleList([nn.Linear(8, 8), nn.Linear(64, 64)]).double()
    counts = {}
    for allocate in ("ranks", "parameters"):
        adapted = attach(model, AdaLoraConfig(4, initial=3.0, allocate=allocate, interval=1), ["*"])
        budget = 4 * (17 + 129)
        assert adapted.count() == budget
        assert sum(p.numel() for p in adapted.parameters()) == 3 * budget
        perturb(adapted, 1.0)
        for step in range(1, 11):
            for i, parameter in enumerate(adapted.parameters()):
                generator = torch.Generator().manual_seed(100 * step + i)
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.grad = noise * (1.0 if i < 3 else 30.0)
            adapted.hooks.on_step(step, 10)
        counts[allocate] = adapted.count()
        kept = sum(int((a.e != 0).sum()) for a in adapted.adapters.values())  # type: ignore[union-attr]
        assert (kept == 8) == (allocate == "ranks")
        adapted.detach()
    assert counts["ranks"] == 8 * 129
    assert budget - 17 < counts["parameters"] <= budget


def test_the_schedules_state_goes_round() -> None:
    model = layers(torch.float64)

    def run(steps: range, state: tuple[dict[str, Tensor], dict[str, Tensor]] | None) -> Any:
        adapted = attach(model, AdaLoraConfig(2, interval=2), ["*"])
        if state is not None:
            adapted.load_state_dict(state[0])
            adapted.hooks.load_state(state[1])
        else:
            perturb(adapted)
        optimizer = torch.optim.SGD(adapted.parameters(), lr=0.01)
        for step in steps:
            optimizer.zero_grad()
            model(inputs(torch.float64)).square().sum().backward()
            optimizer.step()
            adapted.hooks.on_step(step, 12)
        end = {k: v.clone() for k, v in adapted.state_dict().items()}, adapted.hooks.state()
        finished = adapted.hooks.schedules[0]
        assert isinstance(finished, Allocator)
        adapted.detach()
        return end, finished.finished

    whole, finished = run(range(1, 13), None)
    assert finished
    for cut in (1, 4, 6, 9):
        half, _ = run(range(1, cut + 1), None)
        rest, finished = run(range(cut + 1, 13), half)
        assert finished
        for mine, other in zip(rest, whole, strict=True):
            assert mine.keys() == other.keys()
            assert all(torch.equal(mine[k], other[k]) for k in mine)
