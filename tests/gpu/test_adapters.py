"""Bases and adapters on a device against the CPU's: bits of what is drawn, numbers of what is computed, files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from randlora import Adapted, AdapterConfig, attach, get_method, load
from randlora.arithmetic import kernels
from randlora.arithmetic.bases import DISTRIBUTIONS, Bases, Draw
from randlora.dropout import Masks
from randlora.model.quantise import quantise
from tests.randlora import support
from tests.randlora.arithmetic import support as arithmetic
from tests.randlora.methods.support import NAMES, configured, network, rows
from tests.randlora.methods.support import TARGETS as PEFT_TARGETS

pytestmark = pytest.mark.gpu
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""Other orders of sums in float32; torch leaves TF32 off for matrix products."""
CASES = [*((c, support.config_id(c)) for c in support.CONFIGS), *((None, f"peft:{name}") for name in NAMES)]


def case(config: AdapterConfig | None, name: str) -> tuple[nn.Module, torch.Tensor, AdapterConfig, list[str]]:
    """A model on the CPU, its input, and what is attached where."""
    if config is not None:
        return support.block(), support.batch(), config, support.targets_of(config)
    pytest.importorskip("peft")
    return network().eval(), rows()[0], configured(name.removeprefix("peft:")), PEFT_TARGETS


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_seed_gives_the_same_bits(device: torch.device, distribution: str) -> None:
    draws = {"A": Draw(37, 64, distribution), "B": Draw(64, 50, distribution, std=0.1)}
    here, there = (Bases(7, draws, on, torch.float32) for on in (torch.device("cpu"), device))
    assert there.get("A").device == device
    assert here.digest() == there.digest()
    assert all(torch.equal(here.get(name), there.get(name).cpu()) for name in draws)


@pytest.mark.parametrize(("config", "name"), CASES, ids=[name for _, name in CASES])
def test_a_method_as_on_the_cpu(device: torch.device, config: AdapterConfig | None, name: str, tmp_path: Path) -> None:
    """Adapters cross in files, both ways: what is made of a device's singular vectors differs in its last bits."""
    model, x, config, targets = case(config, name)
    plain = copy.deepcopy(model)
    here = attach(model, config, targets, init_seed=3, basis_seed=4)
    support.perturb(here)
    there = load(copy.deepcopy(plain).to(device), here.save(tmp_path / "here"))
    assert {p.device for p in there.parameters()} == {device}
    y, grads = stepped(here, x)
    z, other = stepped(there, x.to(device))
    torch.testing.assert_close(z.cpu(), y, **CLOSE)
    for key, grad in grads.items():
        torch.testing.assert_close(other[key].cpu(), grad, **CLOSE, msg=lambda text, key=key: f"{key}: {text}")
    if get_method(config.method).mergeable and not any(a.moves_bias for a in there.adapters.values()):
        with there.merging() as merged:
            torch.testing.assert_close(merged(x.to(device)).detach().cpu(), y, **CLOSE)
    back = copy.deepcopy(plain)
    load(back, there.save(tmp_path / "there"))
    torch.testing.assert_close(back(x).detach(), y, **CLOSE)
    starts = [
        stepped(attach(copy.deepcopy(plain).to(on), config, targets, init_seed=3, basis_seed=4), x.to(on))[0].cpu()
        for on in (torch.device("cpu"), device)
    ]
    torch.testing.assert_close(*starts, **CLOSE)
    there.detach()
    assert all(torch.equal(p.cpu(), q) for p, q in zip(there.model.parameters(), plain.parameters(), strict=True))


def test_masks_follow_seed_and_number(device: torch.device) -> None:
    masks, x = Masks(0.25, seed=9), torch.ones(300, 400, device=device)
    first, second = masks.draw(x), masks.draw(x)
    assert first.device == device
    assert first.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert float(first.mean()) == pytest.approx(1.0, abs=0.02)
    assert not torch.equal(first, second)
    masks.reseed(9)
    assert torch.equal(masks.draw(x), first) and torch.equal(masks.draw(x), second)


@pytest.mark.parametrize(("bits", "dtype"), [(4, torch.uint8), (8, torch.int8)])
def test_what_lies_there_is_quantised(device: torch.device, bits: Literal[4, 8], dtype: torch.dtype) -> None:
    pytest.importorskip("bitsandbytes")
    model = nn.Sequential(nn.Linear(64, 96)).to(device)
    quantise(model, ["0"], bits=bits)
    weight = model[0].weight
    assert (weight.device, weight.dtype) == (device, dtype)


def test_signs_on_tensor_cores(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("RANDLORA_KERNELS", "triton")
    if not kernels.takes_triton(device):
        pytest.skip("Triton's kernel runs on CUDA; tests/randlora/arithmetic has it under the interpreter")
    arithmetic.check(arithmetic.products(str(device)))


def stepped(adapted: Adapted, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The model's output, and the gradients of its mean square."""
    y = adapted.model.eval()(x)
    y.square().mean().backward()
    return y.detach(), {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}
