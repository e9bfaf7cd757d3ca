"""Makes the searched hyperparameters of each method from `[search.space]`."""

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
    """Return the names of a method's options: the fields of its config without the capacity."""
    if name not in METHODS:
        return ()
    method = METHODS[name]
    return tuple(f.name for f in dataclasses.fields(method.config) if f.init and f.name != method.capacity_field)


def searchable(name: str) -> tuple[str, ...]:
    """Return the names of the hyperparameters of a method that may be searched besides its learning rate."""
    return (*option_names(name), *TRAIN_FIELDS)


def dimensions(name: str, spec: Sections) -> tuple[Dimension, ...]:
    """Return the hyperparameters that are searched for a method besides its learning rate, sorted by name.

    `[search.space]` holds for every method that has the hyperparameter. `methods.NAME.space` replaces single lines of
    it. A list of one value fixes a hyperparameter.
    """
    allowed = searchable(spec.base(name))
    general = {k: v for k, v in spec.search.space.items() if k in allowed}
    entries = {**general, **(spec.methods[name].space or {})}
    return tuple(_dimension(spec.base(name), k, entries[k]) for k in sorted(entries))


def _dimension(method: str, name: str, entry: SpaceEntry) -> Dimension:
    field = TrainSettings.model_fields.get(name)
    options = dataclasses.fields(METHODS[method].config) if method in METHODS else ()
    is_integer_option = any(f.name == name and f.type in (int, "int") for f in options)
    integer = is_integer_option or (field is not None and field.annotation is int)
    return Dimension(name, entry.low, entry.high, entry.log, integer, entry.values)


def published(
    name: str,
    spec: Sections,
    space: tuple[Dimension, ...],
    capacities: Mapping[str, int],
    shapes: Mapping[str, Shape],
    epochs: int,
) -> Extra:
    """Return the values of the searched hyperparameters if nothing were searched: of the sweep file, else defaults.

    Each value is moved to the nearest one in the space. An alpha without a number gets the value whose scale is
    nearest to the default scale. A hyperparameter without any default gets the first value of the space.

    Args:
        name: the method's name in the sweep file.
        spec: the sweep.
        space: the searched hyperparameters.
        capacities: the capacity of every target weight, by name.
        shapes: (out, in) of every target weight, by name.
        epochs: the epochs of the cell's data set if they were not searched.
    """
    values: dict[str, Value] = {}
    unset: list[Dimension] = []
    options, name = spec.methods[name].options, spec.base(name)
    for d in space:
        value = options.get(d.name)
        if value is None and d.name in TRAIN_FIELDS:
            full = name in FULL_METHODS and d.name == "weight_decay"
            value = epochs if d.name == "epochs" else getattr(spec.train, "full_weight_decay" if full else d.name)
        if value is None and name in METHODS:
            value = _default(name, d.name)
        if value is None or (isinstance(value, str) and value not in d.values):
            values[d.name] = d.ends[0]
            unset.append(d)
        else:
            values[d.name] = d.nearest(value)
    if unset and capacities:
        fixed = options | {k: v for k, v in values.items() if k not in (*TRAIN_FIELDS, *(d.name for d in unset))}
        own = [shapes[weight] for weight in capacities if weight in shapes]
        with suppress(ConfigError):  # options that contradict each other, which the plan's checks report
            values |= _alphas(name, max(capacities.values()), fixed, unset, own)
    return extra_of(values)


def _alphas(
    method: str, capacity: int, options: Mapping[str, Value], space: Sequence[Dimension], shapes: Sequence[Shape]
) -> dict[str, Value]:
    """Return the values of the dimensions that set the scale (alpha) which are nearest to the default scale."""

    def numbers(**more: Value) -> dict[str, float]:
        return METHODS[method].config.from_options(capacity, {**options, **more}).own_alpha(shapes)

    default_numbers = numbers()
    return {
        d.name: d.nearest(default_numbers[d.name])
        if d.ordered
        else min(d.values, key=lambda v: abs(numbers(**{d.name: v})[d.name] - default_numbers[d.name]))
        for d in space
        if d.name in default_numbers
    }


def _default(method: str, option: str) -> Any:
    """Return the default of a method's option; None if it has none."""
    for f in dataclasses.fields(METHODS[method].config):
        if f.name == option and f.default is not dataclasses.MISSING:
            return f.default
    return None


def split_extra(name: str, extra: Extra) -> tuple[dict[str, Value], dict[str, Value]]:
    """Return a point's values as (method options, training settings).

    For a method that trains base weights, `weight_decay` becomes `full_weight_decay`.
    """
    options = {k: v for k, v in extra if k not in TRAIN_FIELDS}
    train = {k: v for k, v in extra if k in TRAIN_FIELDS}
    if name in FULL_METHODS and "weight_decay" in train:
        train["full_weight_decay"] = train.pop("weight_decay")
    return options, train
