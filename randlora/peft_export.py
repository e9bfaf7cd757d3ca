"""Export to Hugging Face PEFT's adapter directory, where that is lossless: `nn.Linear` and `Conv1D` weights, one rank.

LoRA, DoRA, VeRA and RandLoRA; LoRA also on the packed input projection of `nn.MultiheadAttention`. There PEFT adapts
the output projection as well, which gets factors of zero; an adapter on it is not exported, since PEFT 0.21.2 adds its
delta twice. VeRA and RandLoRA carry their shared bases once, in PEFT's global tensors; PEFT up to 0.21 warns about
missing per-layer copies of RandLoRA's, and is right without them. `randlora.peft_import` reads such directories.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from randlora.adapter import Adapter
from randlora.attach import Adapted
from randlora.checkpoint import _write_text, write_tensors
from randlora.errors import ExportError
from randlora.lora import Dora, Lora, _LowRankConfig
from randlora.rand import RandLora, RandLoraConfig
from randlora.sites import Site
from randlora.vera import Vera, VeraConfig

_PREFIX = "base_model.model."
_INSTEAD = "export_deltas() writes dense deltas and randlora.checkpoint.export_merged() the merged weights instead"

Tensors = dict[str, Tensor]


def export_peft(adapted: Adapted, directory: str | Path) -> Path:
    """Write `adapter_config.json` and `adapter_model.safetensors`.

    Raises `ExportError` for packed weights, ranks that differ between layers, and methods PEFT has not.
    """
    writer = _WRITERS.get(adapted.method.name)
    if writer is None:
        raise ExportError(f"PEFT has no {adapted.method.title}; {_INSTEAD}")
    for name, site in adapted.sites.items():
        if not _called(site) and (adapted.method.name != "lora" or _attention(site) is None):
            raise ExportError(
                f"{name} is not the weight of a called nn.Linear or Conv1D, which PEFT's {adapted.method.title} "
                f"needs; {_INSTEAD}"
            )
    if len(set(adapted.capacities.values())) > 1:
        ranks = sorted(set(adapted.capacities.values()))
        raise ExportError(f"the layers have different ranks {ranks}, this export holds one; {_INSTEAD}")
    config, tensors = writer(adapted)
    modules = dict.fromkeys(_attention(site) or site.module_name for site in adapted.sites.values())
    config |= {
        "target_modules": list(modules),
        "fan_in_fan_out": any(site.transposed for site in adapted.sites.values()),
        "bias": "none",
        "inference_mode": True,
        "task_type": None,
        "base_model_name_or_path": None,
    }
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    _write_text(folder / "adapter_config.json", json.dumps(config, indent=1) + "\n")
    return folder


def _rank(adapted: Adapted) -> int:
    return next(iter(adapted.capacities.values()))


def _layers(adapted: Adapted) -> list[tuple[str, Adapter]]:
    return [(_PREFIX + adapted.sites[name].module_name, adapter) for name, adapter in adapted.adapters.items()]


def _called(site: Site) -> bool:
    return site.attr == "weight" and (site.by_activation or site.transposed)


def _attention(site: Site) -> str | None:
    """The name of the `nn.MultiheadAttention` whose packed input projection this is; else None."""
    packed = isinstance(site.owner, nn.MultiheadAttention) and site.attr == "in_proj_weight"
    return site.module_name if packed else None


def _silence_out_proj(adapted: Adapted, tensors: Tensors) -> None:
    """Factors of zero for the output projections that PEFT adapts along with the packed ones."""
    for site in adapted.sites.values():
        if (name := _attention(site)) is not None:
            width, rank = site.shape[1], _rank(adapted)
            layer = f"{_PREFIX}{name}.base_layer.out_proj"
            tensors[f"{layer}.lora_A.weight"] = torch.zeros(rank, width)
            tensors[f"{layer}.lora_B.weight"] = torch.zeros(width, rank)


def _lora(adapted: Adapted) -> tuple[dict[str, Any], Tensors]:
    config = adapted.config
    assert isinstance(config, _LowRankConfig)
    tensors: Tensors = {}
    dora = False
    for layer, adapter in _layers(adapted):
        assert isinstance(adapter, Lora | Dora)
        tensors[f"{layer}.lora_A.weight"] = adapter.a.t()
        tensors[f"{layer}.lora_B.weight"] = adapter.b
        if isinstance(adapter, Dora):
            dora = True
            tensors[f"{layer}.lora_magnitude_vector"] = adapter.magnitude
    _silence_out_proj(adapted, tensors)
    rank = _rank(adapted)
    values = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": config.scale * rank,
        "lora_dropout": config.dropout,
        "use_dora": dora,
        "use_rslora": False,  # the scale is in lora_alpha
    }
    return values, tensors


def _vera(adapted: Adapted) -> tuple[dict[str, Any], Tensors]:
    config = adapted.config
    assert isinstance(config, VeraConfig)
    tensors: Tensors = {}
    for layer, adapter in _layers(adapted):
        assert isinstance(adapter, Vera)
        tensors[f"{layer}.vera_lambda_d"] = adapter.d
        tensors[f"{layer}.vera_lambda_b"] = adapter.b
    bases = adapted.bases()
    assert bases is not None
    tensors["base_model.vera_A"] = bases.get("A")
    tensors["base_model.vera_B"] = bases.get("B")
    values = {
        "peft_type": "VERA",
        "r": _rank(adapted),
        "vera_dropout": config.dropout,
        "d_initial": config.d_initial,
        "projection_prng_key": adapted.basis_seed,
        "save_projection": True,
    }
    return values, tensors


def _randlora(adapted: Adapted) -> tuple[dict[str, Any], Tensors]:
    config = adapted.config
    assert isinstance(config, RandLoraConfig)
    tensors: Tensors = {}
    for layer, adapter in _layers(adapted):
        assert isinstance(adapter, RandLora)
        tensors[f"{layer}.randlora_lambda"] = adapter.lambdas
        tensors[f"{layer}.randlora_gamma"] = adapter.gammas
    bases = adapted.bases()
    assert bases is not None
    rank = _rank(adapted)
    # PEFT sizes its bases by the largest and the smallest side over all layers taken together
    outs, ins = max(s[0] for s in adapted.shapes.values()), max(s[1] for s in adapted.shapes.values())
    large, small = max(outs, ins), min(outs, ins)
    n = -(-small // rank)
    # imported bases may be larger than this
    a, b = bases.get("A")[:rank, :small], bases.get("B")[:large, : n * rank]
    a_all, b_all = a.new_zeros(rank, 1, small), b.new_zeros(large, n * rank)
    a_all[:, 0, : a.shape[1]] = a
    b_all[: b.shape[0], : b.shape[1]] = b
    tensors["base_model.randlora_A"] = a_all
    tensors["base_model.randlora_B"] = b_all.view(large, n, rank)
    values = {
        "peft_type": "RANDLORA",
        "r": rank,
        "randlora_alpha": config.scale * rank,
        "randlora_dropout": config.dropout,
        "projection_prng_key": adapted.basis_seed,
        "save_projection": True,
    }
    return values, tensors


_WRITERS: dict[str, Callable[[Adapted], tuple[dict[str, Any], Tensors]]] = {
    "lora": _lora,
    "dora": _lora,
    "vera": _vera,
    "randlora": _randlora,
}
