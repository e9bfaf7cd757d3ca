"""A pack computes what its members compute alone: outputs and gradients, for every method and kind of weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from randlora import (
    AdaLoraConfig,
    Adapted,
    AdapterConfig,
    AutoLoraConfig,
    DoraConfig,
    LoraConfig,
    LoraPlusConfig,
    LoraXsConfig,
    PissaConfig,
    RandLoraAConfig,
    RandLoraConfig,
    VeraConfig,
)
from randlora.model.sites import is_adapted
from randlora.packing.packing import Pack, PackingError
from randlora.packing.stacked import stacked_linear
from tests.randlora.support import CONFIGS, TARGETS, Block, K, batch, block, config_id, members_of

PACKED = [c for c in CONFIGS if c.method != "autolora"]


def slices(rows: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return list(batch(dtype, K * rows).split(rows))


def loss(y: Tensor, k: int) -> Tensor:
    return (y * (k + 1)).sin().sum()


def alone(model: nn.Module, members: list[Adapted], parts: list[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
    outputs, grads = [], []
    for k, (member, part) in enumerate(zip(members, parts, strict=True)):
        member.enable()
        y = model(part)
        grads.append(list(torch.autograd.grad(loss(y, k), list(member.parameters()))))
        outputs.append(y.detach())
        member.disable()
    return outputs, grads


def packed(model: nn.Module, members: list[Adapted], parts: list[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
    ys = model(torch.cat(parts)).chunk(len(parts))
    total = torch.stack([loss(y, k) for k, y in enumerate(ys)]).sum()
    flat = [p for member in members for p in member.parameters()]
    found = iter(torch.autograd.grad(total, flat))
    return [y.detach() for y in ys], [[next(found) for _ in member.parameters()] for member in members]


def check_equal(model: nn.Module, members: list[Adapted], parts: list[Tensor], atol: float = 1e-10) -> None:
    want, want_grads = alone(model, members, parts)
    pack = Pack(members)
    got, got_grads = packed(model, members, parts)
    pack.remove()
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=atol)
    for grads, others in zip(want_grads, got_grads, strict=True):
        for a, b in zip(grads, others, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-12, atol=atol)


@pytest.mark.parametrize("config", PACKED, ids=config_id)
@pytest.mark.parametrize("rows", [1, 9], ids=["few", "many"])
def test_outputs_and_gradients_are_those_of_separate_forwards(config: AdapterConfig, rows: int) -> None:
    model = block(torch.float64).train()
    check_equal(model, members_of(model, config), slices(rows))


@pytest.mark.parametrize("config", [RandLoraConfig(5), VeraConfig(7)], ids=config_id)
def test_members_may_have_bases_of_their_own(config: AdapterConfig) -> None:
    model = block(torch.float64).train()
    members = members_of(model, config, seeds=[(1, 1), (2, 2), (3, 2)])
    check_equal(model, members, slices())
    assert members[0].bases() is not members[1].bases()
    assert members[1].bases() is members[2].bases()


DROPPING = [
    LoraConfig(3, dropout=0.4),
    AdaLoraConfig(3, dropout=0.4),
    DoraConfig(3, dropout=0.4),
    RandLoraConfig(5, dropout=0.4),
    VeraConfig(7, dropout=0.4),
]


@pytest.mark.parametrize("config", DROPPING, ids=config_id)
def test_dropout_masks_are_those_of_separate_forwards(config: AdapterConfig) -> None:
    model, targets, parts = block(torch.float64).train(), ["fc", "proj"], slices()
    members = members_of(model, config, targets=targets)
    want, _ = alone(model, members, parts)
    for member in members:
        member.reseed_dropout(0)
    pack = Pack(members)
    got, _ = packed(model, members, parts)
    pack.remove()
    assert all(torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(want, got, strict=True))


def test_scales_may_differ_in_a_pack() -> None:
    model = block(torch.float64).train()
    members = [members_of(model, LoraConfig(2, alpha=a), seeds=[(0, 0)])[0] for a in (1.0, 2.0, 5.0)]
    check_equal(model, members, slices())


def test_parts_of_fused_weights_are_packed() -> None:
    model = block(torch.float64).train()
    targets = ["attn.in_proj_weight[q,v]", "own.in_proj_weight[k]", "fc"]
    check_equal(model, members_of(model, LoraConfig(2), targets=targets), slices())


@pytest.mark.parametrize("mask", ["bool", "float"])
def test_attention_masks_hold_for_every_slice(mask: str) -> None:
    class Causal(Block):
        def forward(self, x: Tensor) -> Tensor:
            out = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            given = out if mask == "bool" else torch.zeros(out.shape, dtype=x.dtype).masked_fill(out, -torch.inf)
            return self.fc(self.attn(x, x, x, need_weights=False, attn_mask=given)[0])

    model = Causal().to(torch.float64).train()
    check_equal(model, members_of(model, LoraConfig(2), targets=["attn.in_proj_weight", "fc"]), slices())


def test_attention_that_gives_its_weights_is_split_slice_by_slice() -> None:
    class Weights(Block):
        def forward(self, x: Tensor) -> Tensor:
            y, weights = self.attn(x, x, x, need_weights=True)
            return self.fc(y) + weights.sum()

    model = Weights().to(torch.float64).train()
    members = members_of(model, LoraConfig(2), targets=["attn.in_proj_weight", "attn.out_proj", "fc"])
    pack = Pack(members)
    y = model.attn(*[torch.cat(slices())] * 3, need_weights=True)[1]
    pack.remove()
    for k, part in enumerate(slices()):
        members[k].enable()
        torch.testing.assert_close(model.attn(part, part, part)[1], y.chunk(K)[k], rtol=0, atol=1e-10)
        members[k].disable()


STACKED = [
    LoraConfig(2),
    DoraConfig(2),
    VeraConfig(3),
    RandLoraConfig(5),
    AdaLoraConfig(2),
    PissaConfig(2),
    LoraPlusConfig(2),
]


@pytest.mark.parametrize("config", [*STACKED, LoraXsConfig(3), RandLoraAConfig(2)], ids=config_id)
def test_the_stacked_products_are_in_use(config: AdapterConfig) -> None:
    model = nn.Sequential(nn.Linear(16, 24)).to(torch.float64)
    layers = [m.adapters["0.weight"] for m in members_of(model, config, targets=["0"])]
    bases = getattr(layers[0], "bases", None)
    for layer in layers:
        if bases is not None:
            layer.bases = bases
    x = batch(torch.float64, K)
    y = stacked_linear(layers, x, model[0].weight.detach(), model[0].bias.detach(), lambda x: x)
    assert y is not None
    one = layers[1].linear(x[1:2], model[0].weight.detach(), model[0].bias.detach())
    torch.testing.assert_close(y[1:2], one, rtol=0, atol=1e-10)


@pytest.mark.parametrize("config", [LoraConfig(3), VeraConfig(7), RandLoraConfig(5), DoraConfig(3)], ids=config_id)
def test_a_member_that_is_not_finite_leaves_the_others_alone(config: AdapterConfig) -> None:
    model, parts = block(torch.float64).train(), slices()
    members = members_of(model, config)
    want, want_grads = alone(model, members, parts)
    with torch.no_grad():
        next(members[1].parameters()).fill_(torch.nan)
    pack = Pack(members)
    got, got_grads = packed(model, members, parts)
    pack.remove()
    assert got[1].isnan().any()
    for k in (0, 2):
        torch.testing.assert_close(got[k], want[k], rtol=0, atol=1e-10)
        for a, b in zip(want_grads[k], got_grads[k], strict=True):
            torch.testing.assert_close(b, a, rtol=0, atol=1e-10)


def test_selected_and_fewer_members() -> None:
    model, parts = block(torch.float64).train(), slices()
    members = members_of(model, RandLoraConfig(5))
    want, _ = alone(model, members, parts)
    pack = Pack(members)
    pack.together([2, 0])
    for a, b in zip((want[2], want[0]), model(torch.cat([parts[2], parts[0]])).chunk(2), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-10)
    pack.select(1)
    torch.testing.assert_close(model.eval()(parts[1]), want[1], rtol=0, atol=1e-10)
    pack.remove()


def test_the_model_comes_back_as_it_was() -> None:
    model = block(torch.float64)
    before = {n: (id(p), p.clone(), p.requires_grad) for n, p in model.named_parameters()}
    names, kinds = list(before), [type(m) for m in model.modules()]
    want = model(batch(torch.float64))
    members = members_of(model, LoraConfig(3))
    pack = Pack(members)
    model(torch.cat(slices()))
    pack.remove()
    for member in reversed(members):  # each gives back the flags that it found
        member.detach()
    assert not is_adapted(model)
    assert [type(m) for m in model.modules()] == kinds
    assert [n for n, _ in model.named_parameters()] == names
    assert all("forward" not in vars(m) for m in model.modules())
    for name, parameter in model.named_parameters():
        identity, value, flag = before[name]
        assert (id(parameter), parameter.requires_grad) == (identity, flag)
        assert torch.equal(parameter, value)
    assert torch.equal(model(batch(torch.float64)), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("config", [LoraConfig(3), DoraConfig(3), RandLoraConfig(5), VeraConfig(7)], ids=config_id)
def test_under_autocast(config: AdapterConfig, dtype: torch.dtype) -> None:
    model, parts = block().train(), slices(dtype=torch.float32)
    members = members_of(model, config)
    with torch.autocast("cpu", dtype=dtype):
        want, want_grads = alone(model, members, parts)
        pack = Pack(members)
        got, got_grads = packed(model, members, parts)
        pack.remove()
    pairs = [*zip(want, got, strict=True)]
    for grads, others in zip(want_grads, got_grads, strict=True):
        pairs += zip(grads, others, strict=True)
    for a, b in pairs:
        assert (a - b).norm() <= 0.15 * a.norm()  # bfloat16 keeps 8 bits, and the sums go in another order


def test_what_cannot_be_packed_says_so() -> None:
    model = block()
    with pytest.raises(PackingError, match="AutoLoRA cannot be packed: it holds some rows"):
        Pack(members_of(model, AutoLoraConfig(3)))
    mixed = [*members_of(model, LoraConfig(3))[:1], *members_of(model, DoraConfig(3))[:1]]
    with pytest.raises(PackingError, match="'lora' and 'dora'"):
        Pack(mixed)
    with pytest.raises(PackingError, match="weights or capacities"):
        Pack([*members_of(model, LoraConfig(3))[:1], *members_of(model, LoraConfig(2))[:1]])
    shaped = [members_of(model, RandLoraAConfig(3, r=r))[0] for r in (2, 4)]
    with pytest.raises(PackingError, match="an option that gives their trainables other shapes"):
        Pack(shaped)
    with pytest.raises(PackingError, match="at least one"):
        Pack([])
    sequence_first = nn.MultiheadAttention(16, 4)
    with pytest.raises(PackingError, match="sequence before the batch"):
        Pack(members_of(sequence_first, LoraConfig(2), targets=["in_proj_weight"]))
    pack = Pack(members_of(model, LoraConfig(3), targets=["fc"]))
    with pytest.raises(PackingError, match="7 rows are not 3 equal slices"):
        model(batch(rows=7))
    with pytest.raises(PackingError, match="each once"):
        pack.together([0, 0])
    pack.remove()
    pack = Pack(members_of(model, LoraConfig(3), targets=TARGETS))
    with pytest.raises(PackingError, match="read as a matrix"):
        _ = model.own.in_proj_weight
