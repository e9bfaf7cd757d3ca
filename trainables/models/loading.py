"""Load base models with their weights by id: `open_clip:...`, `hf:...`, `local:...` and the embedded one.

Everything is loaded in float32 on the CPU, in eval mode. Local weights are read from safetensors alone, because pickled
files can run code. Code that comes with a checkpoint does not run.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from trainables.data.images.pixels import Recipe
from trainables.errors import first_line
from trainables.hub import hub_answers
from trainables.models.encoders import is_unused
from trainables.models.families import Kind, ModelError, ModelId, parse_id
from trainables.models.shapes import (
    UNREADABLE,
    advice,
    fused,
    gguf_argument,
    hf_class,
    hf_config,
    is_open_clip,
    kind_of,
    open_clip_config,
    shape_config,
)

Tokenizer = Callable[[list[str]], Tensor]

MOST_SIDE = 8192
"""The largest side, in pixels, to which images are resized."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_WARPS_FROM = 384
"""From this size on, ConvNeXt's image processor ignores the aspect, and crops nothing."""
_BILINEAR, _BICUBIC = 2, 3
"""PIL's numbers for the filters with which images are resized."""


@dataclass(frozen=True)
class Preprocess:
    """What a model expects of its images: their form, and per-channel normalisation of RGB values in [0, 1]."""

    recipe: Recipe
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class LoadedModel:
    """A base model, ready to be adapted.

    Attributes:
        module: the model, float32, on the CPU, in eval mode. Every parameter still requires its gradient.
        kind: the task family that can train it.
        model_id: the id by which it was loaded.
        preprocess: how images become its input; None for a model without images.
        tokenizer: of a CLIP model: it maps texts to token ids (n, context length), int64, padded. None for any other
            model.
        text_tokenizer: transformers' tokenizer of a text model. None for any other model, and for a local directory
            without tokenizer files.
    """

    module: nn.Module
    kind: Kind
    model_id: str
    preprocess: Preprocess | None
    tokenizer: Tokenizer | None
    text_tokenizer: Any = None


def word_ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Return the token ids of a text between its start and its end. The end's id is the largest."""
    row = tokenizer([text])[0]
    return tuple(row[1 : int(row.argmax())].tolist())


def load_model(model_id: str) -> LoadedModel:
    """Load a base model and its weights. The CPU's random state is left as it was.

    Raises ModelError: an unknown id, missing or malformed files, weights that are not safetensors, or no network.
    """
    parsed = parse_id(model_id)
    if parsed.folder is None:
        hub_answers()
    with torch.random.fork_rng(devices=[]):  # weights are drawn first, and then replaced by those of the file
        torch.manual_seed(0)
        if not is_open_clip(parsed, model_id):
            return _load_hf(parsed, model_id)
        if parsed.folder is None:
            return _load_open_clip(parsed.name, parsed, model_id)
        open_clip_config(parsed.folder, model_id)
        _refuse_pickles(parsed.folder, model_id)
        return _load_open_clip(f"local-dir:{parsed.folder}", parsed, model_id)


def fetched(parsed: ModelId) -> Path | None:
    """Return a file of a hub model that tells its revision, from the cache or the hub; None if open_clip has none.

    Raises what the hub's client raises, an OSError or a ValueError, if the file cannot be had.
    """
    hub_answers()
    if parsed.scheme == "open_clip":
        import open_clip

        path = open_clip.download_pretrained(open_clip.get_pretrained_cfg(parsed.name, parsed.tag))
        return Path(path) if path else None
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(parsed.name, parsed.gguf or "config.json"))


def _weights_cached(parsed: ModelId) -> bool:
    """Return whether the hub's cache has the weights of a model. (A plan alone puts only the config there.)"""
    from huggingface_hub import try_to_load_from_cache

    if parsed.scheme == "open_clip" or parsed.gguf is not None:
        return fetched(parsed) is not None
    names = ("model.safetensors", "model.safetensors.index.json")
    return any(isinstance(try_to_load_from_cache(parsed.name, name), str) for name in names)


def check_weights(model_id: str) -> None:
    """Raise ModelError if weights would come from the hub, which does not answer, and are not in its cache."""
    parsed = parse_id(model_id)
    if parsed.scheme not in ("hf", "open_clip") or hub_answers():
        return
    try:
        cached = _weights_cached(parsed)
    except UNREADABLE:
        cached = False
    if not cached:
        raise ModelError(f"{model_id!r}: the hub does not answer, and this machine has no copy. {advice(model_id)}")


