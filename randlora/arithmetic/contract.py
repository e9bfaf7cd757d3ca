"""Compute the product of a delta with an input exactly: low-rank products, and RandLoRA's in the cheapest order
(`plans`)."""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from randlora.arithmetic import ternary
from randlora.arithmetic.plans import Plan, choose_plan, steps


def prefers_matrix(rows: int, shape: tuple[int, int], rank: int, passes: int = 3) -> bool:
    """Return whether a trained product (out x rank)(rank x in) costs less as one matrix than factor by factor.

    Factor by factor costs 3 N r (out + in) multiply-adds. As a matrix it costs N out in for the weight's gradient, and
    3 r out in to make the matrix and to differentiate it.

    Args:
        rows: N, the rows of the input.
        shape: (out, in).
        rank: r.
        passes: the 3 of the first cost; 2 if the factors need no gradient.
    """
    out, width = shape
    return rows * out * width + 3 * rank * out * width < passes * rows * rank * (out + width)


LOW = (torch.bfloat16, torch.float16)
"""Types in which base and delta are never added in training, because rounding would lose a small delta."""


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that `F.linear` would compute in: autocast's if it is on, else that of x."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def low_rank_weight(base: Tensor, a_IR: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """Return base + scale * b a^T, in one product. The result has base's dtype."""
    if base.dtype == a_IR.dtype:
        return torch.addmm(base, b_OR, a_IR.t(), alpha=scale)
    return (base + (b_OR * scale) @ a_IR.t()).to(base.dtype)


def low_rank_linear(
    inputs: tuple[Tensor, Tensor],
    base: Tensor,
    bias: Tensor | None,
    factors: tuple[Tensor, Tensor],
    scale: float,
    middle: Tensor | None = None,
) -> Tensor:
    """Return F.linear(x, base, bias) + scale * (dropped a) b^T.

    Args:
        inputs: (x, dropped), both (..., in): the input, and the input after dropout. Without dropout they are one
            tensor.
        base: W0 (out x in).
        bias: (out), or None.
        factors: (a, b), (in x r) and (out x r).
        scale: the factor of the delta.
        middle: (r x r), a matrix between the factors: (dropped a) middle^T b^T.
    """
    x, x_drop = inputs
    a_IR, b_OR = factors
    dtype = compute_dtype(x)
    rows = x.reshape(-1, x.shape[-1])
    dropped = rows if x_drop is x else x_drop.reshape(-1, x.shape[-1])
    y = linear(rows, base, bias)
    h = dropped.to(dtype) @ a_IR.to(dtype)
    if middle is not None:
        h = h @ middle.to(dtype).t()
    y = y.addmm_(h, b_OR.to(dtype).t(), alpha=scale)
    return y.view(*x.shape[:-1], y.shape[-1])


PIECE = {"cpu": 1 << 18}
"""How many numbers `sum_of_products` makes at a time, by device type.

