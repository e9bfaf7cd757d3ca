"""Adapters that meet the input of torch's attention: the numbers of the matrix form, and nothing left behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from randlora import AdapterConfig, LoraConfig, RandLoraConfig, attach, get_method
from randlora.model.attention import attend, meets_input
from tests.randlora.support import CONFIGS, batch, block, config_id, perturb

MERGEABLE = [config for config in CONFIGS if get_method(config.method).mergeable]
BOTH = ["in_proj_weight", "out_proj"]
LENGTH = 7


def attention() -> nn.MultiheadAttention:
    found: nn.MultiheadAttention = block(torch.float64).attn
    return found


def tokens() -> Tensor:
    return torch.randn(3, LENGTH, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def mask_of(kind: str) -> Tensor | None:
    hidden = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    added = torch.zeros(LENGTH, LENGTH, dtype=torch.float64).masked_fill(hidden, -torch.inf)
    return {"none": None, "bool": hidden, "float": added, "per head": added.repeat(3 * 4, 1, 1)}[kind]


@pytest.mark.parametrize("config", MERGEABLE, ids=config_id)
@pytest.mark.parametrize("mask", ["none", "bool", "per head"])
def test_outputs_and_gradients_are_those_of_the_matrix_form(config: AdapterConfig, mask: str) -> None:
    """With need_weights=True torch computes, with the weights read as matrices."""
    mha = attention()
    adapted = attach(mha, config, BOTH)
    perturb(adapted, 0.3)

    def run(need_weights: bool) -> list[Tensor]:
        x = tokens().requires_grad_()
        y = mha(x, x, x, need_weights=need_weights, attn_mask=mask_of(mask))[0]
        return [y, *torch.autograd.grad(y.square().sum(), [x, *adapted.parameters()])]

    for met, read in zip(run(False), run(True), strict=True):
        torch.testing.assert_close(met, read, rtol=1e-9, atol=1e-9)


def test_lora_makes_no_matrix() -> None:
    """So that its gradient needs no product of the weight's size."""
    mha = attention()
    adapted = attach(mha, LoraConfig(1), BOTH)
    for adapter in adapted.adapters.values():
        adapter.weight = adapter.delta = None  # type: ignore[method-assign, assignment]
    x = tokens()
    mha(x, x, x, need_weights=False)
    with pytest.raises(TypeError):
        mha(x, x, x, need_weights=True)


@pytest.mark.parametrize("mask", ["none", "bool", "float", "per head"])
@pytest.mark.parametrize("queries", [1, 3])
def test_the_first_queries_are_those_of_all(mask: str, queries: int) -> None:
    mha, x = attention(), tokens()
    perturb(attach(mha, RandLoraConfig(5), BOTH), 0.3)
    assert meets_input(mha)
    whole = mha(x, x, x, need_weights=False, attn_mask=mask_of(mask))[0]
    some = attend(mha, x, mask_of(mask), queries=queries)
    torch.testing.assert_close(some, whole[:, :queries], rtol=1e-12, atol=1e-12)


def test_any_other_call_is_torch_s_own() -> None:
    mha, x = attention(), tokens()
    other = torch.randn(3, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    padding = torch.zeros(3, LENGTH, dtype=torch.bool)
    padding[:, -2:] = True
    calls = [
        ((other, x, x), {"need_weights": False}),
        ((x, x, x), {"need_weights": False, "key_padding_mask": padding}),
        ((x[0], x[0], x[0]), {"need_weights": False}),
        ((x, x, x), {}),
    ]
    want = [mha(*args, **kwargs)[0] for args, kwargs in calls]
    adapted = attach(mha, LoraConfig(2), BOTH)
    for (args, kwargs), expected in zip(calls, want, strict=True):
        torch.testing.assert_close(mha(*args, **kwargs)[0], expected)
    perturb(adapted, 0.3)
    for (args, kwargs), expected in zip(calls, want, strict=True):
        assert not torch.allclose(mha(*args, **kwargs)[0], expected)


def test_unusual_attention_is_left_alone() -> None:
    class Own(nn.MultiheadAttention):
        def forward(self, *args: Tensor, **kwargs: bool) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
            return 2 * args[0], None

    mha, x = Own(16, 4, batch_first=True).double(), tokens()
    attach(mha, LoraConfig(2), BOTH)
    assert "forward" not in vars(mha) and not meets_input(mha)
    assert torch.equal(mha(x, x, x)[0], 2 * x)
    sequence_first = nn.MultiheadAttention(16, 4).double()
    want = sequence_first(x, x, x, need_weights=False)[0]
    attach(sequence_first, LoraConfig(2), BOTH)
    assert not meets_input(sequence_first)
    torch.testing.assert_close(sequence_first(x, x, x, need_weights=False)[0], want)


def test_nothing_is_left_behind() -> None:
    model = block()
    assert not meets_input(model.attn)
    first = attach(model, LoraConfig(2), ["attn.in_proj_weight[q,v]", "attn.out_proj"])
    assert meets_input(model.attn)
    with first.disabled():
        assert "forward" not in vars(model.attn)
    assert "forward" in vars(model.attn)
    first.detach()
    assert "forward" not in vars(model.attn) and not meets_input(model.attn)
    torch.testing.assert_close(model(batch()), block()(batch()), rtol=0, atol=0)


def test_a_deep_copy_computes_with_its_own_weights() -> None:
    mha, x = attention(), tokens()
    adapted = attach(mha, LoraConfig(2), BOTH)
    before = mha(x, x, x, need_weights=False)[0]
    other = copy.deepcopy(mha)
    perturb(adapted, 0.3)
    torch.testing.assert_close(other(x, x, x, need_weights=False)[0], before)
    assert not torch.allclose(mha(x, x, x, need_weights=False)[0], before)


def test_the_packed_weight_is_made_once_a_forward() -> None:
    """torch's own attention reads it three times."""

    def forward(width: int = 16) -> torch.Tensor:
        x = batch(width=width)
        y: torch.Tensor = model.attn(x, x, x, need_weights=True)[0]
        return y

    model = block()
    adapted = attach(model, RandLoraConfig(4), ["attn.in_proj_weight"])
    calls = 0
    adapter = adapted.adapters["attn.in_proj_weight"]
    original = adapter.weight

    def counting(base: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return original(base)

    adapter.weight = counting  # type: ignore[method-assign]
    for _ in range(2):
        forward().sum().backward()
    assert calls == 2
    with pytest.raises(AssertionError, match="expecting embedding dimension"):
        forward(12)
    with torch.no_grad():
        adapter.lambdas.add_(0.1)  # type: ignore[operator, union-attr]
    changed, model = forward(), block()
    assert not torch.equal(changed, forward())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_layer_gets_nested_texts() -> None:
    """In evaluation with a padding mask torch's encoder hands its layers a nested tensor."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(3, 5, 8)
    padded = torch.arange(5)[None] >= torch.tensor([5, 3, 2])[:, None]
    perturb(attach(model, LoraConfig(2), ["out_proj", "in_proj_weight", "linear1"]))
    with torch.no_grad():
        found = model(x, src_key_padding_mask=padded)
    told = model(x, src_key_padding_mask=padded)  # with gradients none is nested
    assert torch.allclose(found[~padded], told[~padded], atol=1e-5)
