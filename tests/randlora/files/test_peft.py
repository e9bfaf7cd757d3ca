"""PEFT as the oracle: the same tensors give the same outputs and gradients, and exports load in it."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from randlora import (
    Adapted,
    AdapterConfig,
    DoraConfig,
    ExportError,
    LoraConfig,
    RandLoraConfig,
    SvftConfig,
    VeraConfig,
    attach,
    load,
)
from randlora.methods.lowrank.lora import Dora, Lora
from randlora.methods.random.randlora import RandLora
from randlora.methods.random.vera import Vera
from tests.randlora.files.support import gradients, inputs, layers, load_in_peft
from tests.randlora.support import block, config_id, perturb

CONFIGS: list[AdapterConfig] = [
    LoraConfig(3, alpha=5.0),
    DoraConfig(3),
    VeraConfig(7),
    RandLoraConfig(5, alpha=4.0),
    RandLoraConfig(4),
    RandLoraConfig(5, alpha=4.0, start="gamma"),
    RandLoraConfig(1),
]


@pytest.mark.parametrize("config", CONFIGS, ids=config_id)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_parity_through_the_exported_files(
    config: AdapterConfig, dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    model = layers(dtype)
    adapted = attach(model, config, ["*"], basis_seed=2)
    perturb(adapted)
    adapted.export_peft(tmp_path)
    reference = load_in_peft(tmp_path, dtype)
    if dtype == torch.float64:
        _copy_exactly(adapted, reference)
    x_ours, x_theirs = inputs(dtype).requires_grad_(), inputs(dtype).requires_grad_()
    ours, theirs = model(x_ours), reference(x_theirs)
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(ours, theirs, **close)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    torch.testing.assert_close(x_ours.grad, x_theirs.grad, rtol=tolerance * 10, atol=tolerance * 10)
    pairs = gradients(adapted, reference)
    assert len(pairs) == len(list(adapted.parameters()))
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=tolerance * 10, atol=tolerance * 10 * float(other.abs().max()))


def test_scales_that_differ_by_layer_are_exported_and_saved(tmp_path: Path) -> None:
    """PEFT has one scale for all layers of RandLoRA: the rest is in lambda."""
    model = nn.Sequential(nn.Linear(24, 12), nn.Linear(12, 5))
    copies = [copy.deepcopy(model) for _ in range(2)]
    adapted = attach(model, RandLoraConfig(4, alpha="2r/sqrt(n)"), ["*"], basis_seed=2)
    scales = {adapter.scale for adapter in adapted.adapters.values() if isinstance(adapter, RandLora)}
    assert len(scales) > 1
    perturb(adapted)
    x = torch.randn(3, 24)
    expected = model(x)
    adapted.export_peft(tmp_path / "peft")
    adapted.save(tmp_path / "own")
    reference = load_in_peft(tmp_path / "peft", torch.float32, copies[0])
    torch.testing.assert_close(reference(x), expected, rtol=1e-5, atol=1e-5)
    load(copies[1], tmp_path / "own")
    assert torch.equal(copies[1](x), expected)


def test_veras_scale_goes_into_its_exported_b(tmp_path: Path) -> None:
    """PEFT's VeRA has no scale."""
    model = nn.Sequential(nn.Linear(24, 12), nn.Linear(12, 24))
    copied = copy.deepcopy(model)
    adapted = attach(model, VeraConfig(7, scale=2.5), ["*"], basis_seed=2)
    perturb(adapted)
    adapted.export_peft(tmp_path)
    x = torch.randn(3, 24)
    torch.testing.assert_close(load_in_peft(tmp_path, torch.float32, copied)(x), model(x), rtol=1e-5, atol=1e-5)


