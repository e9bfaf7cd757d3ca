"""VeRA (Kopiczko et al. 2024, arXiv 2310.11454): delta = diag(b) B diag(d) A. A and B are frozen and shared by all
layers.

A (r x max in) and B (max out x r) are Kaiming uniform with gain sqrt 2, so their entries have variance 2 / fan-in.
There is no alpha. Start: d = `d_initial` and b = 0, so the delta is 0 and b gets the gradient. The RandLoRA paper
scales VeRA's delta too (its tables 8 and 9: 1 / r and 2). The option `scale` does that; VeRA's own is 1.

The product in activation form is linear(x, W0) + (x A^T diag(d)) B^T diag(b). Only the diagonals are trained, so no
gradient of a factor is ever computed. Beyond the frozen layer a step costs 2 N r (out + in) multiply-adds, a third less
than if the two factors were trained. Backward keeps x A^T (N x r) and the product before diag(b) (N x out), but not x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from randlora.adapter import Adapter, AdapterConfig, Request, Shape, check_positive, trainable
from randlora.arithmetic.bases import Bases, Draw
from randlora.arithmetic.contract import apply_without_autocast, compute_dtype, low_rank_linear, sum_of_products
from randlora.errors import ConfigError
from randlora.methods.factored import Factored
from randlora.methods.method import Method


class _DiagonalLinear(torch.autograd.Function):
    """The autograd function of `diagonal_linear`. All tensors but the diagonals have the computation's dtype; autocast
    is off."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        base_OI: Tensor,
        bias: Tensor | None,
        d_R: Tensor,
        b_O: Tensor,
        a_RI: Tensor,
        b_OR: Tensor,
    ) -> Tensor:
        dtype = x_NI.dtype
        h_NR = x_NI @ a_RI.t()
        u_NO = (h_NR * d_R.to(dtype)) @ b_OR.t()
        y_NO = linear(x_NI, base_OI, bias).addcmul_(u_NO, b_O.to(dtype))
        ctx.save_for_backward(h_NR, u_NO, base_OI, d_R, b_O, a_RI, b_OR)
        return y_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        h_NR, u_NO, base_OI, d_R, b_O, a_RI, b_OR = ctx.saved_tensors
        need_x, _, need_bias, need_d, need_b = ctx.needs_input_grad[:5]
        dtype = h_NR.dtype
        grad_NO = grad_NO.to(dtype)
        d_b = sum_of_products(grad_NO, u_NO, 0).to(b_O.dtype) if need_b else None
        d_x = d_d = None
        if need_x or need_d:
            dz_NR = grad_NO @ (b_OR * b_O.to(dtype).unsqueeze(1))
            d_d = sum_of_products(dz_NR, h_NR, 0).to(d_R.dtype) if need_d else None
            if need_x:
                d_x = (grad_NO @ base_OI).addmm_(dz_NR.mul_(d_R.to(dtype)), a_RI)
        d_bias = grad_NO.sum(0) if need_bias else None
        return d_x, None, d_bias, d_d, d_b, None, None


def diagonal_linear(
    x: Tensor, base: Tensor, bias: Tensor | None, diagonals: tuple[Tensor, Tensor], bases: tuple[Tensor, Tensor]
) -> Tensor:
    """Return F.linear(x, base + diag(b) B diag(d) A, bias) for x (..., in); `base` gets no gradient.

    Args:
        x: the input (..., in).
        base: W0 (out x in).
        bias: (out), or None.
        diagonals: (d, b).
        bases: (A, B), (r x in) and (out x r), in the dtype of the computation.
    """
    dtype = bases[0].dtype
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    bias = None if bias is None else bias.to(dtype)
    y = apply_without_autocast(_DiagonalLinear, x.device, rows, base.to(dtype), bias, *diagonals, *bases)
    return y.view(*x.shape[:-1], y.shape[-1])


@dataclass(frozen=True)
class VeraConfig(AdapterConfig):
    """Configuration of VeRA (arXiv 2310.11454).

    Attributes:
        r: the length of d. The count barely depends on it, so ranks are large.
        d_initial: the start of every entry of d.
        dropout: probability of dropout on the adapter's input. Packed weights cannot have it.
        scale: multiplies the delta. VeRA's own is 1.
    """

    method: ClassVar[str] = "vera"

    r: int
    d_initial: float = 0.1
    dropout: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.method, "scale", self.scale)
        if self.d_initial == 0.0:
            raise ConfigError("vera: d_initial must not be 0, no tensor would get a gradient; the paper's is 0.1")


class Vera(Factored):
    """VeRA of one weight: d (r) and b (out)."""

    def __init__(self, shape: Shape, config: VeraConfig, r: int, bases: Bases, request: Request) -> None:
        super().__init__(shape, config.dropout)
        device = bases.get("A").device
        self.r, self.times = r, config.scale
        self.bases = bases
        self.d = trainable(torch.full((r,), config.d_initial, dtype=torch.float64), request, device)
        self.b = trainable(torch.zeros(shape[0]), request, device)

    @property
    def up(self) -> Tensor:
        """Return b times the option `scale`."""
        return self.b if self.times == 1.0 else self.b * self.times

    def frozen(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Return this layer's parts of A (r x in) and B (out x r)."""
        out, width = self.shape
        return self.bases.get("A", dtype)[: self.r, :width], self.bases.get("B", dtype)[:out, : self.r]

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return diag(d) A transposed (in x r), and diag(b) B times the scale (out x r)."""
        a_RI, b_OR = self.frozen()
        return (a_RI * self.d.unsqueeze(1)).t(), b_OR * self.up.unsqueeze(1)

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        if self.merges(x, base, self.frozen()[0].t(), passes=2):
            return linear(x, self.weight(base), bias)
        transformed = (
            torch._C._are_functorch_transforms_active()
        )  # under `torch.func`, which has no rules for this autograd function
        if self.dropping or base.requires_grad or transformed:
            return low_rank_linear((x, self.drop(x)), base, bias, self.factors(), 1.0)
        return diagonal_linear(x, base, bias, (self.d, self.up), self.frozen(compute_dtype(x)))


def build_vera(request: Request) -> dict[str, Adapter]:
    """Build the adapters on the two shared matrices at the largest sizes. Each weight has d and b."""
    config, shapes = request.config, request.shapes
    assert isinstance(config, VeraConfig)
    rank = max(request.capacities.values())
    width = max(s[1] for s in shapes.values())
    draws = {
        "A": Draw(rank, width, std=math.sqrt(2.0 / width)),
        "B": Draw(max(s[0] for s in shapes.values()), rank, std=math.sqrt(2.0 / rank)),
    }
    bases = Bases(request.basis_seed, draws, request.device, request.dtype)
    return {name: Vera(shape, config, request.capacities[name], bases, request) for name, shape in shapes.items()}


VERA = Method(
    title="VeRA",
    config=VeraConfig,
    count=lambda shape, capacity, **_: capacity + shape[0],
    max_capacity=lambda shapes, **_: max(map(max, shapes)),  # beyond it the bases are larger than the weight
    open_ended=True,
    build=build_vera,
    published_lr=1e-2,
    published_lr_source="RandLoRA paper, Table 8 (CLIP)",
    scale_rule="`scale`, by default 1: the bases carry it (Kaiming uniform, gain sqrt 2)",
    update_rank=lambda shape, capacity, **_: min(capacity, *shape),
    freedom=lambda shape, capacity, **_: capacity + shape[0] - 1,  # b times c and d over c give the same update
)
