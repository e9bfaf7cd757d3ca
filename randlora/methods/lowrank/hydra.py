"""HydraLoRA (Tian et al. 2024, arXiv 2404.19245): one A, several B, and a router that mixes them for each token.

y = W0 x + scale * sum_i w_i(x) B_i A x, w = softmax(G x), with G (heads x in) trained and i = 1..heads. The update
depends on the input, so there is no delta. It cannot be merged, and a packed weight, which is read as a matrix, cannot
have it.

Start: A and G are uniform on +-1 / sqrt(in), every B_i = 0. Scale: alpha / r, 1 by default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from randlora.adapter import Adapter, AdapterConfig, AlphaScale, Request, check_capacity, each_weight, trainable
from randlora.arithmetic.bases import Draw
from randlora.arithmetic.contract import compute_dtype
from randlora.errors import AdapterError
from randlora.methods.factored import drawn_start, lora_start
from randlora.methods.method import Method


@dataclass(frozen=True)
class HydraLoraConfig(AlphaScale, AdapterConfig):
    """Configuration of HydraLoRA (arXiv 2404.19245).

    Attributes:
        r: rank of A and of every head.
        heads: the number of B.
        alpha: alpha / r is the scale of the delta; None: 1 at every rank. A rule such as "2r" is a scale of 2 at every
            rank.
        dropout: probability of dropout on the adapter's input.
    """

    method: ClassVar[str] = "hydralora"

    r: int
    heads: int = 3
    alpha: float | str | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_capacity(self.method, "heads", self.heads)


class HydraLora(Adapter):
    """HydraLoRA of one weight: A transposed (in x r), the heads side by side (out x heads r), and the router (heads x
    in)."""

    def __init__(self, name: str, config: HydraLoraConfig, request: Request) -> None:
        super().__init__(request.shapes[name], config.dropout)
        (out, width), device = self.shape, request.weights[name].device
        r, self.heads, self.scale = request.capacities[name], config.heads, config.scale
        router = Draw(self.heads, width, std=(3.0 * width) ** -0.5)
        self.a = trainable(lora_start(name, r, request), request, device)
        self.b = trainable(torch.zeros(out, self.heads * r), request, device)
        self.router = trainable(drawn_start(name, "router", request, router), request, device)

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


HYDRALORA = Method(
    title="HydraLoRA",
    config=HydraLoraConfig,
    count=lambda shape, capacity, *, heads=3, **_: capacity * (shape[1] + heads * shape[0]) + heads * shape[1],
    build=each_weight(HydraLora),
    published_lr=1e-3,
    published_lr_source="as LoRA; no CLIP rate was published",
    scale_rule="alpha / r, alpha = r by default, so 1",
    mergeable=False,
)
