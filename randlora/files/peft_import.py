"""Import from Hugging Face PEFT's adapter directory.

LoRA, rank-stabilised LoRA, DoRA, VeRA and RandLoRA become this package's own methods. PEFT's other types become
`peft:NAME` (`files.peft_types`).

The trained tensors and the frozen bases are taken over bit for bit in float32, with one exception. If a LoRA has
several scales (`alpha_pattern`), B is multiplied, because a model has one scale here. Ranks may differ
(`rank_pattern`). The bases must be in the file (`save_projection=True`, PEFT's default): those that PEFT would draw
again depend on its version and on the machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from randlora.adapter import AdapterConfig
from randlora.errors import AdapterError, CheckpointError
from randlora.files.checkpoint import read_json
from randlora.files.peft_lora import PREFIX, TRAINED
from randlora.files.peft_types import Settings, check_pattern, is_known, read_settings
from randlora.files.tensors import read_tensors
from randlora.methods.bridge.kinds import KINDS
from randlora.methods.lowrank.lora import DoraConfig, LoraConfig
from randlora.methods.random.randlora import RandLoraConfig
from randlora.methods.random.vera import VeraConfig

_TRAINED = {"lora_A", "lora_B", "lora_magnitude_vector"}.union(*TRAINED.values())
_BASES = ("randlora_A", "randlora_B", "vera_A", "vera_B")
_KEEP_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights` with which PEFT leaves the base weights as they are."""
_CHANGE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Beginnings of values with which PEFT changes the base weights. What other values do is not known."""
_NOT_IN_LORA = {
    "lora_bias": False, "use_qalora": False, "alora_invocation_tokens": None, "layer_replication": None,
    "arrow_config": None, "kasa_config": None, "monteclora_config": None, "use_bdlora": None,
}  # fmt: skip
"""PEFT's options of a LoRA that change what its tensors mean -> the value that changes nothing."""

Layers = dict[str, dict[str, Tensor]]
"""Module name -> tensor name -> values."""


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter that PEFT stored, with this package's names of weights and tensors.

    Attributes:
        config: the method's configuration.
        weights: names of the adapted weights.
        state: the trained tensors by name. If there are `settings`, the names are PEFT's.
        bases: the frozen bases; None if the method has none.
        settings: PEFT's settings, if the type is a `peft:NAME` here; else None.
    """

    config: AdapterConfig
    weights: tuple[str, ...]
    state: dict[str, Tensor]

    bases: dict[str, Tensor] | None
    settings: Settings | None = None

    @property
    def capacities(self) -> dict[str, int]:
        """Return weight name -> capacity. It is empty for VeRA and RandLoRA, whose weights all have the
        configuration's."""
        if self.settings is not None:
            return self.settings.capacities
        if not isinstance(self.config, LoraConfig):
            return {}
        return {name.removesuffix(".b"): b.shape[1] for name, b in self.state.items() if name.endswith(".b")}


