"""One batched product for K adapters of a pack, for methods that have such a stacked form.

Shapes: K adapters with n rows each make N = K n rows. Frozen factors that all members share multiply all N rows at
once. If one adapter alone would build its matrix (cheaper for many rows), stacking its factors gains nothing. Then the
answer is None, and the slices go one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import linear

from randlora.adapter import Adapter
from randlora.arithmetic.contract import LOW, compute_dtype
from randlora.arithmetic.plans import choose_plan
from randlora.methods.factored import Factored
from randlora.methods.lowrank.lora import Dora, Lora, LoraPlus
from randlora.methods.lowrank.spectral import LoraXs
from randlora.methods.lowrank.starts import Started
from randlora.methods.random.ablations import RandLoraA
from randlora.methods.random.randlora import RandLora
from randlora.methods.random.vera import Vera
from randlora.methods.scheduled.adalora import AdaLora

Drop = Callable[[Tensor], Tensor]
Stacked = Callable[[Sequence[Adapter], Tensor, Tensor, Tensor | None, Drop], Tensor | None]
"""Returns the product as (K, n, out); None if the slices must go one by one."""


def stacked_linear(
    members: Sequence[Adapter], x: Tensor, base: Tensor, bias: Tensor | None, drop: Drop
) -> Tensor | None:
    """Return F.linear of x, slice k by base + delta of member k; None if no stacked form is cheaper.

    The result equals the members' own products up to the order of sums.

    Args:
        members: the K adapters.
        x: the input (K b, ..., in).
        base: W0 (out x in); it gets no gradient.
        bias: (out), or None.
        drop: returns x after every member's own dropout. It is called once at most.
    """
    kinds = {type(member) for member in members}
    if len(kinds) > 1 or base.requires_grad or (apply := STACKED.get(kinds.pop())) is None:
        return None
    y_KNO = apply(members, x, base, bias, drop)
    return None if y_KNO is None else y_KNO.view(*x.shape[:-1], -1)


def _slices(x: Tensor, count: int) -> Tensor:
    """Return (K b, ..., in) as (K, n, in)."""
    return x.reshape(count, -1, x.shape[-1])


def _scales(values: Sequence[float], like: Tensor) -> float | Tensor:
    """Return one number if all scales agree, else a tensor (K, 1, 1)."""
    if len(set(values)) == 1:
        return values[0]
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)


def _factored(members: Sequence[Adapter], x: Tensor, base: Tensor, bias: Tensor | None, drop: Drop) -> Tensor | None:
    """Return linear(x, base, bias) + scale_k (dropped a_k) b_k^T, with the factors that each member makes."""
    layers = cast(Sequence[Factored], members)
    dtype, count = compute_dtype(x), len(layers)
    factors = [m.factors() for m in layers]
    if any(m.merges(part, base, a) for m, part, (a, _) in zip(layers, x.chunk(count), factors, strict=True)):
        return None
    y = linear(x, base, bias)
    a_KIR = torch.stack([a for a, _ in factors]).to(dtype)
    b_KRO = torch.stack([b.t() for _, b in factors]).to(dtype)
    h_KNR = _slices(drop(x), count).to(dtype) @ a_KIR
    return _slices(y, count).baddbmm(h_KNR, b_KRO * _scales([m.scale for m in layers], b_KRO))


def _dora(members: Sequence[Adapter], x: Tensor, base: Tensor, bias: Tensor | None, drop: Drop) -> Tensor | None:
    """Return the LoRA product, times the factor of every output row."""
    y = _factored(members, x, base, None, drop)
    if y is None:
        return None
    factor_K1O = torch.stack([m.factor(base) for m in cast(Sequence[Dora], members)]).unsqueeze(1)
    scaled = y * factor_K1O  # in float32, as for one adapter alone
    return (scaled if bias is None else scaled + bias).to(y.dtype)


def _vera(members: Sequence[Adapter], x: Tensor, base: Tensor, bias: Tensor | None, drop: Drop) -> Tensor | None:
    """Return VeRA's product: x A^T and (...) B^T once for all rows, diag(d_k) and diag(b_k) by slice."""
    veras = cast(Sequence[Vera], members)
    first, dtype = veras[0], compute_dtype(x)
    a_RI, b_OR = first.frozen(dtype)
    if any(m.bases is not first.bases or m.dropping for m in veras):
        return None
    if first.merges(x.chunk(len(veras))[0], base, first.frozen()[0].t(), passes=2):
        return None
    h_KNR = _slices(linear(x, a_RI), len(veras))
    z_KNR = h_KNR * torch.stack([m.d for m in veras]).to(dtype).unsqueeze(1)
    u_KNO = linear(z_KNR, b_OR)
    b_K1O = torch.stack([m.up for m in veras]).to(dtype).unsqueeze(1)
    return torch.addcmul(_slices(linear(x, base, bias), len(veras)), u_KNO, b_K1O)


def _randlora(members: Sequence[Adapter], x: Tensor, base: Tensor, bias: Tensor | None, drop: Drop) -> Tensor | None:
    """Return (x M_k^T) B^T, or (x B) M_k for a wide weight. The product with B is made once for all rows."""
    layers = cast(Sequence[RandLora], members)
    first, dtype = layers[0], compute_dtype(x)
    if any(m.bases is not first.bases or m.dropping for m in layers):
        return None
    part = first.part(dtype)
    rows = x.numel() // x.shape[-1] // len(layers)
    sizes = (rows, part.b.shape[0], part.a.shape[1], part.b.shape[1])
    apart = base.dtype in LOW or dtype in LOW
    if part.compact is not None or choose_plan(*sizes, torch.is_grad_enabled(), apart=apart) != "activation":
        return None
    lambda_KRJ = torch.stack([m.lambdas * m.part(dtype).scale for m in layers])
    gamma_KJM = torch.stack([m.gammas for m in layers])
    m_KRJM = lambda_KRJ.unsqueeze(-1) * part.a.unsqueeze(1) * gamma_KJM.unsqueeze(1)
    m_KQM = m_KRJM.flatten(1, 2).to(dtype)
    x_KNI = _slices(x, len(layers)).to(dtype)
    delta = linear(x_KNI @ m_KQM.mT, part.b) if part.tall else (x_KNI @ part.b) @ m_KQM
    return _slices(linear(x, base, bias), len(layers)) + delta


STACKED: dict[type[Adapter], Stacked] = {
    Lora: _factored,
    LoraPlus: _factored,
    Dora: _dora,
    Vera: _vera,
    RandLora: _randlora,
    AdaLora: _factored,
    Started: _factored,
    LoraXs: _factored,
    RandLoraA: _factored,
}
"""Class of adapter -> its stacked product. A subclass is not looked up, because it may compute something else."""
