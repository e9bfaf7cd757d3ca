"""Export to Hugging Face PEFT's adapter directory, if that is lossless. `peft_import` reads such directories.

PEFT has these methods itself, on `nn.Linear` and `Conv1D`: LoRA and DoRA with any ranks, VeRA and RandLoRA with one
rank. LoRA also works on the packed input projection of `nn.MultiheadAttention`. There PEFT adapts the output projection
too, which gets factors of zero. An adapter on the output projection is not exported, because PEFT 0.21.2 adds its delta
twice. The shared bases of VeRA and RandLoRA are written once, in PEFT's global tensors. PEFT up to 0.21 warns that
RandLoRA's copies per layer are missing, and is right without them.

Other methods are written as the LoRA that computes the same (`peft_lora`): PiSSA (with rank 2 r), LoRA-XS, AdaLoRA and
AutoLoRA (the terms that are left), NoLA, RandLoRA-a, and VeRA with several ranks; also LoRA and DoRA on parts of fused
weights. A README.md in the directory says so. The remaining methods have no such form. They can be exported as dense
deltas or merged weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import nn

from randlora.errors import ExportError
from randlora.files.checkpoint import Adapted
from randlora.files.peft_lora import INSTEAD, PREFIX, TRAINED, Tensors, is_packed_attention, peft_can_wrap, write_lora
from randlora.files.tensors import write_tensors, write_text
from randlora.methods.bridge.build import PeftAdapter
from randlora.methods.bridge.config import PeftOptions
from randlora.methods.bridge.installed import PREFIX as FOREIGN
from randlora.methods.bridge.installed import quiet
from randlora.methods.bridge.kinds import kind_of
from randlora.methods.random.randlora import RandLora, RandLoraConfig
from randlora.methods.random.vera import Vera, VeraConfig


def export_peft(adapted: Adapted, directory: str | Path) -> Path:
    """Write the adapter in PEFT's format and return the folder.

    Args:
        adapted: the model with its adapters.
        directory: the folder for `adapter_config.json`, `adapter_model.safetensors`, and a `README.md` that describes
            them.

    Raises:
        ExportError: PEFT has no exact form; the message names an alternative. That is so for weights that PEFT cannot
            reach, RandLoRA with several ranks or on parts of weights, and methods without a low-rank delta.
    """
    adapted.check_whole("export to PEFT")
    if adapted.method.name.startswith(FOREIGN):
        return _foreign(adapted, Path(directory))
    write, itself = _writer(adapted)
    config, tensors = write(adapted)
    modules = dict.fromkeys(site.module_name for site in adapted.sites.values())
    config |= {
        "target_modules": _target_modules(adapted.model, list(modules)),
        "fan_in_fan_out": any(site.transposed for site in adapted.sites.values()),
        "bias": "none",
        "inference_mode": True,
        "task_type": None,
        "base_model_name_or_path": None,
    }
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    write_text(folder / "adapter_config.json", json.dumps(config, indent=1) + "\n")
    write_text(folder / "README.md", _card(adapted, itself))
    return folder


def peft_form(adapted: Adapted) -> Literal["itself", "lora"]:
    """Return how PEFT can hold an adapter: as the method "itself", or as the equivalent "lora".

    Works on the meta device. AdaLoRA and AutoLoRA are taken as they are before any of their terms is dropped.

    Raises:
        ExportError: PEFT has no exact form.
    """
    if adapted.method.name.startswith(FOREIGN):
        _one_tuner(adapted)
        return "itself"
    write, itself = _writer(adapted)
    write(adapted)
    return "itself" if itself else "lora"


def peft_config(adapted: Adapted) -> dict[str, Any]:
    """Return the `adapter_config.json` with which PEFT trains an adapter of this kind and size from its start.

    Works on the meta device.

    Raises:
        ExportError: PEFT lacks the method, or cannot train it with these capacities or options.
    """
    method, modules = adapted.method, list(dict.fromkeys(site.module_name for site in adapted.sites.values()))
    if method.name.startswith(FOREIGN):
        _one_tuner(adapted)
        settings: dict[str, Any] = json.loads(json.dumps(_foreign_settings(adapted), default=sorted))
    else:
        write, itself = _writer(adapted)
        if not itself:
            raise ExportError(f"PEFT cannot train {method.title}; it can only hold a trained adapter as a LoRA")
        if isinstance(adapted.config, RandLoraConfig) and adapted.config.distribution != "uniform":
            raise ExportError(f"PEFT's RandLoRA draws bases of other values than {adapted.config.distribution!r} ones")
        settings, _ = write(adapted)
    return settings | {
        "target_modules": _ends(adapted.model, modules) or _target_modules(adapted.model, modules),
        "fan_in_fan_out": any(site.transposed for site in adapted.sites.values()),
        "inference_mode": False,
    }


def _foreign_settings(adapted: Adapted) -> dict[str, Any]:
    """Return the fields of PEFT's own configuration, for one of PEFT's methods."""
    config = adapted.config
    assert isinstance(config, PeftOptions)
    sizes = set(adapted.capacities.values())
    if not config.kind.pooled and len(sizes) > 1:
        field = adapted.method.capacity_field
        raise ExportError(f"the layers differ in {field}: {sorted(sizes)}, PEFT's {adapted.method.title} holds one")
    capacity = sum(adapted.capacities.values()) if config.kind.pooled else min(sizes)
    settled = config.kind.settled(adapted.shapes.values(), config.options())
    fields: dict[str, Any] = config.peft_config(capacity, **settled).to_dict()
    return fields


def _ends(model: nn.Module, modules: list[str]) -> list[str] | None:
    """Return the last parts of the modules' names, such as `q_proj`, if no other module's name ends so; else None."""
    ends = {module.rpartition(".")[2] for module in modules}
    matching = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in ends}
    return sorted(ends) if matching == set(modules) else None


def _writer(adapted: Adapted) -> tuple[_Write, bool]:
    """Return the function that makes PEFT's tensors, and whether PEFT then has the method itself."""
    method = adapted.method
    if not method.mergeable:
        raise ExportError(
            f"PEFT has no {method.title}, and its update is not a matrix; save() keeps the adapter itself"
        )
    native = method.name in ("lora", "dora")
    write: _Write = write_lora
    one_rank = len(set(adapted.capacities.values())) == 1
    parted = [name for name, site in adapted.sites.items() if site.part is not None]
    if method.name in _WRITERS and one_rank and not parted:
        write, native = _WRITERS[method.name], True
    elif method.name not in _AS_LORA:
        raise ExportError(_why_not(adapted, parted))
    for name, site in adapted.sites.items():
        if not peft_can_wrap(site) and (
            write is not write_lora or method.name == "dora" or not is_packed_attention(site)
        ):
            raise ExportError(
                f"{name} is not the weight of a called nn.Linear or Conv1D, which PEFT's "
                f"{method.title if native else 'LoRA'} needs; {INSTEAD}"
            )
    return write, native and not parted


