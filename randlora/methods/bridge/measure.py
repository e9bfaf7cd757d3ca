"""Measure PEFT's types on small layers: how many parameters train, and which capacities PEFT accepts.

PEFT's tuner is built on about 50 layers with sides of 12 to 30, at a few capacities each. What it refuses is illegal.
From what it builds, a formula of the sides and the capacity is fitted. It must hold exactly for all these layers, and
it then gives the count on weights of any size. `sweeps plan` builds every cell once, so a formula that fails on large
weights would be noticed there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from randlora.adapter import Shape
from randlora.methods.bridge.installed import peft, quiet

Options = Mapping[str, Any]
Term = Callable[[int, int, int, int], int]
"""A function of a weight's outputs o and inputs i, of m = min(o, i), and of the capacity c."""

_SHAPES: tuple[Shape, ...] = ((12, 18), (24, 12), (30, 20), (16, 24), (18, 30), (12, 12), (20, 12))
"""Shapes of the small layers, as (out, in). Their sides have many divisors, and they differ in their proportions."""
_LIMITED = _SHAPES[:3]
"""Shapes on which capacities near possible limits are built too."""
_CAPACITIES = (1, 2, 3, 4, 6)
_FEWEST = 3
"""The number of capacities that a formula, of powers up to c^2, must be fitted to."""