def read_peft(model: nn.Module, directory: Path) -> PeftAdapter:
    """Read PEFT's `directory` for `model`, which stays as it is. Raises CheckpointError as `load_peft` does."""
    config = _read_config(directory)
    reader = _READERS.get(str(config.get("peft_type")))
    if reader is None and not is_known(config.get("peft_type")):
        readable = [name.upper() for name in KINDS]
        raise CheckpointError(f"peft_type {config.get('peft_type')!r} is not read here; {readable} are")
    _refuse(config, {"bias": ("none", None), "modules_to_save": (None, [])})
    tensors = read_tensors(directory / "adapter_model.safetensors")
    try:
        if reader is None:
            settings = read_settings(model, directory, str(config["peft_type"]))
            return PeftAdapter(settings.config, tuple(settings.capacities), tensors, None, settings)
        layers, bases = _by_module(tensors)
        _drop_zero_projections(layers)
        if not layers:
            raise CheckpointError(f"{directory} holds no adapter tensors")
        ours, state, frozen = reader(
            config, {_weight_name(model, name): tensors_of_layer for name, tensors_of_layer in layers.items()}, bases
        )
    except AdapterError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, re.error) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"the PEFT adapter in {directory} has settings that are not valid ({reason})") from error
    return PeftAdapter(ours, tuple(_weight_name(model, name) for name in layers), state, frozen)


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the content of `adapter_config.json`. Raises CheckpointError if it is missing or damaged."""
    path = folder / "adapter_config.json"
    config = read_json(path, "no PEFT adapter")
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a {type(config).__name__}, not an object")
    return config


def _refuse(config: Mapping[str, Any], allowed: Mapping[str, object]) -> None:
    """Raise CheckpointError if an option has a value that is not allowed. Options that are missing or empty pass."""
    for key, values in allowed.items():
        value = config.get(key)
        choices = values if isinstance(values, tuple) else (values,)
        if value and value not in choices:
            raise CheckpointError(f"the PEFT adapter has {key}={value!r}, which has no counterpart here")


def _by_module(tensors: Mapping[str, Tensor]) -> tuple[Layers, dict[str, Tensor]]:
    """Return the trained tensors by module, and the shared bases. PEFT up to 0.21 repeats RandLoRA's bases in every
    layer."""
    layers: Layers = {}
    bases: dict[str, Tensor] = {}
    for key, values in tensors.items():
        path = key.removesuffix(".weight")
        owner, _, last = path.rpartition(".")
        if last in _BASES:
            if last not in bases or owner == "base_model":
                bases[last] = values
        elif last in _TRAINED:
            layers.setdefault(owner.removeprefix(PREFIX), {})[last] = values
        else:
            raise CheckpointError(f"the PEFT adapter holds {key!r}, which has no counterpart here")
    return layers, bases


def _drop_zero_projections(layers: Layers) -> None:
    """Remove factors of zero on attentions' output projections. Raises CheckpointError for others.

    What those mean depends on PEFT's version.
    """
    for name in [n for n in layers if n.endswith(".base_layer.out_proj")]:
        if bool((layers[name]["lora_B"] != 0).any()):
            raise CheckpointError(
                f"the PEFT adapter changes {name}: PEFT 0.21.2 adds the delta of an nn.MultiheadAttention's output "
                "projection twice, so what the numbers in the file mean depends on the version of PEFT"
            )
        del layers[name]


def _weight_name(model: nn.Module, layer: str) -> str:
    """Return the weight name for PEFT's layer name. An attention module stands for its packed input projection."""
    try:
        module = model.get_submodule(layer)
    except AttributeError as error:
        raise CheckpointError(f"the PEFT adapter is for {layer!r}, which this model does not have") from error
    return f"{layer}.in_proj_weight" if isinstance(module, nn.MultiheadAttention) else f"{layer}.weight"


def _renamed(layers: Layers, names: Mapping[str, str], transposed: Iterable[str] = ()) -> dict[str, Tensor]:
    """Return this package's state dict.

    Args:
        layers: PEFT's tensors by weight.
        names: PEFT's name of a tensor -> ours.
        transposed: PEFT's names of the tensors to transpose.
    """
    state = {}
    for weight, tensors in layers.items():
        if missing := names.keys() - tensors.keys():
            raise CheckpointError(f"the PEFT adapter lacks {sorted(missing)} of {weight}")
        for peft_name, name_here in names.items():
            if tensors[peft_name].ndim > 2:
                raise CheckpointError(
                    f"the PEFT adapter's {peft_name} of {weight} has shape {tuple(tensors[peft_name].shape)}, as for a "
                    "convolution; only 2-D weights are adapted here"
                )
            state[f"{weight}.{name_here}"] = tensors[peft_name].t() if peft_name in transposed else tensors[peft_name]
    return state


Read = tuple[AdapterConfig, dict[str, Tensor], dict[str, Tensor] | None]


