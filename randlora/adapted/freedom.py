"""How many directions an update can move in, beside how many parameters are counted: not everything counted acts.

A matrix that stores a skew one has twice the entries that act, and a product of factors has directions that cancel.
If no formula is known (`Method.freedom`), the measure is the rank of the Jacobian of a layer's output in its trainables
at a random point. Small weights are measured themselves. A large one has the share of a small weight of its proportions
that is trained as far.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from randlora.adapted.attach import attach
from randlora.adapted.gradients import zero_gradients
from randlora.adapter import Shape
from randlora.methods.registry import get_method

_LOG_AREA = 8
"""Binary logarithm of the number of entries of the weights that shares are measured on."""
_NOISE = 0.1
_SMALLEST = 1e-6
"""Singular values below this part of the largest are rounding: some of PEFT's layers compute in float32."""


@dataclass(frozen=True)
class Degrees:
    """Degrees of freedom of all updates of a model.

    `measured` on a small weight, where no formula is known; `at_most`: a bound, where weights share trainables or bases
    have zeros.
    """

    count: int
    measured: bool = False
    at_most: bool = False


def degrees(
    name: str, shapes: Mapping[str, Shape], capacities: Mapping[str, int], options: Mapping[str, Any] | None = None
) -> Degrees | None:
    """Of a method on weights of these (out, in), each at its capacity.

    None where a small weight can't be adapted, and for prompts, which are in no weight.
    """
    method, given, total, measured = get_method(name), dict(options or {}), 0, False
    every = {**method.options, **given}
    if method.prompts:
        return None
    for (shape, capacity), n in Counter((shapes[key], c) for key, c in capacities.items()).items():
        found = degrees_of_one(name, shape, capacity, given)
        if found is None:
            return None
        total, measured = total + n * found.count, measured or found.measured
    if method.together is not None and capacities:
        own = {key: shapes[key] for key in capacities}
        capacity = next(iter(capacities.values()))
        most = method.freedom_together or method.together
        total = min(total, most(own, capacity, **every))
    bound = method.freedom_at_most is not None and method.freedom_at_most(**every)
    return Degrees(total, measured, at_most=bound or method.together is not None)


def degrees_of_one(name: str, shape: Shape, capacity: int, options: Mapping[str, Any]) -> Degrees | None:
    """Of one weight alone; None as `degrees`."""
    if get_method(name).prompts:
        return None
    known = get_method(name).dof(shape, capacity, **options)
    if known is not None:
        return Degrees(known)
    try:
        count = get_method(name).count(shape, capacity, **options)
        return Degrees(round(count * acting(name, shape, capacity, options)), measured=True)
    except (RuntimeError, ValueError):  # so small a weight does not take these options
        return None


def freedom(name: str, shape: Shape, capacity: int, options: Mapping[str, Any] | None = None, seed: int = 0) -> int:
    """Rank of the Jacobian of a called layer of this (out, in), without a bias, in the method's trainables.

    What a method does to gradients does not count (OSF projects them): AdamW scales each entry by itself, so that its
    steps leave any space that gradients lie in.
    """
    draw = torch.Generator().manual_seed(seed)
    out, width = shape
    layer = nn.Linear(width, out, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(out, width, generator=draw) * width**-0.5)
    model = nn.Sequential(layer).eval()
    method = get_method(name)
    config = method.config.from_options(capacity, options or {})
    gradients = zero_gradients(method, {"0.weight": shape})
    adapted = attach(model, config, ["0"], init_seed=seed, gradients=gradients)
    model.double()
    parameters = list(adapted.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=draw).to(parameter.dtype), alpha=_NOISE)
    free = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters() if p.requires_grad}
    x = torch.randn(width, width, generator=draw, dtype=torch.float64)
    y = torch.func.functional_call(model, free, (x,))
    probes = min(adapted.count(), y.numel()) + 4
    rows = []
    for _ in range(probes):
        probe = torch.randn(y.shape, generator=draw, dtype=torch.float64)
        found = torch.autograd.grad(
            y, list(free.values()), probe.to(y.dtype), retain_graph=True, materialize_grads=True
        )
        rows.append(torch.cat([g.reshape(-1).double() for g in found]))
    return int(torch.linalg.matrix_rank(torch.stack(rows), rtol=_SMALLEST))


def acting(name: str, shape: Shape, capacity: int, options: Mapping[str, Any] | None = None) -> float:
    """The share of counted parameters that act, measured on a small weight of which as large a part is trained."""
    given, small = dict(options or {}), _small(shape)
    key = tuple(sorted(given.items()))
    if small == shape:
        return _share(name, shape, capacity, key)
    counted = get_method(name).count(shape, capacity, **given)
    wanted = counted * small[0] * small[1] / (shape[0] * shape[1])
    counts = _counts(name, small, key)
    return _share(name, small, min(counts, key=lambda c: abs(counts[c] - wanted)), key)


def _small(shape: Shape) -> Shape:
    """The weight to measure on: the shape itself if it is small, else one of about its proportions."""
    if shape[0] * shape[1] <= 2**_LOG_AREA:
        return shape
    out = round((_LOG_AREA + math.log2(shape[0] / shape[1])) / 2)
    out = min(max(out, 2), _LOG_AREA - 2)  # LoKr needs sides with divisors
    return 2**out, 2 ** (_LOG_AREA - out)


@lru_cache(maxsize=64)
def _counts(name: str, shape: Shape, options: tuple[tuple[str, Any], ...]) -> dict[int, int]:
    """What a method counts on a weight at every capacity."""
    method, given = get_method(name), dict(options)
    reach = range(method.min_capacity, method.max_capacity([shape], **given) + 1)
    return {c: method.count(shape, c, **given) for c in reach}


@lru_cache(maxsize=1024)
def _share(name: str, shape: Shape, capacity: int, options: tuple[tuple[str, Any], ...]) -> float:
    given = dict(options)
    return freedom(name, shape, capacity, given) / get_method(name).count(shape, capacity, **given)