_CONSTANT: tuple[Term, ...] = (lambda o, i, m, c: 1, lambda o, i, m, c: o, lambda o, i, m, c: i)
_POWERS: tuple[Term, ...] = (
    *(lambda o, i, m, c: c, lambda o, i, m, c: c * o, lambda o, i, m, c: c * i, lambda o, i, m, c: c * c),
    *_CONSTANT,
)
_NARROW: tuple[Term, ...] = (
    *(lambda o, i, m, c: m, lambda o, i, m, c: c * m, lambda o, i, m, c: m * m, lambda o, i, m, c: o * i),
    *_POWERS,
)
_PIECES: tuple[Term, ...] = (lambda o, i, m, c: -(-m // c) * c, lambda o, i, m, c: -(-m // c) * m, *_CONSTANT)
_BLOCKS: tuple[Term, ...] = (lambda o, i, m, c: o * i // c, lambda o, i, m, c: c, *_CONSTANT)
_FORMULAS = (_CONSTANT, _POWERS, _NARROW, _PIECES, _BLOCKS)
"""Terms of formulas, from simple to complex: no capacity, powers of it, the smaller side, parts of c rows, blocks."""
_PARTS = 2
"""Coefficients are multiples of one half, as in c (c - 1) / 2."""

_LIMITS: tuple[Callable[[Shape], int], ...] = (
    lambda shape: shape[0] * shape[1],
    lambda shape: shape[0] * shape[1] // sum(shape),
    max,
    min,
)
"""Largest capacities that PEFT may accept."""
_DIVIDED: tuple[Callable[[Shape], int], ...] = (
    lambda shape: shape[1],
    lambda shape: shape[0],
    lambda shape: math.gcd(*shape),
)
"""Numbers that a capacity may have to divide."""


REFUSALS = (ValueError, TypeError, RuntimeError, AssertionError, KeyError, AttributeError, ZeroDivisionError)
"""Errors with which PEFT refuses a configuration or a weight."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of a type with some options.

    Attributes:
        terms: coefficient (in halves) and term of the formula; None if none of the formulas holds.
        limit: returns the largest capacity that PEFT accepts on a weight; None if it accepts all.
        divided: returns the number that a capacity must divide; None if it need not divide any.
    """

    terms: tuple[tuple[int, Term], ...] | None
    limit: Callable[[Shape], int] | None = None
    divided: Callable[[Shape], int] | None = None

    def count(self, shape: Shape, capacity: int) -> int:
        """Return the number of trainable parameters of one weight, by the formula."""
        assert self.terms is not None
        o, i = shape
        m = min(o, i)
        return sum([n * term(o, i, m, capacity) for n, term in self.terms]) // _PARTS

    def most(self, shape: Shape) -> int:
        """Return the largest capacity that PEFT accepts; the smaller side if it accepts all."""
        largest = self.limit or self.divided or min
        return largest(shape)

    def legal(self, shape: Shape, capacity: int, least: int) -> int:
        """Return the nearest capacity that PEFT accepts; the smaller one if two are equally near."""
        if self.limit is not None:
            return min(capacity, self.limit(shape))
        if self.divided is None:
            return capacity
        return close(tuple(d for d in divisors(self.divided(shape)) if d >= least), capacity)


@lru_cache(maxsize=4096)
def divisors(number: int) -> tuple[int, ...]:
    """Return all divisors in ascending order."""
    low = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return tuple(sorted({*low, *(number // d for d in low)}))


def close(choices: tuple[int, ...], capacity: int) -> int:
    """Return the choice nearest to the capacity. Of two equally near ones it is the smaller."""
    return min(choices, key=lambda choice: abs(choice - capacity))


def built_count(theirs: type[Any], fields: Options, shape: Shape, layers: int = 1) -> int:
    """Build PEFT's tuner on layers of one shape, and return how many parameters train.

    Args:
        theirs: PEFT's configuration class.
        fields: its fields, but `target_modules`.
        shape: (out, in) of each layer.
        layers: the number of layers.

    Raises:
        ValueError, TypeError, RuntimeError or another error of PEFT: it refuses the fields on this shape.
    """
    config = {**fields, "target_modules": [str(k) for k in range(layers)]}

    def on(device: str) -> int:
        root = nn.Sequential(*(nn.Linear(shape[1], shape[0], bias=False, device=device) for _ in range(layers)))
        tuner = peft().get_peft_model(root, theirs(**config))
        return sum(p.numel() for p in tuner.parameters() if p.requires_grad)

    with quiet(), torch.random.fork_rng(devices=[]):
        try:
            return on("meta")
        except NotImplementedError:  # it needs values of the weight
            return on("cpu")


def takes_conv1d(theirs: type[Any], fields: Options) -> bool:
    """Return whether PEFT builds a type on transformers' Conv1D."""
    layer = peft().tuners.lora.layer.Conv1D(16, 16)
    with quiet(), torch.random.fork_rng(devices=[]):
        try:
            peft().get_peft_model(nn.Sequential(layer), theirs(**fields, target_modules=["0"]))
        except REFUSALS:
            return False
    return True


def measure(
    theirs: type[Any],
    fields: Callable[[int], Options],
    least: int,
    unit: int = 1,
    keep: Callable[[Shape, int], int] | None = None,
) -> Measured:
    """Build small layers of a type, and return the formula of its count and the capacities that PEFT accepts.

    Args:
        theirs: PEFT's configuration class.
        fields: returns the fields of a configuration with a capacity.
        least: the smallest capacity.
        unit: a number that divides all sides, because options of the type demand it.
        keep: returns the nearest legal capacity on a shape, if that is known. Other capacities are not built.
    """
    accepted: dict[tuple[Shape, int], int] = {}
    refused: set[tuple[Shape, int]] = set()
    for out, width in _SHAPES:
        shape = out * unit, width * unit
        for capacity in _sampled(shape, unit, more=keep is None and (out, width) in _LIMITED):
            if capacity < least or (keep is not None and keep(shape, capacity) != capacity):
                continue
            try:
                accepted[shape, capacity] = built_count(theirs, fields(capacity), shape)
            except REFUSALS:
                refused.add((shape, capacity))
    if not accepted:
        return Measured(None)
    if keep is not None or not refused:
        return Measured(_fitted(accepted))
    for limit in _LIMITS:
        if {key for key in accepted.keys() | refused if key[1] <= limit(key[0])} == accepted.keys():
            return Measured(_fitted(accepted), limit=limit)
    for divided in _DIVIDED:
        if {key for key in accepted.keys() | refused if divided(key[0]) % key[1] == 0} == accepted.keys():
            return Measured(_fitted(accepted), divided=divided)
    return Measured(_fitted(accepted))


def _sampled(shape: Shape, unit: int, *, more: bool) -> list[int]:
    """Return the capacities to build on a shape; with `more` also those around what PEFT might take as a limit."""
    capacities = {c * u for c in _CAPACITIES for u in (1, unit)}
    if more:
        capacities |= {shape[1], shape[0], *(limit(shape) + k for limit in _LIMITS for k in (0, 1))}
    return sorted(capacities)


def _fitted(counts: Mapping[tuple[Shape, int], int]) -> tuple[tuple[int, Term], ...] | None:
    """Return the simplest formula that gives all these counts exactly; None if there is none, or if too few capacities
    were accepted to know it."""
    if len({capacity for _, capacity in counts}) < _FEWEST:
        return None
    points = [(o, i, min(o, i), c) for (o, i), c in counts]
    wanted = torch.tensor(list(counts.values()), dtype=torch.float64)
    for terms in _FORMULAS:
        matrix = torch.tensor([[float(term(*point)) for term in terms] for point in points], dtype=torch.float64)
        if len(points) <= len(terms) or torch.linalg.matrix_rank(matrix) < len(terms):
            continue
        solution = torch.linalg.lstsq(matrix, wanted[:, None]).solution[:, 0]
        coefficients = [round(_PARTS * value) for value in solution.tolist()]
        formula = Measured(tuple((n, term) for n, term in zip(coefficients, terms, strict=True) if n))
        if all(formula.count(shape, capacity) == count for (shape, capacity), count in counts.items()):
            return formula.terms
    return None
