"""LoRA (Hu et al. 2022, arXiv 2106.09685), its rank-stabilised scale (arXiv 2312.03732), and DoRA (arXiv 2402.09353).

LoRA: delta = scale * B A. Start: A uniform on +-1 / sqrt(in), B = 0, so the delta is 0 and B gets the gradient.
DoRA: weight = diag(magnitude / ||W0 + scale * B A||) (W0 + scale * B A), norms over rows, taken as constants by
autograd (its section 4.3); the magnitude starts as W0's row norms, so the weight is W0 exactly.

Scale: alpha / r; alpha = r by default, so 1 at every rank. Rank-stabilised: alpha / sqrt(r), alpha = 4 by default,
which is 1 at r = 16. It is fixed by the configuration's r for the whole model, also where a layer's rank differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from randlora.arithmetic.bases import Draw, draw
from randlora.arithmetic.contract import (
    compute_dtype,
    low_rank_beside,
    low_rank_linear,
    low_rank_weight,
    prefers_matrix,
)
from randlora.seeds import derive_seed

STABILISED_ALPHA = 4.0


@dataclass(frozen=True)
class _LowRankConfig(AdapterConfig):
    r: int
    alpha: float | None = None
    dropout: float = 0.0
    rank_stabilised: bool = False

    def __post_init__(self) -> None:
        check_capacity(self.method, "r", self.r)
        check_positive(self.method, "alpha", self.alpha)
        check_dropout(self.method, self.dropout)

    @property
    def scale(self) -> float:
        """The factor of B A, one number for all layers of a model."""
        if self.rank_stabilised:
            return (STABILISED_ALPHA if self.alpha is None else self.alpha) / math.sqrt(self.r)
        return 1.0 if self.alpha is None else self.alpha / self.r


@dataclass(frozen=True)
class LoraConfig(_LowRankConfig):
    """`r`: rank of the update. `dropout` falls on the adapter's input; packed weights cannot take it."""

    method: ClassVar[str] = "lora"


@dataclass(frozen=True)
class DoraConfig(_LowRankConfig):
    """As `LoraConfig`; a trained magnitude per output row comes on top."""

    method: ClassVar[str] = "dora"


def lora_count(shape: Shape, capacity: int, **options: Any) -> int:
    """r (out + in)."""
    return capacity * (shape[0] + shape[1])


def dora_count(shape: Shape, capacity: int, **options: Any) -> int:
    """r (out + in) + out."""
    return capacity * (shape[0] + shape[1]) + shape[0]


def lora_max_capacity(shapes: Sequence[Shape], **options: Any) -> int:
    """The largest min(out, in): full rank."""
    return max(min(shape) for shape in shapes)


class _LowRank(Adapter):
    """A transposed (in x r) and B (out x r); see `Lora` and `Dora`."""

    a: nn.Parameter
    b: nn.Parameter

    def __init__(self, name: str, base: Tensor, r: int, config: _LowRankConfig, request: Request) -> None:
        super().__init__((base.shape[0], base.shape[1]), config.dropout)
        out, width = self.shape
        self.r, self.scale = r, config.scale
        if base.device.type == "meta":
            start = torch.empty(width, r, device="meta")
        else:
            seed = derive_seed("lora", request.init_seed, name)
            start = draw(seed, "a", Draw(width, r, std=1.0 / math.sqrt(3.0 * width)))
        self.a = trainable(start, request, base.device)
        self.b = trainable(torch.zeros(out, r), request, base.device)

    def merges(self, x: Tensor, base: Tensor) -> bool:
        """Whether the matrix form is allowed (no dropout, one precision) and cheaper."""
        one_dtype = base.dtype == self.a.dtype == compute_dtype(x)
        return one_dtype and not self.dropping and prefers_matrix(x.numel() // x.shape[-1], self.shape, self.r)

    def pays_to_accumulate(self, rows: int, micro_batches: int) -> bool:
        return prefers_matrix(rows * micro_batches, self.shape, self.r)


class Lora(_LowRank):
    """scale * B A."""

    def delta(self, base: Tensor) -> Tensor:
        return (self.b * self.scale) @ self.a.t()

    def weight(self, base: Tensor) -> Tensor:
        return low_rank_weight(base, self.a, self.b, self.scale)

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        if self.merges(x, base):
            return linear(x, self.weight(base), bias)
        return low_rank_linear((x, self.drop(x)), base, bias, (self.a, self.b), self.scale)

    def beside(self, x: Tensor, y: Tensor, base: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        return low_rank_beside(self.drop(x), y, (self.a, self.b), self.scale)


def _row_norms(weight: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(weight, dim=1)
    return norms


class Dora(_LowRank):
    """A trained magnitude times the normalised LoRA weight."""

    magnitude: nn.Parameter

    def __init__(self, name: str, base: Tensor, r: int, config: _LowRankConfig, request: Request) -> None:
        super().__init__(name, base, r, config, request)
        self.magnitude = trainable(self.norms(base).detach(), request, base.device)

    def norms(self, base: Tensor) -> Tensor:
        """Row norms of W0 + scale * B A (out), constants for autograd."""
        with torch.no_grad():
            return _row_norms(low_rank_weight(base.to(self.a.dtype), self.a, self.b, self.scale))

    def weight(self, base: Tensor) -> Tensor:
        direction = low_rank_weight(base.to(self.a.dtype), self.a, self.b, self.scale)
        norms = _row_norms(direction.detach())
        scaled: Tensor = direction * (self.magnitude / norms).unsqueeze(1)
        return scaled.to(base.dtype)

    def delta(self, base: Tensor) -> Tensor:
        base = base.to(self.a.dtype)
        return self.weight(base) - base

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        if self.merges(x, base):
            return linear(x, self.weight(base), bias)
        # the factor minus one multiplies the frozen product, so that dropout falls on the low-rank part alone
        dtype = compute_dtype(x)
        factor = (self.magnitude / self.norms(base)).to(dtype)
        y = low_rank_linear((x, self.drop(x)), base, None, (self.a, self.b), self.scale) * factor
        return y if bias is None else y + bias.to(dtype)

    def beside(self, x: Tensor, y: Tensor, base: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        factor = (self.magnitude / self.norms(base())).to(y.dtype)
        plain = y if bias is None else y - bias.to(y.dtype)
        plain = low_rank_beside(self.drop(x), plain, (self.a, self.b), self.scale) * factor
        return plain if bias is None else plain + bias.to(y.dtype)


def build_lora(request: Request) -> dict[str, Adapter]:
    """Independent factors per weight; a weight's start depends on its name and the seed, not on the other targets."""
    config = request.config
    assert isinstance(config, LoraConfig)
    return {name: Lora(name, w, request.capacities[name], config, request) for name, w in request.weights.items()}


def build_dora(request: Request) -> dict[str, Adapter]:
    """As LoRA, with the magnitude."""
    config = request.config
    assert isinstance(config, DoraConfig)
    return {name: Dora(name, w, request.capacities[name], config, request) for name, w in request.weights.items()}
