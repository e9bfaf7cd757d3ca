"""4-bit and 8-bit base weights: the layers' own output, exact counts, PEFT's results, and what is refused."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from randlora import (
    AdapterConfig,
    AdapterError,
    ConfigError,
    DoraConfig,
    LoraConfig,
    PissaConfig,
    RandLoraConfig,
    TargetError,
    VeraConfig,
    accumulating,
    attach,
    get_method,
    load,
)
from randlora.model.quantise import quantise
from randlora.model.quantised import dequantised, is_quantised
from tests.randlora.support import CONFIGS, config_id, perturb

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        import bitsandbytes as bnb
    except ImportError:
        bnb = None

needed = pytest.mark.skipif(bnb is None, reason="bitsandbytes is not installed (extra `quantised`)")
own_noise = pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning", "ignore::DeprecationWarning")
TARGETS = ["fc", "proj", "square"]
every_method = pytest.mark.parametrize("config", CONFIGS, ids=config_id)
every_width = pytest.mark.parametrize("bits", [4, 8])


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.proj = nn.Linear(64, 96), nn.Linear(96, 64, bias=False)
        self.square, self.head = nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.proj(nn.functional.gelu(self.fc(x)))
        y: Tensor = self.head(x + self.square(x))
        return y


def layers(bits: int | None) -> Layers:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Layers()
    if bits is not None:
        assert quantise(model, TARGETS, bits=bits) == ["fc.weight", "proj.weight", "square.weight"]  # type: ignore[arg-type]
    return model


def inputs(rows: int = 6) -> Tensor:
    return torch.randn(2, rows, 64, generator=torch.Generator().manual_seed(1))


def test_what_lies_on_a_device_is_quantised_from_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On fake tensors: bitsandbytes' 8-bit weights stay as they are where a move begins on a device."""
    moves: list[tuple[str, str]] = []

    class Linear8bitLt(nn.Module):
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__()
            self.weight = SimpleNamespace(data=None)  # a fake parameter's device stays whatever it is given

        def to(self, device: torch.device) -> Linear8bitLt:  # type: ignore[override]
            moves.append((self.weight.data.device.type, device.type))
            return self

    library = SimpleNamespace(nn=SimpleNamespace(Linear8bitLt=Linear8bitLt))
    monkeypatch.setattr("randlora.model.quantise.bitsandbytes_library", lambda: library)
    with FakeTensorMode():
        model = nn.Sequential(nn.Linear(8, 4, bias=False))
        model[0].weight = nn.Parameter(torch.empty(4, 8, device="cuda"))
        quantise(model, ["0"], bits=8)
    assert moves == [("cpu", "cuda")]


