"""What a kind of model can be asked to do: checked on the sweep file, before anything is read or trained."""

from __future__ import annotations

from sweeps.errors import Problem
from sweeps.spec import SweepSpec
from trainables.config import LINEAR_PROBE, NO_TRAINING
from trainables.families import Kind, parse_id
from trainables.shapes import hf_config

TRAINED: tuple[Kind, ...] = ("clip", "hf-vision")


def with_towers(spec: SweepSpec, kind: Kind) -> SweepSpec:
    """The specification with `model.adapt` filled in: both towers of a CLIP model, all of any other."""
    if spec.model.adapt is not None:
        return spec
    model = spec.model.model_copy(update={"adapt": "both" if kind == "clip" else "all"})
    return spec.model_copy(update={"model": model})


def task_problems(spec: SweepSpec, kind: Kind) -> list[Problem]:
    """Settings that contradict the model's kind. `spec` comes from `with_towers`."""
    if kind not in TRAINED:
        rule = f"is of kind {kind!r}; sweeps train CLIP models and image encoders (`sweeps budget` takes any)"
        return [Problem("model.id", spec.model.id, rule, "embedded:tiny-clip")]
    return _tower_problems(spec, kind) + _method_problems(spec, kind) + _image_problems(spec, kind)


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