def _load_open_clip(name: str, parsed: ModelId, model_id: str) -> LoadedModel:
    import open_clip

    arguments: dict[str, Any] = {}
    if parsed.scheme == "open_clip":
        if parsed.tag is None:
            tags = cast("list[str]", open_clip.list_pretrained_tags_by_model(parsed.name))
            raise ModelError(
                f"{model_id!r} names no weights, which is enough to count but not to train: "
                f"write open_clip:{parsed.name}/TAG with one of {', '.join(tags) or '(open_clip lists none)'}"
            )
        arguments = {"pretrained": parsed.tag, "force_quick_gelu": quick_gelu(parsed)}
    try:
        with _quiet_root_logger():
            module = open_clip.create_model(
                name, precision="fp32", device="cpu", require_pretrained=True, weights_only=True, **arguments
            )
            text = open_clip.get_model_config(name)["text_cfg"]
            # over the config's tokenizer_kwargs, which may ask for code; open_clip's own tokenizer takes no such thing
            no_code = {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
            tokenizer = open_clip.get_tokenizer(name, **no_code)
    except UNREADABLE as error:
        raise ModelError(f"{model_id!r} can't be loaded ({first_line(error)}). {advice(model_id)}") from error
    check_finite(cast("nn.Module", module), model_id)
    settings = module.visual.preprocess_cfg
    return LoadedModel(
        module=cast("nn.Module", module).float().eval(),
        kind="clip",
        model_id=model_id,
        preprocess=Preprocess(
            Recipe(
                _side(settings["size"], model_id),
                "bilinear" if settings.get("interpolation") == "bilinear" else "bicubic",
                settings.get("resize_mode") or "shortest",
            ),
            _triple(settings["mean"]),
            _triple(settings["std"]),
        ),
        tokenizer=cast("Tokenizer", tokenizer),
    )


def quick_gelu(parsed: ModelId) -> bool:
    """Return whether a tag's weights were trained with QuickGELU, as OpenAI's were. Plain architecture names do not say
    so."""
    import open_clip

    return bool(open_clip.get_pretrained_cfg(parsed.name, parsed.tag).get("quick_gelu", False))


def check_finite(module: nn.Module, model_id: str) -> None:
    """Raise ModelError that names the first weight with NaN or infinity."""
    for name, weight in module.named_parameters():
        if not bool(torch.isfinite(weight.sum())) and not bool(weight.isfinite().all()):  # a sum may overflow
            bad = int((~weight.isfinite()).sum())
            raise ModelError(
                f"{model_id!r}: {bad:,} of {weight.numel():,} numbers of {name} are NaN or infinite; "
                "the checkpoint is damaged, fetch or save it again"
            )


def _load_hf(parsed: ModelId, model_id: str) -> LoadedModel:
    source = str(parsed.folder or parsed.name)
    config = hf_config(source, model_id, gguf=parsed.gguf)
    from_gguf: dict[str, Any] = dict(gguf_argument(parsed.gguf, model_id))
    arguments: dict[str, Any] = from_gguf or {"use_safetensors": True}
    kind = kind_of(config, model_id)
    try:
        with no_progress_bar():
            module, info = hf_class(kind).from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
                **arguments,
            )
    except UNREADABLE as error:
        raise ModelError(f"{model_id!r} can't be loaded ({first_line(error)}). {advice(model_id)}") from error
    _check_complete(module, info, model_id)
    check_finite(cast("nn.Module", module), model_id)
    vision = kind == "hf-vision"
    text = None if vision else _hf_tokenizer(source, parsed.folder, model_id, from_gguf)
    # what was quantised in its file is not any more, which transformers' own float() does not know
    return LoadedModel(
        module=fused(nn.Module.float(module), parsed, model_id).eval(),
        kind=kind,
        model_id=model_id,
        preprocess=_hf_preprocess(source, config, model_id) if vision else None,
        tokenizer=None,
        text_tokenizer=text,
    )


def input_side(model_id: str, module: nn.Module) -> int | None:
    """Return the side in pixels of a model's square input, without reading weights; None for a model of texts.

    Raises:
        ModelError: the image processor cannot be read.
    """
    parsed = parse_id(model_id)
    if is_open_clip(parsed, model_id):
        size = cast(Any, module).visual.image_size
        return int(size[0] if isinstance(size, tuple | list) else size)
    config = shape_config(parsed, model_id)
    if kind_of(config, model_id) != "hf-vision":
        return None
    return _hf_preprocess(str(parsed.folder or parsed.name), config, model_id).recipe.size


def _check_complete(module: Any, info: Any, model_id: str) -> None:
    # BERT-like checkpoints come without the pooler, which is neither used nor adapted; any other gap would be noise
    missing = sorted(name for name in info["missing_keys"] if not is_unused(module, name))
    if missing:
        raise ModelError(
            f"{model_id!r}: its files lack {len(missing)} of the model's tensors, {', '.join(missing[:3])}"
        )
    blocks = [name for name, part in module.named_modules() if isinstance(part, nn.ModuleList)]
    extra = sorted(n for n in info["unexpected_keys"] if any(f".{b}." in f".{n}" for b in blocks))  # heads may differ
    if extra:
        raise ModelError(
            f"{model_id!r}: its files hold {len(extra)} tensors that the model does not have, {', '.join(extra[:3])}; "
            "config.json and the weights are of two models"
        )


