"""accumulating(): the gradients of plain accumulation, from one W0 + delta per optimiser step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from randlora import Adapted, AdapterConfig, AdapterError, LoraConfig, RandLoraConfig, accumulating, attach
from randlora.arithmetic.plans import pays_to_accumulate, plan_costs
from tests.randlora.support import CONFIGS, batch, block, config_id, perturb, targets_of

every_method = pytest.mark.parametrize("config", CONFIGS, ids=config_id)


def micro_batches(dtype: torch.dtype, count: int = 3) -> list[Tensor]:
    """Rows enough that RandLoRA's called layers hold their weight."""
    return [part.contiguous() for part in batch(dtype, rows=12 * count).chunk(count)]


def accumulate(model: Any, adapted: Adapted, parts: list[Tensor], held: bool) -> list[Tensor]:
    """All gradients of one optimiser step."""
    for p in adapted.parameters():
        p.grad = None
    with adapted.accumulating(len(parts)) if held else nullcontext():
        for part in parts:
            model(part).square().mean().backward()
    return [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in adapted.parameters()]


def assert_close(one: list[Tensor], other: list[Tensor], rtol: float = 1e-9) -> None:
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max() + 1e-30))


def counted(adapted: Adapted) -> list[int]:
    """How often each adapter makes its matrix, from now on."""
    made = [0] * len(adapted.adapters)

    def watch(index: int, original: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def weight(base: Tensor) -> Tensor:
            made[index] += 1
            return original(base)

        return weight

    for i, adapter in enumerate(adapted.adapters.values()):
        adapter.weight = watch(i, adapter.weight)  # type: ignore[method-assign]
    return made


@every_method
def test_equals_plain_accumulation_over_steps(config: AdapterConfig) -> None:
    model = block(torch.float64)
    adapted = attach(model, config, targets_of(config))
    perturb(adapted)
    parts = micro_batches(torch.float64)
    optimiser = torch.optim.AdamW(adapted.parameters(), lr=1e-2)
    for _ in range(3):
        plain = accumulate(model, adapted, parts, held=False)
        assert_close(accumulate(model, adapted, parts, held=True), plain)
        optimiser.step()
    again = accumulate(model, adapted, parts, held=False)
    assert any(bool((a != b).any()) for a, b in zip(again, plain, strict=True)), "the steps changed nothing"


def test_the_weight_is_made_once_a_step() -> None:
    model = block()
    adapted = attach(model, RandLoraConfig(3), ["own.in_proj_weight", "fc", "proj", "square"])
    made = counted(adapted)
    parts = micro_batches(torch.float32, 4)
    accumulate(model, adapted, parts, held=True)
    assert made == [1, 1, 1, 1]
    accumulate(model, adapted, parts, held=True)
    assert made == [2, 2, 2, 2]
    accumulate(model, adapted, parts, held=False)
    own = list(adapted.adapters).index("own.in_proj_weight")
    assert made[own] == 2 + 4, "a weight that is read as a matrix is made in every forward without it"


def test_what_is_held_follows_the_parameters() -> None:
    """Remade exactly when a trainable or the base changes; refused while gradients wait."""
    model = nn.Sequential(nn.Linear(16, 16)).double()
    adapted = attach(model, RandLoraConfig(4), ["0"])
    perturb(adapted)
    made = counted(adapted)
    x = torch.randn(64, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with adapted.accumulating(8):
        with torch.no_grad():
            first, same = model(x), model(x)
            assert made == [1]
            next(adapted.parameters()).mul_(1.5)
            moved = model(x)
            assert made == [2]
            adapted.sites["0.weight"].parameter.mul_(1.5)
            rebased = model(x)
            assert made == [3]
        model(x).sum().backward()
        assert all(p.grad is None for p in adapted.parameters())
        with torch.no_grad():
            next(adapted.parameters()).mul_(1.5)
        with pytest.raises(AdapterError, match="before optimiser"):
            model(x)
        with torch.no_grad():
            next(adapted.parameters()).div_(1.5)
        adapted.adapters["0.weight"].held = None  # what waits can no longer be used
    torch.testing.assert_close(first, same, rtol=0, atol=0)
    assert not torch.equal(moved, first) and not torch.equal(rebased, moved)
    torch.testing.assert_close(rebased, model(x), rtol=1e-9, atol=0)


def test_gradients_add_to_those_that_are_there() -> None:
    model, parts = block(torch.float64), micro_batches(torch.float64, 2)
    adapted = attach(model, RandLoraConfig(3), ["fc", "proj"])
    perturb(adapted)
    once = accumulate(model, adapted, parts, held=True)
    with adapted.accumulating(2):
        for part in parts:
            model(part).square().mean().backward()
    assert_close([p.grad for p in adapted.parameters() if p.grad is not None], [2 * g for g in once])


@pytest.mark.parametrize("config", [RandLoraConfig(3, dropout=0.3), LoraConfig(3, dropout=0.3)], ids=config_id)
def test_layers_that_drop_go_the_ordinary_way(config: AdapterConfig) -> None:
    model, parts = block(torch.float64), micro_batches(torch.float64)
    adapted = attach(model, config, ["fc", "proj"])
    perturb(adapted)
    made = counted(adapted)
    held = accumulate(model, adapted, parts, held=True)
    assert made == [0, 0]
    adapted.reseed_dropout(0)
    assert_close(held, accumulate(model, adapted, parts, held=False))


def test_low_precision_goes_the_ordinary_way() -> None:
    """W0 + delta in bf16 would lose a small delta."""
    model = block().bfloat16()
    adapted = attach(model, RandLoraConfig(3), ["fc", "proj"])
    made = counted(adapted)
    accumulate(model, adapted, micro_batches(torch.bfloat16), held=True)
    assert made == [0, 0]

    model, parts = block(), micro_batches(torch.float32)
    adapted = attach(model, RandLoraConfig(3), ["fc", "proj"])
    perturb(adapted)
    made = counted(adapted)
    with torch.autocast("cpu", torch.bfloat16):
        plain = accumulate(model, adapted, parts, held=False)
        held = accumulate(model, adapted, parts, held=True)
    assert made == [0, 0]
    assert all(g.dtype == torch.float32 for g in held)
    assert_close(held, plain)


@pytest.mark.parametrize("config", [LoraConfig(3), RandLoraConfig(3)], ids=config_id)
def test_a_weight_read_as_a_matrix_under_autocast_goes_the_ordinary_way(config: AdapterConfig) -> None:
    """Held in bf16, it would sum the gradients of all micro-batches in bf16."""
    model, parts = block(), micro_batches(torch.float32)
    adapted = attach(model, config, ["own.in_proj_weight"])
    perturb(adapted)
    made = counted(adapted)
    with torch.autocast("cpu", torch.bfloat16):
        plain = accumulate(model, adapted, parts, held=False)
        held = accumulate(model, adapted, parts, held=True)
    assert made == [2 * len(parts)]
    assert_close(held, plain)


@every_method
def test_an_evaluation_in_inference_mode_may_come_first(config: AdapterConfig) -> None:
    model, parts = block(), micro_batches(torch.float32)
    adapted = attach(model, config, targets_of(config))
    perturb(adapted)
    plain = accumulate(model, adapted, parts, held=True)
    evaluated = False

    def training(x: Tensor) -> Any:
        nonlocal evaluated
        if not evaluated:
            evaluated = True
            with torch.inference_mode():
                model(x)
        return model(x)

    assert_close(accumulate(training, adapted, parts, held=True), plain, rtol=0.0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_gradient_checkpointing(reentrant: bool) -> None:
    model, parts = block(torch.float64), micro_batches(torch.float64)
    adapted = attach(model, RandLoraConfig(3), ["attn.in_proj_weight", "fc", "proj"])
    perturb(adapted)
    plain = accumulate(model, adapted, parts, held=False)

    def checkpointed(x: Tensor) -> Any:
        return checkpoint(model, x.clone().requires_grad_(), use_reentrant=reentrant)

    assert_close(accumulate(checkpointed, adapted, parts, held=True), plain)


@every_method
def test_on_parts_of_fused_weights(config: AdapterConfig) -> None:
    model = nn.ModuleDict({"qkv": nn.Linear(16, 48)}).double()
    adapted = attach(model, config, ["qkv[q,v]"])
    perturb(adapted)
    parts = micro_batches(torch.float64)
    plain = accumulate(model["qkv"], adapted, parts, held=False)
    assert_close(accumulate(model["qkv"], adapted, parts, held=True), plain)


def test_refusals_and_what_an_error_leaves() -> None:
    model, parts = block(), micro_batches(torch.float32)
    adapted = attach(model, RandLoraConfig(3), ["fc"])
    with pytest.raises(AdapterError, match="at least 1"), accumulating(model, 0):
        pass
    with accumulating(model, 2), pytest.raises(AdapterError, match="inside"), accumulating(model, 2):
        pass
    with pytest.raises(RuntimeError, match="mine"), accumulating(model, 2):
        model(parts[0]).sum().backward()
        raise RuntimeError("mine")
    assert all(a.held is None for a in adapted.adapters.values())
    assert all(p.grad is None for p in adapted.parameters())
    with accumulating(model, 1):
        model(parts[0]).sum().backward()
        assert all(p.grad is not None for p in adapted.parameters())


def test_a_step_inside_the_block_is_refused() -> None:
    model, parts = block(), micro_batches(torch.float32)
    adapted = attach(model, RandLoraConfig(3), ["fc"])
    with pytest.raises(AdapterError, match="before optimiser"), accumulating(model, 2):
        model(parts[0]).sum().backward()
        with torch.no_grad():
            next(adapted.parameters()).add_(1.0)
    assert all(p.grad is None for p in adapted.parameters())


def test_held_where_it_costs_less() -> None:
    square = (768, 768, 768)
    assert pays_to_accumulate(400, *square, 4) and pays_to_accumulate(1600, *square, 4)
    assert pays_to_accumulate(400, 3072, 768, 768, 4)
    assert not pays_to_accumulate(16, *square, 4), "few rows: the factors are cheaper"
    assert not pays_to_accumulate(1600, 3072, 768, 768, 4, gather_time=0.0035), "lists that cost next to nothing"
    rows, micro = 1600, 4
    held = micro * rows * 768 * 768 + 2 * 768**3
    costs = plan_costs(rows, *square)
    assert held < micro * min(costs.values())
