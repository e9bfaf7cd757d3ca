"""From `[search.space]` to what each method searches: names checked against its options and the training settings."""

from __future__ import annotations

import dataclasses
from typing import Any

from randlora.methods.registry import METHODS
from sweeps.spec.search import SpaceEntry
from sweeps.spec.sections import Sections
from sweeps.spec.space import TRAIN_FIELDS, Dimension, Extra, Value, extra_of
from trainables.config import FULL_METHODS, TrainSettings


def option_names(name: str) -> tuple[str, ...]:
    """The method's own options: its config's fields without the capacity, which the budget decides."""
    if name not in METHODS:
        return ()
    method = METHODS[name]
    return tuple(f.name for f in dataclasses.fields(method.config) if f.init and f.name != method.capacity_field)


def searchable(name: str) -> tuple[str, ...]:
    """What may be searched beside the learning rate of a method that trains."""
    return (*option_names(name), *TRAIN_FIELDS)


def dimensions(name: str, spec: Sections) -> tuple[Dimension, ...]:
    """What a method's studies search beside the learning rate, by name.

    `[search.space]` holds for every method that has the hyperparameter; `methods.NAME.space` replaces single lines of
    it, and a list of one value fixes one.
    """
    allowed = searchable(spec.base(name))
    general = {k: v for k, v in spec.search.space.items() if k in allowed}
    entries = {**general, **(spec.methods[name].space or {})}
    return tuple(_dimension(k, entries[k]) for k in sorted(entries))


def _dimension(name: str, entry: SpaceEntry) -> Dimension:
    field = TrainSettings.model_fields.get(name)
    integer = field is not None and field.annotation is int
    return Dimension(name, entry.low, entry.high, entry.log, integer, entry.values)


def published(name: str, spec: Sections, space: tuple[Dimension, ...], capacity: int | None) -> Extra:
    """The values that a method has when nothing is searched: what the sweep file says, else its default.

    Each is the nearest one in the space. An alpha that stands nowhere is the capacity, which makes LoRA's scale 1.
    """
    given: dict[str, Value] = {}
    options, name = spec.methods[name].options, spec.base(name)
    for d in space:
        value = options.get(d.name)
        if value is None and d.name in TRAIN_FIELDS:
            full = name in FULL_METHODS and d.name == "weight_decay"
            value = getattr(spec.train, "full_weight_decay" if full else d.name)
        if value is None and name in METHODS:
            value = _default(name, d.name)
            value = capacity if value is None and d.name == "alpha" else value
        if isinstance(value, str) and d.name == "alpha" and not d.values and capacity is not None:
            value = float(value.partition("r")[0]) * capacity  # a rule such as "2r" in a range of numbers
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
