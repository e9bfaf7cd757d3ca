"""Parts of fused weights as targets: q, k, v and gate, up, each counted, trained, merged and saved on its own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from randlora import (
    METHODS,
    AdapterConfig,
    AdapterError,
    ConfigError,
    LoraConfig,
    RandLoraConfig,
    TargetError,
    attach,
    load,
    resolve_targets,
)
from randlora.model.parts import split_selector
from randlora.model.targets import stored_names
from tests.randlora.support import CONFIGS, batch, block, config_id, perturb

PARTS = ["attn.in_proj_weight[q,v]", "own.in_proj_weight[k]"]
MERGEABLE = [c for c in CONFIGS if METHODS[c.method].mergeable]


def assert_as_whole_weights(model: nn.Module, config: AdapterConfig, targets: list[str], x: Any) -> None:
    """The adapted output is the base model's with every part's delta added to its rows by hand."""
    plain = copy.deepcopy(model)
    adapted = attach(model, config, targets)
    shapes = resolve_targets(plain, targets)
    assert adapted.count() == sum(
        METHODS[config.method].count(s, config.capacity, **config.options()) for s in shapes.values()
    )
    perturb(adapted)
    y = model(x)
    y.square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in adapted.parameters())
    weights = dict(plain.named_parameters())
    with torch.no_grad():
        for name, delta in adapted.deltas().items():
            site = adapted.sites[name]
            site.view(weights[site.stored_name]).add_(delta)
    torch.testing.assert_close(y, plain(x), rtol=1e-10, atol=1e-10)
    with adapted.merging():
        torch.testing.assert_close(model(x), y, rtol=1e-10, atol=1e-10)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-12, atol=1e-12)
    assert torch.equal(model(x), y)


@pytest.mark.parametrize("config", MERGEABLE, ids=config_id)
def test_parts_of_attention(config: AdapterConfig) -> None:
    model = block(torch.float64)
    assert resolve_targets(model, PARTS) == {
        "attn.in_proj_weight[q]": (16, 16),
        "attn.in_proj_weight[v]": (16, 16),
        "own.in_proj_weight[k]": (16, 16),
    }
    assert_as_whole_weights(model, config, PARTS, batch(torch.float64))


class Fused(nn.Module):
    """Called fused layers, as in DINOv2 and Phi-3: 4 heads of width 4, and 2 groups of keys and values."""

    def __init__(self, grouped: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = type("Config", (), {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16})()
        if not grouped:
            self.config.num_key_value_heads = 4
        self.qkv_proj = nn.Linear(16, 32 if grouped else 48)
        self.gate_up_proj = nn.Linear(16, 20, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return torch.cat([self.qkv_proj(x), nn.functional.silu(gate) * up], -1)


class Holder(nn.Module):
    def __init__(self, grouped: bool) -> None:
        super().__init__()
        self.layer = Fused(grouped)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


@pytest.mark.parametrize("config", CONFIGS, ids=config_id)
def test_parts_of_called_layers(config: AdapterConfig) -> None:
    model = Holder(True).double()
    targets = ["qkv_proj[q,v]", "gate_up_proj[up]"]
    assert resolve_targets(model, targets) == {
        "layer.qkv_proj.weight[q]": (16, 16),
        "layer.qkv_proj.weight[v]": (8, 16),
        "layer.gate_up_proj.weight[up]": (10, 16),
    }
    if METHODS[config.method].mergeable:
        assert_as_whole_weights(model, config, targets, batch(torch.float64))
    else:
        adapted = attach(model, config, targets)
        perturb(adapted)
        model(batch(torch.float64)).sum().backward()
        assert all(p.grad is not None for p in adapted.parameters())
    assert resolve_targets(Holder(False), ["qkv_proj[k]"]) == {"layer.qkv_proj.weight[k]": (16, 16)}


def test_dropout_on_parts_of_a_called_layer_only() -> None:
    model = Holder(True)
    adapted = attach(model, LoraConfig(3, dropout=0.5), ["qkv_proj[q,v]"])
    perturb(adapted)
    assert not torch.equal(model(batch()), model(batch()))
    with pytest.raises(ConfigError, match=r"in_proj_weight\[q\] is read as a matrix"):
        attach(block(), LoraConfig(3, dropout=0.5), PARTS)


def test_detach_leaves_nothing() -> None:
    for model, targets in ((block(), PARTS), (Holder(True), ["qkv_proj[q,v]"])):
        state = copy.deepcopy(model.state_dict())
        flags = [(n, id(p), p.requires_grad) for n, p in model.named_parameters()]
        classes = {n: type(m) for n, m in model.named_modules()}
        adapted = attach(model, RandLoraConfig(5), targets)
        perturb(adapted)
        adapted.merge()
        adapted.unmerge()
        adapted.disable()
        adapted.enable()
        adapted.merge()
        adapted.detach()
        assert list(model.state_dict()) == list(state)
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert [(n, id(p), p.requires_grad) for n, p in model.named_parameters()] == flags
        assert {n: type(m) for n, m in model.named_modules()} == classes
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("config", [LoraConfig(3), RandLoraConfig(5)], ids=config_id)
def test_save_load_and_ranks_per_part(config: AdapterConfig, tmp_path: Path) -> None:
    model, x = block(), batch()
    capacities = {"attn.in_proj_weight[q]": 2, "attn.in_proj_weight[v]": 6}
    adapted = attach(model, config, PARTS, capacities=capacities)
    perturb(adapted)
    folder = adapted.save(tmp_path)
    other = block()
    again = load(other, folder)
    assert again.capacities == adapted.capacities == {**capacities, "own.in_proj_weight[k]": config.capacity}
    assert torch.equal(other(x), model(x))


def test_parts_and_wholes_take_turns() -> None:
    model, x = block(torch.float64), batch(torch.float64)
    state = copy.deepcopy(model.state_dict())
    outputs = []
    parts = attach(model, LoraConfig(2), PARTS)
    perturb(parts)
    outputs.append(model(x))
    parts.disable()
    whole = attach(model, LoraConfig(2), ["attn.in_proj_weight"])
    perturb(whole)
    outputs.append(model(x))
    whole.merge()
    with pytest.raises(AdapterError, match="another adapter"):
        parts.enable()
    whole.unmerge()
    whole.disable()
    parts.enable()
    assert torch.equal(model(x), outputs[0]) and not torch.equal(*outputs)
    whole.detach()
    parts.detach()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_phi_3(heads: tuple[int, int]) -> None:
    """Its fused names: q rows, then k, then v; the same as adapting the three slices of the computation."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Phi3Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        pad_token_id=0,
    )
    model = transformers.Phi3ForCausalLM(config).double().eval()
    rows = 4 * heads[1]
    shapes = resolve_targets(model, ["qkv_proj[q,k,v]", "gate_up_proj[gate]"])
    assert list(shapes.values()) == [(16, 16), (rows, 16), (rows, 16), (20, 16)] * 2
    wrapped = Logits(model)
    tokens = torch.tensor([[1, 5, 7, 2], [4, 4, 9, 3]])
    assert_as_whole_weights(wrapped, RandLoraConfig(5), ["qkv_proj[q,v]", "gate_up_proj[gate]"], tokens)