def _one_tuner(adapted: Adapted) -> Any:
    """Return PEFT's tuner of all adapters; None on the meta device, for a type that PEFT builds on weights alone.

    Raises:
        ExportError: there are several tuners, or PEFT cannot reach a weight.
    """
    for name, site in adapted.sites.items():
        if not site.by_activation or site.part is not None or site.quantised:
            raise ExportError(f"{name} is not the weight of a called nn.Linear, which PEFT adapts; {INSTEAD}")
        if site.transposed and not kind_of(adapted.method.name).conv1d:
            title = adapted.method.title
            raise ExportError(f"{name} is the weight of a Conv1D, and {title} adapts nn.Linear alone; {INSTEAD}")
    tuners = {id(a.tuner): a.tuner for a in adapted.adapters.values() if isinstance(a, PeftAdapter)}
    if len(tuners) > 1:
        field, sizes = adapted.method.capacity_field, sorted(set(adapted.capacities.values()))
        raise ExportError(f"the layers differ in {field}: {sizes}, PEFT's {adapted.method.title} holds one; {INSTEAD}")
    return next(iter(tuners.values()), None)


def _foreign(adapted: Adapted, folder: Path) -> Path:
    """Let PEFT write its own files, for one of PEFT's methods. The names of modules are those of the model."""
    tuner = _one_tuner(adapted)
    config = tuner.peft_config["default"]
    tuner_targets, transposed = config.target_modules, any(site.transposed for site in adapted.sites.values())
    modules = {site.module_name for site in adapted.sites.values()}
    matched = {n for n, _ in adapted.model.named_modules() if any(f".{n}".endswith(f".{end}") for end in tuner_targets)}
    if (
        matched != modules
    ):  # the tuner has the ends of the layers' names; this model has other modules with the same ends
        config.target_modules = _target_modules(adapted.model, list(modules))
    if transposed:
        config.fan_in_fan_out = True  # in the tree that the tuner knows, every weight is (out x in)
    try:
        with quiet():
            tuner.save_pretrained(folder)
    finally:
        config.target_modules = tuner_targets
        if transposed:
            config.fan_in_fan_out = False
    return folder


def _why_not(adapted: Adapted, parted: list[str]) -> str:
    """Return why PEFT has no exact form for these adapters."""
    title = adapted.method.title
    if adapted.method.name not in _WRITERS:
        return f"PEFT has no {title}, and this package knows no low-rank form of its delta; {INSTEAD}"
    if parted:
        return f"{parted[0]} is a part of a fused weight, which PEFT's {title} cannot adapt alone; {INSTEAD}"
    ranks = sorted(set(adapted.capacities.values()))
    return f"the layers have different ranks {ranks}, PEFT's {title} holds one; {INSTEAD}"