def _hf_preprocess(source: str, config: Any, model_id: str) -> Preprocess:
    """Return the preprocessing from the model's image processor.

    Without its file, it is the config's image size with ImageNet's mean and deviation. A processor that crops resizes
    the shorter side to the crop, without the margin that some recipes cut off. One that resizes to a fixed height and
    width ignores the aspect.
    """
    from transformers import AutoImageProcessor

    file = Path(source) / "preprocessor_config.json"
    try:
        try:  # its class decides what the file may leave out
            settings = vars(AutoImageProcessor.from_pretrained(source, config=config, trust_remote_code=False))
        except OSError:
            if file.exists():
                raise
            settings = {}
        crops = bool(settings.get("do_center_crop"))
        sides = dict(settings.get("crop_size" if crops else "size") or {})
        warps = "crop_pct" in settings and sides.get("shortest_edge", 0) >= _WARPS_FROM
        squash = ("height" in sides or warps) and not crops
        size = (sides["height"], sides["width"]) if "height" in sides else sides["shortest_edge"] if sides else None
        # images are in [0, 1] if the processor scales them from 0..255 before it normalises them
        scale = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255
        plain = not settings.get("do_normalize", True)
        mean = _triple((0, 0, 0) if plain else settings.get("image_mean", IMAGENET_MEAN), scale)
        std = _triple((1, 1, 1) if plain else settings.get("image_std", IMAGENET_STD), scale)
    except Exception as error:  # the values may be of any kind; the error is raised again with the model's name
        raise ModelError(
            f"{model_id!r}: {file.name} can't be read ({first_line(error)}). {advice(model_id)}"
        ) from error
    size = size or getattr(config, "image_size", None)
    if size is None:
        raise ModelError(f"{model_id!r}: neither {file.name} nor config.json says how large its images are")
    if settings.get("do_flip_channel_order"):
        raise ModelError(
            f"{model_id!r}: {file.name} has do_flip_channel_order = true, and images are RGB here; take a model "
            "that was trained on RGB"
        )
    resample = settings.get("resample")
    if resample not in (_BILINEAR, _BICUBIC, None):
        raise ModelError(
            f"{model_id!r}: {file.name} has resample = {resample!r}; images are resized with {_BILINEAR} (bilinear) or "
            f"{_BICUBIC} (bicubic) here"
        )
    interpolation: Literal["bilinear", "bicubic"] = "bilinear" if resample == _BILINEAR else "bicubic"
    return Preprocess(Recipe(_side(size, model_id), interpolation, "squash" if squash else "shortest"), mean, std)


def tokenizer_of(model_id: str) -> tuple[Any, Any]:
    """Return the tokenizer and the config of a transformers model, without reading its weights.

    Raises ModelError for a tokenizer that is missing or can't be read.
    """
    parsed = parse_id(model_id)
    if parsed.folder is None:
        hub_answers()
    source = str(parsed.folder or parsed.name)
    from_gguf: dict[str, Any] = dict(gguf_argument(parsed.gguf, model_id))
    return _hf_tokenizer(source, parsed.folder, model_id, from_gguf), hf_config(source, model_id, gguf=parsed.gguf)


def _hf_tokenizer(source: str, folder: Path | None, model_id: str, from_gguf: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "tokenizer.model")
    if folder is not None and not from_gguf and not any((folder / name).is_file() for name in files):
        return None
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **from_gguf)
    except Exception as error:  # tokenizers raises no narrower class; the error is raised again with the model's name
        raise ModelError(f"{model_id!r}: its tokenizer can't be read ({first_line(error)})") from error


def _refuse_pickles(folder: Path, model_id: str) -> None:
    """Raise ModelError for pickled weights, because open_clip reads whatever weights a directory has."""
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{model_id!r}: no *.safetensors in {folder}; convert its weights with safetensors")
    pickled = sorted(p.name for suffix in ("bin", "pth", "pt") for p in folder.glob(f"*.{suffix}"))
    if pickled:
        raise ModelError(
            f"{model_id!r}: {folder} holds pickled weights ({', '.join(pickled)}) beside safetensors; "
            "remove them, so that there is no doubt which are read"
        )


def _side(size: object, model_id: str) -> int:
    sides = set(size) if isinstance(size, list | tuple) else {size}
    side = sides.pop()
    if sides or not isinstance(side, int):
        raise ModelError(f"{model_id!r}: images must be square, got size {json.dumps(size, default=str)}")
    if not 1 <= side <= MOST_SIDE:
        raise ModelError(f"{model_id!r}: images must have sides of 1 to {MOST_SIDE:,} pixels, got {side}")
    return side


def _triple(values: Any, scale: float = 1.0) -> tuple[float, float, float]:
    return cast("tuple[float, float, float]", tuple(float(v) / scale for v in values))


@contextlib.contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Undo what open_clip's logging does: its first use of the root logger installs a handler that prints everything
    after it."""
    handler = logging.NullHandler()
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """Switch off transformers' progress bars, which would appear in the middle of a sweep's own progress."""
    from transformers.utils import logging as hf_logging

    drawn = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            hf_logging.enable_progress_bar()
