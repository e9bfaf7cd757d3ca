"""LoRA (Hu et al. 2022, arXiv 2106.09685), its rank-stabilised scale (arXiv 2312.03732), LoRA+ and DoRA.

LoRA: delta = scale * B A. Start: A is uniform on +-1 / sqrt(in) and B = 0, so the delta is 0 and B gets the gradient.
LoRA+ (Hayou et al. 2024, arXiv 2402.12354): LoRA whose B trains at `ratio` times the learning rate of A. DoRA (arXiv
2402.09353): weight = diag(magnitude / ||W0 + scale * B A||) (W0 + scale * B A). The norms are over rows, and autograd
treats them as constants (its section 4.3). The magnitude starts as W0's row norms, so the weight is W0 exactly.

Scale: alpha / r, with alpha = r by default, so it is 1 at every rank. Rank-stabilised: alpha / sqrt(r), with alpha = 4
by default, which is 1 at r = 16. The configuration's r fixes the scale for the whole model, even if a layer's rank
differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from randlora.adapter import RankConfig, Request, Shape, check_positive, each_weight, trainable
from randlora.arithmetic.contract import (
    autocast_off,
    low_rank_beside,
    low_rank_linear,
    low_rank_weight,
    prefers_matrix,
)
from randlora.errors import ConfigError
from randlora.methods.factored import Factored, lora_start
from randlora.methods.method import Method, low_rank_freedom

STABILISED_ALPHA = 4.0


@dataclass(frozen=True)
class LoraConfig(RankConfig):
    """Configuration of LoRA (arXiv 2106.09685).

    Attributes:
        r: rank of the update.
        alpha: alpha / r is the scale of the delta; None: 1 at every rank. With `rank_stabilised` the scale is alpha /
            sqrt(r), and None means 4. A rule such as "2r" is a scale of 2 at every rank.
        dropout: probability of dropout on the adapter's input. Packed weights cannot have it.
        rank_stabilised: whether the scale is alpha / sqrt(r) (arXiv 2312.03732).
    """

    method: ClassVar[str] = "lora"

    rank_stabilised: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank_stabilised and isinstance(self.alpha, str):
            raise ConfigError(
                f"{self.method}: alpha = {self.alpha!r} is one rule and rank_stabilised another; leave one out"
            )

    @property
    def scale(self) -> float:
        """Return the factor of B A. It is one number for all layers of a model."""
        if self.rank_stabilised and not isinstance(self.alpha, str):
            return (STABILISED_ALPHA if self.alpha is None else self.alpha) / math.sqrt(self.r)
        return super().scale


@dataclass(frozen=True)
class LoraPlusConfig(RankConfig):
    """Configuration of LoRA+ (arXiv 2402.12354).

    Attributes:
        r: rank of the update.
        alpha: alpha / r is the scale of the delta; None: 1 at every rank. A rule such as "2r" is a scale of 2 at every
            rank.
        dropout: probability of dropout on the adapter's input. Packed weights cannot have it.
        ratio: the learning rate of B divided by that of A. A sweep's learning rate is that of A.
    """

    method: ClassVar[str] = "lora-plus"

    ratio: float = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.method, "ratio", self.ratio)


@dataclass(frozen=True)
class DoraConfig(LoraConfig):
    """Configuration of DoRA (arXiv 2402.09353), which also trains a magnitude per output row.

    Attributes:
        r: rank of the update.
        alpha: alpha / r is the scale of the delta; None: 1 at every rank. With `rank_stabilised` the scale is alpha /
            sqrt(r), and None means 4. A rule such as "2r" is a scale of 2 at every rank.
        dropout: probability of dropout on the adapter's input. Packed weights cannot have it.
        rank_stabilised: whether the scale is alpha / sqrt(r) (arXiv 2312.03732).
    """

    method: ClassVar[str] = "dora"


def lora_count(shape: Shape, capacity: int, **options: Any) -> int:
    """Return r (out + in)."""
    return capacity * (shape[0] + shape[1])


class Lora(Factored):
    """LoRA of one weight: A transposed (in x r) and B (out x r).

    A weight's start depends on its name and the seed, not on the other targets.
    """

    def __init__(self, name: str, config: RankConfig, request: Request, rank: int | None = None) -> None:
        super().__init__(request.shapes[name], config.dropout)
        self.r, self.scale = request.capacities[name] if rank is None else rank, config.scale
        device = request.weights[name].device
        self.a = trainable(lora_start(name, self.r, request), request, device)
        self.b = trainable(torch.zeros(self.shape[0], self.r), request, device)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.a, self.b

    def pays_to_accumulate(self, rows: int, micro_batches: int) -> bool:
        return prefers_matrix(rows * micro_batches, self.shape, self.r)


class LoraPlus(Lora):
    """LoRA in which B has another learning rate than A."""

    def __init__(self, name: str, config: LoraPlusConfig, request: Request) -> None:
        super().__init__(name, config, request)
        self.rate_ratios = {"b": config.ratio}


def _row_norms(weight: Tensor) -> Tensor:
    """Return the norms of the rows (out)."""
    norms: Tensor = torch.linalg.vector_norm(weight, dim=1)
    return norms.clamp_min(torch.finfo(norms.dtype).tiny)  # a row of zeros is divided by it


class Dora(Lora):
    """DoRA of one weight: a trained magnitude times the normalised LoRA weight. `factors` are those of its
    direction."""

    def __init__(self, name: str, config: DoraConfig, request: Request) -> None:
        super().__init__(name, config, request)
        base = request.weights[name]
        self.magnitude = trainable(self.norms(base).detach(), request, base.device)

    def norms(self, base: Tensor) -> Tensor:
        """Return the row norms (out) of W0 + scale * B A. Autograd treats them as constants."""
        with torch.no_grad(), autocast_off(base.device):  # in bf16 the rounding of a norm would rescale its row
            return _row_norms(low_rank_weight(base.to(self.a.dtype), self.a, self.b, self.scale))

    def factor(self, base: Tensor) -> Tensor:
        """Return the factor (out), about 1, of every output row, in float32: bf16's steps there are 0.4 % and more."""
        return self.magnitude / self.norms(base)

    def _rescaled(self, y: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        """Return y (..., out) times the factor, plus the bias, rounded once to the type of y."""
        scaled = y * self.factor(base)
        return (scaled if bias is None else scaled + bias).to(y.dtype)

    def weight(self, base: Tensor) -> Tensor:
        with autocast_off(base.device):
            direction = low_rank_weight(base.to(self.a.dtype), self.a, self.b, self.scale)
            norms = _row_norms(direction.detach())
        scaled: Tensor = direction * (self.magnitude / norms).unsqueeze(1)
        return scaled.to(base.dtype)

    def delta(self, base: Tensor) -> Tensor:
        base = base.to(self.a.dtype)
        return self.weight(base) - base

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        if self.merges(x, base, self.a):
            return linear(x, self.weight(base), bias)
        # dropout acts on the low-rank part alone
        y = low_rank_linear((x, self.drop(x)), base, None, (self.a, self.b), self.scale)
        return self._rescaled(y, base, bias)

    def beside(self, x: Tensor, y: Tensor, base: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        bare = y if bias is None else y - bias.to(y.dtype)
        bare = low_rank_beside(self.drop(x), bare, (self.a, self.b), self.scale)
        return self._rescaled(bare, base(), bias)


LORA = Method(
    title="LoRA",
    config=LoraConfig,
    count=lora_count,
    build=each_weight(Lora),
    published_lr=1e-3,
    published_lr_source="RandLoRA paper, Table 8 (CLIP)",
    scale_rule="alpha / r, alpha = r by default, so 1 at every rank; rank-stabilised: alpha / sqrt(r), alpha = 4",
    update_rank=lambda shape, capacity, **_: min(capacity, *shape),
    freedom=lambda shape, capacity, **_: low_rank_freedom(shape, capacity),
)
LORA_PLUS = Method(
    title="LoRA+",
    config=LoraPlusConfig,
    count=lora_count,
    build=each_weight(LoraPlus),
    published_lr=2.5e-4,
    published_lr_source="LoRA's 1e-3 divided by sqrt(16), so that both factors' rates lie around it; none is published",
    scale_rule="as LoRA",
    update_rank=lambda shape, capacity, **_: min(capacity, *shape),
    freedom=lambda shape, capacity, **_: low_rank_freedom(shape, capacity),
)
DORA = Method(
    title="DoRA",
    config=DoraConfig,
    count=lambda shape, capacity, **_: lora_count(shape, capacity) + shape[0],
    build=each_weight(Dora),
    published_lr=1e-3,
    published_lr_source="as LoRA; no CLIP rate was published",
    scale_rule="as LoRA",
    update_rank=lambda shape, capacity, **_: min(shape),  # the weight's own: its rescaled rows
    freedom=lambda shape, capacity, **_: low_rank_freedom(shape, capacity) + shape[0],
)