def _lora(config: Mapping[str, Any], layers: Layers, bases: Mapping[str, Tensor]) -> Read:
    """Return the configuration and the tensors of a LoRA or DoRA."""
    _refuse(config, _NOT_IN_LORA)
    start = config.get("init_lora_weights", True)
    word = start.lower() if isinstance(start, str) else start  # PEFT compares in lower case too
    if word not in _KEEP_BASE:
        changes = "changes" if str(word).startswith(_CHANGE_BASE) else "may change"
        raise CheckpointError(
            f"the PEFT adapter was started with init_lora_weights={start!r}, which {changes} the "
            "base weights; convert it to plain LoRA in PEFT first (save_pretrained(..., path_initial_model_for_weight_"
            "conversion=...))"
        )
    dora = bool(config.get("use_dora"))
    kind = DoraConfig if dora else LoraConfig
    ours = kind(
        r=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        dropout=float(config.get("lora_dropout") or 0.0),
        rank_stabilised=bool(config.get("use_rslora")),
    )
    names = {"lora_A": "a", "lora_B": "b"} | ({"lora_magnitude_vector": "magnitude"} if dora else {})
    state = _renamed(layers, names, transposed=["lora_A"])
    for weight in layers:
        module = weight.rpartition(".")[0]
        alpha = _of_pattern(config.get("alpha_pattern"), module, float(config["lora_alpha"]))
        rank = state[f"{weight}.a"].shape[1]
        scale = alpha / (math.sqrt(rank) if ours.rank_stabilised else rank)
        if scale != ours.scale:  # a model has one scale here, so B is multiplied by the rest
            b = state[f"{weight}.b"]  # in float32, because 16 bits would round the product
            state[f"{weight}.b"] = b.to(torch.promote_types(b.dtype, torch.float32)) * (scale / ours.scale)
    return ours, state, None


def _of_pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """Return a pattern's value for a module by PEFT's rule: the first key that matches the end of its name, after any
    dot."""
    for key, value in (patterns or {}).items():
        check_pattern("alpha_pattern", key)
        try:
            match = re.match(rf"(.*\.)?({key})$", module)
        except re.error as error:
            raise CheckpointError(f"the PEFT adapter's alpha_pattern has the key {key!r}: {error}") from error
        if match:
            return float(value)
    return default


def _frozen(bases: Mapping[str, Tensor], method: str) -> dict[str, Tensor]:
    """Return A (r x in) and B (out x ...) of a method with shared bases. Raises CheckpointError if the file
    lacks them."""
    for name in (f"{method}_A", f"{method}_B"):
        if name not in bases:
            raise CheckpointError(
                f"the PEFT adapter does not hold its frozen {name}; save it again with save_projection=True"
            )
    return {"A": bases[f"{method}_A"], "B": bases[f"{method}_B"]}


def _vera(config: Mapping[str, Any], layers: Layers, bases: Mapping[str, Tensor]) -> Read:
    """Return the configuration, the tensors and the bases of a VeRA."""
    ours = VeraConfig(
        r=int(config["r"]),
        d_initial=float(config.get("d_initial", 0.1)),
        dropout=float(config.get("vera_dropout") or 0.0),
    )
    return ours, _renamed(layers, TRAINED["vera"]), _frozen(bases, "vera")


def _randlora(config: Mapping[str, Any], layers: Layers, bases: Mapping[str, Tensor]) -> Read:
    """Return the configuration, the tensors and the bases of a RandLoRA."""
    ours = RandLoraConfig(
        r=int(config["r"]), alpha=float(config["randlora_alpha"]), dropout=float(config.get("randlora_dropout") or 0.0)
    )
    frozen = _frozen(bases, "randlora")
    frozen = {"A": frozen["A"].squeeze(1), "B": frozen["B"].flatten(1)}
    return ours, _renamed(layers, TRAINED["randlora"]), frozen


_READERS: dict[str, Callable[[Mapping[str, Any], Layers, Mapping[str, Tensor]], Read]] = {
    "LORA": _lora,
    "VERA": _vera,
    "RANDLORA": _randlora,
}
