"""From `[search.space]` to what each method searches: names checked against its options and the training settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from randlora.methods.registry import METHODS
from sweeps.errors import Problem, unknown
from sweeps.spec.search import SpaceEntry
from sweeps.spec.sections import MethodSection, Sections
from sweeps.spec.space import Dimension, Extra, Value, extra_of
from trainables.config import FULL_METHODS, NO_TRAINING, TrainSettings

TRAIN_FIELDS = ("epochs", "weight_decay", "grad_clip", "min_lr_ratio", "warmup_fraction", "schedule")
"""Training settings that may be searched. The batch size is none: it decides what the contrastive loss compares."""


def option_names(name: str) -> tuple[str, ...]:
    """The method's own options: its config's fields without the capacity, which the budget decides."""
    if name not in METHODS:
        return ()
    method = METHODS[name]
    return tuple(f.name for f in dataclasses.fields(method.config) if f.init and f.name != method.capacity_field)


def searchable(name: str) -> tuple[str, ...]:
    """What may be searched beside the learning rate of a method that trains."""
    return (*option_names(name), *TRAIN_FIELDS)


def dimensions(name: str, section: MethodSection, spec: Sections) -> tuple[Dimension, ...]:
    """What a method's studies search beside the learning rate, by name.

    `[search.space]` holds for every method that has the hyperparameter; `methods.NAME.space` replaces single lines of
    it, and a list of one value fixes one.
    """
    allowed = searchable(spec.base(name))
    general = {k: v for k, v in spec.search.space.items() if k in allowed}
    entries = {**general, **(section.space or {})}
    return tuple(_dimension(k, entries[k]) for k in sorted(entries))


def _dimension(name: str, entry: SpaceEntry) -> Dimension:
    field = TrainSettings.model_fields.get(name)
    integer = field is not None and field.annotation is int
    return Dimension(name, entry.low, entry.high, entry.log, integer, entry.values)


def published(
    name: str, section: MethodSection, spec: Sections, space: tuple[Dimension, ...], capacity: int | None
) -> Extra:
    """The values that a method has when nothing is searched: what the sweep file says, else its default.

    Each is the nearest one in the space. An alpha that stands nowhere is the capacity, which makes LoRA's scale 1.
    """
    given: dict[str, Value] = {}
    name = spec.base(name)
    for d in space:
        value = section.options.get(d.name)
        if value is None and d.name in TRAIN_FIELDS:
            full = name in FULL_METHODS and d.name == "weight_decay"
            value = getattr(spec.train, "full_weight_decay" if full else d.name)
        if value is None and name in METHODS:
            value = _default(name, d.name)
            value = capacity if value is None and d.name == "alpha" else value
        given[d.name] = d.ends[0] if value is None else d.nearest(value)
    return extra_of(given)


def _default(method: str, option: str) -> Any:
    for f in dataclasses.fields(METHODS[method].config):
        if f.name == option and f.default is not dataclasses.MISSING:
            return f.default
    return None


def split_extra(name: str, extra: Extra) -> tuple[dict[str, Value], dict[str, Value]]:
    """(method options, training settings) of a point; the decay of a method that trains base weights is its own key."""
    options = {k: v for k, v in extra if k not in TRAIN_FIELDS}
    train = {k: v for k, v in extra if k in TRAIN_FIELDS}
    if name in FULL_METHODS and "weight_decay" in train:
        train["full_weight_decay"] = train.pop("weight_decay")
    return options, train


def space_problems(spec: Sections) -> list[Problem]:
    """Names that nothing can search, and values that their method or the training loop refuses."""
    problems = []
    trained = [name for name in spec.methods if name != NO_TRAINING]
    everything = sorted({k for name in trained for k in searchable(spec.base(name))})
    for key in spec.search.space:
        if key == "lr":
            rule = "is searched always; its range is search.lr or methods.NAME.lr"
            problems.append(Problem("search.space.lr", None, rule))
        elif key not in everything:
            problems.append(unknown(f"search.space.{key}", key, "hyperparameter of these methods", everything))
    for name, section in spec.methods.items():
        field = f"methods.{name}.space"
        if name not in trained and section.space:
            problems.append(Problem(field, None, f"{name} trains nothing"))
            continue
        for key in section.space or ():
            if key not in (known := searchable(spec.base(name))):
                problems.append(unknown(f"{field}.{key}", key, f"hyperparameter of {name}", known))
    if problems:
        return problems
    found: dict[str, Problem] = {}
    for name in trained:
        for d in dimensions(name, spec.methods[name], spec):
            own = d.name in (spec.methods[name].space or {})
            where = f"methods.{name}.space.{d.name}" if own else f"search.space.{d.name}"
            for value in d.ends:
                message = _refused(spec.base(name), spec.methods[name], d.name, value, spec.train)
                if message is not None:
                    found.setdefault(f"{where}={value}", Problem(where, value, message))
    return list(found.values())


def _refused(name: str, section: MethodSection, key: str, value: Value, train: TrainSettings) -> str | None:
    try:
        if key in TRAIN_FIELDS:
            TrainSettings.model_validate({**train.model_dump(), key: value})
        else:
            method = METHODS[name]
            options: Mapping[str, Any] = {**section.options, key: value}
            TypeAdapter(method.config).validate_python({method.capacity_field: method.min_capacity, **options})
    except ValidationError as error:
        return str(error.errors(include_url=False)[0]["msg"]).removeprefix("Value error, ")
    return None
