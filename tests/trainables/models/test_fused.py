"""q, k and v of a transformers model as one weight: the same function, other shapes and counts."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from randlora import RandLoraConfig, attach, get_method
from tests.trainables.tiny_images import save_dinov2
from tests.trainables.tiny_language import save_model
from trainables.models.families import ModelError, parse_id
from trainables.models.fused import fuse_qkv
from trainables.models.loading import load_model
from trainables.models.shapes import default_targets, meta_model, target_shapes


def test_the_function_stays_and_the_weight_is_one(tmp_path: Path) -> None:
    folder = save_dinov2(tmp_path / "dinov2")
    apart, one = (load_model(f"local:{folder}{end}").module for end in ("", "+qkv"))
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = apart(images).last_hidden_state
    for model in (one, copy.deepcopy(one)):
        torch.testing.assert_close(model(images).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in one.parameters()) == sum(p.numel() for p in apart.parameters())
    shapes = target_shapes(one, default_targets(one))
    assert [shape for name, shape in shapes.items() if name.endswith("qkv.weight")] == [(96, 32)] * 2
    assert shapes == target_shapes(meta_model(f"local:{folder}+qkv"))
    adapted = attach(one, RandLoraConfig(8), list(shapes))
    other = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(one(other).last_hidden_state, apart(other).last_hidden_state, rtol=1e-5, atol=1e-5)
    one(images).last_hidden_state.square().mean().backward()
    gradients = {n: p.grad for n, p in adapted.named_parameters() if "qkv" in n and n.endswith("lambdas")}
    assert len(gradients) == 2 and all(g is not None and g.abs().sum() > 0 for g in gradients.values())


@pytest.mark.parametrize(("method", "capacity", "count"), [("lora", 1, 129_024), ("randlora", 8, 2_681_856)])
def test_counts_of_figure_1(method: str, capacity: int, count: int) -> None:
    """The paper's 129,024 for LoRA-1; RandLoRA-8's 2,709,792 has one basis more of each weight."""
    shapes = target_shapes("hf:facebook/dinov2-base+qkv")
    assert get_method(method).total(list(shapes.values()), capacity) == count
    if method == "randlora":
        assert count + sum(8 + min(shape) for shape in shapes.values()) == 2_709_792


def test_a_model_without_three_layers_is_refused(tmp_path: Path) -> None:
    assert parse_id("hf:facebook/dinov2-base+qkv").fused and not parse_id("hf:facebook/dinov2-base").fused
    with pytest.raises(ModelError, match=r"has q_proj, k_proj and v_proj of one size, .* leave \+qkv out"):
        meta_model("hf:microsoft/Phi-3-mini-4k-instruct+qkv")


def test_grouped_queries_cannot_be_joined(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "llama", "llama")
    with pytest.raises(ModelError, match="of one size"):
        meta_model(f"local:{folder}+qkv")


@pytest.mark.parametrize("without", ["q_proj", "k_proj"])
def test_layers_of_which_some_have_no_bias_stay_apart(without: str) -> None:
    attention = torch.nn.ModuleDict({n: torch.nn.Linear(4, 4, n != without) for n in ("q_proj", "k_proj", "v_proj")})
    assert fuse_qkv(Attention(attention)) == 0


class Attention(torch.nn.Module):
    def __init__(self, layers: torch.nn.ModuleDict) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
