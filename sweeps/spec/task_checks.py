"""Checks whether a kind of model can do what the sweep file asks for, before any data is read."""

from __future__ import annotations

from collections.abc import Iterable

from randlora.methods.registry import METHODS
from sweeps.errors import Problem, nearest
from sweeps.spec.batch_sizes import FIELD as BATCH_SIZES
from sweeps.spec.batch_sizes import batch_sizes
from sweeps.spec.spec import SweepSpec
from trainables.config import FULL_METHODS, LINEAR_PROBE, NO_TRAINING, contrastive, refused_micro_batch
from trainables.data.facts import IMAGE_SETS, TEXT_SETS, TextKind
from trainables.data.text.registry import text_kind
from trainables.models.base_weights import refusal
from trainables.models.families import Kind, parse_id
from trainables.models.shapes import known_configs, shape_config
from trainables.tasks.text.rows import positions_of

IMAGES: tuple[Kind, ...] = ("clip", "hf-vision")
"""Kinds of models that read images; the others read texts."""
HEADLESS: tuple[Kind, ...] = ("hf-vision", "text-encoder")
"""Kinds of models that classify with a new head."""

TEXT_ONLY = ("train.max_tokens", "train.label_smoothing", "train.gradient_checkpointing", "train.length_group")
"""Settings of `[train]` for models of text. All settings of `[evaluate]` but `EVERY_KIND` are also only for these."""
EVERY_KIND = ("evaluate.metric", "evaluate.rows_by")
"""Settings of `[evaluate]` for every kind of model. The program sets the second one itself."""
LANGUAGE_ONLY = ("train.loss_on_prompt", "train.base_weights")
"""Settings of `[train]` for language models. Most settings of `[evaluate]` are also only for these (`COUNTED`)."""
COUNTED = ("evaluate.validation_rows", "evaluate.test_rows")
"""Numbers of evaluated rows, which text encoders also take."""

READS: dict[Kind, tuple[TextKind, ...]] = {
    "causal-lm": ("instructions", "questions", "problems", "meanings", "completions"),
    "text-encoder": ("sentences",),
}
"""The kinds of rows that each kind of text model learns from."""


def with_towers(spec: SweepSpec, kind: Kind) -> SweepSpec:
    """Return the specification with `model.adapt` filled in: "both" for a CLIP model, "all" for any other."""
    if spec.model.adapt is not None:
        return spec
    model = spec.model.model_copy(update={"adapt": "both" if kind == "clip" else "all"})
    return spec.model_copy(update={"model": model})


def task_problems(spec: SweepSpec, kind: Kind) -> list[Problem]:
    """Return the problems of settings that contradict the model's kind. `spec` comes from `with_towers`."""
    problems = _tower_problems(spec, kind) + _method_problems(spec, kind) + _image_problems(spec, kind)
    problems += _temperature_problems(spec, kind) + _base_weight_problems(spec) + _data_problems(spec, kind)
    problems += _language_problems(spec, kind)
    return problems + _worker_problems(spec, kind) + _batch_problems(spec, kind) + _micro_batch_problems(spec)


def _tower_problems(spec: SweepSpec, kind: Kind) -> list[Problem]:
    adapt = spec.model.adapt
    if kind == "clip" and adapt == "all":
        return [Problem("model.adapt", adapt, "a CLIP model has two towers: vision or both", "both")]
    if kind != "clip" and adapt != "all":
        return [Problem("model.adapt", adapt, "this model has one tower; leave adapt out, or write all", "all")]
    return []


