"""Write a delta that is a product of two thin matrices in PEFT's LoRA format, with PEFT's names.

LoRA and DoRA have this form themselves, with a rank per weight and on parts of fused weights. Other methods with such a
delta are written as the LoRA that computes the same.

Two factors stand for a weight: A (r x in) and B (out x r). Parts of one weight lie side by side in them. Each part has
zeros in the rows of B that belong to other parts. Together they are one LoRA, whose rank is the sum of the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from randlora.adapter import Adapter
from randlora.errors import ExportError
from randlora.files.checkpoint import Adapted
from randlora.methods.factored import Factored
from randlora.methods.lowrank.lora import Dora
from randlora.methods.scheduled.ranks import Terms
from randlora.model.sites import Site

PREFIX = "base_model.model."
INSTEAD = "export_deltas() writes dense deltas and randlora.files.checkpoint.export_merged() the merged weights instead"

TRAINED = {
    "vera": {"vera_lambda_d": "d", "vera_lambda_b": "b"},
    "randlora": {"randlora_lambda": "lambdas", "randlora_gamma": "gammas"},
}
"""Method -> PEFT's name of a trained tensor -> our name."""

Tensors = dict[str, Tensor]


class LowRank(NamedTuple):
    """A product of two factors: delta = scale * b a^T, with a (in x r) and b (out x r)."""

    a: Tensor
    b: Tensor
    scale: float


def _factors(adapter: Adapter) -> LowRank | None:
    """Return the delta (of DoRA, its direction's) as an exact product of two factors; None if the method has no such
    form."""
    if not isinstance(adapter, Factored):
        return None
    with torch.no_grad():
        a, b = adapter.factors()
    if isinstance(adapter, Terms) and not a.is_meta:  # terms that were dropped are still there, as zeros
        nonzero = (a != 0).any(0) & (b != 0).any(0)
        a, b = a[:, nonzero], b[:, nonzero]
    return LowRank(a.detach(), b.detach(), adapter.scale)


def is_packed_attention(site: Site) -> bool:
    """Return whether this is the packed input projection of an `nn.MultiheadAttention`."""
    return isinstance(site.owner, nn.MultiheadAttention) and site.attr == "in_proj_weight"


def peft_can_wrap(site: Site) -> bool:
    """Return whether PEFT can wrap the module: it is called, and its weight is named "weight"."""
    return site.attr == "weight" and site.by_activation


def _joined(members: Sequence[tuple[Site, Adapter]]) -> LowRank:
    """Return one pair of factors for a whole weight, from the adapters of its parts."""
    factors_of = []
    for site, adapter in members:
        if (factors := _factors(adapter)) is None:
            raise ExportError(f"the delta of {site.name} is not a product of two thin matrices; {INSTEAD}")
        factors_of.append((site, factors))
    a, scale = torch.cat([f.a for _, f in factors_of], 1), factors_of[0][1].scale
    b = torch.zeros(members[0][0].whole.shape[0], a.shape[1], dtype=a.dtype, device=a.device)
    at = 0
    for site, f in factors_of:
        rank = f.b.shape[1]
        b[slice(*site.rows) if site.rows else slice(None), at : at + rank] = _rescaled(f.b, f.scale, scale)
        at += rank
    if a.shape[1] == 0:  # AdaLoRA and AutoLoRA may drop all terms of a weight
        a, b = a.new_zeros(a.shape[0], 1), b.new_zeros(b.shape[0], 1)
    return LowRank(a, b, scale)


def _rescaled(b: Tensor, own: float, scale: float) -> Tensor:
    """Return the factor b, changed so that `scale` gives the same product as `own`. (RandLoRA-a's scale differs by
    weight.)"""
    return b if own == scale else b * (own / scale)


def _magnitude(members: Sequence[tuple[Site, Adapter]]) -> Tensor | None:
    """Return DoRA's magnitude of a whole weight; None for another method.

    In rows without an adapter it is W0's row norm, so that nothing changes there.
    """
    site, adapter = members[0]
    if not isinstance(adapter, Dora):
        return None
    if site.rows is None:
        return adapter.magnitude.detach()
    norms: Tensor = torch.linalg.vector_norm(site.whole.base.detach().to(adapter.magnitude.dtype), dim=1)
    for part, dora in members:
        assert isinstance(dora, Dora) and part.rows is not None
        norms[slice(*part.rows)] = dora.magnitude.detach()
    return norms


def write_lora(adapted: Adapted) -> tuple[dict[str, Any], Tensors]:
    """Return PEFT's configuration and tensors of a LoRA (or DoRA) with these deltas.

    Raises:
        ExportError: the method has no such form, or the factors would be no smaller than the dense delta.
    """
    modules: dict[str, list[tuple[Site, Adapter]]] = {}
    for name, site in adapted.sites.items():  # parts of one weight share a module
        modules.setdefault(site.module_name, []).append((site, adapted.adapters[name]))
    tensors: Tensors = {}
    ranks: dict[str, int] = {}
    dora, scale = False, _joined(next(iter(modules.values()))).scale
    for module, members in modules.items():
        a, b, own_scale = _joined(members)
        b, rank = _rescaled(b, own_scale, scale), a.shape[1]
        size = a.shape[0] * b.shape[0]
        if adapted.method.name not in ("lora", "lora-plus", "dora") and rank * (a.shape[0] + b.shape[0]) >= size:
            raise ExportError(
                f"the delta of {module} has rank {rank} in PEFT's LoRA form, which is no smaller than the dense one; "
                f"{INSTEAD}"
            )
        layer = PREFIX + module
        ranks[module] = rank
        tensors[f"{layer}.lora_A.weight"] = a.t()
        tensors[f"{layer}.lora_B.weight"] = b
        if (magnitude := _magnitude(members)) is not None:
            dora = True
            tensors[f"{layer}.lora_magnitude_vector"] = magnitude
        if is_packed_attention(members[0][0]):  # PEFT adapts the output projection too, so it gets factors of zero
            width = members[0][0].shape[1]
            tensors[f"{layer}.base_layer.out_proj.lora_A.weight"] = torch.zeros(rank, width)
            tensors[f"{layer}.base_layer.out_proj.lora_B.weight"] = torch.zeros(width, rank)
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    others = {module: rank for module, rank in ranks.items() if rank != common}
    config = {
        "peft_type": "LORA",
        "r": common,
        "lora_alpha": scale * common,
        "lora_dropout": adapted.config.options().get("dropout", 0.0),
        "use_dora": dora,
        "use_rslora": False,  # the scale is in lora_alpha
        # PEFT reads the keys as regular expressions that may start at any dot
        "rank_pattern": {_pattern(module): rank for module, rank in others.items()},
        "alpha_pattern": {_pattern(module): scale * rank for module, rank in others.items()},
    }
    return config, tensors


def _pattern(module: str) -> str:
    """Return a regular expression for a module's name."""
    return "^" + module.replace(".", r"\.")
