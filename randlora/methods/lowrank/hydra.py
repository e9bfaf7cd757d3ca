"""HydraLoRA (Tian et al. 2024, arXiv 2404.19245): one A, several B, and a router that mixes them for each token.

y = W0 x + scale * sum_i w_i(x) B_i A x, w = softmax(G x), G (heads x in) trained, i = 1..heads. The update depends on
the input, so there is no delta: it cannot be merged, and a packed weight (read as a matrix) cannot carry it.

Start: A and G uniform on +-1 / sqrt(in), every B_i = 0. Scale: alpha / r, 1 by default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from randlora.adapter import (
    Adapter,
    AdapterConfig,
    Request,
    Shape,
    check_capacity,
    check_dropout,
    check_positive,
    trainable,
)
from randlora.arithmetic.bases import Draw
from randlora.arithmetic.contract import compute_dtype
from randlora.errors import AdapterError
from randlora.methods.factored import drawn


@dataclass(frozen=True)
class HydraLoraConfig(AdapterConfig):
    """`r`: rank of A and of every head; `heads`: how many B there are."""

    method: ClassVar[str] = "hydralora"

    r: int
    heads: int = 3
    alpha: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_capacity(self.method, "r", self.r)
        check_capacity(self.method, "heads", self.heads)
        check_positive(self.method, "alpha", self.alpha)
        check_dropout(self.method, self.dropout)

    @property
    def scale(self) -> float:
        """alpha / r, 1 by default."""
        return 1.0 if self.alpha is None else self.alpha / self.r


def hydralora_count(shape: Shape, capacity: int, *, heads: int = 3, **options: Any) -> int:
    """r in + heads r out + heads in."""
    return capacity * (shape[1] + heads * shape[0]) + heads * shape[1]


class HydraLora(Adapter):
    """A transposed (in x r), the heads side by side (out x heads r), and the router (heads x in)."""

    a: nn.Parameter
    b: nn.Parameter
    router: nn.Parameter

    def __init__(self, name: str, config: HydraLoraConfig, request: Request) -> None:
        base = request.weights[name]
        super().__init__((base.shape[0], base.shape[1]), config.dropout)
        out, width = self.shape
        r, self.heads, self.scale = request.capacities[name], config.heads, config.scale
        std = (3.0 * width) ** -0.5
        self.a = trainable(drawn(name, "a", request, Draw(width, r, std=std)), request, base.device)
        self.b = trainable(torch.zeros(out, self.heads * r), request, base.device)
        self.router = trainable(drawn(name, "router", request, Draw(self.heads, width, std=std)), request, base.device)

    def delta(self, base: Tensor) -> Tensor:
        raise AdapterError(
            "HydraLoRA has no delta: its update depends on the input, so it cannot be merged or exported as a matrix; "
            "save() keeps the adapter itself"
        )

    def weight(self, base: Tensor) -> Tensor:
        return self.delta(base)

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        return self._added(x, linear(x, base, bias), compute_dtype(x))

    def beside(self, x: Tensor, y: Tensor, base: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        return self._added(x, y, y.dtype)

    def _added(self, x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
        dropped = self.drop(x).to(dtype)
        shares = torch.softmax((x.to(dtype) @ self.router.to(dtype).t()).to(self.router.dtype), -1).to(dtype)
        h = dropped @ self.a.to(dtype)
        mixed = (shares.unsqueeze(-1) * h.unsqueeze(-2)).flatten(-2)
        return y + (mixed @ self.b.to(dtype).t()) * self.scale


def build_hydralora(request: Request) -> dict[str, Adapter]:
    """Independent heads and routers per weight."""
    config = request.config
    assert isinstance(config, HydraLoraConfig)
    return {name: HydraLora(name, config, request) for name in request.weights}
