"""Shapes without weights: a base model on the meta device, and the (out, in) of its target weights."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import struct
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn

from randlora.errors import TargetError, nearest
from randlora.methods.registry import get_method
from randlora.model.families import default_targets as known_targets
from randlora.model.families import family_name
from randlora.model.prompted import PLACE, place_of
from randlora.model.targets import resolve_targets
from trainables.errors import first_line
from trainables.hub import cached_repositories, hub_answers
from trainables.models.encoders import is_unused
from trainables.models.families import FUSED, GGUF, KINDS, Kind, ModelError, ModelId, parse_id
from trainables.models.folder import check_folder
from trainables.models.fused import fuse_qkv

UNREADABLE = (
    RuntimeError, OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, ArithmeticError,
    struct.error, SafetensorError,
)  # fmt: skip
"""What the libraries raise if files are missing, damaged, or of another model, or if a package is missing."""

Shape = tuple[int, int]

MOST_LAYERS = 10_000
"""The largest number of layers in a config. Building more would take hours, if it ended at all."""
VISUAL = "visual."
"""open_clip's prefix of the image tower's weights."""


def meta_model(model_id: str) -> nn.Module:
    """Return the model's modules with shapes and names but no data, on the meta device.

    open_clip's architectures, local directories and the models of `known_configs` need no network. For any other `hf:`
    id it reads the hub's config.json.

    Raises:
        ModelError: the id is unknown, or the config cannot be read.
    """
    parsed = parse_id(model_id)
    if is_open_clip(parsed, model_id):
        import open_clip

        folder, architecture_config = parsed.folder, open_clip.get_model_config
        return _open_clip_meta(
            architecture_config(parsed.name) if folder is None else open_clip_config(folder, model_id), model_id
        )
    config = shape_config(parsed, model_id)
    auto_class = hf_class(kind_of(config, model_id))
    try:
        with torch.device("meta"):
            module = cast("nn.Module", auto_class.from_config(config, trust_remote_code=False))
    except Exception as error:  # sizes that no model has fail anywhere in it; named and raised on
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ModelError(
            f"{model_id!r}: no model can be built from its config ({reason}). {advice(model_id)}"
        ) from error
    return fused(module, parsed, model_id)


def fused(module: nn.Module, parsed: ModelId, model_id: str) -> nn.Module:
    """Fuse q, k and v of a model in place if its id asks for it. Raises ModelError if it has no attention to fuse."""
    if parsed.fused and not fuse_qkv(module):
        raise ModelError(
            f"{model_id!r}: no attention of it has q_proj, k_proj and v_proj of one size, all with or all without a "
            f"bias; leave {FUSED} out"
        )
    return module


def model_kind(model_id: str) -> Kind:
    """Return the task family that can train a model, from its config at most. Raises ModelError if there is none, or no
    config."""
    parsed = parse_id(model_id)
    return "clip" if is_open_clip(parsed, model_id) else kind_of(shape_config(parsed, model_id), model_id)


def default_targets(model: str | nn.Module) -> list[str]:
    """Return the ends of the names of the default target weights of a model (an id or a module). Raises ModelError if
    none."""
    try:
        return known_targets(_module(model))
    except TargetError as error:
        raise ModelError(f"{error} (model.targets)") from error


def model_size(model: str | nn.Module) -> int:
    """Return the number of parameters of a model (an id or a module), without heads that a task adds. Reads no
    weights."""
    return sum(p.numel() for p in _module(model).parameters())


def _module(model: str | nn.Module) -> nn.Module:
    return meta_model(model) if isinstance(model, str) else model


def target_shapes(
    model: str | nn.Module, targets: Sequence[str] | None = None, adapt: str = "both"
) -> dict[str, Shape]:
    """Return the qualified names and (out, in) of the weights to adapt, in the model's order. Reads no weights.

    Args:
        model: a model id, or the module.
        targets: names, ends of names or patterns (`randlora.resolve_targets`). None: the family's defaults.
        adapt: for CLIP, "vision" keeps the image tower, "both" and "all" keep both towers. "both" needs a target in
            each. Other models have one tower, of which "vision" names no part.

    Weights that no task reads (`encoders.is_unused`) are left out.

    Raises:
        ModelError: the model is unknown, a target matches only weights that no task reads, or a tower that `adapt`
            names has no target.
        TargetError: a target matches no weight.
    """
    module = _module(model)
    resolved = _read_targets(module, list(targets) if targets is not None else default_targets(module))
    if adapt not in ("vision", "both", "all"):
        raise ModelError(f"adapt must be one of vision, both, all; got {adapt!r}")
    name = family_name(module)
    if adapt == "all" or name is None or (adapt == "both" and name != "open_clip"):
        return resolved
    if name != "open_clip":
        raise ModelError(f"adapt = 'vision', but a {name} model has one tower; nearest: 'all'")
    visual = {name: shape for name, shape in resolved.items() if name.startswith(VISUAL)}
    if not visual:
        raise ModelError(
            f"adapt = {adapt!r}, but no target lies in the visual tower; name 2-D weights of it in model.targets"
        )
    if adapt == "both" and len(visual) == len(resolved):
        raise ModelError("adapt = 'both', but all targets lie in the visual tower; nearest: 'vision'")
    return resolved if adapt == "both" else visual


def _read_targets(module: nn.Module, targets: Sequence[str]) -> dict[str, Shape]:
    """Return the shapes of the targets that a task reads. Raises ModelError if a target matches none of these."""
    resolved = resolve_targets(module, targets)
    unused = {name for name in resolved if is_unused(module, name)}
    for target in targets if unused else ():
        matched = resolve_targets(module, [target])
        if matched.keys() <= unused:
            raise ModelError(
                f"target {target!r} matches only weights that no task reads, such as {next(iter(matched))!r}, and "
                "these cannot train; leave it out of model.targets"
            )
    return {name: shape for name, shape in resolved.items() if name not in unused}


def method_shapes(method: str, model: str | nn.Module, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return what a method counts on: the target weights of `shapes`, the place of prompts, or both.

    Raises:
        ModelError: the model has no place for prompts.
    """
    entry = get_method(method)
    if not entry.prompts:
        return dict(shapes)
    try:
        place = place_of(_module(model))
    except TargetError as error:
        raise ModelError(f"the model cannot take {method}: {error}") from error
    return {PLACE: place, **(shapes if entry.on_weights else {})}


