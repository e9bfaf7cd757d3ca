"""Experimental: what the RandLoRA paper names as future work. May change.

Hybrid: delta = LoRA's + RandLoRA's, a trained low-rank part for what is large and a full-rank part for the rest. The
capacity is RandLoRA's r; the LoRA part takes the rank q whose q (out + in) parameters come nearest to the fraction
`share` of the weight's, at least 1 and at most min(out, in).

RandLoRA-SVD: RandLoRA whose bases are not random but W0's own singular vectors, scaled to unit-variance entries: A is
the r leading right ones, B all left ones, those beyond the m-th repeated from the first where r does not divide m. The
bases are then a weight's own and are kept in checkpoints (`randlora.methods.lowrank.spectral` says why).

Each part starts and is scaled as its method.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
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
from randlora.arithmetic.contract import Spread, compute_dtype, low_rank_beside, low_rank_weight
from randlora.errors import ConfigError
from randlora.methods.factored import singular
from randlora.methods.lowrank.lora import Lora, LoraConfig
from randlora.methods.random.randlora import (
    DEFAULT_SCALE,
    RandLora,
    RandLoraConfig,
    build_randlora,
    num_bases,
    randlora_count,
)


@dataclass(frozen=True)
class HybridConfig(AdapterConfig):
    """`r`: RandLoRA's rank. `share`: LoRA's fraction of the parameters. `distribution` as in `RandLoraConfig`."""

    method: ClassVar[str] = "hybrid"

    r: int
    share: float = 0.5
    lora_scale: float = 1.0
    scale: float = DEFAULT_SCALE
    dropout: float = 0.0
    distribution: str = "uniform"

    def __post_init__(self) -> None:
        check_capacity(self.method, "r", self.r)
        check_positive(self.method, "lora_scale", self.lora_scale)
        check_positive(self.method, "scale", self.scale)
        check_dropout(self.method, self.dropout)
        if not 0.0 < self.share < 1.0:
            raise ConfigError(f"hybrid: share must lie between 0 and 1, both excluded, but got {self.share!r}")
        self.spread_config()

    def spread_config(self) -> RandLoraConfig:
        """The RandLoRA part alone."""
        return RandLoraConfig(self.r, alpha=self.scale * self.r, distribution=self.distribution)


@dataclass(frozen=True)
class RandLoraSvdConfig(AdapterConfig):
    """`r`: rank of one basis, as in `RandLoraConfig`."""

    method: ClassVar[str] = "randlora-svd"

    r: int
    alpha: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_capacity(self.method, "r", self.r)
        check_positive(self.method, "alpha", self.alpha)
        check_dropout(self.method, self.dropout)

    @property
    def scale(self) -> float:
        """As RandLoRA's."""
        return DEFAULT_SCALE if self.alpha is None else self.alpha / self.r


def lora_part(shape: Shape, r: int, share: float) -> int:
    """q: the rank of the low-rank part beside a RandLoRA part of rank r."""
    wanted = randlora_count(shape, r) * share / (1.0 - share)
    return max(1, min(round(wanted / (shape[0] + shape[1])), *shape))


def hybrid_count(shape: Shape, capacity: int, *, share: float = 0.5, **options: Any) -> int:
    """n (r + m) + q (out + in)."""
    return randlora_count(shape, capacity) + lora_part(shape, capacity, share) * (shape[0] + shape[1])


class Hybrid(Adapter):
    """A LoRA part and a RandLoRA part of one weight."""

    def __init__(self, low: Lora, full: RandLora, dropout: float) -> None:
        super().__init__(low.shape, dropout)
        self.low, self.full = low, full

    def delta(self, base: Tensor) -> Tensor:
        return self.low.delta(base) + self.full.delta(base)

    def weight(self, base: Tensor) -> Tensor:
        if base.dtype != self.low.a.dtype:  # one rounding, of the sum
            return (base + self.delta(base)).to(base.dtype)
        return low_rank_weight(self.full.weight(base), self.low.a, self.low.b, self.low.scale)

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        dropped, dtype = self.drop(x), compute_dtype(x)
        y = self.full.linear(x, base, bias) if dropped is x else linear(x, base, bias) + self.full.only(dropped)
        h = dropped.to(dtype) @ self.low.a.to(dtype)
        return y + (h @ self.low.b.to(dtype).t()) * self.low.scale

    def beside(self, x: Tensor, y: Tensor, base: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        dropped = self.drop(x)
        y = y + self.full.only(dropped).to(y.dtype)
        return low_rank_beside(dropped, y, (self.low.a, self.low.b), self.low.scale)

    def pays_to_accumulate(self, rows: int, micro_batches: int) -> bool:
        return self.full.pays_to_accumulate(rows, micro_batches)


class RandLoraSvd(RandLora):
    """A RandLoRA adapter with bases of its own."""

    derived: ClassVar[tuple[str, ...]] = ("basis_a", "basis_b")
    basis_a: Tensor
    basis_b: Tensor

    def __init__(self, name: str, config: RandLoraSvdConfig, request: Request) -> None:
        base, r = request.weights[name], request.capacities[name]
        shape = (base.shape[0], base.shape[1])
        Adapter.__init__(self, shape, config.dropout)
        m, n = min(shape), num_bases(shape, r)
        self.r, self.n, self.scale = r, n, config.scale
        self.tall = shape[0] >= shape[1]
        u, _, v = singular(base, request.dtype)
        long, short = (u, v) if self.tall else (v, u)
        columns = torch.arange(max(n * r, r), device=base.device) % m
        b = long[:, columns[: n * r]] * math.sqrt(max(shape))
        a = short[:, columns[:r]].t() * math.sqrt(m)
        self.register_buffer("basis_b", b.contiguous(), persistent=False)
        self.register_buffer("basis_a", a.contiguous(), persistent=False)
        self.lambdas = trainable(torch.zeros(r, n), request, base.device)
        self.gammas = trainable(torch.full((n, m), 1.0 / m, dtype=torch.float64), request, base.device)

    def part(self, dtype: torch.dtype | None = None) -> Spread:
        b = self.basis_b if dtype is None else self.basis_b.to(dtype)
        return Spread(self.basis_a, b, self.scale, self.tall)


def build_hybrid(request: Request) -> dict[str, Adapter]:
    """RandLoRA's shared bases, and LoRA's factors per weight."""
    config = request.config
    assert isinstance(config, HybridConfig)
    full = build_randlora(dataclasses.replace(request, config=config.spread_config()))
    adapters: dict[str, Adapter] = {}
    for name, base in request.weights.items():
        q = lora_part((base.shape[0], base.shape[1]), request.capacities[name], config.share)
        low = Lora(name, base, q, LoraConfig(q, alpha=config.lora_scale * q), request)
        adapters[name] = Hybrid(low, cast(RandLora, full[name]), config.dropout)
    return adapters


def build_randlora_svd(request: Request) -> dict[str, Adapter]:
    """One decomposition per weight."""
    config = request.config
    assert isinstance(config, RandLoraSvdConfig)
    return {name: RandLoraSvd(name, config, request) for name in request.weights}