On a CPU a piece fits into the caches. Elsewhere it is 2^24 numbers, for few kernel launches.
"""


def sum_of_products(one: Tensor, other: Tensor, axis: int) -> Tensor:
    """Return (one * other).sum(axis) in float32 or better.

    It works piece by piece along the first axis, so that the whole product is never in memory.
    """
    step = max(1, PIECE.get(one.device.type, 1 << 24) // max(1, one[:1].numel()))
    precise = torch.promote_types(torch.promote_types(one.dtype, other.dtype), torch.float32)

    def piece(rows: slice) -> Tensor:
        return (one[rows] * (other if other.shape[0] == 1 else other[rows]).to(precise)).sum(axis)

    pieces = (piece(slice(i, i + step)) for i in range(0, one.shape[0], step))
    return torch.cat(tuple(pieces)) if axis else functools.reduce(torch.Tensor.add_, pieces, piece(slice(0)))


class _WeightedSum(torch.autograd.Function):
    """The autograd function of `weighted_sum`."""

    @staticmethod
    def forward(ctx: Any, frozen: Tensor, weights: Tensor, shared: int, summed: int) -> Tensor:
        ctx.save_for_backward(frozen)
        ctx.axes, ctx.dtype = (shared, summed), weights.dtype
        return sum_of_products(frozen, weights.unsqueeze(shared), summed).to(weights.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (frozen,), (shared, summed) = ctx.saved_tensors, ctx.axes
        return None, sum_of_products(frozen, grad.unsqueeze(summed), shared).to(ctx.dtype), None, None


def weighted_sum(frozen: Tensor, weights: Tensor, shared: int, summed: int) -> Tensor:
    """Return the sum over axis `summed` of `frozen` (three axes) times `weights`, which has every axis but `shared`.

    Forward and backward read `frozen` once and copy nothing of it. A batched product of strided views would copy it.
    """
    return apply_without_autocast(_WeightedSum, weights.device, frozen, weights, shared, summed)


def low_rank_beside(x: Tensor, y: Tensor, factors: tuple[Tensor, Tensor], scale: float) -> Tensor:
    """Return y + scale * (x a) b^T for x (..., in) and y (..., out), in the dtype of y.

    `factors` is (a, b), (in x r) and (out x r).
    """
    a_IR, b_OR = factors
    h = x.reshape(-1, x.shape[-1]).to(y.dtype) @ a_IR.to(y.dtype)
    rows = y.reshape(-1, y.shape[-1])
    return torch.addmm(rows, h, b_OR.to(y.dtype).t(), alpha=scale).view(y.shape)


class Spread(NamedTuple):
    """The frozen part of one RandLoRA delta, which is B M if `tall` (out >= in), else (B M)^T.

    Attributes:
        a: A (r x m).
        b: B (D x n r).
        scale: the factor of the delta.
        tall: whether out >= in.
        compact: B as lists or signs, if it is ternary and there is a kernel for it; else None.
    """

    a: Tensor
    b: Tensor
    scale: float
    tall: bool
    compact: ternary.Compact | None = None


def spread(lambda_RJ: Tensor, gamma_JM: Tensor, a_RM: Tensor, scale: float) -> Tensor:
    """Return M (r n x m): row k n + j is scale * lambda[k, j] * A[k] * gamma[j]."""
    product = (lambda_RJ * scale).unsqueeze(2) * a_RM.unsqueeze(1)
    return product.mul_(gamma_JM).flatten(0, 1)


def _spread_grads(
    grad_QM: Tensor, lambda_RJ: Tensor, gamma_JM: Tensor, a_RM: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of lambda and gamma from the gradient U of M, which is overwritten.

    dl[k,j] = s sum_i U A G and dg[j,i] = s sum_k U A L.
    """
    r, n = lambda_RJ.shape
    u = grad_QM.view(r, n, -1).mul_(a_RM.unsqueeze(1))
    d_lambda = (u * gamma_JM).sum(2).mul_(scale)
    d_gamma = u.mul_((lambda_RJ * scale).unsqueeze(2)).sum(0)
    return d_lambda, d_gamma


def _merge(base: Tensor | None, m_QM: Tensor, part: Spread) -> Tensor:
    """Return base + delta (out x in), in base's precision if the bases have a lower one. If base is None, return the
    delta."""
    b = part.b
    if part.compact is not None and (base is None or base.dtype == torch.float32):
        return ternary.merge(base, m_QM.to(b.dtype), part.compact, part.tall)
    left, right = (b, m_QM.to(b.dtype)) if part.tall else (m_QM.to(b.dtype).t(), b.t())
    if base is None:
        return left @ right
    if base.dtype == b.dtype:
        return torch.addmm(base, left, right)
    return base + left @ right


def _times_b(x_ND: Tensor, part: Spread, gathers: bool) -> Tensor:
    """Return (x B)^T (q x N). It is a view of x B if the product is dense."""
    if gathers:
        assert part.compact is not None
        return ternary.times_b(x_ND, part.compact)
    return (x_ND @ part.b).t()


