"""How a delta meets an input: contraction orders, chosen by their cost, exact in every order.

A RandLoRA delta is B @ M (or its transpose for a wide weight, in > out), B (D x q) frozen, D >= d the two sides of the
weight, q = n r, and M (q x d) built from lambda, gamma and A. For N input rows the multiply-adds beyond the frozen
layer's, forward and backward together, are (times two for FLOPs):

==========  ==========================  =========================  ==================================
plan        forward                     backward                   cost
==========  ==========================  =========================  ==================================
activation  (x M^T) B^T or (x B) M      through the small factors  N q (2 D + 3 d)
mixed       tall: W0 + B M; wide:       tall: through the factors; tall and wide: D q d + N D q
            (x B) M                     wide: W0 + B M             + 2 N q d
merged      W0 + B M                    W0 + B M, dY^T x           3 D q d + N D d
==========  ==========================  =========================  ==================================

M and W0 + B M are recomputed in backward, never kept. Kept is x, or for a wide weight the smaller x B.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

Plan = Literal["activation", "mixed", "merged"]


def plan_costs(rows: int, large: int, small: int, inner: int) -> dict[Plan, int]:
    """Multiply-adds of one training step beyond the frozen layer's, by plan (the module's table)."""
    n, big, low, q = rows, large, small, inner
    return {
        "activation": n * q * (2 * big + 3 * low),
        "mixed": big * q * low + n * big * q + 2 * n * q * low,
        "merged": 3 * big * q * low + n * big * low,
    }


def choose_plan(rows: int, large: int, small: int, inner: int, training: bool = True) -> Plan:
    """The cheapest plan; where nothing is differentiated only the forward counts."""
    if not training:
        return "merged" if large * small < rows * (large + small) else "activation"
    costs = plan_costs(rows, large, small, inner)
    return min(costs, key=lambda plan: costs[plan])


def prefers_matrix(rows: int, shape: tuple[int, int], rank: int, passes: int = 3) -> bool:
    """Whether a trained product (out x rank)(rank x in) is cheaper as one matrix than applied factor by factor.

    Factors: 3 N r (out + in), or 2 where they get no gradient of their own (`passes`). Matrix: N out in more for the
    weight's gradient, and 3 r out in to make it and go back.
    """
    out, width = shape
    return rows * out * width + 3 * rank * out * width < passes * rows * rank * (out + width)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that `F.linear` would compute in: autocast's where it is on, else x's."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def low_rank_weight(base: Tensor, a_IR: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """base + scale * b a^T, in one product; the result keeps base's dtype."""
    if base.dtype == a_IR.dtype:
        return torch.addmm(base, b_OR, a_IR.t(), alpha=scale)
    return (base + (b_OR * scale) @ a_IR.t()).to(base.dtype)


def low_rank_linear(
    inputs: tuple[Tensor, Tensor], base: Tensor, bias: Tensor | None, factors: tuple[Tensor, Tensor], scale: float
) -> Tensor:
    """F.linear(x, base, bias) + scale * (dropped a) b^T.

    `inputs` is (x, dropped), both (..., in), one tensor without dropout; `factors` is (a, b), (in x r) and (out x r).
    """
    x, x_drop = inputs
    a_IR, b_OR = factors
    dtype = compute_dtype(x)
    lead = x.shape[:-1]
    rows = x.reshape(-1, x.shape[-1])
    dropped = rows if x_drop is x else x_drop.reshape(-1, x.shape[-1])
    y = linear(rows, base, bias)
    h = dropped.to(dtype) @ a_IR.to(dtype)
    y = y.addmm_(h, b_OR.to(dtype).t(), alpha=scale)
    return y.view(*lead, y.shape[-1])


class Spread(NamedTuple):
    """The frozen part of one weight's delta: B M if `tall` (out >= in), else (B M)^T. `a` is (r x m), `b` (D x n r)."""

    a: Tensor
    b: Tensor
    scale: float
    tall: bool


def spread(lambda_RJ: Tensor, gamma_JM: Tensor, a_RM: Tensor, scale: float) -> Tensor:
    """M (r n x m): row k n + j is scale * lambda[k, j] * A[k] * gamma[j]."""
    product = (lambda_RJ * scale).unsqueeze(2) * a_RM.unsqueeze(1)
    return product.mul_(gamma_JM).flatten(0, 1)


