"""Experimental methods, which the RandLoRA paper names as future work. They may change.

Hybrid: delta = LoRA's + RandLoRA's. A trained low-rank part is for large changes and a full-rank part for the rest. The
capacity is RandLoRA's r. The LoRA part has the rank q whose q (out + in) parameters come nearest to the fraction
`share` of the weight's parameters, at least 1 and at most min(out, in).

RandLoRA-SVD: RandLoRA whose bases are W0's own singular vectors instead of random ones, scaled to entries of variance
1. A is the r leading right vectors. B is all left vectors; those beyond the m-th repeat from the first if r does not
divide m. Each weight then has its own bases, and checkpoints keep them (`randlora.methods.lowrank.spectral` says why).

Each part starts and is scaled as in its method.
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
    RankConfig,
    Request,
    Shape,
    check_positive,
    check_share,
    each_weight,
)
from randlora.arithmetic.contract import Spread, compute_dtype, low_rank_beside, low_rank_weight
from randlora.methods.factored import singular
from randlora.methods.lowrank.lora import Lora, LoraConfig
from randlora.methods.method import Method, low_rank_freedom
from randlora.methods.random.randlora import (
    DEFAULT_SCALE,
    RandLora,
    RandLoraConfig,
    build_randlora,
    fp16_factor,
    initial,
    num_bases,
    randlora_count,
    randlora_freedom,
)


@dataclass(frozen=True)
class HybridConfig(AdapterConfig):
    """Configuration of Hybrid: a LoRA part and a RandLoRA part.

    Attributes:
        r: RandLoRA's rank.
        share: the fraction of the parameters that LoRA gets.
        lora_scale: the scale of LoRA's delta.
        scale: the scale of RandLoRA's delta.
        dropout: probability of dropout on the adapter's input. Packed weights cannot have it.
        distribution: how the entries of the bases are distributed: "uniform", "normal", "binary" or "ternary".
    """

    method: ClassVar[str] = "hybrid"

    r: int
    share: float = 0.5
    lora_scale: float = 1.0
    scale: float = DEFAULT_SCALE
    dropout: float = 0.0
    distribution: str = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.method, "lora_scale", self.lora_scale)
        check_positive(self.method, "scale", self.scale)
        check_share(self.method, "share", self.share)
        self.spread_config()

    def spread_config(self) -> RandLoraConfig:
        """Return the configuration of the RandLoRA part."""
        return RandLoraConfig(self.r, alpha=self.scale * self.r, distribution=self.distribution)


@dataclass(frozen=True)
class RandLoraSvdConfig(RankConfig):
    """Configuration of RandLoRA-SVD.

    Attributes:
        r: the rank of one basis.
        alpha: alpha / r is the scale of the delta; None: `DEFAULT_SCALE` at every rank. A rule such as "2r" or
            "2r/sqrt(n)" is accepted, with n bases for a weight.
        dropout: probability of dropout on the adapter's input. Packed weights cannot have it.
    """

    method: ClassVar[str] = "randlora-svd"
    default_scale: ClassVar[float] = DEFAULT_SCALE
    by_bases: ClassVar[bool] = True

    def bases(self, shape: Shape) -> int:
        """Return the number of bases for a weight of this `shape` (out, in)."""
        return num_bases(shape, self.r)


def lora_part(shape: Shape, r: int, share: float) -> int:
    """Return q, the rank of the LoRA part beside a RandLoRA part of rank r."""
    parameters = randlora_count(shape, r) * share / (1.0 - share)
    return max(1, min(round(parameters / (shape[0] + shape[1])), *shape))


def hybrid_count(shape: Shape, capacity: int, *, share: float = 0.5, **options: Any) -> int:
    """Return n (r + m) + q (out + in)."""
    return randlora_count(shape, capacity) + lora_part(shape, capacity, share) * (shape[0] + shape[1])


class Hybrid(Adapter):
    """The LoRA part and the RandLoRA part of one weight."""

    def __init__(self, low: Lora, full: RandLora, dropout: float) -> None:
        super().__init__(low.shape, dropout)
        self.low, self.full = low, full

    def delta(self, base: Tensor) -> Tensor:
        return self.low.delta(base) + self.full.delta(base)

    def weight(self, base: Tensor) -> Tensor:
        if base.dtype != self.low.a.dtype:  # so that only the sum is rounded
            return (base + self.delta(base)).to(base.dtype)
        return low_rank_weight(self.full.weight(base), self.low.a, self.low.b, self.low.scale)

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        dropped, dtype = self.drop(x), compute_dtype(x)
        y = self.full.linear(x, base, bias) if dropped is x else linear(x, base, bias) + self.full.delta_output(dropped)
        h = dropped.to(dtype) @ self.low.a.to(dtype)
        return y + (h @ self.low.b.to(dtype).t()) * self.low.scale

    def beside(self, x: Tensor, y: Tensor, base: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        dropped = self.drop(x)
        y = y + self.full.delta_output(dropped).to(y.dtype)
        return low_rank_beside(dropped, y, (self.low.a, self.low.b), self.low.scale)

    def pays_to_accumulate(self, rows: int, micro_batches: int) -> bool:
        return self.full.pays_to_accumulate(rows, micro_batches)


class RandLoraSvd(RandLora):
    """A RandLoRA adapter with its own bases."""

    derived: ClassVar[tuple[str, ...]] = ("basis_a", "basis_b")
    basis_a: Tensor
    basis_b: Tensor

    def __init__(self, name: str, config: RandLoraSvdConfig, request: Request) -> None:
        base, shape, r = request.weights[name], request.shapes[name], request.capacities[name]
        Adapter.__init__(self, shape, config.dropout)
        m, n = min(shape), num_bases(shape, r)
        self.r, self.n, self.scale = r, n, config.scale_of(n)
        self.tall = shape[0] >= shape[1]
        u, _, v = singular(base, request.dtype)
        long, short = (u, v) if self.tall else (v, u)
        columns = torch.arange(n * r, device=base.device) % m
        b = long[:, columns] * math.sqrt(max(shape))
        a = short[:, columns[:r]].t() * math.sqrt(m)
        self.register_buffer("basis_b", b.contiguous(), persistent=False)
        self.register_buffer("basis_a", a.contiguous(), persistent=False)
        self.lambdas, self.gammas = initial("lambda", r, n, m, request, base.device)

    def part(self, dtype: torch.dtype | None = None) -> Spread:
        up = fp16_factor(max(self.shape), dtype)
        b = self.basis_b if dtype is None else self.basis_b.to(dtype)
        return Spread(self.basis_a, b if up == 1.0 else b / up, self.scale * up, self.tall)


def build_hybrid(request: Request) -> dict[str, Adapter]:
    """Build the adapters: they share RandLoRA's bases, and each has its own LoRA factors."""
    config = request.config
    assert isinstance(config, HybridConfig)
    full = build_randlora(dataclasses.replace(request, config=config.spread_config()))
    adapters: dict[str, Adapter] = {}
    for name, shape in request.shapes.items():
        q = lora_part(shape, request.capacities[name], config.share)
        low = Lora(name, LoraConfig(q, alpha=config.lora_scale * q), request, rank=q)
        adapters[name] = Hybrid(low, cast(RandLora, full[name]), config.dropout)
    return adapters


