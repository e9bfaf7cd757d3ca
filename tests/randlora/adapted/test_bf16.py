"""Adapters under bf16 autocast and on bf16 base weights."""

from __future__ import annotations

import pytest
import torch

from randlora import AdapterConfig, attach
from tests.randlora.support import CONFIGS, batch, block, config_id, perturb, targets_of

every_method = pytest.mark.parametrize("config", CONFIGS, ids=config_id)


@every_method
def test_bf16_autocast_trains(config: AdapterConfig) -> None:
    model, x = block(), batch()
    adapted = attach(model, config, targets_of(config))
    perturb(adapted)
    reference = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    assert (y.float() - reference).norm() < 0.05 * reference.norm()
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in adapted.parameters())


@every_method
def test_bf16_weights(config: AdapterConfig) -> None:
    model, x = block(torch.bfloat16), batch(torch.bfloat16)
    adapted = attach(model, config, targets_of(config))
    assert all(p.dtype == torch.float32 for p in adapted.parameters())
    torch.testing.assert_close(model(x), block(torch.bfloat16)(x), rtol=0.02, atol=0.02)
    perturb(adapted)
    y = model(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad is not None for p in adapted.parameters())
