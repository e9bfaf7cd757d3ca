"""The hyperparameters that a study searches beside the learning rate, and the points of such a search."""

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
"""(name, value) of the hyperparameters beside the learning rate, by name."""


class Point(NamedTuple):
    """One configuration of a study: the learning rate and whatever else is searched."""

    lr: float
    extra: Extra = ()


@dataclass(frozen=True)
class Dimension:
    """One searched hyperparameter: a range, or a list of values.

    Attributes:
        name: its name in `options` or in `train` of a trial's configuration.
        low, high: ends of a range; None for a list.
        log: the range is searched on the logarithm.
        integer: the range holds whole numbers only.
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
        """Whether its values lie on a line: a range, or a list of numbers."""
        return not self.values or all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values)

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values that a method must be able to take: all of a list, both ends of a range."""
        if self.values or self.low is None or self.high is None:
            return self.values
        return (self.rounded(self.low), self.rounded(self.high))

    def rounded(self, value: float) -> Value:
        """A value of a range to 6 significant digits (so that ids do not hang on a last bit), or to a whole number."""
        return round(value) if self.integer else float(f"{value:.6g}")

    def listed(self, value: Value) -> Value:
        """Of training settings the list's own element that equals a value, 0 for 0.0, as tables have it.

        A method's options are as they were given: 0 and 0.0 are trials of two names there.
        """
        return next((v for v in self.values if v == value), value) if self.name in TRAIN_FIELDS else value

    def nearest(self, value: Value) -> Value:
        """The value of this dimension nearest to one that may lie outside."""
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
        """As the sweep file has it, without the name."""
        if self.values:
            return {"values": list(self.values)}
        return {"low": self.low, "high": self.high, "log": self.log}


@dataclass(frozen=True)
class Space:
    """What the study of one cell searches: a learning-rate range and further dimensions, by name."""

    low: float
    high: float
    dimensions: tuple[Dimension, ...] = field(default=())

    @property
    def ordered(self) -> int:
        """Number of hyperparameters whose values lie on a line, the learning rate included."""
        return 1 + sum(d.ordered for d in self.dimensions)

    @property
    def epochs(self) -> int | None:
        """Epochs of the longest trial; None where they are not searched."""
        return max((int(value) for d in self.dimensions if d.name == "epochs" for value in d.ends), default=None)


def extra_of(values: Mapping[str, Value]) -> Extra:
    """Named values as an `Extra`."""
    return tuple(sorted(values.items()))


def extra_json(extra: Extra) -> str | None:
    """As the column `hyperparameters` has it; None where the learning rate alone is searched."""
    return json.dumps(dict(extra), sort_keys=True) if extra else None


def extra_from(column: str | None) -> Extra:
    """From the column `hyperparameters`."""
    return extra_of(json.loads(column)) if column else ()