def _method_problems(spec: SweepSpec, kind: Kind) -> list[Problem]:
    if spec.train.select == "best":
        settling = [name for name in spec.methods if (base := spec.base(name)) in METHODS and METHODS[base].scheduled]
        rule = (
            "settles its ranks or averages while it trains, which earlier weights of train.select = 'best' would miss"
        )
        if settling:
            return [Problem(f"methods.{settling[0]}", None, rule, 'train.select = "last"')]
    if kind in HEADLESS and NO_TRAINING in spec.methods:
        rule = "the model has no head that could classify untrained"
        return [Problem(f"methods.{NO_TRAINING}", None, rule, f"methods.{LINEAR_PROBE}")]
    if kind == "causal-lm" and LINEAR_PROBE in spec.methods:
        rule = "trains a classifier's head, and a language model has none"
        return [Problem(f"methods.{LINEAR_PROBE}", None, rule, f"methods.{NO_TRAINING}")]
    return []


def _temperature_problems(spec: SweepSpec, kind: Kind) -> list[Problem]:
    """Return a problem if a temperature shall be trained, and no method of the sweep trains one."""
    full_on_both = kind == "clip" and spec.model.adapt == "both" and "full" in map(spec.base, spec.methods)
    if not spec.train.train_temperature or full_on_both:
        return []
    rule = "is for full fine-tuning of both towers of a CLIP, and no method of this sweep does that; leave it out"
    return [Problem("train.train_temperature", True, rule, "false")]


def _base_weight_problems(spec: SweepSpec) -> list[Problem]:
    """Return a problem for each method that cannot train beside base weights in fewer bits."""
    refused = {name: refusal(spec.base(name), spec.train.base_weights) for name in spec.methods}
    return [Problem(f"methods.{name}", None, r.rule, r.nearest) for name, r in refused.items() if r is not None]


def _worker_problems(spec: SweepSpec, kind: Kind) -> list[Problem]:
    """Return the problems of settings that several workers of a trial can't have. Each trial would refuse them."""
    workers = spec.resources.workers
    batch = min(batch_sizes(spec), default=spec.train.global_batch_size)
    bases = [spec.base(n) for n in spec.methods]
    if workers == 1:
        return []
    problems = []
    if kind == "clip" and any(contrastive(spec.model.adapt, base) for base in bases):
        rule = "model.adapt = 'both' compares all images of a batch, which can't be split; or write adapt = 'vision'"
        problems.append(Problem("resources.workers", workers, rule, "1"))
    if batch < workers:
        rule = f"is less than resources.workers = {workers}, which share a batch"
        field = BATCH_SIZES if batch_sizes(spec) else "train.global_batch_size"
        problems.append(Problem(field, batch, rule, str(workers)))
    if spec.train.parallel == "fsdp" and kind != "causal-lm" and any(base in FULL_METHODS for base in bases):
        rule = f"splits the weights of a language model, and {spec.model.id} is of kind {kind}"
        problems.append(Problem("train.parallel", "fsdp", rule, "replicate"))
    return problems


def _batch_problems(spec: SweepSpec, kind: Kind) -> list[Problem]:
    """Return a problem if batch sizes are searched and the loss compares the images of a batch."""
    sizes = list(batch_sizes(spec))
    compare = [n for n in spec.methods if (base := spec.base(n)) != NO_TRAINING and contrastive(spec.model.adapt, base)]
    if not sizes or kind != "clip" or not compare:
        return []
    rule = f"the loss of {compare[0]} is contrastive (model.adapt = 'both'): it compares the images of a batch, so "
    rule += "another batch size is another loss; set train.global_batch_size, or write model.adapt = 'vision'"
    return [Problem(BATCH_SIZES, sizes, rule, f"train.global_batch_size = {max(sizes)}")]


def _micro_batch_problems(spec: SweepSpec) -> list[Problem]:
    """Return a problem for each setting of micro-batches that contradicts a contrastive loss."""
    rules = {}
    for name, section in spec.methods.items():
        own = section.micro_batch_size
        train = spec.train if own is None else spec.train.model_copy(update={"micro_batch_size": own})
        field = "train.micro_batch_size" if own is None else f"methods.{name}.micro_batch_size"
        if (rule := refused_micro_batch(train, spec.model.adapt, spec.base(name))) is not None:
            rules[field] = Problem(field, train.micro_batch_size, rule)
    return list(rules.values())