class Logits(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Any:
        return self.model(tokens, use_cache=False).logits


def test_gpt_2() -> None:
    """c_attn is a Conv1D, (in x out); in a cross attention it holds k and v alone."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=8, n_embd=16, n_layer=2, n_head=4, add_cross_attention=True
    )
    model = transformers.GPT2LMHeadModel(config).double().eval()
    shapes = resolve_targets(model, ["attn.c_attn[q,v]", "crossattention.c_attn[v]"])
    assert set(shapes.values()) == {(16, 16)} and len(shapes) == 6
    targets = ["attn.c_attn[q,v]", "mlp.c_fc"]
    tokens = torch.tensor([[1, 5, 7, 2], [4, 4, 9, 3]])
    assert_as_whole_weights(Logits(model), RandLoraConfig(5), targets, tokens)


@pytest.mark.parametrize(
    ("attribute", "value"), [("head_first", True), ("val_dim", 4), ("mp_num", 4), ("multi_query", False)]
)
def test_parts_that_lie_head_by_head_are_refused(attribute: str, value: object) -> None:
    """timm's MaxViT and TinyViT, CodeGen, GPT-BigCode."""
    model = Holder(False)
    setattr(model.layer, attribute, value)
    with pytest.raises(TargetError, match=f"its module has {attribute} = {value} and .* name the whole weight"):
        resolve_targets(model, ["qkv_proj[v]"])
    assert resolve_targets(model, ["qkv_proj"]) == {"layer.qkv_proj.weight": (48, 16)}


def test_names_of_parts() -> None:
    assert split_selector("attn.in_proj_weight[q, v]") == ("attn.in_proj_weight", ("q", "v"))
    assert split_selector("layer[0]") == ("layer[0]", ())  # a glob's set of characters
    model = block()
    assert stored_names(model, [*PARTS, "fc"]) == ["attn.in_proj_weight", "fc.weight", "own.in_proj_weight"]
    assert list(resolve_targets(model, ["*in_proj_weight[v,q]"])) == [
        "attn.in_proj_weight[q]",
        "attn.in_proj_weight[v]",
        "own.in_proj_weight[q]",
        "own.in_proj_weight[v]",
    ]
    for targets, message in (
        (["attn.in_proj_weight[q,w]"], "'w' is no part of a fused weight; parts are q, k, v, gate, up"),
        (["attn.in_proj_weight[gate]"], "attn.in_proj_weight has no part 'gate': it has q, k, v"),
        (["fc[q]"], "fc.weight cannot be taken in parts: only in_proj_weight, .* name the whole weight"),
        (["attn.in_proj_weight", "attn.in_proj_weight[q]"], "named whole and in parts"),
        (["attn.in_proj[q]"], r"'attn.in_proj\[q\]' matches no 2-D weight.*nearest: .*'attn.in_proj_weight'"),
    ):
        with pytest.raises(TargetError, match=message):
            resolve_targets(model, targets)


@pytest.mark.parametrize(
    ("kind", "name", "part", "why"),
    [
        ("MiniMaxLightningAttention", "qkv_proj", "q", "keeps q, k and v together by head"),
        ("Phi4MultimodalAudioMLP", "gate_up_proj", "up", "has up before gate"),
    ],
)
def test_fused_weights_that_are_laid_out_otherwise(kind: str, name: str, part: str, why: str) -> None:
    held = type(kind, (nn.Module,), {})()
    held.add_module(name, nn.Linear(8, 24))
    with pytest.raises(TargetError, match=f"{kind} {why}; name the whole weight"):
        attach(nn.ModuleDict({"a": held}), LoraConfig(2), [f"{name}[{part}]"])
