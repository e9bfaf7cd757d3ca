"""`nn.MultiheadAttention` whose adapters act on the input, instead of on a weight that is computed first.

torch's attention reads its weights as matrices. There, an adapter could only offer W0 + delta, whose gradient costs as
much as that of full fine-tuning. So this module computes usual self-attention itself: the adapters make the projections
in their cheaper form, and torch computes the attention between them. Any other call is left to torch.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.nn.utils import parametrize

from randlora.adapter import Adapter
from randlora.model.parts import PartAdapters


def mount_attention(mha: nn.Module) -> None:
    """Let the adapters of an attention act on its input, if it is of the usual kind. `unmount_attention` undoes
    this."""
    if _is_torch_s(mha) and "forward" not in vars(mha):
        mha.forward = MethodType(_forward, mha)  # a bound method, because a deep copy then binds it to the copy


def unmount_attention(mha: nn.Module) -> None:
    """Undo `mount_attention`, once no weight of `mha` is adapted any more."""
    if not _is_adapted(mha) and getattr(vars(mha).get("forward"), "__func__", None) is _forward:
        del mha.forward


def meets_input(mha: nn.Module) -> bool:
    """Return whether `attend` computes what `mha` would: it has adapters, and is of the usual kind."""
    return _is_torch_s(mha) and _is_adapted(mha) and _is_usual(cast(nn.MultiheadAttention, mha))


def attend(
    mha: nn.MultiheadAttention, x: Tensor, attn_mask: Tensor | None = None, queries: int | None = None
) -> Tensor:
    """Return self-attention of x (N, L, D) by `mha`'s weights and adapters: (N, L, D), or (N, queries, D) of the first
    tokens.

    Args:
        mha: the attention.
        x: the input (N, L, D).
        attn_mask: as `nn.MultiheadAttention` takes it, (L, L) or (N * heads, L, L). True or -inf masks an entry.
        queries: compute only this many first tokens. They still see all tokens. None: all.
    """
    n, length, width = x.shape
    qkv = project(mha, "in_proj_weight", x, mha.in_proj_bias)
    q, k, v = qkv.view(n, length, 3, mha.num_heads, -1).permute(2, 0, 3, 1, 4)
    if queries is not None:
        q = q[:, :, :queries]
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:  # True means "masked" there, and "visible" here
            attn_mask = torch.zeros(attn_mask.shape, dtype=q.dtype, device=q.device).masked_fill(attn_mask, -torch.inf)
        attn_mask = attn_mask.to(q.dtype)
        if attn_mask.ndim == 3:
            attn_mask = attn_mask.view(n, mha.num_heads, length, length)
        attn_mask = attn_mask[..., : q.shape[2], :]
    dropout = mha.dropout if mha.training else 0.0
    y = scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)
    y = y.transpose(1, 2).reshape(n, q.shape[2], width)
    return project(mha.out_proj, "weight", y, mha.out_proj.bias)


def self_attention(
    mha: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Tensor | None:
    """Return `mha(x, x, x)` (N, L, D) computed by `attend`; None if `attend` cannot compute it.

    The arguments are those of torch's forward.
    """
    plain = query is key is value and not query.is_nested and query.ndim == 3 and key_padding_mask is None
    if not plain or need_weights or not _is_usual(mha) or (is_causal and attn_mask is None):
        return None
    return attend(mha, query, attn_mask)


def project(owner: nn.Module, attr: str, x: Tensor, bias: Tensor | None) -> Tensor:
    """Return x (..., in) projected by `owner.attr`, and by the adapter on it if any: (..., out)."""
    if not parametrize.is_parametrized(owner, attr):
        return linear(x, getattr(owner, attr), bias)
    parametrizations: Any = owner.parametrizations
    packed, stored = parametrizations[attr][0], parametrizations[attr].original
    y: Tensor = packed.adapter.apply_to(x, stored, bias)
    return y


def _is_torch_s(mha: nn.Module) -> bool:
    """Return whether the module is torch's own attention."""
    return isinstance(mha, nn.MultiheadAttention) and type(mha).forward is nn.MultiheadAttention.forward


def _is_adapted(mha: nn.Module) -> bool:
    """Return whether a weight of the attention has an adapter."""
    return any(isinstance(module, Adapter | PartAdapters) for module in mha.modules())


def _is_usual(mha: nn.MultiheadAttention) -> bool:
    """Return whether the attention is of the usual kind, which `attend` can compute."""
    return mha._qkv_same_embed_dim and mha.bias_k is None and not mha.add_zero_attn and mha.batch_first


def _forward(mha: nn.MultiheadAttention, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """The forward of an attention with adapters. Arguments and results are those of torch's."""
    attended = self_attention(mha, *args, **kwargs)
    return nn.MultiheadAttention.forward(mha, *args, **kwargs) if attended is None else (attended, None)
