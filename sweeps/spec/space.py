"""The searched hyperparameters other than the learning rate, and the points of a search."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

BATCH_SIZE = "global_batch_size"
"""The batch size, which all methods search alike (`sweeps.spec.batch_sizes`)."""
TRAIN_FIELDS = ("epochs", "weight_decay", "grad_clip", "min_lr_ratio", "warmup_fraction", "schedule", BATCH_SIZE)
"""Training settings that may be searched."""
Value = float | int | str | bool
Extra = tuple[tuple[str, Value], ...]
"""(name, value) of each searched hyperparameter other than the learning rate, sorted by name."""


def round_to_six_digits(value: float) -> float:
    """Return a number rounded to 6 significant digits, so that ids do not depend on the last bit of a number."""
    return float(f"{value:.6g}")


class Point(NamedTuple):
    """One point of a search: the learning rate and the values of the other searched hyperparameters."""

    lr: float
    extra: Extra = ()


@dataclass(frozen=True)
class Dimension:
    """One searched hyperparameter: a range, or a list of values.

    Attributes:
        name: its name in `options` or in `train` of a trial's configuration.
        low, high: ends of a range; None for a list.
        log: whether the range is searched on the log scale.
        integer: whether the range has only whole numbers.
        values: the list, in the order of the sweep file; empty for a range.
    """

    name: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    integer: bool = False
    values: tuple[Value, ...] = ()

    @property
    def ordered(self) -> bool:
        """Return whether its values have an order: it is a range, or a list of numbers."""
        return not self.values or all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values)

    @property
    def ends(self) -> tuple[Value, ...]:
        """Return the values that a method must be able to take: all values of a list, or both ends of a range."""
        if self.values or self.low is None or self.high is None:
            return self.values
        return (self.rounded(self.low), self.rounded(self.high))

    def rounded(self, value: float) -> Value:
        """Return a value of a range, rounded to 6 significant digits or to a whole number."""
        return round(value) if self.integer else round_to_six_digits(value)

    def listed(self, value: Value) -> Value:
        """Return the element of a list that equals a value of a training setting, such as 0 for 0.0.

        A value of a method's option is returned as it is: there, 0 and 0.0 give different trial ids.
        """
        return next((v for v in self.values if v == value), value) if self.name in TRAIN_FIELDS else value

    def nearest(self, value: Value) -> Value:
        """Return the value of this dimension that is nearest to `value`."""
        if self.values:
            if value in self.values:
                return self.listed(value)
            if self.ordered and isinstance(value, int | float):
                return min(self.values, key=lambda v: abs(float(v) - float(value)))
            return self.values[0]
        if self.low is None or self.high is None or isinstance(value, str):
            raise AssertionError(f"{self.name} is neither a range nor a list")
        return self.rounded(min(max(float(value), self.low), self.high))

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values, like in a sweep file, without the name."""
        if self.values:
            return {"values": list(self.values)}
        return {"low": self.low, "high": self.high, "log": self.log}


@dataclass(frozen=True)
class Space:
    """The search space of a cell.

    Attributes:
        low, high: the range of learning rates.
        dimensions: the other searched hyperparameters, sorted by name.
    """

    low: float
    high: float
    dimensions: tuple[Dimension, ...] = field(default=())

    @property
    def ordered(self) -> int:
        """Return the number of hyperparameters whose values have an order, with the learning rate."""
        return 1 + sum(d.ordered for d in self.dimensions)

    @property
    def epochs(self) -> int | None:
        """Return the epochs of the longest trial; None if they are not searched."""
        return max((int(value) for d in self.dimensions if d.name == "epochs" for value in d.ends), default=None)


def extra_of(values: Mapping[str, Value]) -> Extra:
    """Return named values as an `Extra`."""
    return tuple(sorted(values.items()))


def extra_json(extra: Extra) -> str | None:
    """Return the text of the column `hyperparameters`; None if only the learning rate is searched."""
    return json.dumps(dict(extra), sort_keys=True) if extra else None


def extra_from(column: str | None) -> Extra:
    """Return the values of a text of the column `hyperparameters`."""
    return extra_of(json.loads(column)) if column else ()
