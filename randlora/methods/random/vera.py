"""VeRA (Kopiczko et al. 2024, arXiv 2310.11454): delta = diag(b) B diag(d) A, A and B frozen and shared by all layers.

A (r x max in) and B (max out x r) are Kaiming uniform with gain sqrt 2, so their entries have variance 2 / fan-in, and
there is no alpha. Start: d = `d_initial`, b = 0, so the delta is 0 and b gets the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from randlora.adapter import Adapter, AdapterConfig, Request, Shape, check_capacity, check_dropout, trainable
from randlora.arithmetic.bases import Bases, Draw
from randlora.arithmetic.contract import (
    compute_dtype,
    low_rank_beside,
    low_rank_linear,
    low_rank_weight,
    prefers_matrix,
)
from randlora.errors import ConfigError
from randlora.methods.diagonal import diagonal_linear


@dataclass(frozen=True)
class VeraConfig(AdapterConfig):
    """`r` is the length of d; the count barely depends on it, so ranks are large."""

    method: ClassVar[str] = "vera"

    r: int
    d_initial: float = 0.1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_capacity("vera", "r", self.r)
        check_dropout("vera", self.dropout)
        if self.d_initial == 0.0:
            raise ConfigError("vera: d_initial must not be 0, no tensor would get a gradient; the paper's is 0.1")


def vera_count(shape: Shape, capacity: int, **options: Any) -> int:
    """r + out."""
    return capacity + shape[0]


def vera_max_capacity(shapes: Sequence[Shape], **options: Any) -> int:
    """The largest target dimension: ranks beyond it add nothing that the product can express."""
    return max(max(shape) for shape in shapes)


class Vera(Adapter):
    """One weight's d (r) and b (out)."""

    d: nn.Parameter
    b: nn.Parameter

    def __init__(self, shape: Shape, config: VeraConfig, r: int, bases: Bases, request: Request) -> None:
        super().__init__(shape, config.dropout)
        device = bases.get("A").device
        self.r = r
        self.bases = bases
        self.d = trainable(torch.full((r,), config.d_initial, dtype=torch.float64), request, device)
        self.b = trainable(torch.zeros(shape[0]), request, device)

    def factors(self) -> tuple[Tensor, Tensor]:
        """diag(d) A transposed (in x r) and diag(b) B (out x r)."""
        a_RI = self.bases.get("A")[: self.r, : self.shape[1]]
        b_OR = self.bases.get("B")[: self.shape[0], : self.r]
        return (a_RI * self.d.unsqueeze(1)).t(), b_OR * self.b.unsqueeze(1)

    def delta(self, base: Tensor) -> Tensor:
        a_IR, b_OR = self.factors()
        return b_OR @ a_IR.t()

    def weight(self, base: Tensor) -> Tensor:
        return low_rank_weight(base, *self.factors(), 1.0)

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.numel() // x.shape[-1]
        merging = base.dtype == self.d.dtype == compute_dtype(x)
        if merging and not self.dropping and prefers_matrix(rows, self.shape, self.r, passes=2):
            return linear(x, self.weight(base), bias)
        if self.dropping or base.requires_grad:
            return low_rank_linear((x, self.drop(x)), base, bias, self.factors(), 1.0)
        dtype = compute_dtype(x)
        a_RI = self.bases.get("A", dtype)[: self.r, : self.shape[1]]
        b_OR = self.bases.get("B", dtype)[: self.shape[0], : self.r]
        return diagonal_linear(x, base, bias, (self.d, self.b), (a_RI, b_OR))

    def beside(self, x: Tensor, y: Tensor, base: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        return low_rank_beside(self.drop(x), y, self.factors(), 1.0)


def build_vera(request: Request) -> dict[str, Adapter]:
    """The two shared matrices at the largest sizes, then d and b per weight."""
    config = request.config
    assert isinstance(config, VeraConfig)
    shapes: dict[str, Shape] = {name: (w.shape[0], w.shape[1]) for name, w in request.weights.items()}
    rank = max(request.capacities.values())
    width = max(s[1] for s in shapes.values())
    draws = {
        "A": Draw(rank, width, std=math.sqrt(2.0 / width)),
        "B": Draw(max(s[0] for s in shapes.values()), rank, std=math.sqrt(2.0 / rank)),
    }
    bases = Bases(request.basis_seed, draws, request.device, request.dtype)
    return {name: Vera(shape, config, request.capacities[name], bases, request) for name, shape in shapes.items()}