class _SpreadLinear(torch.autograd.Function):
    """The autograd function of linear(x, base + delta, bias) for x (N x in). If base is None, only of the delta's
    product."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        base: Tensor | None,
        bias: Tensor | None,
        lambda_RJ: Tensor,
        gamma_JM: Tensor,
        part: Spread,
        plan: Plan,
    ) -> Tensor:
        dtype, tall = part.b.dtype, part.tall
        todo = steps(plan, tall)
        m = spread(lambda_RJ, gamma_JM, part.a, part.scale)
        small_QN = None
        trains = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
        if not tall and (not todo.merged_forward or (todo.rows_for_m and trains)):
            small_QN = _times_b(x, part, todo.gathers)
        if todo.merged_forward:
            weight = _merge(base, m, part).to(dtype)
            y = linear(x, weight, bias)
        else:
            m = m.to(dtype)
            left, right = (x @ m.t(), part.b.t()) if small_QN is None else (small_QN.t(), m)
            y = left @ right if base is None else linear(x, base.to(dtype), bias).addmm_(left, right)
        ctx.save_for_backward(x if small_QN is None else small_QN, base, lambda_RJ, gamma_JM)
        ctx.part, ctx.todo = part, todo
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        saved, base, lambda_RJ, gamma_JM = ctx.saved_tensors
        part: Spread = ctx.part
        b, tall, todo = part.b, part.tall, ctx.todo
        need_x, _, need_bias, need_lambda, need_gamma = ctx.needs_input_grad[:5]
        need_m = need_lambda or need_gamma
        grad_y = grad_y.to(b.dtype)
        grad_x = grad_m = grad_QN = None
        m = spread(lambda_RJ, gamma_JM, part.a, part.scale) if need_x else None
        # tall: the small product is x M^T and its gradient dY B; wide: it is x B, kept, and its gradient is dY M^T
        if tall and ((todo.rows_for_m and need_m) or (need_x and not todo.merged_grad_x)):
            grad_QN = _times_b(grad_y, part, todo.gathers)
        if need_m and todo.rows_for_m:
            grad_m = saved @ grad_y if grad_QN is None else grad_QN @ saved
        elif need_m:
            grad_w = grad_y.t() @ saved
            grad_m = b.t() @ (grad_w if tall else grad_w.t())
        if m is not None and todo.merged_grad_x:
            grad_x = grad_y @ _merge(base, m, part).to(b.dtype)
        elif m is not None:
            m = m.to(b.dtype)
            left, right = (grad_y @ m.t(), b.t()) if grad_QN is None else (grad_QN.t(), m)
            grad_x = left @ right if base is None else (grad_y @ base.to(b.dtype)).addmm_(left, right)
        d_lambda = d_gamma = None
        if grad_m is not None:
            grad_m = grad_m.to(lambda_RJ.dtype)
            d_lambda, d_gamma = _spread_grads(grad_m, lambda_RJ, gamma_JM, part.a, part.scale)
        d_bias = grad_y.sum(0) if need_bias else None
        return grad_x, None, d_bias, d_lambda, d_gamma, None, None


def _grads_of_weight(grad_w: Tensor, lambda_RJ: Tensor, gamma_JM: Tensor, part: Spread) -> tuple[Tensor, Tensor]:
    """Return the gradients of lambda and gamma from the gradient of base + delta (out x in)."""
    b = part.b
    g = grad_w.to(b.dtype)
    side = g if part.tall else g.t()
    grad_m = (b.t() @ side if part.compact is None else ternary.times_b(side.t(), part.compact)).to(lambda_RJ.dtype)
    return _spread_grads(grad_m, lambda_RJ, gamma_JM, part.a, part.scale)


@torch.no_grad()
def spread_project(trained: tuple[nn.Parameter, nn.Parameter], part: Spread, grad_w: Tensor) -> None:
    """Turn the gradient of base + delta (out x in) into gradients of lambda and gamma, and add them to their
    `.grad`."""
    for parameter, grad in zip(trained, _grads_of_weight(grad_w, *trained, part), strict=True):
        if parameter.requires_grad:
            parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)


class _SpreadWeight(torch.autograd.Function):
    """The autograd function of base + delta (out x in), which keeps lambda and gamma alone. If base is None: of the
    delta."""

    @staticmethod
    def forward(ctx: Any, base: Tensor | None, lambda_RJ: Tensor, gamma_JM: Tensor, part: Spread) -> Tensor:
        weight = _merge(base, spread(lambda_RJ, gamma_JM, part.a, part.scale), part)
        ctx.save_for_backward(lambda_RJ, gamma_JM)
        ctx.part = part
        return weight if base is None else weight.to(base.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_w: Tensor) -> tuple[Tensor | None, ...]:
        lambda_RJ, gamma_JM = ctx.saved_tensors
        d_lambda = d_gamma = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            d_lambda, d_gamma = _grads_of_weight(grad_w, lambda_RJ, gamma_JM, ctx.part)
        return grad_w if ctx.needs_input_grad[0] else None, d_lambda, d_gamma, None


def autocast_off(device: torch.device) -> AbstractContextManager[object]:
    """Return a block with autocast off, for code that chooses its types itself.

    CUDA's autocast covers more operations than the CPU's. It would compute in bf16 what the CPU computes in float32.
    """
    off = device.type == "meta" or not torch.is_autocast_enabled(device.type)
    return contextlib.nullcontext() if off else torch.autocast(device.type, enabled=False)


def apply_without_autocast(function: type[torch.autograd.Function], device: torch.device, *arguments: Any) -> Tensor:
    """Return `function.apply(*arguments)`, computed with autocast off."""
    with autocast_off(device):
        return cast(Tensor, cast(Any, function).apply(*arguments))  # only some releases of torch give it a type


def spread_linear(
    x: Tensor,
    base: Tensor | None,
    bias: Tensor | None,
    trained: tuple[Tensor, Tensor],
    part: Spread,
    *,
    plan: Plan | None = None,
) -> Tensor:
    """Return F.linear(x, base + delta, bias) for x (..., in), exactly.

    Args:
        x: the input (..., in).
        base: W0 (out x in); None for the delta's product alone.
        bias: (out), or None.
        trained: (lambda, gamma).
        part: the frozen part, whose `b` must have the dtype of the computation (`compute_dtype(x)`).
        plan: the order of contraction; None for the cheapest one.

    In low precision the delta's product is computed separately and added.
    """
    dtype = part.b.dtype
    if plan is None and base is not None and (base.dtype in LOW or dtype in LOW):
        y = linear(x.to(dtype), base.to(dtype), None if bias is None else bias.to(dtype))
        return y + spread_linear(x, None, None, trained, part)
    rows = x.reshape(-1, x.shape[-1])
    if plan is None:
        training = torch.is_grad_enabled() and (x.requires_grad or trained[0].requires_grad)
        gather_time = None if part.compact is None else part.compact.relative_time
        sizes = (rows.shape[0], part.b.shape[0], part.a.shape[1], part.b.shape[1])
        plan = choose_plan(*sizes, training, gather_time=gather_time, apart=base is None)
    bias = None if bias is None else bias.to(dtype)
    y = apply_without_autocast(_SpreadLinear, x.device, rows.to(dtype), base, bias, *trained, part, plan)
    return y.view(*x.shape[:-1], y.shape[-1])


def spread_weight(base: Tensor | None, trained: tuple[Tensor, Tensor], part: Spread) -> Tensor:
    """Return base + delta as one (out x in) matrix. If base is None, return the delta."""
    return apply_without_autocast(_SpreadWeight, trained[0].device, base, *trained, part)
