"""Modules that keep their weights under other names, come from meta, are pickled, or get other parameters."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from randlora import Adapted, AdapterError, DoraConfig, LoraConfig, RandLoraConfig, SvftConfig, attach
from randlora.dropout import Masks
from randlora.model.quantised import _empty
from randlora.model.sites import _AdaptedConv1D
from tests.randlora.support import perturb


class Odd(nn.Linear):
    """A linear layer with a matrix of its own beside its weight."""

    def __init__(self) -> None:
        super().__init__(6, 6)
        self.beside = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.beside.T


def normed() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and in DINO's heads
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 6)))


@pytest.mark.parametrize(
    ("make", "targets"),
    [
        (normed, ["0.weight_v"]),
        (normed, ["*"]),
        (lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 6))), ["0.weight_orig"]),
        (lambda: nn.Sequential(Odd()), ["*"]),
    ],
)
@pytest.mark.parametrize("config", [LoraConfig(1), DoraConfig(1)], ids=["lora", "dora"])
def test_weights_under_other_names(
    make: Callable[[], nn.Module], targets: list[str], config: LoraConfig | DoraConfig
) -> None:
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.randn(4, 6, dtype=torch.float64)
    before = model(x).detach()
    adapted = attach(model, config, targets)
    assert torch.allclose(model(x), before)
    perturb(adapted)
    now = model(x).detach()
    assert not torch.allclose(now, before)
    adapted.merge()
    assert torch.allclose(model(x), now)
    assert torch.equal(adapted.detach()(x), before)


@pytest.mark.parametrize("targets", [["0"], ["0", "1"]])  # adapters share the bases, so two layers visit them twice
def test_bases_are_drawn_when_memory_is_not_initialised(targets: list[str]) -> None:
    whole = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    adapted = attach(whole, RandLoraConfig(8), targets)
    perturb(adapted)
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
        other = attach(empty, RandLoraConfig(8), targets)
    x = torch.randn(3, 64)
    for _ in range(2):  # from the meta device, and from memory that had values
        empty.to_empty(device="cpu").load_state_dict(whole.state_dict())
        assert torch.equal(empty(x), whole(x))
        drawn, own = other.bases(), adapted.bases()
        assert drawn is not None and own is not None and drawn.digest() == own.digest()
    rounded = [matrix.bfloat16() for matrix in other.bases().buffers()]  # type: ignore[union-attr]
    empty.bfloat16()
    assert all(map(torch.equal, rounded, other.bases().buffers()))  # type: ignore[union-attr]


def test_an_adapted_conv1d_is_pickled() -> None:
    from transformers.pytorch_utils import Conv1D

    model, x = nn.Sequential(Conv1D(6, 8), nn.Linear(6, 4)), torch.randn(3, 8)
    perturb(attach(model, LoraConfig(2), ["0", "1"]))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    made = {type(module) for module in model.modules()} | {_AdaptedConv1D, Conv1D, Masks, _empty}
    with torch.serialization.safe_globals(list(made)):  # runs nothing else
        again = torch.load(file, weights_only=True)
    assert type(again[0]) is type(model[0]) and torch.equal(again(x), model(x))


def test_flags_come_back_to_assigned_parameters() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))
    model[1].requires_grad_(False)
    first = attach(model, LoraConfig(1), ["0"])
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    first.disable()
    second = attach(model, LoraConfig(1), ["1"])
    first.detach()
    assert not any(p.requires_grad for n, p in model.named_parameters() if "adapter" not in n)
    second.detach()
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, False]


def merged_under(model: nn.Module) -> tuple[Adapted, Adapted]:
    first = attach(model, LoraConfig(1), ["0"])
    perturb(first)
    first.merge()
    second = attach(model, LoraConfig(1), ["0"])
    perturb(second)
    second.disable()
    return first, second


@pytest.mark.parametrize("how", ["unmerge", "detach"])
def test_what_was_attached_on_merged_weights_does_not_outlive_them(how: str) -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    first, second = merged_under(model)
    second.enable()
    second.disable()
    getattr(first, how)()
    if how == "unmerge":
        first.disable()
    with pytest.raises(AdapterError, match="cannot enable: it was attached on weights with another adapter merged in"):
        second.enable()
    second.detach()
    first.detach()
    assert all(p.requires_grad for p in model.parameters())


def test_a_model_is_copied_after_a_functional_gradient() -> None:
    model, x = nn.Sequential(nn.Linear(24, 24)), torch.ones(2, 24)
    perturb(attach(model, SvftConfig(3), ["0"]))
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    torch.func.grad(lambda given: torch.func.functional_call(model, given, (x,)).square().sum())(trained)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