def _spread_grads(
    grad_QM: Tensor, lambda_RJ: Tensor, gamma_JM: Tensor, a_RM: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Gradients of lambda and gamma from M's: dl[k,j] = s sum_i U A G, dg[j,i] = s sum_k U A L. Overwrites grad_QM."""
    r, n = lambda_RJ.shape
    u = grad_QM.view(r, n, -1).mul_(a_RM.unsqueeze(1))
    d_lambda = (u * gamma_JM).sum(2).mul_(scale)
    d_gamma = u.mul_((lambda_RJ * scale).unsqueeze(2)).sum(0)
    return d_lambda, d_gamma


def _merge(base: Tensor | None, m_QM: Tensor, part: Spread) -> Tensor:
    """base + delta (out x in); in base's precision where the bases are in a lower one."""
    b = part.b
    left, right = (b, m_QM.to(b.dtype)) if part.tall else (m_QM.to(b.dtype).t(), b.t())
    if base is None:
        return left @ right
    if base.dtype == b.dtype:
        return torch.addmm(base, left, right)
    return base + left @ right


class _SpreadLinear(torch.autograd.Function):
    """linear(x, base + delta, bias) for x (N x in); base None leaves out the frozen product."""

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
        dtype = part.b.dtype
        m = spread(lambda_RJ, gamma_JM, part.a, part.scale)
        keep = x
        if plan == "merged" or (plan == "mixed" and part.tall):
            y = linear(x, _merge(base, m, part).to(dtype), bias)
        else:
            m = m.to(dtype)
            small = x @ m.t() if part.tall else x @ part.b
            if base is None:
                y = small @ part.b.t() if part.tall else small @ m
            else:
                y = linear(x, base.to(dtype), bias).addmm_(small, part.b.t() if part.tall else m)
            if not part.tall:
                keep = small
        ctx.save_for_backward(keep, base, lambda_RJ, gamma_JM)
        ctx.part, ctx.plan = part, plan
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        kept, base, lambda_RJ, gamma_JM = ctx.saved_tensors
        part: Spread = ctx.part
        b, plan = part.b, ctx.plan
        need_x, _, need_bias, need_lambda, need_gamma = ctx.needs_input_grad[:5]
        need_m = need_lambda or need_gamma
        grad_y = grad_y.to(b.dtype)
        grad_x = grad_m = None
        through_factors = plan == "activation" or (plan == "mixed" and part.tall)
        m = spread(lambda_RJ, gamma_JM, part.a, part.scale) if need_x else None
        if through_factors:
            # tall: the small product is x M^T, its gradient dY B; wide: it is x B, its gradient dY M^T
            if part.tall:
                grad_small = grad_y @ b
                grad_m = grad_small.t() @ kept if need_m else None
                back = None if m is None else m.to(b.dtype)
            else:
                grad_small = grad_y @ m.to(b.dtype).t() if m is not None else grad_y
                grad_m = kept.t() @ grad_y if need_m else None
                back = b.t()
            if need_x and back is not None:
                grad_x = grad_small @ back if base is None else (grad_y @ base.to(b.dtype)).addmm_(grad_small, back)
        else:
            if m is not None:
                grad_x = grad_y @ _merge(base, m, part).to(b.dtype)
            if need_m and plan == "mixed":
                grad_m = kept.t() @ grad_y
            elif need_m:
                grad_w = grad_y.t() @ kept
                grad_m = b.t() @ (grad_w if part.tall else grad_w.t())
        d_lambda = d_gamma = None
        if grad_m is not None:
            grad_m = grad_m.to(lambda_RJ.dtype)
            d_lambda, d_gamma = _spread_grads(grad_m, lambda_RJ, gamma_JM, part.a, part.scale)
        d_bias = grad_y.sum(0) if need_bias else None
        return grad_x, None, d_bias, d_lambda, d_gamma, None, None


class _SpreadWeight(torch.autograd.Function):
    """base + delta (out x in), keeping lambda and gamma only; base None gives the delta."""

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
        part: Spread = ctx.part
        b = part.b
        d_lambda = d_gamma = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            g = grad_w.to(b.dtype)
            grad_m = (b.t() @ (g if part.tall else g.t())).to(lambda_RJ.dtype)
            d_lambda, d_gamma = _spread_grads(grad_m, lambda_RJ, gamma_JM, part.a, part.scale)
        return grad_w if ctx.needs_input_grad[0] else None, d_lambda, d_gamma, None


def apply_plain(function: type[torch.autograd.Function], device: torch.device, *arguments: Any) -> Tensor:
    """`function.apply` with autocast off: these functions choose their dtypes themselves."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False):
            return cast(Tensor, function.apply(*arguments))  # type: ignore[no-untyped-call]
    return cast(Tensor, function.apply(*arguments))  # type: ignore[no-untyped-call]


def spread_linear(
    x: Tensor,
    base: Tensor | None,
    bias: Tensor | None,
    trained: tuple[Tensor, Tensor],
    part: Spread,
    *,
    plan: Plan | None = None,
) -> Tensor:
    """F.linear(x, base + delta, bias) for x (..., in), exactly, by the cheapest plan (or the one given).

    `trained` is (lambda, gamma). `part.b` must be in the dtype of the computation (`compute_dtype(x)`). A low-precision
    base is never merged, since rounding base + delta to it would lose a small delta.
    """
    dtype = part.b.dtype
    rows = x.reshape(-1, x.shape[-1])
    if plan is None:
        if base is not None and base.dtype in (torch.bfloat16, torch.float16):
            plan = "activation"
        else:
            large, inner = part.b.shape
            training = torch.is_grad_enabled() and (x.requires_grad or trained[0].requires_grad)
            plan = choose_plan(rows.shape[0], large, part.a.shape[1], inner, training)
    if rows.dtype != dtype:
        rows = rows.to(dtype)
    if bias is not None and bias.dtype != dtype:
        bias = bias.to(dtype)
    y = apply_plain(_SpreadLinear, x.device, rows, base, bias, *trained, part, plan)
    return y.view(*x.shape[:-1], y.shape[-1])


def spread_weight(base: Tensor | None, trained: tuple[Tensor, Tensor], part: Spread) -> Tensor:
    """base + delta, or the delta alone, as one (out x in) matrix."""
    return apply_plain(_SpreadWeight, trained[0].device, base, *trained, part)
