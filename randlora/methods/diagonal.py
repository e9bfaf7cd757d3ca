"""VeRA's product in activation form: linear(x, W0) + (x A^T diag(d)) B^T diag(b), with A and B frozen.

Since only the diagonals are trained, no gradient of a factor is ever formed: beyond the frozen layer a step costs
2 N r (out + in) multiply-adds, a third less than training the two factors would. Kept for backward are x A^T (N x r)
and the product before diag(b) (N x out), not x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from randlora.arithmetic.contract import apply_plain

_BLOCK = 1 << 18
"""Elements of a block of rows in `_column_dots`: two of them and their product stay in a core's cache."""


def _column_dots(x_NK: Tensor, y_NK: Tensor) -> Tensor:
    """sum_n x[n] * y[n] (K), float32 or better, in blocks of rows so that no product of full size is written."""
    rows, width = x_NK.shape
    dtype = torch.float64 if x_NK.dtype == torch.float64 else torch.float32
    step = rows if x_NK.device.type != "cpu" else max(1, _BLOCK // max(1, width))
    total = torch.zeros(width, dtype=dtype, device=x_NK.device)
    for start in range(0, rows, step):
        total += (x_NK[start : start + step] * y_NK[start : start + step]).sum(0, dtype=dtype)
    return total


class _DiagonalLinear(torch.autograd.Function):
    """See the module. All tensors but the diagonals are in the dtype of the computation; autocast is off."""

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
        d_b = _column_dots(grad_NO, u_NO).to(b_O.dtype) if need_b else None
        d_x = d_d = None
        if need_x or need_d:
            dz_NR = grad_NO @ (b_OR * b_O.to(dtype).unsqueeze(1))
            d_d = _column_dots(dz_NR, h_NR).to(d_R.dtype) if need_d else None
            if need_x:
                d_x = (grad_NO @ base_OI).addmm_(dz_NR.mul_(d_R.to(dtype)), a_RI)
        d_bias = grad_NO.sum(0) if need_bias else None
        return d_x, None, d_bias, d_d, d_b, None, None


def diagonal_linear(
    x: Tensor, base: Tensor, bias: Tensor | None, diagonals: tuple[Tensor, Tensor], bases: tuple[Tensor, Tensor]
) -> Tensor:
    """F.linear(x, base + diag(b) B diag(d) A, bias) for x (..., in); `base` gets no gradient.

    `diagonals` is (d, b); `bases` is (A, B), (r x in) and (out x r), in the dtype of the computation.
    """
    dtype = bases[0].dtype
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    bias = None if bias is None else bias.to(dtype)
    y = apply_plain(_DiagonalLinear, x.device, rows, base.to(dtype), bias, *diagonals, *bases)
    return y.view(*x.shape[:-1], y.shape[-1])