def _target_modules(model: nn.Module, modules: list[str]) -> list[str] | str:
    """Return the modules' names. If PEFT, which compares ends of names, would adapt other modules too: a regular
    expression."""
    if "" in modules:
        raise ExportError(
            "the adapted module is the model itself, and PEFT adapts modules inside one: attach to nn.Sequential(model)"
        )
    chosen = set(modules)
    caught = [n for n, _ in model.named_modules() if n not in chosen and any(n.endswith(f".{m}") for m in modules)]
    return "|".join(m.replace(".", r"\.") for m in modules) if caught else modules


def _card(adapted: Adapted, native: bool) -> str:
    """Return a model card, which says what was exported and in which form."""
    title = adapted.method.title
    what = (
        f"A {title} adapter."
        if native
        else f"A {title} adapter, written as the LoRA that computes the same delta (to rounding): PEFT can run, merge "
        f"and train it on as a LoRA, but not as {title}."
    )
    weights = "\n".join(f"- `{name}`: {shape[0]} x {shape[1]}" for name, shape in adapted.shapes.items())
    return f"---\nlibrary_name: peft\n---\n\n{what}\n\nIt changes these weights (out x in):\n\n{weights}\n"


def _native(adapted: Adapted, rank: int, options: dict[str, Any], frozen: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Return the configuration and the tensors of a method that PEFT has itself, with shared bases and one rank."""
    name = adapted.method.name
    tensors: Tensors = {f"base_model.{name}_{key}": matrix for key, matrix in frozen.items()}
    for weight, adapter in adapted.adapters.items():
        for peft_name, name_here in TRAINED[name].items():
            tensors[f"{PREFIX}{adapted.sites[weight].module_name}.{peft_name}"] = adapter.get_parameter(name_here)
    config = {
        "peft_type": name.upper(),
        "r": rank,
        f"{name}_dropout": adapted.config.options()["dropout"],
        "projection_prng_key": adapted.basis_seed,
        "save_projection": True,
    }
    return config | options, tensors


def _vera(adapted: Adapted) -> tuple[dict[str, Any], Tensors]:
    """Return PEFT's configuration and tensors of VeRA adapters."""
    config, bases = adapted.config, adapted.bases()
    assert isinstance(config, VeraConfig) and bases is not None
    (rank,) = set(adapted.capacities.values())
    frozen = {key: bases.get(key) for key in "AB"}
    written, tensors = _native(adapted, rank, {"d_initial": config.d_initial}, frozen)
    for weight, adapter in adapted.adapters.items():  # PEFT's VeRA has no scale, so b is multiplied by it
        if isinstance(adapter, Vera):
            tensors[f"{PREFIX}{adapted.sites[weight].module_name}.vera_lambda_b"] = adapter.up.detach()
    return written, tensors


def _randlora(adapted: Adapted) -> tuple[dict[str, Any], Tensors]:
    """Return PEFT's configuration and tensors of RandLoRA adapters."""
    config, bases = adapted.config, adapted.bases()
    assert isinstance(config, RandLoraConfig) and bases is not None
    (rank,) = set(adapted.capacities.values())
    # PEFT sizes its bases by the largest and the smallest side over all layers
    outs, ins = max(s[0] for s in adapted.shapes.values()), max(s[1] for s in adapted.shapes.values())
    large, small = max(outs, ins), min(outs, ins)
    n = -(-small // rank)
    # imported bases may be larger than this
    a, b = bases.get("A")[:rank, :small], bases.get("B")[:large, : n * rank]
    a_all, b_all = a.new_zeros(rank, 1, small), b.new_zeros(large, n * rank)
    a_all[:, 0, : a.shape[1]] = a
    b_all[: b.shape[0], : b.shape[1]] = b
    frozen = {"A": a_all, "B": b_all.view(large, n, rank)}
    written, tensors = _native(adapted, rank, {"randlora_alpha": config.scale * rank}, frozen)
    for (
        weight,
        adapter,
    ) in adapted.adapters.items():  # PEFT has one scale for all layers, so lambda is multiplied by the rest
        if isinstance(adapter, RandLora) and adapter.scale != config.scale:
            key = f"{PREFIX}{adapted.sites[weight].module_name}.randlora_lambda"
            tensors[key] = tensors[key] * (adapter.scale / config.scale)
    return written, tensors


_Write = Callable[[Adapted], tuple[dict[str, Any], Tensors]]
_WRITERS: dict[str, _Write] = {
    "lora": write_lora,
    "lora-plus": write_lora,
    "dora": write_lora,
    "vera": _vera,
    "randlora": _randlora,
}
_STARTS = ("pissa", "milora", "olora", "init-ab", "lora-ga")
_AS_LORA = ("lora", "dora", "vera", "lora-plus", *_STARTS, "lora-xs", "adalora", "autolora", "nola", "randlora-a")