def is_open_clip(parsed: ModelId, model_id: str) -> bool:
    """Return whether a model is open_clip's; else it is transformers'.

    Raises:
        ModelError: a directory has no config, or refers to something outside it.
    """
    folder = parsed.folder
    if folder is None or parsed.gguf is not None:
        return parsed.scheme == "open_clip"
    check_folder(folder, model_id)
    if (folder / "open_clip_config.json").is_file():
        return True
    if (folder / "config.json").is_file():
        return False
    raise ModelError(
        f"{model_id!r}: {folder} has neither open_clip_config.json (open_clip) nor config.json (transformers)"
    )


def hf_config(source: str, model_id: str, *, gguf: str | None = None) -> Any:
    """Return a transformers config of a directory, the hub or a GGUF file.

    Raises:
        ModelError: there is none, or it brings code; a package that reads its quantised weights is missing; or it has
            an adapter beside it.
    """
    from transformers import AutoConfig
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        if (local := Path(source) / "config.json").is_file() and gguf is None:
            _check_layers(json.loads(local.read_text(encoding="utf-8")))  # a config makes a list of its layers
        elif not Path(source).is_dir():
            hub_answers()
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **gguf_argument(gguf, model_id))
        adapter = find_adapter_config_file(source)
    except Exception as error:  # values of any kind, a file of any kind; named and raised on
        raise ModelError(f"{model_id!r}: its config can't be read ({first_line(error)}). {advice(model_id)}") from error
    if adapter is not None:  # transformers would put it on the model, or take the base model that it names
        raise ModelError(
            f"{model_id!r} has an adapter beside its weights ({Path(adapter).name}); merge it into them first"
        )
    if gguf is None and (quantised := getattr(config, "quantization_config", None)) is not None:
        _check_package(quantised, model_id)
    return config


def _check_package(quantised: Any, model_id: str) -> None:
    """Raise ModelError where the package that reads quantised weights is missing."""
    from transformers.quantizers import AutoHfQuantizer

    try:
        AutoHfQuantizer.from_config(quantised, pre_quantized=True).validate_environment(
            device_map=None, weights_only=True
        )
    except ImportError as error:
        raise ModelError(
            f"{model_id!r}: its weights are quantised ({first_line(error)}). Install the package, or take the model's "
            "weights that are not quantised"
        ) from error
    except UNREADABLE:  # what else is wrong shows where they are loaded, maybe on a machine with the GPU that they need
        return


@functools.cache
def known_configs() -> Mapping[str, Mapping[str, Any]]:
    """Return what decides the shapes of the hub models in `examples/paper`, so that these can be planned without a
    network.

    They are keyed by repository, and are facts from the published config.json. Weights are never loaded by these, but
    by the hub's own file.
    """
    text = resources.files("trainables.models").joinpath("known_configs.json").read_text(encoding="utf-8")
    configs = json.loads(text)
    return cast("dict[str, dict[str, Any]]", configs)


def shape_config(parsed: ModelId, model_id: str) -> Any:
    """Return the config from which shapes are taken: of a directory, `known_configs`, or the hub. Raises as `hf_config`
    does."""
    if parsed.folder is None and parsed.gguf is None and parsed.name in known_configs():
        from transformers import AutoConfig

        return AutoConfig.for_model(**known_configs()[parsed.name])
    return hf_config(str(parsed.folder or parsed.name), model_id, gguf=parsed.gguf)


def gguf_argument(gguf: str | None, model_id: str) -> dict[str, str]:
    """Return the arguments that make transformers read a GGUF file. Raises ModelError if the package that reads it is
    missing."""
    if gguf is None:
        return {}
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{model_id!r}: GGUF files need the package gguf: pip install 'randlora-sweeps[gguf]'")
    return {"gguf_file": gguf}


