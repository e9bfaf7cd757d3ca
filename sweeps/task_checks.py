"""What a kind of model can be asked to do: checked on the sweep file, before anything is read or trained."""

from __future__ import annotations

from sweeps.errors import Problem, nearest
from sweeps.spec import SweepSpec
from trainables.config import LINEAR_PROBE, NO_TRAINING
from trainables.data.registry import DATASETS
from trainables.data.text_registry import TEXT_DATASETS, text_loader
from trainables.families import Kind, parse_id
from trainables.shapes import hf_config

TRAINED: tuple[Kind, ...] = ("clip", "hf-vision", "causal-lm")

LANGUAGE_ONLY = ("max_tokens", "loss_on_prompt", "label_smoothing", "gradient_checkpointing")
"""Settings of `[train]` that no other model takes."""


def with_towers(spec: SweepSpec, kind: Kind) -> SweepSpec:
    """The specification with `model.adapt` filled in: both towers of a CLIP model, all of any other."""
    if spec.model.adapt is not None:
        return spec
    model = spec.model.model_copy(update={"adapt": "both" if kind == "clip" else "all"})
    return spec.model_copy(update={"model": model})


def task_problems(spec: SweepSpec, kind: Kind) -> list[Problem]:
    """Settings that contradict the model's kind. `spec` comes from `with_towers`."""
    if kind not in TRAINED:
        rule = f"is of kind {kind!r}; sweeps train {', '.join(TRAINED)} (`sweeps budget` takes any)"
        return [Problem("model.id", spec.model.id, rule, "embedded:tiny-clip")]
    found = _tower_problems(spec, kind) + _method_problems(spec, kind) + _image_problems(spec, kind)
    return found + _data_problems(spec, kind) + _language_problems(spec, kind)


def _tower_problems(spec: SweepSpec, kind: Kind) -> list[Problem]:
    adapt = spec.model.adapt
    if kind == "clip" and adapt == "all":
        return [Problem("model.adapt", adapt, "a CLIP model has two towers: vision or both", "both")]
    if kind != "clip" and adapt != "all":
        return [Problem("model.adapt", adapt, "this model has one tower; leave adapt out, or write all", "all")]
    return []


def _method_problems(spec: SweepSpec, kind: Kind) -> list[Problem]:
    if kind == "hf-vision" and NO_TRAINING in spec.methods:
        rule = "the model has no head that could classify untrained"
        return [Problem(f"methods.{NO_TRAINING}", None, rule, f"methods.{LINEAR_PROBE}")]
    if kind == "causal-lm" and LINEAR_PROBE in spec.methods:
        rule = "trains a classifier's head, and a language model has none"
        return [Problem(f"methods.{LINEAR_PROBE}", None, rule, f"methods.{NO_TRAINING}")]
    return []


def _data_problems(spec: SweepSpec, kind: Kind) -> list[Problem]:
    """Text for a model of images, or the other way round."""
    texts = kind not in ("clip", "hf-vision")
    known = sorted(TEXT_DATASETS if texts else DATASETS)
    rule = f"is a set of {'images' if texts else 'texts'}, and the model reads {'texts' if texts else 'images'}"
    strange = [name for name in spec.data.datasets if (text_loader(name) is not None) != texts]
    return [Problem("data.datasets", name, rule, nearest(name, known)) for name in strange]


def _language_problems(spec: SweepSpec, kind: Kind) -> list[Problem]:
    """Settings of language models on any other, and augmentation on them."""
    if kind == "causal-lm":
        augment = spec.train.augment
        return [Problem("train.augment", augment, "is for images", "none")] if augment != "none" else []
    rule = "is for language models; leave it out"
    default = type(spec.evaluate)()
    of = [(f"evaluate.{k}", v) for k, v in spec.evaluate if v != getattr(default, k)]
    usual = type(spec.train)()
    of += [(f"train.{k}", v) for k in LANGUAGE_ONLY if (v := getattr(spec.train, k)) != getattr(usual, k)]
    return [Problem(name, value, rule) for name, value in of]


def _image_problems(spec: SweepSpec, kind: Kind) -> list[Problem]:
    size = spec.model.image_size
    if size is None:
        return []
    if kind != "hf-vision":
        return [Problem("model.image_size", size, "the positions of this model do not interpolate; leave it out")]
    parsed = parse_id(spec.model.id)
    patch = getattr(hf_config(str(parsed.folder or parsed.name), spec.model.id), "patch_size", None)
    if isinstance(patch, int) and size % patch:
        rule = f"is not a multiple of the model's patch size, {patch}"
        return [Problem("model.image_size", size, rule, str(max(1, round(size / patch)) * patch))]
    return []