def hybrid_freedom(shape: Shape, r: int, *, share: float, **_: Any) -> int:
    """Return the degrees of freedom of LoRA + RandLoRA. If RandLoRA fills the span of B, LoRA adds only what is outside
    it."""
    large, small, q = max(shape), min(shape), lora_part(shape, r, share)
    spanned = min(num_bases(shape, r) * r, large)
    filled = spanned * small + low_rank_freedom((large - spanned, small), q)
    return min(low_rank_freedom(shape, q) + randlora_freedom(shape, r), filled)


def svd_freedom(shape: Shape, r: int, **_: Any) -> int:
    """Return RandLoRA's degrees of freedom. Above m, a basis repeats columns, whose lambdas add up."""
    return randlora_freedom(shape, min(r, *shape))


HYBRID = Method(
    title="LoRA + RandLoRA",
    config=HybridConfig,
    count=hybrid_count,
    build=build_hybrid,
    published_lr=1e-3,
    published_lr_source="as its two parts",
    scale_rule=f"lora_scale, 1 by default, and scale, {DEFAULT_SCALE:g} by default",
    experimental=True,
    update_rank=lambda shape, capacity, **_: min(shape),
    freedom=hybrid_freedom,
)
RANDLORA_SVD = Method(
    title="RandLoRA-SVD",
    config=RandLoraSvdConfig,
    count=randlora_count,
    build=each_weight(RandLoraSvd),
    published_lr=1e-3,
    published_lr_source="as RandLoRA",
    scale_rule="as RandLoRA",
    experimental=True,
    update_rank=lambda shape, capacity, **_: min(shape),
    freedom=svd_freedom,
)
