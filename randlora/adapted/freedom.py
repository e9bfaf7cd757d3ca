"""How many directions an update can move in, beside how many parameters are counted: not everything counted acts.

A matrix that stores a skew one has twice the entries that act, a product of factors has directions that cancel, and a
gradient may be projected. The measure is the rank of the Jacobian of a layer's output in its trainables, at a random
point and through whatever the method does to gradients, on a small weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from randlora.adapted.attach import attach
from randlora.adapter import Shape
from randlora.methods.registry import get_method

_SIDE = 16
"""Side of the square weight that shares are measured on."""
_NOISE = 0.1
_SMALLEST = 1e-6
"""Singular values below this part of the largest are rounding: some of PEFT's layers compute in float32."""


def freedom(name: str, shape: Shape, capacity: int, options: Mapping[str, Any] | None = None) -> int:
    """Rank of the Jacobian of a called layer of this (out, in), without a bias, in the method's trainables."""
    draw = torch.Generator().manual_seed(0)
    out, width = shape
    layer = nn.Linear(width, out, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(out, width, generator=draw) * width**-0.5)
    model = nn.Sequential(layer).eval()
    adapted = attach(model, get_method(name).config.from_options(capacity, options or {}), ["0"])
    model.double()
    parameters = list(adapted.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=draw).to(parameter.dtype), alpha=_NOISE)
    y = model(torch.randn(width, width, generator=draw, dtype=torch.float64))
    probes = min(adapted.count(), y.numel()) + 4
    rows = []
    for _ in range(probes):
        probe = torch.randn(y.shape, generator=draw, dtype=torch.float64)
        found = torch.autograd.grad(y, parameters, probe.to(y.dtype), retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([g.reshape(-1).double() for g in found]))
    return int(torch.linalg.matrix_rank(torch.stack(rows), rtol=_SMALLEST))


def acting(name: str, shape: Shape, capacity: int, options: Mapping[str, Any] | None = None) -> float:
    """The share of counted parameters that act: measured on a small weight of which as large a part is trained."""
    given, method, small = dict(options or {}), get_method(name), (_SIDE, _SIDE)
    wanted = method.count(shape, capacity, **given) * _SIDE * _SIDE / (shape[0] * shape[1])
    reach = range(method.min_capacity, method.max_capacity([small], **given) + 1)
    counts = {c: method.count(small, c, **given) for c in reach}
    nearest = min(counts, key=lambda c: abs(counts[c] - wanted))
    return freedom(name, small, nearest, given) / counts[nearest]