def _data_problems(spec: SweepSpec, kind: Kind) -> list[Problem]:
    """Return a problem for each data set that the model can't read."""
    texts = kind not in IMAGES
    rule = f"is a set of {'images' if texts else 'texts'}, and the model reads {'texts' if texts else 'images'}"
    fitting = [n for n, info in TEXT_SETS.items() if info.source.kind in READS[kind]] if texts else list(IMAGE_SETS)
    problems = []
    for name in spec.data.datasets:
        if (text_kind(name) is not None) != texts:
            problems.append(Problem("data.datasets", name, rule, nearest(name, sorted(fitting))))
        elif texts and (rows := text_kind(name)) not in READS[kind]:
            other = f"holds {rows}, and a {kind} learns from {' or '.join(READS[kind])}"
            problems.append(Problem("data.datasets", name, other, nearest(name, sorted(fitting))))
    return problems


def _language_problems(spec: SweepSpec, kind: Kind) -> list[Problem]:
    """Return the problems of settings that are for another kind of model (texts, language models, images)."""
    if kind in IMAGES:
        fields = [f"evaluate.{name}" for name in type(spec.evaluate).model_fields]
        evaluate = [name for name in fields if name not in EVERY_KIND]
        return _changed_settings(spec, (*evaluate, *LANGUAGE_ONLY, *TEXT_ONLY), "is for models of text; leave it out")
    problems = []
    if spec.train.augment != "none":
        problems.append(Problem("train.augment", spec.train.augment, "is for images", "none"))
    if spec.data.skip_bad:
        rule = "is for images: a row of text that can't be read stops the sweep"
        problems.append(Problem("data.skip_bad", True, rule, "false"))
    problems += _window_problems(spec)
    if kind != "causal-lm":
        generated = [f"evaluate.{name}" for name in type(spec.evaluate).model_fields]
        names = [n for n in (*generated, *LANGUAGE_ONLY) if n not in (*COUNTED, *EVERY_KIND)]
        problems += _changed_settings(spec, names, "is for language models; leave it out")
    solved = [name for name in spec.data.datasets if text_kind(name) == "problems"]
    if solved and "max_new_tokens" not in spec.evaluate.model_fields_set:
        rule = f"is the default, and solutions of {solved[0]!r} are longer and end in their answer; write how long"
        problems.append(Problem("evaluate.max_new_tokens", spec.evaluate.max_new_tokens, rule, "300"))
    return problems


def _window_problems(spec: SweepSpec) -> list[Problem]:
    max_tokens, parsed = spec.train.max_tokens, parse_id(spec.model.id)
    config = known_configs().get(parsed.name)
    if max_tokens is None or (parsed.folder is None and config is not None and "max_position_embeddings" not in config):
        return []
    positions = positions_of(shape_config(parsed, spec.model.id))
    if positions is None or max_tokens <= positions:
        return []
    return [Problem("train.max_tokens", max_tokens, f"is more than the model's {positions} positions", str(positions))]


def _changed_settings(spec: SweepSpec, names: Iterable[str], rule: str) -> list[Problem]:
    """Return a problem for each of these settings that is not its default."""
    problems = []
    for name in names:
        section, _, field = name.partition(".")
        values = getattr(spec, section)
        if (value := getattr(values, field)) != getattr(type(values)(), field):
            problems.append(Problem(name, value, rule))
    return problems


def _image_problems(spec: SweepSpec, kind: Kind) -> list[Problem]:
    size = spec.model.image_size
    if size is None:
        return []
    if kind != "hf-vision":
        return [Problem("model.image_size", size, "the positions of this model do not interpolate; leave it out")]
    parsed = parse_id(spec.model.id)
    patch = getattr(shape_config(parsed, spec.model.id), "patch_size", None)
    if isinstance(patch, int) and size % patch:
        rule = f"is not a multiple of the model's patch size, {patch}"
        return [Problem("model.image_size", size, rule, str(max(1, round(size / patch)) * patch))]
    return []
