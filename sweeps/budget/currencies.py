"""The currencies: what a budget can limit. They are trainable parameters, degrees of freedom, or costs on a model.

A currency computes one exact integer: the count of a method at given capacities. The solver (`sweeps.budget.reach`)
knows no more of it. Parameters and degrees of freedom are here. Memory, operations and saved bytes need a model, so
they are in `sweeps.plan.costs`.
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
    """Raised if the count of a method cannot be found with these options or on this model."""


class Currency(Protocol):
    """A currency: what a budget limits.

    Attributes:
        name: its name in a sweep file.
        noun: its name in messages such as "the largest NOUN of lora".
    """

    @property
    def name(self) -> Counted: ...
    @property
    def noun(self) -> str: ...

    def total(self, entry: Method, shapes: Shapes, capacities: Mapping[str, int], options: Mapping[str, Any]) -> int:
        """Return the count of all weights together, each at its own capacity.

        Args:
            entry: the method.
            shapes: (out, in) of each weight, by name.
            capacities: the capacity of each weight, by name.
            options: the method's options.

        Raises:
            UnknownCountError: the count cannot be found.
        """


@runtime_checkable
class PerWeight(Currency, Protocol):
    """A currency that is a sum over weights, and cheap enough to be computed for every capacity."""

    def one(self, entry: Method, shape: Shape, capacity: int, options: Mapping[str, Any]) -> int:
        """Return the count of one weight.

        Raises:
            UnknownCountError: the count cannot be found.
        """

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