def advice(model_id: str) -> str:
    """Return what to do if a model cannot be reached or read, for a message."""
    local = model_id.startswith("local:")
    if model_id.endswith(GGUF):
        read = "transformers' page on GGUF lists the architectures that it reads."
        if local:
            return f"Fetch the file again; {read}"
        return f"Without a network, download the file elsewhere and write local:DIR/FILE.gguf; {read}"
    if local:
        return "Check config.json, or save the model again with save_pretrained."
    ids = [f"hf:{repository}" for repository in (*known_configs(), *cached_repositories())]
    close = nearest(model_id, ids)
    hint = f" ({close})" if close.startswith("nearest") and model_id not in ids else ""
    return f"Without a network, download the model elsewhere and write local:DIR, a directory with its files{hint}."


def hf_class(kind: Kind) -> Any:
    """Return transformers' auto class for a kind: with a language-model head for causal models, else the bare
    encoder."""
    from transformers import AutoModel, AutoModelForCausalLM

    return AutoModelForCausalLM if kind == "causal-lm" else AutoModel


def kind_of(config: Any, model_id: str) -> Kind:
    """Return the kind of a transformers model by its family, or else by its config. Raises ModelError if it has
    none."""
    if config.model_type in KINDS:
        return KINDS[config.model_type]
    architectures = config.architectures or []
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        return "causal-lm"
    if config.is_encoder_decoder:
        raise ModelError(
            f"{model_id!r}: {config.model_type} is an encoder with a decoder, which no task trains; take an encoder "
            "alone, such as RoBERTa or DeBERTa, or a causal language model"
        )
    if getattr(config, "vision_config", None) is not None:
        raise ModelError(
            f"{model_id!r}: {config.model_type} has a tower for images and one for texts; write open_clip:ARCH/TAG, "
            "such as open_clip:ViT-B-32/openai, or save its vision tower alone and write local:DIR"
        )
    reads_images = hasattr(config, "image_size") or (
        hasattr(config, "num_channels") and not hasattr(config, "vocab_size")
    )
    return "hf-vision" if reads_images else "text-encoder"


def open_clip_config(folder: Path, model_id: str) -> dict[str, Any]:
    """Return the `model_cfg` of an open_clip directory. Raises ModelError if there is none, or if a text tower brings
    code."""
    path = folder / "open_clip_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{model_id!r}: {path} can't be read as JSON ({first_line(error)})") from error
    inner = config.get("model_cfg") if isinstance(config, dict) else None
    needed = {"embed_dim", "vision_cfg", "text_cfg"}
    towers = isinstance(inner, dict) and all(isinstance(inner.get(name), dict) for name in ("vision_cfg", "text_cfg"))
    if not isinstance(inner, dict) or not towers or not needed <= inner.keys():
        raise ModelError(f"{model_id!r}: {path} must have model_cfg with embed_dim, vision_cfg and text_cfg")
    try:
        _check_layers(inner)
    except ValueError as error:
        raise ModelError(f"{model_id!r}: {path}: {error}") from error
    tokenizer_arguments = inner["text_cfg"].get("tokenizer_kwargs") or {}
    tower = inner["text_cfg"].get("hf_model_name")
    # of a tower with code, open_clip would let transformers ask on a terminal whether to run it
    brings = tower is not None and getattr(hf_config(str(tower), model_id), "auto_map", None)
    if (
        brings
        or not isinstance(tokenizer_arguments, dict)
        or {"trust_remote_code", "code_revision"} & tokenizer_arguments.keys()
    ):
        raise ModelError(f"{model_id!r}: the text_cfg of {path} asks for custom code, which does not run here")
    return inner


def _check_layers(config: Any) -> None:
    """Raise ValueError if a config, at any level, asks for more layers than a model has."""
    for key, value in config.items() if isinstance(config, dict) else ():
        counts = value if isinstance(value, list) else [value]
        if "layer" in key and any(isinstance(n, int) and n > MOST_LAYERS for n in counts):
            raise ValueError(f"{key} = {value}, and {MOST_LAYERS:,} are allowed")
        _check_layers(value)


def _open_clip_meta(config: dict[str, Any], model_id: str) -> nn.Module:
    # The class is chosen as open_clip.create_model chooses it; that function itself logs on the root logger and moves
    # modules between devices, which the meta device refuses.
    import open_clip

    config = copy.deepcopy(config)
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
    custom_text = config.pop("custom_text", False) or "hf_model_name" in text
    build = open_clip.CLIP
    if custom_text:
        build = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    try:
        with torch.device("meta"):
            return cast("nn.Module", build(**config))
    except OSError as error:  # a text tower whose config lives on the hub
        raise ModelError(f"{model_id!r}: its text tower's config can't be read. {advice(model_id)}") from error
    except Exception as error:  # sizes that no model has fail anywhere in it; named and raised on
        raise ModelError(f"{model_id!r}: open_clip can't build its config ({first_line(error)})") from error
