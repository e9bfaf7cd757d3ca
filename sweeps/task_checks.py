"""What a kind of model can be asked to do: checked on the sweep file, before anything is read or trained."""

from __future__ import annotations

from sweeps.errors import Problem
from sweeps.spec import SweepSpec
from trainables.config import LINEAR_PROBE, NO_TRAINING, EvaluateSettings
from trainables.data import DataError, check_dataset
from trainables.data.text_registry import text_kind
from trainables.families import Kind, parse_id
from trainables.shapes import hf_config

READS: dict[Kind, tuple[str | None, ...]] = {
    "clip": (None,),
    "hf-vision": (None,),
    "causal-lm": ("instructions", "questions", "meanings"),
    "text-encoder": ("sentences",),
}
"""The kinds of rows that a kind of model learns from; None: images."""

_WORDS = {
    "clip": ("images", "cifar10"),
    "hf-vision": ("images", "cifar10"),
    "causal-lm": ("prompts with responses", "arc-easy"),
    "text-encoder": ("labelled sentences", "glue-sst2"),
}
_HEADLESS: tuple[Kind, ...] = ("hf-vision", "text-encoder")


def with_towers(spec: SweepSpec, kind: Kind) -> SweepSpec:
    """The specification with `model.adapt` filled in: both towers of a CLIP model, all of any other."""
    if spec.model.adapt is not None:
        return spec
    model = spec.model.model_copy(update={"adapt": "both" if kind == "clip" else "all"})
    return spec.model_copy(update={"model": model})


def task_problems(spec: SweepSpec, kind: Kind) -> list[Problem]:
    """Settings that contradict the model's kind. `spec` comes from `with_towers`."""
    found = _tower_problems(spec, kind) + _method_problems(spec, kind) + _image_problems(spec, kind)
    return found + _data_problems(spec, kind) + _text_problems(spec, kind)


def _tower_problems(spec: SweepSpec, kind: Kind) -> list[Problem]:
    adapt = spec.model.adapt
    if kind == "clip" and adapt == "all":
        return [Problem("model.adapt", adapt, "a CLIP model has two towers: vision or both", "both")]
    if kind != "clip" and adapt != "all":
        return [Problem("model.adapt", adapt, "this model has one tower; leave adapt out, or write all", "all")]
    return []


def _method_problems(spec: SweepSpec, kind: Kind) -> list[Problem]:
    if kind in _HEADLESS and NO_TRAINING in spec.methods:
        rule = "the model has no head that could classify untrained"
        return [Problem(f"methods.{NO_TRAINING}", None, rule, f"methods.{LINEAR_PROBE}")]
    if kind == "causal-lm" and LINEAR_PROBE in spec.methods:
        rule = "trains a classifier's head, and a language model has none"
        return [Problem(f"methods.{LINEAR_PROBE}", None, rule, f"methods.{NO_TRAINING}")]
    return []


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


def _data_problems(spec: SweepSpec, kind: Kind) -> list[Problem]:
    wanted, example = _WORDS[kind]
    problems = []
    for name in spec.data.datasets:
        try:
            check_dataset(name)
        except DataError:
            continue  # reported elsewhere
        rows = text_kind(name)
        if rows not in READS[kind]:
            rule = f"holds {rows or 'images'}, and a model of kind {kind!r} learns from {wanted}"
            problems.append(Problem("data.datasets", name, rule, example))
    return problems


def _text_problems(spec: SweepSpec, kind: Kind) -> list[Problem]:
    """Settings for images where texts are read, and the other way round."""
    problems = []
    if None in READS[kind]:
        if spec.evaluate != EvaluateSettings():
            problems.append(Problem("evaluate", None, "is about models of text; leave the section out"))
        return problems
    if spec.train.augment != "none":
        problems.append(Problem("train.augment", spec.train.augment, "is for images", "none"))
    if spec.data.skip_bad:
        problems.append(
            Problem("data.skip_bad", True, "is for images: a row of text that can't be read stops", "false")
        )
    if kind == "text-encoder" and spec.evaluate.protocol is not None:
        rule = "is for language models; a classifier's labels are compared"
        problems.append(Problem("evaluate.protocol", spec.evaluate.protocol, rule))
    return problems
