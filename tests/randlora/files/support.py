"""The same layers in PEFT and here, and the gradients of the same tensors."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from randlora import Adapted
from randlora.methods.lowrank.lora import Dora, Lora
from randlora.methods.random.randlora import RandLora
from randlora.methods.random.vera import Vera

peft = pytest.importorskip("peft")


def layers(dtype: torch.dtype) -> nn.Sequential:
    """in < out, in > out, square; sizes that no rank divides."""
    model = nn.Sequential(nn.Linear(14, 22), nn.GELU(), nn.Linear(22, 14), nn.GELU(), nn.Linear(14, 14))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.to(dtype)


def inputs(dtype: torch.dtype) -> Tensor:
    return torch.randn(6, 14, generator=torch.Generator().manual_seed(1)).to(dtype)


def load_in_peft(folder: Path, dtype: torch.dtype, model: nn.Module | None = None) -> Any:
    base = layers(dtype) if model is None else model
    with warnings.catch_warnings():
        # RandLoRA's per-layer copies of the bases are left out: PEFT warns and uses the global ones
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    return loaded.to(dtype)


def gradients(adapted: Adapted, model: Any) -> list[tuple[Tensor, Tensor]]:
    """Pairs (ours, PEFT's) of the gradients of the same tensors."""
    theirs = {n.replace(".default", ""): p.grad for n, p in model.named_parameters() if p.requires_grad}
    pairs = []
    for name, adapter in adapted.adapters.items():
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        if isinstance(adapter, Lora | Dora):
            assert adapter.a.grad is not None
            pairs.append((adapter.a.grad.t(), theirs.pop(f"{layer}.lora_A.weight")))
            pairs.append((adapter.b.grad, theirs.pop(f"{layer}.lora_B.weight")))
        if isinstance(adapter, Dora):
            pairs.append((adapter.magnitude.grad, theirs.pop(f"{layer}.lora_magnitude_vector.weight")))
        if isinstance(adapter, Vera):
            pairs.append((adapter.d.grad, theirs.pop(f"{layer}.vera_lambda_d")))
            pairs.append((adapter.b.grad, theirs.pop(f"{layer}.vera_lambda_b")))
        if isinstance(adapter, RandLora):
            pairs.append((adapter.lambdas.grad, theirs.pop(f"{layer}.randlora_lambda")))
            pairs.append((adapter.gammas.grad, theirs.pop(f"{layer}.randlora_gamma")))
    assert not theirs
    return [(ours, other) for ours, other in pairs if ours is not None]