@needed
@own_noise
@every_width
@every_method
def test_the_layers_own_output_and_the_delta_beside_it(config: AdapterConfig, bits: int) -> None:
    model, x = layers(bits), inputs()
    state = {n: (t.clone(), t.dtype) for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    classes = [type(m) for m in model.modules()]
    plain = model(x).detach()
    adapted = attach(model, config, TARGETS)
    torch.testing.assert_close(model(x).detach(), plain, rtol=1e-4, atol=2e-5)
    assert adapted.shapes == {"fc.weight": (96, 64), "proj.weight": (64, 96), "square.weight": (64, 64)}
    method = get_method(config.method)
    expected = method.total(list(adapted.shapes.values()), config.capacity, **config.options())
    assert adapted.count() == expected

    perturb(adapted)
    model(x).square().sum().backward()
    moved = [p for p in adapted.parameters() if p.grad is not None and bool((p.grad != 0).any())]
    assert len(moved) == len(list(adapted.parameters()))

    if method.mergeable:  # one layer, against the matrix form on the weight read back
        layer, adapter = model.square, adapted.adapters["square.weight"]
        base = dequantised(layer).float()
        own = type(layer).__mro__[2].forward(layer, x)  # type: ignore[attr-defined]
        expected_y = own + nn.functional.linear(x, adapter.delta(base))
        torch.testing.assert_close(layer(x), expected_y, rtol=1e-3, atol=2e-3)

    adapted.detach()
    assert [type(m) for m in model.modules()] == classes
    for name, (tensor, dtype) in state.items():
        now = model.state_dict()[name]
        assert now.dtype == dtype and torch.equal(now, tensor)
    assert torch.equal(model(x), plain)


@needed
@own_noise
@every_width
@pytest.mark.parametrize(
    "config", [LoraConfig(4), DoraConfig(4), VeraConfig(16), RandLoraConfig(8, alpha=16.0)], ids=config_id
)
def test_peft_computes_the_same_on_the_same_layers(config: AdapterConfig, bits: int, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, x = layers(bits), inputs()
    adapted = attach(model, config, TARGETS)
    perturb(adapted, 0.05)
    ours = model(x)
    ours.square().sum().backward()
    adapted.export_peft(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base: Any = layers(bits)
        base.is_loaded_in_4bit, base.is_loaded_in_8bit = bits == 4, bits == 8  # transformers' marks, which PEFT reads
        theirs: Any = peft.PeftModel.from_pretrained(base, str(tmp_path), is_trainable=True)
    torch.testing.assert_close(theirs(x), ours, rtol=1e-3, atol=2e-4 * float(ours.detach().abs().max()))
    assert all(is_quantised(theirs.base_model.model.get_submodule(n).base_layer) for n in TARGETS)


@needed
@own_noise
@every_width
def test_training_reduces_the_loss_and_goes_round_through_files(bits: int, tmp_path: Path) -> None:
    model, x = layers(bits), inputs(40)
    adapted = attach(model, RandLoraConfig(8), TARGETS, basis_seed=3)
    optimiser = torch.optim.AdamW(adapted.parameters(), lr=1e-2)
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(2)
        wanted = torch.randn(2, 40, 3)
    for _ in range(12):
        optimiser.zero_grad()
        with accumulating(model, 2):  # does nothing on quantised layers, and no harm
            for part, goal in zip(x.chunk(2, 1), wanted.chunk(2, 1), strict=True):
                loss = (model(part) - goal).square().mean()
                loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    y = model(x).detach()
    adapted.save(tmp_path)
    adapted.detach()
    assert not torch.equal(model(x), y)
    load(model, tmp_path)
    torch.testing.assert_close(model(x).detach(), y)


@needed
@own_noise
def test_an_adapter_beside_a_model_that_was_evaluated_has_the_gradients_of_one_that_was_not() -> None:
    """On CPUs with AVX512-BF16, where evaluation reorders the packed numbers of a model that transformers has loaded.

    Reordering rounds the scales to bfloat16.
    """
    found = []
    for evaluated in (False, True):
        model, x = layers(None), inputs()
        quantise(model, ["fc", "square"])  # 64 inputs: bitsandbytes reorders whole blocks alone
        for layer in (m for m in model.modules() if is_quantised(m)):
            layer.support_avx512bf16_for_cpu = bnb.functional.has_avx512bf16()  # as transformers leaves it
        if evaluated:
            with torch.no_grad():
                model.eval()(x)
        adapted = attach(model, RandLoraConfig(8), ["fc", "square"])
        perturb(adapted)
        model.train()
        model(x).square().sum().backward()
        deltas = adapted.deltas()["fc.weight"]
        found.append([*(p.grad for p in adapted.parameters() if p.grad is not None), deltas, dequantised(model.fc)])
    assert len(found[0]) == len(found[1])
    for fresh, used in zip(*found, strict=True):
        assert float((used - fresh).norm()) <= 0.02 * float(fresh.norm())


@needed
@own_noise
def test_a_conv1d_is_quantised_as_the_matrix_that_it_stands_for() -> None:
    from transformers.pytorch_utils import Conv1D

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(Conv1D(96, 64))
    weight, x = model[0].weight.detach().clone(), inputs()
    assert quantise(model, ["0"], bits=8) == ["0.weight"]
    assert dequantised(model[0]).shape == (96, 64)
    torch.testing.assert_close(dequantised(model[0]), weight.t(), rtol=0, atol=float(weight.abs().max()) / 200)
    torch.testing.assert_close(model(x), x @ dequantised(model[0]).t() + model[0].bias, rtol=1e-4, atol=1e-4)
    assert attach(model, LoraConfig(3), ["0"]).shapes == {"0.weight": (96, 64)}


@needed
@own_noise
def test_merging_is_refused_and_deltas_are_not() -> None:
    model = layers(4)
    adapted = attach(model, LoraConfig(4), TARGETS)
    perturb(adapted)
    y = model(inputs()).detach()
    with pytest.raises(AdapterError, match="is quantised, and rounding"):
        adapted.merge()
    assert torch.equal(model(inputs()), y)
    assert {n: tuple(d.shape) for n, d in adapted.deltas().items()} == adapted.shapes
    adapted.detach()
    first = attach(model, LoraConfig(2), ["fc"])
    first.disable()
    second = attach(model, RandLoraConfig(8), TARGETS)
    perturb(second)
    on_second = model(inputs()).detach()
    second.disable()
    first.enable()
    first.disable()
    second.enable()
    torch.testing.assert_close(model(inputs()).detach(), on_second, rtol=0, atol=0)
    first.detach()
    second.detach()
    assert not any("Adapted" in type(m).__name__ for m in model.modules())


@needed
@own_noise
def test_parts_of_a_fused_weight() -> None:
    model = nn.ModuleDict({"qkv": nn.Linear(64, 192)})
    quantise(model, ["qkv"])
    x = inputs()
    plain = model["qkv"](x).detach()
    adapted = attach(model, DoraConfig(4), ["qkv[q,v]"])
    assert adapted.shapes == {"qkv.weight[q]": (64, 64), "qkv.weight[v]": (64, 64)}
    torch.testing.assert_close(model["qkv"](x).detach(), plain, rtol=1e-4, atol=1e-5)
    perturb(adapted)
    moved = (model["qkv"](x).detach() - plain).abs().amax((0, 1)).view(3, 64).amax(1)
    assert moved[0] > 0.01 and moved[1] < 1e-4 and moved[2] > 0.01


@needed
@own_noise
def test_what_cannot_be_quantised_or_adapted() -> None:
    model = Layers()
    with pytest.raises(ConfigError, match="bits must be 4 or 8"):
        quantise(model, ["fc"], bits=3)  # type: ignore[arg-type]
    with pytest.raises(TargetError, match="nearest"):
        quantise(model, ["fcc"])
    with pytest.raises(TargetError, match="only whole weights of called"):
        quantise(nn.MultiheadAttention(16, 4), ["in_proj_weight"])
    quantise(model, ["fc"], bits=4, quant_type="fp4")
    assert is_quantised(model.fc) and not is_quantised(model.proj)
    with pytest.raises(TargetError, match="cannot be quantised"):
        quantise(model, ["fc"])
    adapted = attach(model, PissaConfig(3), ["fc", "proj"])  # quantised and plain side by side, and an SVD of both
    assert adapted.count() == 2 * 3 * (64 + 96)
    adapted.detach()
    model.fc.forward = model.fc.forward  # type: ignore[method-assign]  # as accelerate's hooks leave it
    with pytest.raises(TargetError, match=r"fc.weight is quantised, .* a forward of its own"):
        attach(model, LoraConfig(3), ["fc"])


def test_without_bitsandbytes_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"randlora-sweeps\[quantised\]"):
        quantise(Layers(), ["fc"])
