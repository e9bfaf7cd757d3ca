"""From `[search.space]` to what each method searches: names checked against its options and the training settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from randlora.adapter import Shape
from randlora.errors import ConfigError
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
    return tuple(_dimension(spec.base(name), k, entries[k]) for k in sorted(entries))


def _dimension(method: str, name: str, entry: SpaceEntry) -> Dimension:
    field = TrainSettings.model_fields.get(name)
    options = dataclasses.fields(METHODS[method].config) if method in METHODS else ()
    whole = any(f.name == name and f.type in (int, "int") for f in options)
    integer = whole or (field is not None and field.annotation is int)
    return Dimension(name, entry.low, entry.high, entry.log, integer, entry.values)


def published(
    name: str, spec: Sections, space: tuple[Dimension, ...], capacities: Mapping[str, int], shapes: Mapping[str, Shape]
) -> Extra:
    """The values that a method has when nothing is searched: what the sweep file says, else its default.

    Each is the nearest one in the space, of an alpha that stands nowhere or as a rule the one with the nearest scale;
    the first, where there is none to be near to.
    """
    given: dict[str, Value] = {}
    unset: list[Dimension] = []
    options, name = spec.methods[name].options, spec.base(name)
    for d in space:
        value = options.get(d.name)
        if value is None and d.name in TRAIN_FIELDS:
            full = name in FULL_METHODS and d.name == "weight_decay"
            value = getattr(spec.train, "full_weight_decay" if full else d.name)
        if value is None and name in METHODS:
            value = _default(name, d.name)
        if value is None or (isinstance(value, str) and value not in d.values):
            given[d.name] = d.ends[0]
            unset.append(d)
        else:
            given[d.name] = d.nearest(value)
    if unset and capacities:
        fixed = options | {k: v for k, v in given.items() if k not in (*TRAIN_FIELDS, *(d.name for d in unset))}
        own = [shapes[weight] for weight in capacities if weight in shapes]
        with suppress(ConfigError):  # options that contradict each other, which the plan's checks report
            given |= _alphas(name, max(capacities.values()), fixed, unset, own)
    return extra_of(given)


def _alphas(
    method: str, capacity: int, options: Mapping[str, Value], space: Sequence[Dimension], shapes: Sequence[Shape]
) -> dict[str, Value]:
    """The alpha among some dimensions that gives the scale of these options, or the nearest to it."""

    def numbers(**more: Value) -> dict[str, float]:
        return METHODS[method].config.from_options(capacity, {**options, **more}).own_alpha(shapes)

    wanted = numbers()
    return {
        d.name: d.nearest(wanted[d.name])
        if d.ordered
        else min(d.values, key=lambda v: abs(numbers(**{d.name: v})[d.name] - wanted[d.name]))
        for d in space
        if d.name in wanted
    }


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