def _copy_exactly(adapted: Adapted, model: Any) -> None:
    """PEFT loads in float32 where it sees fit; put the float64 values in."""
    theirs = {n.replace(".default", ""): p for n, p in model.named_parameters()}
    with torch.no_grad():
        for name, adapter in adapted.adapters.items():
            layer = f"base_model.model.{name.removesuffix('.weight')}"
            if isinstance(adapter, Lora | Dora):
                theirs[f"{layer}.lora_A.weight"].copy_(adapter.a.t())
                theirs[f"{layer}.lora_B.weight"].copy_(adapter.b)
            if isinstance(adapter, Dora):
                theirs[f"{layer}.lora_magnitude_vector.weight"].copy_(adapter.magnitude)
            if isinstance(adapter, Vera):
                theirs[f"{layer}.vera_lambda_d"].copy_(adapter.d)
                theirs[f"{layer}.vera_lambda_b"].copy_(adapter.b)
            if isinstance(adapter, RandLora):
                theirs[f"{layer}.randlora_lambda"].copy_(adapter.lambdas)
                theirs[f"{layer}.randlora_gamma"].copy_(adapter.gammas)


MAKERS = {
    "lora": lambda r: LoraConfig(r, alpha=3.0),
    "rslora": lambda r: LoraConfig(r, alpha=3.0, rank_stabilised=True),
    "dora": DoraConfig,
    "vera": VeraConfig,
    "randlora": RandLoraConfig,
}


@pytest.mark.filterwarnings("ignore:.*targets can use")
@given(
    method=st.sampled_from(sorted(MAKERS)),
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)) | st.integers(1, 20).map(lambda n: (n, n)),
    r=st.integers(1, 12),
    lead=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    double=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_parity_of_random_layers(method: str, shape: tuple[int, int], r: int, lead: list[int], double: bool) -> None:
    """r that does not divide m or exceeds it, in > out, square, one row, 2-D and 3-D inputs."""
    dtype, tolerance = (torch.float64, 1e-10) if double else (torch.float32, 1e-5)
    out, width = shape
    generator = torch.Generator().manual_seed(out * 100 + width)
    model = nn.Sequential(nn.Linear(width, out))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model = model.to(dtype)
    plain = copy.deepcopy(model)
    adapted = attach(model, MAKERS[method](r), ["0"], basis_seed=2)
    perturb(adapted)
    with tempfile.TemporaryDirectory() as folder:
        adapted.export_peft(folder)
        reference = load_in_peft(Path(folder), dtype, plain)
    if double:
        _copy_exactly(adapted, reference)
    x = torch.randn(*lead, width, generator=generator).to(dtype)
    ours, theirs = model(x), reference(x)
    size = float(theirs.detach().abs().max())
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * max(size, 1.0))
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for mine, other in gradients(adapted, reference):
        largest = float(other.abs().max())
        torch.testing.assert_close(mine, other, rtol=tolerance * 10, atol=tolerance * 10 * max(largest, 1.0))


def test_packed_mixed_and_unknown_are_refused_with_the_alternative(tmp_path: Path) -> None:
    cases = [
        (DoraConfig(2), ["attn.in_proj_weight"], {}, "attn.in_proj_weight is not the weight of a called nn.Linear"),
        (LoraConfig(2), ["own.in_proj_weight"], {}, "own.in_proj_weight is not the weight of a called nn.Linear"),
        (RandLoraConfig(2), ["attn.out_proj"], {}, "attn.out_proj.weight is not"),
        (RandLoraConfig(2), ["fc", "proj"], {"fc.weight": 3}, r"different ranks \[2, 3\]"),
        (SvftConfig(6), ["fc"], {}, "PEFT has no SVFT"),
    ]
    for config, targets, capacities, message in cases:
        adapted = attach(block(), config, targets, capacities=capacities)
        with pytest.raises(ExportError, match=message + ".*export_deltas"):
            adapted.export_peft(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_peft_merges_to_the_same_weights(tmp_path: Path) -> None:
    model = layers(torch.float32)
    adapted = attach(model, RandLoraConfig(5), ["*"])
    perturb(adapted)
    adapted.export_peft(tmp_path)
    merged = load_in_peft(tmp_path, torch.float32).merge_and_unload()
    expected = copy.deepcopy(adapted.merge().state_dict())
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)
