"""The default targets of each family of models: the weights that the RandLoRA paper adapts.

    attach(model, RandLoraConfig(r=6), default_targets(model))

open_clip's and timm's models are recognised by the package of their class, transformers' by the `model_type` of their
config. Names that a model lacks are left out, so both spellings of a name that changed between versions may be listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from randlora.errors import TargetError

# RandLoRA paper, section 5.4 and its scripts: q, k, v, up and down; neither o_proj nor gate_proj.
_LLAMA = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")

# The paper's GLUE: the 6 matrices of each layer; neither pooler nor head.
_BERT = ("query", "key", "value", "output.dense", "intermediate.dense")

# transformers 5 renamed `query` to `q_proj` and so on; the paper: q, k, v and the MLP
_NEW = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
_OLD = ("attention.query", "attention.key", "attention.value")
_DINOV2 = (*_NEW, *_OLD, "attention.qkv", "mlp.fc1", "mlp.fc2", "mlp.up_proj", "mlp.down_proj")
_TIMM = ("attn.qkv", "mlp.fc1", "mlp.fc2")

TARGETS: dict[str, tuple[str, ...]] = {
    # packed q, k, v and the MLP of every block of both towers, attn.out_proj is not adapted; timm's towers inside
    "open_clip": ("attn.in_proj_weight", "mlp.c_fc", "mlp.c_proj", *_TIMM),
    "timm": _TIMM,  # and the original DINOv2
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "vit": (*_NEW, "mlp.fc1", "mlp.fc2", *_OLD, "intermediate.dense"),
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "mistral": _LLAMA,
    "phi3": ("qkv_proj", "gate_up_proj", "down_proj"),  # fused: the paper's script matches down_proj alone
    "gpt2": ("attn.c_attn", "mlp.c_fc", "mlp.c_proj"),
    "roberta": _BERT,
    "bert": _BERT,
}
"""Family -> ends of the names of its target weights."""

_PACKAGES = {"open_clip": "open_clip", "timm": "timm", "dinov2": "timm"}
"""Package of a model's class -> family. Models of transformers name their family themselves."""


def family_name(model: nn.Module) -> str | None:
    """Return the model's family, whether or not it is in `TARGETS`; None if the model comes from no known package."""
    package = type(model).__module__.partition(".")[0]
    if package in _PACKAGES:
        return _PACKAGES[package]
    config: Any = getattr(model, "config", None)
    name = getattr(config, "model_type", None)
    return name if isinstance(name, str) else None


def matching(patterns: Sequence[str], names: Iterable[str]) -> list[str]:
    """Return those of `patterns` that match at least one of `names`, in their own order."""
    dotted = ["." + name for name in names]
    return [p for p in patterns if any(name.endswith((f".{p}", f".{p}.weight")) for name in dotted)]


def default_targets(model: nn.Module) -> list[str]:
    """Return the ends of weight names to adapt in `model`, for `attach` and `resolve_targets`.

    Args:
        model: a model of open_clip, timm or transformers. It may be on the meta device.

    Raises:
        TargetError: the family is not known, or the model has none of its weights.
    """
    name = family_name(model)
    if name not in TARGETS:
        what = type(model).__name__ if name is None else f"models of type {name!r}"
        raise TargetError(f"no default targets for {what}: name the weights to adapt; known are {', '.join(TARGETS)}")
    present = matching(TARGETS[name], (n for n, _ in model.named_parameters()))
    if not present:
        expected = ", ".join(TARGETS[name])
        raise TargetError(f"none of the default targets {expected} is in this {type(model).__name__}: name the weights")
    return present
