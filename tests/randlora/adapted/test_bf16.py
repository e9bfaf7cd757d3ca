"""Adapters under bf16 and fp16 autocast and on bf16 base weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from randlora import (
    AdapterConfig,
    DoraConfig,
    NolaConfig,
    RandLoraAConfig,
    RandLoraConfig,
    RandLoraSvdConfig,
    attach,
)
from randlora.methods.lowrank.lora import Dora
from randlora.packing.stacked import stacked_linear
from tests.randlora.support import CONFIGS, batch, block, config_id, perturb, stored, targets_of

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


@every_method
@pytest.mark.parametrize("kind", ["fp32", "autocast", "bf16"])
def test_an_evaluation_in_inference_mode_may_come_first(config: AdapterConfig, kind: str) -> None:
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    model, x = block(dtype), batch(dtype)
    adapted = attach(model, config, targets_of(config))

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            y: Tensor = model(x)
        return y.float()

    with torch.inference_mode():
        run()
    run().sum().backward()
    assert all(p.grad is not None for p in adapted.parameters())


def test_doras_norms_are_in_float32_under_autocast() -> None:
    """In bf16 they would rescale every row by their rounding."""
    layer = nn.Sequential(nn.Linear(24, 16))
    [dora] = attach(layer, DoraConfig(3), ["0"]).adapters.values()
    assert isinstance(dora, Dora)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(dora.norms(stored(layer[0])), dora.magnitude.detach(), rtol=1e-6, atol=0)
        torch.testing.assert_close(layer[0].weight, stored(layer[0]), rtol=1e-6, atol=1e-7)


def scaled_dora(dtype: torch.dtype, factor: float) -> tuple[nn.Module, Dora, Tensor]:
    """A layer without a bias, its adapter with all magnitudes times `factor`, and rows."""
    layer = nn.Sequential(nn.Linear(64, 64, bias=False))
    with torch.no_grad():
        layer[0].weight.normal_(generator=torch.Generator().manual_seed(3))
    [dora] = attach(layer.to(dtype), DoraConfig(4), ["0"]).adapters.values()
    assert isinstance(dora, Dora)
    with torch.no_grad():
        dora.magnitude.mul_(factor)
    return layer, dora, torch.randn(256, 64, generator=torch.Generator().manual_seed(4)).to(dtype)


def share(y: Tensor, of: Tensor) -> float:
    """What `of` is multiplied by in y, in the mean."""
    y, of = y.detach().double(), of.detach().double()
    return float((y * of).sum() / (of * of).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["autocast", "bf16"])
@pytest.mark.parametrize("form", ["called", "beside", "packed"])
def test_a_small_change_of_doras_magnitude_reaches_the_output(dtype: torch.dtype, form: str) -> None:
    """The factor is near 1, where bf16's steps are 0.4 and 0.8 %: rounded alone it would not move for many steps."""

    def run(factor: float) -> Tensor:
        layer, dora, x = scaled_dora(dtype, factor)
        base = stored(layer[0])
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            if form == "called":
                return layer(x)  # type: ignore[no-any-return]
            if form == "beside":
                return dora.beside(x, nn.functional.linear(x, base), lambda: base, None)
            found = stacked_linear([dora, dora], torch.cat([x, x]), base, None, lambda rows: rows)
        assert found is not None and torch.equal(*found.chunk(2))
        return found[: len(x)]

    start, moved = run(1.0), run(1.003)
    assert start.dtype == moved.dtype == torch.bfloat16
    assert share(moved, start) == pytest.approx(1.003, abs=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["autocast", "bf16"])
def test_doras_magnitude_gets_its_gradient_in_low_precision(dtype: torch.dtype) -> None:
    layer, dora, x = scaled_dora(dtype, 1.003)
    base = stored(layer[0])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        layer(x).float().square().sum().backward()
    expected = (2 * (x.double() @ base.double().t()).square().sum(0) * 1.003) / dora.norms(base)
    assert dora.magnitude.grad is not None and dora.magnitude.grad.dtype == torch.float32
    torch.testing.assert_close(dora.magnitude.grad, expected.float(), rtol=0.01, atol=0)


def test_dora_in_float32_computes_what_it_computed() -> None:
    """To the bit: (W0 x + s B A x) g / norm, and then the bias."""
    layer = nn.Sequential(nn.Linear(64, 64))
    [dora] = attach(layer, DoraConfig(4), ["0"]).adapters.values()
    assert isinstance(dora, Dora)
    perturb(dora.parameters())
    x, (weight, bias) = (
        torch.randn(2, 64, generator=torch.Generator().manual_seed(4)),
        (stored(layer[0]), layer[0].bias),
    )
    y = nn.functional.linear(x, weight).addmm_(x @ dora.a, dora.b.t(), alpha=dora.scale)
    assert torch.equal(layer(x), y * (dora.magnitude / dora.norms(weight)) + bias)


WITH_DELTA = [config for config in CONFIGS if config.method != "hydralora"]


@pytest.mark.parametrize("config", [*WITH_DELTA, RandLoraAConfig(3, r=16), NolaConfig(9, r=16)], ids=config_id)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_small_delta_under_autocast_is_not_rounded_away(config: AdapterConfig, dtype: torch.dtype, kind: str) -> None:
    """The factors may have the weight's type; for so many rows, at a large rank, one matrix would cost less."""
    inner: nn.Module = nn.Linear(24, 16, bias=False)
    if kind == "conv1d":
        inner = pytest.importorskip("transformers.pytorch_utils").Conv1D(16, 24)
    layer = nn.Sequential(inner.to(dtype)).eval()
    adapted = attach(layer, config, ["0"])
    with torch.no_grad():
        stored(layer[0]).fill_(8.0)  # steps of bf16 around 8 are 1 / 16
    perturb(adapted, 1e-3)
    x = torch.zeros(512, 24, dtype=dtype)
    x[:, 0], x[:, 1] = 1.0, -1.0  # W0 x is 0, so the delta is all of the output
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x).float()
    delta = next(iter(adapted.deltas().values()))
    torch.testing.assert_close(y, x.float() @ delta.t(), rtol=0.05, atol=0.02 * float(delta.abs().max()))
    assert float(y.detach().abs().max()) > 0


@pytest.mark.parametrize("config", [RandLoraConfig(6), RandLoraSvdConfig(6)], ids=config_id)
@pytest.mark.parametrize("rows", [4, 1000], ids=["factors", "matrix"])
def test_fp16_keeps_randloras_small_deltas(config: AdapterConfig, rows: int) -> None:
    """M's entries are below 1e-6 here, and fp16's steps 6e-8."""
    layer = nn.Sequential(nn.Linear(256, 256, bias=False))
    adapted = attach(layer, config, ["0"])
    perturb((p for n, p in adapted.named_parameters() if n.endswith("lambdas")), 4e-5)
    with torch.no_grad():
        stored(layer[0]).zero_()
    x = torch.randn(rows, 256, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.float16):
        y = layer(x).detach().float()
    expected = x @ adapted.deltas()["0.weight"].t()
    assert (y - expected).norm() < 0.01 * expected.norm()
