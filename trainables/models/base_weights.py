"""How a language model's frozen weights are held: in float32, in bfloat16, or with linear layers in 4 or 8 bits.

"nf4" and "int8" do what QLoRA does: bitsandbytes (extra `quantised`) packs the weights of all linear layers except the
output layer. All other weights, such as embeddings and norms, are in bfloat16. "nf4" also packs the scales (double
quantisation); "int8" is LLM.int8() with its usual threshold for outliers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from randlora.methods.registry import METHODS
from randlora.model.quantise import as_quantised, linear_layers, plan_layers, quantise_layers
from randlora.model.quantised import packed_bytes
from randlora.model.sites import Site
from trainables.config import FULL_METHODS, QUANTISED
from trainables.models.language import output_layer

BITS: Mapping[str, Literal[4, 8]] = {"nf4": 4, "int8": 8}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "nf4": {"quant_type": "nf4", "compress_statistics": True, "compute_dtype": torch.bfloat16},
    "int8": {"threshold": 6.0},
}
"""What bitsandbytes' layers are made with."""


@dataclass(frozen=True)
class Refusal:
    """Why a method cannot train beside base weights that are held in a precision, and the setting that it needs."""

    rule: str
    nearest: str


def refusal(method: str, base_weights: str) -> Refusal | None:
    """Return why a method, by its name in the registry, cannot train beside such weights; None if it can.

    A method that decomposes W0, or that reads its norms, reads the quantised weight back. So it can.
    """
    if base_weights == "fp32":
        return None
    setting = f"train.base_weights = {base_weights!r}"
    if method in FULL_METHODS:
        return Refusal(
            f"trains the base weights, whose steps {setting} would round away", 'train.base_weights = "fp32"'
        )
    if base_weights in QUANTISED and method in METHODS and (why := METHODS[method].needs_float_weight) is not None:
        rule = f"{why}, which needs a weight that is not quantised, and {setting} holds it in {BITS[base_weights]} bits"
        return Refusal(rule, 'train.base_weights = "bf16"')
    return None


def hold(module: nn.Module, base_weights: str, device: torch.device) -> None:
    """Convert the weights of a float32 model on the CPU as `train.base_weights` says, and move the model to a device.

    Raises ConfigError: "nf4" or "int8" without bitsandbytes.
    """
    if base_weights != "fp32":
        to_bf16(module)
    if base_weights in BITS:
        quantise_layers(module, quantisable(module), BITS[base_weights], device, **OPTIONS[base_weights])
    module.to(device)


def round_as(module: nn.Module, base_weights: str) -> None:
    """Give the weights of a float32 model the values that `hold` rounds them to. They stay in float32.

    Raises ConfigError: "nf4" or "int8" without bitsandbytes.
    """
    if base_weights == "fp32":
        return
    to_bf16(module)
    for site in quantisable(module).values() if base_weights in BITS else ():
        weight = as_quantised(site, BITS[base_weights], **OPTIONS[base_weights]).float()
        site.parameter.data = (weight.t() if site.transposed else weight).contiguous()
    nn.Module.float(module)


def planned(module: nn.Module, base_weights: str) -> nn.Module:
    """Return a copy of a model without values, with layers that stand for the quantised ones."""
    module = copy.deepcopy(module)
    if base_weights in BITS:
        plan_layers(module, quantisable(module), BITS[base_weights], torch.bfloat16)
    return module


def held_bytes(module: nn.Module, base_weights: str) -> int:
    """Return the bytes that a model's weights take as `hold` leaves them. Reads no values."""
    each = 4 if base_weights == "fp32" else 2
    whole = sum(p.numel() for p in module.parameters())
    if base_weights not in BITS:
        return each * whole
    shapes = [site.shape for site in quantisable(module).values()]
    packed = sum(sum(packed_bytes(shape, BITS[base_weights])) for shape in shapes)
    return each * (whole - sum(out * width for out, width in shapes)) + packed


def quantisable(module: nn.Module) -> dict[str, Site]:
    """Return the weights that "nf4" and "int8" pack: those of all linear layers except the output layer."""
    return linear_layers(module, output_layer(module))


def to_bf16(module: nn.Module) -> None:
    """Keep parameters in bfloat16; buffers, such as frequencies of positions, stay as they are."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
