"""What a method counts on a model's target weights at every capacity within its reach, and how capacities are allotted.

Counted are trainable parameters, or degrees of freedom, in exact integers. `sweeps.budget.solver` holds the answers
against a budget.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from randlora.adapted.freedom import Degrees, degrees, degrees_of_one
from randlora.methods.registry import Method, get_method
from sweeps.spec.solution import Neighbour

Shape = tuple[int, int]
Shapes = Mapping[str, Shape]
Counts = NDArray[np.int64]
Counted = Literal["parameters", "dof"]
"""What a budget limits."""

_LARGE = 2**62
_MOST_ROUNDED = 10
"""Groups of which both roundings are tried in `fill`; a model with more shapes has the first ones rounded in turn."""


class UnknownFreedomError(ValueError):
    """A method with no formula for its degrees of freedom, which so small a weight as they are measured on refuses."""


class Reach:
    """The counts of one method on one set of target weights.

    Attributes:
        least, most: the uniform capacities worth trying.
        totals: the count at uniform capacity `least + i`, at index i.
        groups: names of the weights of each shape, in model order.
    """

    def __init__(
        self, method: str, shapes: Shapes, options: Mapping[str, Any] | None = None, counted: Counted = "parameters"
    ) -> None:
        if not shapes:
            raise ValueError("no target weights: nothing to match a budget on")
        self.entry = get_method(method)
        self.shapes = dict(shapes)
        self.options = dict(options or {})
        self.counted = counted
        self.groups: dict[Shape, list[str]] = {}
        for name, shape in self.shapes.items():
            self.groups.setdefault(shape, []).append(name)
        self.least = self.entry.min_capacity
        given = tuple(sorted(self.options.items()))
        self.most, alone, curves = _curves(self.entry, tuple(self.groups), given, counted)
        if self.shared:
            self.most = self.entry.max_capacity(tuple(self.shapes.values()), **self.options)
        if self.most < self.least:
            raise ValueError(f"{method} has no capacity to try on weights of shapes {list(self.groups)[:4]}")
        self._alone = dict(zip(self.groups, alone, strict=True))
        self._curves = dict(zip(self.groups, curves, strict=True))
        size = self.most - self.least + 1
        self.totals: Counts = np.zeros(size, dtype=np.int64)
        if self.shared:
            reach = range(self.least, self.most + 1)
            self.totals = np.fromiter((self.total(self.same(c)) for c in reach), np.int64, size)
            return
        for shape, names in self.groups.items():
            self.totals += len(names) * self._curves[shape][:size]

    def one(self, shape: Shape, capacity: int) -> int:
        """What one weight counts; the capacity may lie beyond the reach."""
        return _one(self.entry, shape, capacity, self.options, self.counted)

    def total(self, capacities: Mapping[str, int]) -> int:
        """What all weights count, each at its own capacity."""
        if self.counted == "dof":
            return _known(self.entry, degrees(self.entry.name, self.shapes, capacities, self.options))
        return self.parameters(capacities)

    def parameters(self, capacities: Mapping[str, int]) -> int:
        """Trainable parameters of all weights, each at its own capacity; one, where weights share trainables."""
        if self.shared:
            (capacity,) = set(capacities.values())
            return self.entry.total(self.shapes, capacity, **self.options)
        return sum(self.entry.count(self.shapes[name], c, **self.options) for name, c in capacities.items())

    def around(self, budget: int) -> tuple[Neighbour | None, Neighbour | None]:
        """The nearest uniform counts at most and at least `budget`; None beyond the reach."""
        bounded = min(budget, _LARGE)
        low = self._nearest(self.totals <= bounded, bounded, budget)
        return low, self._nearest(self.totals >= bounded, bounded, budget)

    def beside(self, count: int, budget: int) -> tuple[Neighbour | None, Neighbour | None]:
        """The nearest uniform counts strictly below and above `count`, with their residuals to `budget`."""
        below = self._nearest(self.totals < count, count, budget)
        return below, self._nearest(self.totals > count, count, budget)

    def uniform(self, budget: int) -> dict[str, int]:
        """One capacity for all weights: the nearest, of equals the smaller."""
        # argmin takes the first of equals
        return self.same(int(np.argmin(np.abs(self.totals - min(budget, _LARGE)))) + self.least)

    @property
    def shared(self) -> bool:
        """Whether weights share trainables, so that all have one capacity."""
        return self.entry.together is not None

    def per_layer(self, budget: int) -> dict[str, int]:
        """Each weight at the capacity nearest to its share of the budget, (out + in) / sum(out + in)."""
        whole = sum(rows + columns for rows, columns in self.shapes.values())
        best: dict[Shape, int] = {}
        for shape, curve in self._curves.items():
            # count / budget against (out + in) / whole without a division, in Python's integers, which don't overflow
            scaled = curve[: self._alone[shape] - self.least + 1].astype(object) * whole - budget * sum(shape)
            best[shape] = int(np.argmin(np.abs(scaled))) + self.least
        return {name: best[shape] for name, shape in self.shapes.items()}

    def fill(self, budget: int) -> dict[str, int]:
        """Two capacities whose uniform totals enclose the budget, mixed evenly; the nearest one beyond the reach."""
        low, high = self.around(budget)
        edge = low or high
        assert edge is not None
        if low is None or high is None or low.count == high.count:
            return self.same(edge.capacity)
        steps = [self.one(shape, high.capacity) - self.one(shape, low.capacity) for shape in self.groups]
        sizes = [len(names) for names in self.groups.values()]
        taken = mix(steps, sizes, budget - low.count, high.count - low.count)
        capacities = self.same(low.capacity)
        for names, n_high in zip(self.groups.values(), taken, strict=True):
            for j, name in enumerate(names):
                if _spread(j + 1, n_high, len(names)) > _spread(j, n_high, len(names)):
                    capacities[name] = high.capacity
        return capacities

    def same(self, capacity: int) -> dict[str, int]:
        """All weights at one capacity."""
        return dict.fromkeys(self.shapes, capacity)

    def widening(self, wanted: Fraction) -> list[str]:
        """The method's integer options with which, doubled until that no longer raises `most`, it counts as much as
        `wanted` (NoLA's r)."""
        given = {**self.entry.options, **self.options}
        whole = {name: value for name, value in given.items() if isinstance(value, int) and not isinstance(value, bool)}
        return [name for name, value in whole.items() if self._reaches(wanted, name, 2 * value, self.most)]

    def _reaches(self, wanted: Fraction, option: str, value: int, most: int) -> bool:
        options, shapes = {**self.options, option: value}, self.shapes
        raised = self.entry.max_capacity(tuple(shapes.values()), **options)
        if raised <= most:
            return False
        ends = self.least, raised  # not the whole reach: doubled often, it is too long to go through
        if max(self.entry.total(shapes, c, **options) for c in ends) < wanted:
            return self._reaches(wanted, option, 2 * value, raised)
        if self.counted == "parameters":
            return True
        found = [degrees(self.entry.name, shapes, self.same(c), options) for c in ends]
        return any(d is not None and d.count >= wanted for d in found)

    def _nearest(self, side: NDArray[np.bool_], count: int, budget: int) -> Neighbour | None:
        indices = np.flatnonzero(side)
        if not indices.size:
            return None
        i = int(indices[np.argmin(np.abs(self.totals[indices] - count))])
        total = int(self.totals[i])
        return Neighbour(i + self.least, total, total - budget)


def mix(steps: list[int], sizes: list[int], wanted: int, span: int) -> list[int]:
    """How many weights of each group take the upper of two capacities.

    Each group of `sizes[g]` weights, which moves the total by `steps[g]` a weight, takes the fraction wanted / span of
    its weights, rounded down or up: of all roundings the one whose total is nearest to `wanted`, of equals the one that
    keeps to the fraction best. Rounding each group in turn so that the running error stays small is one of them, and
    errs by at most half of the largest step.
    """
    taken = [size * wanted // span for size in sizes]
    rests = [size * wanted % span for size in sizes]  # in 1 / span of a weight
    partial = [g for g, rest in enumerate(rests) if rest]
    in_turn, free = partial[:-_MOST_ROUNDED], partial[-_MOST_ROUNDED:]
    error = 0  # of the total, in 1 / span
    for g in in_turn:
        up, down = error + (span - rests[g]) * steps[g], error - rests[g] * steps[g]
        taken[g] += abs(up) < abs(down)
        error = min(down, up, key=abs)
    base = sum(n * step for n, step in zip(taken, steps, strict=True))

    def badness(ups: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        total = base + sum(steps[g] for g, up in zip(free, ups, strict=True) if up)
        uneven = sum(abs(up * span - rests[g]) for g, up in zip(free, ups, strict=True))
        return abs(total - wanted), uneven, ups

    roundings: list[tuple[int, ...]] = list(itertools.product((0, 1), repeat=len(free)))
    best: tuple[int, ...] = min(roundings, key=badness)
    for g, up in zip(free, best, strict=True):
        taken[g] += up
    return taken


def _one(entry: Method, shape: Shape, capacity: int, options: Mapping[str, Any], counted: Counted) -> int:
    if counted == "parameters":
        return entry.count(shape, capacity, **options)
    return _known(entry, degrees_of_one(entry.name, shape, capacity, options))


def _known(entry: Method, found: Degrees | None) -> int:
    if found is None:
        raise UnknownFreedomError(f"the degrees of freedom of {entry.name} can't be measured with these options")
    return found.count


def _spread(j: int, taken: int, size: int) -> int:
    """How many of the first j of `size` weights are among the `taken` ones: even steps, centred."""
    return (2 * j * taken + size) // (2 * size)


@lru_cache(maxsize=64)
def _curves(
    entry: Method, shapes: tuple[Shape, ...], options: tuple[tuple[str, Any], ...], counted: Counted
) -> tuple[int, tuple[int, ...], tuple[Counts, ...]]:
    """The method's reach on these shapes together, on each alone, and every shape's counts up to the larger."""
    named, least = dict(options), entry.min_capacity
    most = entry.max_capacity(shapes, **named)
    alone = tuple(entry.max_capacity((shape,), **named) for shape in shapes)
    curves = []
    for shape, own in zip(shapes, alone, strict=True):
        capacities = range(least, max(most, own) + 1)
        curve = np.fromiter((_one(entry, shape, c, named, counted) for c in capacities), np.int64, len(capacities))
        curve.flags.writeable = False  # shared by all who ask
        curves.append(curve)
    return most, alone, tuple(curves)
