"""Export to Hugging Face PEFT's adapter directory, where that is lossless: `nn.Linear` weights, one rank.

LoRA, DoRA, VeRA and RandLoRA. VeRA and RandLoRA carry their shared bases once, in PEFT's global tensors; PEFT up to
0.21 warns about missing per-layer copies of RandLoRA's, and is right without them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from randlora.adapter import Adapter
from randlora.attach import Adapted
from randlora.checkpoint import _write_text, write_tensors
from randlora.errors import ExportError
from randlora.lora import Dora, Lora, _LowRankConfig
from randlora.rand import RandLora, RandLoraConfig
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
        if not site.by_activation or site.attr != "weight":
            raise ExportError(f"{name} is not the weight of a called nn.Linear, which PEFT needs; {_INSTEAD}")
    if len(set(adapted.capacities.values())) > 1:
        ranks = sorted(set(adapted.capacities.values()))
        raise ExportError(f"the layers have different ranks {ranks}, this export holds one; {_INSTEAD}")
    config, tensors = writer(adapted)
    config |= {
        "target_modules": [site.module_name for site in adapted.sites.values()],
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
    a, b = bases.get("A"), bases.get("B")
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
