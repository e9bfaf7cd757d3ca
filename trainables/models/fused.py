"""Make q, k and v of an attention one weight, as timm and DINOv2's own code have them: the model id ends with "+qkv".

transformers has three layers of (d x d). The RandLoRA paper's DINOv2 has one layer of (3 d x d). The number of
parameters differs for methods such as RandLoRA, whose count is not linear in the sides of a weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_THIRDS = ("q_proj", "k_proj", "v_proj")


class _Third(nn.Module):
    """Replaces q, k or v of an attention: it returns one third of the outputs of the fused `qkv`."""

    def __init__(self, shared: _Shared, index: int) -> None:
        super().__init__()
        self._shared, self._index = shared, index

    def forward(self, x: Tensor) -> Tensor:
        return self._shared.third(x, self._index)


class _Shared:
    """Computes the output of an attention's `qkv` when q asks for its third, and frees it after v has asked."""

    def __init__(self, attention: nn.Module) -> None:
        self.attention: Any = attention  # whose `qkv` may be replaced by a quantised one
        self._made: tuple[Tensor, tuple[Tensor, ...]] | None = None

    def third(self, x: Tensor, index: int) -> Tensor:
        if self._made is None or self._made[0] is not x or index == 0:
            self._made = x, self.attention.qkv(x).chunk(3, dim=-1)
        output = self._made[1][index]
        if index == len(_THIRDS) - 1:
            self._made = None
        return output


def _joinable(layers: list[Any]) -> bool:
    """Return whether q, k and v are linear layers of one size, all with or all without a bias."""
    if not all(isinstance(layer, nn.Linear) for layer in layers):
        return False
    return len({(layer.weight.shape, layer.bias is None) for layer in layers}) == 1


def fuse_qkv(model: nn.Module) -> int:
    """Replace q, k and v of every attention by one layer `qkv` with the same values, in place, and return their number.

    Works on the meta device too. An attention whose q, k and v differ in size (grouped queries), or of which only some
    have a bias, stays as it is.
    """
    attentions = [m for m in model.modules() if _joinable([getattr(m, name, None) for name in _THIRDS])]
    for attention in attentions:
        layers: list[Any] = [getattr(attention, name) for name in _THIRDS]
        first = layers[0]
        with torch.no_grad():
            weight = torch.cat([layer.weight for layer in layers])
            bias = None if first.bias is None else torch.cat([layer.bias for layer in layers])
        qkv = nn.Linear(first.in_features, len(weight), bias=bias is not None, device="meta")
        qkv.weight = nn.Parameter(weight)
        qkv.bias = None if bias is None else nn.Parameter(bias)  # type: ignore[assignment]
        shared = _Shared(attention)
        for index, name in enumerate(_THIRDS):
            setattr(attention, name, _Third(shared, index))
        attention.qkv = qkv
        attention.train(first.training)
    return len(attentions)
