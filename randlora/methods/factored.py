"""Methods whose update of a weight is B A, a product of two thin matrices. Each computes B and A in its own way."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from randlora.adapter import Adapter, Request
from randlora.arithmetic.bases import Draw, derive_seed, draw
from randlora.arithmetic.contract import (
    LOW,
    compute_dtype,
    low_rank_beside,
    low_rank_linear,
    low_rank_weight,
    prefers_matrix,
)


class Factored(Adapter):
    """An adapter with delta = scale * b a^T. Subclasses make a (in x rank) and b (out x rank) in `factors`."""

    scale: float = 1.0

    @abstractmethod
    def factors(self) -> tuple[Tensor, Tensor]:
        """Return (a, b), differentiable in the trainables."""

    def delta(self, base: Tensor) -> Tensor:
        a_IR, b_OR = self.factors()
        return (b_OR * self.scale) @ a_IR.t()

    def weight(self, base: Tensor) -> Tensor:
        return low_rank_weight(base, *self.factors(), self.scale)

    def merges(self, x: Tensor, base: Tensor, a_IR: Tensor, passes: int = 3) -> bool:
        """Return whether W0 + delta as one matrix is allowed and cheaper.

        It is allowed without dropout and in one precision, which must not be a low one.

        Args:
            x: the input (..., in).
            base: W0 (out x in).
            a_IR: the factor a (in x rank).
            passes: as in `prefers_matrix`.
        """
        one_dtype = base.dtype == a_IR.dtype == compute_dtype(x) and base.dtype not in LOW
        rows = x.numel() // x.shape[-1]
        return one_dtype and not self.dropping and prefers_matrix(rows, self.shape, a_IR.shape[1], passes)

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        a_IR, b_OR = self.factors()
        if self.merges(x, base, a_IR):
            return linear(x, low_rank_weight(base, a_IR, b_OR, self.scale), bias)
        return low_rank_linear((x, self.drop(x)), base, bias, (a_IR, b_OR), self.scale)

    def beside(self, x: Tensor, y: Tensor, base: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        return low_rank_beside(self.drop(x), y, self.factors(), self.scale)


def drawn_start(name: str, stream: str, request: Request, spec: Draw) -> Tensor:
    """Return a trainable's start (rows x cols), drawn from `init_seed`, the weight's name and the stream.

    On the meta device it is empty.
    """
    if request.device.type == "meta":
        return torch.empty(spec.rows, spec.cols, device="meta")
    return draw(derive_seed("lora", request.init_seed, name), stream, spec)


def lora_start(name: str, rank: int, request: Request) -> Tensor:
    """Return LoRA's start of A, transposed (in x rank): uniform on +-1 / sqrt(in)."""
    width = request.shapes[name][1]
    return drawn_start(name, "a", request, Draw(width, rank, std=1.0 / math.sqrt(3.0 * width)))


def singular(base: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (out x m), S (m) and V (in x m) of W0 in `dtype`, m = min(out, in), largest values first.

    On the meta device they are empty. Signs are fixed: the entry of U that is largest in size is positive. The last
    bits depend on the machine's LAPACK, so a checkpoint must keep what is made of them.
    """
    out, width = base.shape
    m = min(out, width)
    if base.device.type == "meta":
        return tuple(torch.empty(*size, device="meta", dtype=dtype) for size in ((out, m), (m,), (width, m)))  # type: ignore[return-value]
    u, s, vh = torch.linalg.svd(base.detach().to(dtype), full_matrices=False)
    signs = torch.sign(u.gather(0, u.abs().argmax(0, keepdim=True)))
    signs = torch.where(signs == 0, torch.ones_like(signs), signs)
    return u * signs, s, (vh * signs.t()).t()
