"""Counts a method on a model's target weights at every useful capacity, and spreads capacities over the weights.

A count is the amount of the budget's currency (`sweeps.budget.currencies`), an exact integer. `sweeps.budget.solver`
compares the counts with a budget. The reach of a method is the range of capacities that are worth trying.

If a currency is a sum over weights, every capacity is counted. Any other currency runs a model's step for each count,
so few capacities are tried. The search begins with some capacities over the whole reach. Then it narrows the gap
between the two tried capacities around the wanted count, until they are neighbours. If the count grows with every step
of the capacity, as it does for nearly all methods, this finds the nearest of all capacities. Otherwise it finds the
nearest of those that were tried.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from randlora.adapted.freedom import degrees
from randlora.methods.registry import Method, get_method
from sweeps.budget.currencies import PARAMETERS, Currency, PerWeight, Shape, Shapes
from sweeps.spec.solution import Neighbour

Counts = NDArray[np.int64]
Side = Callable[[Any, Any], Any]
"""`operator.le`, `ge`, `lt` or `gt`, of a count (or an array of counts) and a number."""

_LARGE = 2**62
_MOST_ROUNDED = 10
"""The number of groups for which `fill` tries both roundings. Further groups are rounded one after another."""
_STRIDE = 8
"""The factor between the capacities that a search tries first."""


class Curve(Protocol):
    """The counts of a method as a function of its capacity."""

    def nearest(self, target: int) -> int:
        """Return the capacity whose count is nearest to `target`; the smaller one if two are equally near."""

    def beyond(self, side: Side, bound: int, target: int) -> tuple[int, int] | None:
        """Return the capacity and the count nearest to `target` among those for which `side(count, bound)` is true.

        None if there is no such capacity.
        """


class AllCounts:
    """A curve with all counts: `counts[i]` is the count at capacity `least + i`."""

    def __init__(self, least: int, counts: Counts) -> None:
        self.least, self.counts = least, counts

    def nearest(self, target: int) -> int:
        # argmin takes the first of equal values
        return int(np.argmin(np.abs(self.counts - target))) + self.least

    def beyond(self, side: Side, bound: int, target: int) -> tuple[int, int] | None:
        indices = np.flatnonzero(side(self.counts, bound))
        if not indices.size:
            return None
        i = int(indices[np.argmin(np.abs(self.counts[indices] - target))])
        return i + self.least, int(self.counts[i])

    def between(self, low: int, high: int) -> list[int]:
        """Return the counts from `low` to `high`."""
        return [int(n) for n in self.counts if low <= n <= high]


class SearchedCounts:
    """A curve that counts only the capacities that a search needs."""

    def __init__(self, least: int, most: int, count: Callable[[int], int]) -> None:
        self._count = count
        first = itertools.takewhile(lambda c: c < most, (max(1, least) * _STRIDE**i for i in itertools.count()))
        self._tried: dict[int, int] = {c: count(c) for c in (least, *first, most)}

    def nearest(self, target: int) -> int:
        self._search(operator.le, target)
        return min(sorted(self._tried), key=lambda c: abs(self._tried[c] - target))

    def beyond(self, side: Side, bound: int, target: int) -> tuple[int, int] | None:
        self._search(side, bound)
        capacities = [c for c in sorted(self._tried) if side(self._tried[c], bound)]
        best = min(capacities, key=lambda c: abs(self._tried[c] - target), default=None)
        return None if best is None else (best, self._tried[best])

    def _search(self, side: Side, bound: int) -> None:
        """Try capacities until the two tried ones around `bound` are neighbours.

        In turn it tries the middle of a gap, and where the straight line through the ends of the gap reaches `bound`.
        """
        halve = False
        while gaps := [(a, b) for a, b in itertools.pairwise(sorted(self._tried)) if self._is_gap(a, b, side, bound)]:
            for low, high in gaps:
                middle = (low + high) // 2 if halve else self._on_line(low, high, bound)
                self._tried[middle] = self._count(middle)
            halve = not halve

    def _is_gap(self, low: int, high: int, side: Side, bound: int) -> bool:
        """Return whether two tried capacities lie on different sides of `bound`, with untried ones between them."""
        return high - low > 1 and bool(side(self._tried[low], bound)) != bool(side(self._tried[high], bound))

    def _on_line(self, low: int, high: int, bound: int) -> int:
        """Return the capacity at which the straight line through two tried ones reaches `bound`."""
        below, above = self._tried[low], self._tried[high]
        at = low + (high - low) * (bound - below) // (above - below)
        return min(max(at, low + 1), high - 1)


class Reach:
    """The counts of one method on one set of target weights.

    Args:
        method: the method's name.
        shapes: (out, in) of each target weight, by name.
        options: the method's options.
        currency: what is counted.

    Attributes:
        least, most: the smallest and the largest uniform capacity worth trying.
        curve: the count of all weights together at one capacity.
        groups: names of the weights of each shape, in model order.
    """

    def __init__(
        self, method: str, shapes: Shapes, options: Mapping[str, Any] | None = None, currency: Currency = PARAMETERS
    ) -> None:
        if not shapes:
            raise ValueError("no target weights: nothing to match a budget on")
        self.entry = get_method(method)
        self.shapes = dict(shapes)
        self.options = dict(options or {})
        self.currency = currency
        self.groups: dict[Shape, list[str]] = {}
        for name, shape in self.shapes.items():
            self.groups.setdefault(shape, []).append(name)
        self.least = self.entry.min_capacity
        limiting = tuple(self.shapes.values()) if self.shared else tuple(self.groups)
        self.most = self.entry.max_capacity(limiting, **self.options)
        if self.most < self.least:
            raise ValueError(f"{method} has no capacity to try on weights of shapes {list(self.groups)[:4]}")
        self._of_shapes: dict[Shape, Counts] = {}  # counts of one weight; empty if the total is not a sum over weights
        self.curve: Curve
        if not isinstance(currency, PerWeight):
            self.curve = SearchedCounts(self.least, self.most, lambda c: self.total(self.same(c)))
            return
        size = self.most - self.least + 1
        if self.shared:
            reach = range(self.least, self.most + 1)
            self.curve = AllCounts(self.least, np.fromiter((self.total(self.same(c)) for c in reach), np.int64, size))
            return
        given = tuple(sorted(self.options.items()))
        self._of_shapes = dict(zip(self.groups, _curves(self.entry, tuple(self.groups), given, currency), strict=True))
        totals: Counts = np.zeros(size, dtype=np.int64)
        for shape, names in self.groups.items():
            totals += len(names) * self._of_shapes[shape][:size]
        self.curve = AllCounts(self.least, totals)

    def total(self, capacities: Mapping[str, int]) -> int:
        """Return the count of all weights together, each at its own capacity."""
        return self.currency.total(self.entry, self.shapes, capacities, self.options)

    def parameters(self, capacities: Mapping[str, int]) -> int:
        """Return the number of trainable parameters of all weights, each at its own capacity."""
        return PARAMETERS.total(self.entry, self.shapes, capacities, self.options)

    def around(self, budget: int) -> tuple[Neighbour | None, Neighbour | None]:
        """Return the nearest uniform counts that are at most and at least `budget`; None beyond the reach."""
        bounded = min(budget, _LARGE)
        low, high = (self.curve.beyond(side, bounded, bounded) for side in (operator.le, operator.ge))
        return _neighbour(low, budget), _neighbour(high, budget)

    def beside(self, count: int, budget: int) -> tuple[Neighbour | None, Neighbour | None]:
        """Return the nearest uniform counts strictly below and above `count`, with their residuals to `budget`."""
        below, above = (self.curve.beyond(side, count, count) for side in (operator.lt, operator.gt))
        return _neighbour(below, budget), _neighbour(above, budget)

    def uniform(self, budget: int) -> dict[str, int]:
        """Return one capacity for all weights: the nearest; the smaller one if two are equally near."""
        return self.same(self.curve.nearest(min(budget, _LARGE)))

    @property
    def shared(self) -> bool:
        """Return whether the weights share trainable tensors, so that all have one capacity."""
        return self.entry.together is not None

    def per_layer(self, budget: int) -> dict[str, int]:
        """Return for each weight the capacity nearest to its share of the budget, (out + in) / sum(out + in).

        If the currency is not a sum over weights, the count of the smallest capacities is subtracted from the budget
        first.
        """
        all_sides = sum(rows + columns for rows, columns in self.shapes.values())
        best: dict[Shape, int] = {}
        if not self._of_shapes:
            floor = self.total(self.same(self.least))
            for shape, names in self.groups.items():
                aim = floor + (budget - floor) * len(names) * sum(shape) // all_sides
                most, count = self._most_of(shape), partial(self._total_with, names, self.least)
                best[shape] = SearchedCounts(self.least, most, count).nearest(aim)
        for shape, curve in self._of_shapes.items():
            # count / budget - (out + in) / all_sides without a division, in Python's integers, which don't overflow
            scaled = curve[: self._most_of(shape) - self.least + 1].astype(object) * all_sides - budget * sum(shape)
            best[shape] = int(np.argmin(np.abs(scaled))) + self.least
        return {name: best[shape] for name, shape in self.shapes.items()}

    def _most_of(self, shape: Shape) -> int:
        """Return the largest capacity worth trying on one weight of a shape."""
        return self.entry.max_capacity((shape,), **self.options)

    def _total_with(self, names: list[str], others: int, capacity: int) -> int:
        """Return the count of all weights if `names` have one capacity and the other weights have `others`."""
        return self.total(self.same(others) | dict.fromkeys(names, capacity))

    def fill(self, budget: int) -> dict[str, int]:
        """Return a mixture of the two capacities whose uniform counts enclose the budget.

        If no uniform count lies on one side of the budget, all weights get the nearest capacity.
        """
        low, high = self.around(budget)
        edge = low or high
        assert edge is not None
        if low is None or high is None or low.count == high.count:
            return self.same(edge.capacity)
        sizes = [len(names) for names in self.groups.values()]
        steps = [self._step(shape, low, high) for shape in self.groups]
        higher_counts = mix(steps, sizes, budget - low.count, high.count - low.count)
        capacities = self.same(low.capacity)
        for names, n_high in zip(self.groups.values(), higher_counts, strict=True):
            for j, name in enumerate(names):
                if _spread(j + 1, n_high, len(names)) > _spread(j, n_high, len(names)):
                    capacities[name] = high.capacity
        return capacities

    def _step(self, shape: Shape, low: Neighbour, high: Neighbour) -> int:
        """Return the difference of the count of one weight of this shape between `high` and `low`."""
        if isinstance(self.currency, PerWeight):
            upper, lower = (self.currency.one(self.entry, shape, n.capacity, self.options) for n in (high, low))
            return upper - lower
        names = self.groups[shape]
        return round((self._total_with(names, low.capacity, high.capacity) - low.count) / len(names))

    def same(self, capacity: int) -> dict[str, int]:
        """Return a dictionary with one capacity for all weights."""
        return dict.fromkeys(self.shapes, capacity)

    def widening(self, wanted: Fraction) -> list[str]:
        """Return the names of integer options with which the method reaches the count `wanted` if they are raised.

        An option is doubled as long as that raises the largest capacity (such as NoLA's r). [] if the currency is not a
        sum over weights.
        """
        if not isinstance(self.currency, PerWeight):
            return []
        options = {**self.entry.options, **self.options}
        integers = {n: value for n, value in options.items() if isinstance(value, int) and not isinstance(value, bool)}
        return [name for name, value in integers.items() if self._reaches(wanted, name, 2 * value, self.most)]

    def _reaches(self, wanted: Fraction, option: str, value: int, most: int) -> bool:
        """Return whether the method reaches the count `wanted` if an option is `value` or is doubled further."""
        options, shapes = {**self.options, option: value}, self.shapes
        raised = self.entry.max_capacity(tuple(shapes.values()), **options)
        if raised <= most:
            return False
        ends = self.least, raised  # not the whole reach, which may be too long to go through
        if max(self.entry.total(shapes, c, **options) for c in ends) < wanted:
            return self._reaches(wanted, option, 2 * value, raised)
        if self.currency.name == "parameters":
            return True
        freedoms = [degrees(self.entry.name, shapes, self.same(c), options) for c in ends]
        return any(d is not None and d.count >= wanted for d in freedoms)


def _neighbour(capacity_and_count: tuple[int, int] | None, budget: int) -> Neighbour | None:
    if capacity_and_count is None:
        return None
    capacity, count = capacity_and_count
    return Neighbour(capacity, count, count - budget)


def mix(steps: list[int], sizes: list[int], wanted: int, span: int) -> list[int]:
    """Return how many weights of each group get the higher of two capacities.

    In each group the fraction wanted / span of the weights gets it, rounded down or up. Of all roundings, the one with
    the total nearest to `wanted` is taken; if several are equally near, the one that is nearest to the fraction. The
    total differs from `wanted` by at most half of the largest step.

    Args:
        steps: by how much a weight of each group raises the total if it gets the higher capacity.
        sizes: the number of weights of each group.
        wanted: by how much the total is to be raised.
        span: by how much it is raised if all weights get the higher capacity.
    """
    higher_counts = [size * wanted // span for size in sizes]
    rests = [size * wanted % span for size in sizes]  # in units of 1 / span of a weight
    partial = [g for g, rest in enumerate(rests) if rest]
    in_turn, free = partial[:-_MOST_ROUNDED], partial[-_MOST_ROUNDED:]
    error = 0  # of the total, in units of 1 / span
    for g in in_turn:
        up, down = error + (span - rests[g]) * steps[g], error - rests[g] * steps[g]
        higher_counts[g] += abs(up) < abs(down)
        error = min(down, up, key=abs)
    base = sum(n * step for n, step in zip(higher_counts, steps, strict=True))

    def badness(ups: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        total = base + sum(steps[g] for g, up in zip(free, ups, strict=True) if up)
        uneven = sum(abs(up * span - rests[g]) for g, up in zip(free, ups, strict=True))
        return abs(total - wanted), uneven, ups

    roundings: list[tuple[int, ...]] = list(itertools.product((0, 1), repeat=len(free)))
    best: tuple[int, ...] = min(roundings, key=badness)
    for g, up in zip(free, best, strict=True):
        higher_counts[g] += up
    return higher_counts


def _spread(j: int, taken: int, size: int) -> int:
    """Return how many of the first j of `size` weights are among `taken` ones that are spread evenly."""
    return (2 * j * taken + size) // (2 * size)


@lru_cache(maxsize=64)
def _curves(
    entry: Method, shapes: tuple[Shape, ...], options: tuple[tuple[str, Any], ...], currency: PerWeight
) -> tuple[Counts, ...]:
    """Return the counts of one weight of each shape, up to the largest capacity worth trying."""
    named, least = dict(options), entry.min_capacity
    most = entry.max_capacity(shapes, **named)
    curves = []
    for shape in shapes:
        capacities = range(least, max(most, entry.max_capacity((shape,), **named)) + 1)
        counts = (currency.one(entry, shape, c, named) for c in capacities)
        curve = np.fromiter(counts, np.int64, len(capacities))
        curve.flags.writeable = False  # the cache shares it between callers
        curves.append(curve)
    return tuple(curves)
