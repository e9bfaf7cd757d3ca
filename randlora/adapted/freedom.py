"""Count the directions in which an update can move: its degrees of freedom. Not every counted parameter adds one.

For example, a skew matrix that is stored whole has twice the entries that act, and in a product of factors some
directions cancel. If no formula is known (`Method.freedom`), the degrees of freedom are measured: they are the rank of
the Jacobian of a layer's output with respect to the trainables, at a random point. Small weights are measured directly.
For a large weight, the share of parameters that act is taken from a small weight of about the same proportions and the
same share of trained parameters.
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
"""Binary logarithm of the number of entries of the small weights that are measured."""
_NOISE = 0.1
_SMALLEST = 1e-6
"""Singular values below this share of the largest count as zero, because some of PEFT's layers compute in float32."""


@dataclass(frozen=True)
class Degrees:
    """Degrees of freedom of all updates of a model.

    Attributes:
        count: their number.
        measured: whether a part was measured on a small weight, because no formula is known.
        at_most: whether the number is an upper bound. It is one if weights share trainables, or if bases have zeros.
    """

    count: int
    measured: bool = False
    at_most: bool = False


def degrees(
    name: str, shapes: Mapping[str, Shape], capacities: Mapping[str, int], options: Mapping[str, Any] | None = None
) -> Degrees | None:
    """Return the degrees of freedom of a method on a model's weights; None for prompts, and if no small weight can be
    measured.

    Args:
        name: the method.
        shapes: weight name -> (out, in).
        capacities: weight name -> capacity.
        options: the method's options that are not at their default.
    """
    method = get_method(name)
    chosen = dict(options or {})
    total = 0
    measured = False
    every = {**method.options, **chosen}
    if method.prompts:
        return None
    for (shape, capacity), n in Counter((shapes[key], c) for key, c in capacities.items()).items():
        of_one = degrees_of_one(name, shape, capacity, chosen)
        if of_one is None:
            return None
        total += n * of_one.count
        measured = measured or of_one.measured
    if method.together is not None and capacities:
        adapted_shapes = {key: shapes[key] for key in capacities}
        capacity = next(iter(capacities.values()))
        most = method.freedom_together or method.together
        total = min(total, most(adapted_shapes, capacity, **every))
    bound = method.freedom_at_most is not None and method.freedom_at_most(**every)
    return Degrees(total, measured, at_most=bound or method.together is not None)


def degrees_of_one(name: str, shape: Shape, capacity: int, options: Mapping[str, Any]) -> Degrees | None:
    """Return the degrees of freedom on one weight; None as in `degrees`."""
    if get_method(name).prompts:
        return None
    by_formula = get_method(name).dof(shape, capacity, **options)
    if by_formula is not None:
        return Degrees(by_formula)
    try:
        count = get_method(name).count(shape, capacity, **options)
        return Degrees(round(count * acting_share(name, shape, capacity, options)), measured=True)
    except (RuntimeError, ValueError):  # a weight this small does not take these options
        return None


def freedom(name: str, shape: Shape, capacity: int, options: Mapping[str, Any] | None = None, seed: int = 0) -> int:
    """Return the rank of the Jacobian of a called layer's output, without a bias, with respect to the method's
    trainables.

    Changes that a method makes to gradients do not count (OSF projects them). AdamW scales each entry by itself, so its
    steps leave any space that the gradients lie in.
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
        gradients_at = torch.autograd.grad(
            y, list(free.values()), probe.to(y.dtype), retain_graph=True, materialize_grads=True
        )
        rows.append(torch.cat([g.reshape(-1).double() for g in gradients_at]))
    return int(torch.linalg.matrix_rank(torch.stack(rows), rtol=_SMALLEST))


def acting_share(name: str, shape: Shape, capacity: int, options: Mapping[str, Any] | None = None) -> float:
    """Return the share of counted parameters that act, measured on a small weight with the same share of trained
    parameters."""
    chosen, small = dict(options or {}), _small(shape)
    key = tuple(sorted(chosen.items()))
    if small == shape:
        return _measured_share(name, shape, capacity, key)
    counted = get_method(name).count(shape, capacity, **chosen)
    target = counted * small[0] * small[1] / (shape[0] * shape[1])
    counts = _counts_by_capacity(name, small, key)
    return _measured_share(name, small, min(counts, key=lambda c: abs(counts[c] - target)), key)


def _small(shape: Shape) -> Shape:
    """Return the shape of the weight to measure: the shape itself if it is small, else one of about its proportions."""
    if shape[0] * shape[1] <= 2**_LOG_AREA:
        return shape
    out = round((_LOG_AREA + math.log2(shape[0] / shape[1])) / 2)
    out = min(max(out, 2), _LOG_AREA - 2)  # LoKr needs sides with divisors
    return 2**out, 2 ** (_LOG_AREA - out)


@lru_cache(maxsize=64)
def _counts_by_capacity(name: str, shape: Shape, options: tuple[tuple[str, Any], ...]) -> dict[int, int]:
    """Return a method's count on one weight at every capacity."""
    method, chosen = get_method(name), dict(options)
    reach = range(method.min_capacity, method.max_capacity([shape], **chosen) + 1)
    return {c: method.count(shape, c, **chosen) for c in reach}


@lru_cache(maxsize=1024)
def _measured_share(name: str, shape: Shape, capacity: int, options: tuple[tuple[str, Any], ...]) -> float:
    chosen = dict(options)
    return freedom(name, shape, capacity, chosen) / get_method(name).count(shape, capacity, **chosen)
