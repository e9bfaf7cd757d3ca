"""What a budget can limit: trainable parameters, degrees of freedom, or what training on a model costs.

A currency answers one question, in exact integers: how much do these capacities of a method count? The solver
(`sweeps.budget.reach`) asks it and knows no more. Parameters and degrees of freedom are here. Memory, operations and
saved bytes need a model, so whoever has one makes them (`sweeps.plan.costs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from randlora.adapted.freedom import Degrees, degrees, degrees_of_one
from randlora.methods.registry import Method

Shape = tuple[int, int]
Shapes = Mapping[str, Shape]
Counted = Literal["parameters", "dof", "memory", "flops", "bytes"]
"""Names of the currencies, as a sweep file has them."""


class UnknownCountError(ValueError):
    """The count of a method cannot be found with these options or on this model."""


class Currency(Protocol):
    """What a budget limits.

    Attributes:
        name: as in a sweep file.
        noun: its name in messages such as "the largest NOUN of lora".
    """

    @property
    def name(self) -> Counted: ...
    @property
    def noun(self) -> str: ...

    def total(self, entry: Method, shapes: Shapes, capacities: Mapping[str, int], options: Mapping[str, Any]) -> int:
        """Return what all weights count together, each at its own capacity.

        Raises UnknownCountError.
        """


@runtime_checkable
class PerWeight(Currency, Protocol):
    """A currency that each weight counts for itself, so cheaply that every capacity is counted."""

    def one(self, entry: Method, shape: Shape, capacity: int, options: Mapping[str, Any]) -> int:
        """Return what one weight counts. Raises UnknownCountError."""

    def __hash__(self) -> int: ...


class _Parameters:
    name: Counted = "parameters"
    noun = "count"

    def one(self, entry: Method, shape: Shape, capacity: int, options: Mapping[str, Any]) -> int:
        return entry.count(shape, capacity, **options)

    def total(self, entry: Method, shapes: Shapes, capacities: Mapping[str, int], options: Mapping[str, Any]) -> int:
        if entry.together is not None:
            (capacity,) = set(capacities.values())
            return entry.total(shapes, capacity, **options)
        return sum(entry.count(shapes[name], c, **options) for name, c in capacities.items())


class _Freedom:
    name: Counted = "dof"
    noun = "number of degrees of freedom"

    def one(self, entry: Method, shape: Shape, capacity: int, options: Mapping[str, Any]) -> int:
        return self._count_of(entry, degrees_of_one(entry.name, shape, capacity, options))

    def total(self, entry: Method, shapes: Shapes, capacities: Mapping[str, int], options: Mapping[str, Any]) -> int:
        return self._count_of(entry, degrees(entry.name, shapes, capacities, options))

    @staticmethod
    def _count_of(entry: Method, freedom: Degrees | None) -> int:
        if freedom is None:
            raise UnknownCountError(f"the degrees of freedom of {entry.name} can't be measured with these options")
        return freedom.count


PARAMETERS: PerWeight = _Parameters()
DOF: PerWeight = _Freedom()
