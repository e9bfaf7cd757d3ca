"""Default targets of every model family, on small models of the real classes: what they match, and that it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from randlora import RandLoraConfig, TargetError, attach, default_targets, resolve_targets
from randlora.model.families import TARGETS, family_name

transformers = pytest.importorskip("transformers")

LAYERS = 2
SMALL = {"hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
VISION = {**SMALL, "image_size": 28, "patch_size": 14}
WORDS = {**SMALL, "intermediate_size": 40, "vocab_size": 64, "pad_token_id": 0}


def hf(name: str, auto: str, **settings: Any) -> nn.Module:
    model: nn.Module = getattr(transformers, auto).from_config(transformers.AutoConfig.for_model(name, **settings))
    return model


def open_clip_model() -> nn.Module:
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 28, "layers": LAYERS, "width": 16, "patch_size": 14, "head_width": 8}
    text = {"context_length": 12, "vocab_size": 64, "width": 16, "heads": 2, "layers": LAYERS}
    model: nn.Module = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)
    return model


def timm_model() -> nn.Module:
    timm = pytest.importorskip("timm")
    model: nn.Module = timm.models.VisionTransformer(
        img_size=28, patch_size=14, embed_dim=16, depth=LAYERS, num_heads=2, num_classes=3
    )
    return model


def causal(name: str, **more: Any) -> Callable[[], nn.Module]:
    return lambda: hf(name, "AutoModelForCausalLM", **{**WORDS, **more})


GROUPED = {"num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}
MODELS: dict[str, tuple[Callable[[], nn.Module], int, set[str]]] = {
    # family: (a small model, adapted weights a layer, last names of some of them)
    "open_clip": (open_clip_model, 2 * 3, {"in_proj_weight", "c_fc", "c_proj"}),
    "timm": (timm_model, 3, {"qkv", "fc1", "fc2"}),
    "dinov2": (lambda: hf("dinov2", "AutoModel", **VISION), 5, {"q_proj", "k_proj", "v_proj"}),
    "dinov2_with_registers": (lambda: hf("dinov2_with_registers", "AutoModel", **VISION), 5, set()),
    "vit": (lambda: hf("vit", "AutoModel", **VISION, intermediate_size=40), 5, {"fc1", "fc2"}),
    "llama": (causal("llama", **GROUPED), 5, {"q_proj", "k_proj", "v_proj", "up_proj", "down_proj"}),
    "qwen2": (causal("qwen2", **GROUPED), 5, {"q_proj", "k_proj", "v_proj", "up_proj", "down_proj"}),
    "qwen3": (causal("qwen3", **GROUPED, head_dim=8), 5, {"q_proj", "up_proj", "down_proj"}),
    "mistral": (causal("mistral", **GROUPED), 5, {"q_proj", "up_proj", "down_proj"}),
    "phi3": (causal("phi3", **GROUPED), 3, {"qkv_proj", "gate_up_proj", "down_proj"}),
    "gpt2": (
        lambda: hf("gpt2", "AutoModelForCausalLM", n_embd=16, n_layer=LAYERS, n_head=2, vocab_size=64, n_positions=16),
        3,
        {"c_attn", "c_fc", "c_proj"},
    ),
    "roberta": (lambda: hf("roberta", "AutoModel", **WORDS, max_position_embeddings=20), 6, {"query", "dense"}),
    "bert": (lambda: hf("bert", "AutoModel", **WORDS, max_position_embeddings=20), 6, {"query", "dense"}),
}


def forward(name: str, model: Any) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    images, ids = torch.randn(2, 3, 28, 28, generator=draw), torch.randint(3, 60, (2, 8), generator=draw)
    if name == "open_clip":
        text = torch.cat([ids, torch.zeros(2, 4, dtype=torch.long)], 1)
        image_features, text_features, _ = model(images, text)
        return torch.cat([image_features, text_features])
    if name == "timm":
        y: Tensor = model(images)
        return y
    vision = name in ("dinov2", "dinov2_with_registers", "vit")
    found = model(pixel_values=images) if vision else model(input_ids=ids)
    result: Tensor = found[0]
    return result


def test_every_family_has_a_row() -> None:
    assert MODELS.keys() == TARGETS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_the_defaults_of_a_family(name: str) -> None:
    make, per_layer, last_names = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
    assert family_name(model) == name
    targets = default_targets(model)
    shapes = resolve_targets(model, targets)
    assert len(shapes) == LAYERS * per_layer
    assert last_names <= {n.removesuffix(".weight").rpartition(".")[2] for n in shapes}
    assert not any(word in n for n in shapes for word in ("head", "pooler", "embed", "out_proj", "o_proj"))

    plain = forward(name, model).detach()
    adapted = attach(model, RandLoraConfig(4), targets)
    torch.testing.assert_close(forward(name, model).detach(), plain, rtol=1e-5, atol=1e-6)
    forward(name, model).square().sum().backward()
    idle = [n for n, p in adapted.named_parameters() if p.grad is None]
    assert not idle, f"no gradient reaches {idle}"
    adapted.detach()
    assert torch.equal(forward(name, model).detach(), plain)


def test_a_fused_name_is_suggested_where_the_parts_are_asked_for() -> None:
    """Phi-3 has no q_proj: the paper's script, which asked for it, adapted down_proj alone."""
    with torch.device("meta"):
        model = MODELS["phi3"][0]()
    with pytest.raises(TargetError, match=r"'q_proj' matches no 2-D weight.*nearest.*qkv_proj"):
        resolve_targets(model, ["q_proj", "k_proj", "v_proj"])


def test_unknown_families_list_the_known_ones() -> None:
    with pytest.raises(TargetError, match=r"no default targets for Linear.*known are open_clip, timm, dinov2"):
        default_targets(nn.Linear(2, 2))
    with torch.device("meta"):
        other = hf("gptj", "AutoModel", n_embd=16, n_layer=1, n_head=2, rotary_dim=4, vocab_size=64)
    with pytest.raises(TargetError, match="no default targets for models of type 'gptj'"):
        default_targets(other)
    empty = transformers.AutoModel.from_config(transformers.AutoConfig.for_model("bert", **WORDS)).pooler
    empty.config = transformers.BertConfig()
    with pytest.raises(TargetError, match="none of the default targets"):
        default_targets(empty)
