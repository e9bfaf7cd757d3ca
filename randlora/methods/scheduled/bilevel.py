"""Gradients of a held-out loss through one step of the weights: AutoLoRA's selection variables learn from them.

With weights D, selection variables s, training loss L and held-out loss H, and D' the weights after a step of size lr,

    dH(D', s)/ds  -  lr * [dL(D + e v, s)/ds - dL(D - e v, s)/ds] / (2 e),   v = dH(D', s)/dD',  e = 0.01 / ||v||

approximates the derivative of H(D - lr dL/dD, s). Finite differences replace second derivatives (DARTS, Liu et al.
2019, arXiv 1806.09055, section 2.3). The first term alone is the first-order form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from randlora.arithmetic.bases import random_bits

EPSILON = 0.01


def held_out_gradient(
    held_out: Callable[[], object],
    training: Callable[[], object] | None,
    *,
    weights: Sequence[Tensor],
    before: Sequence[Tensor],
    selections: Sequence[Tensor],
    lr: float,
) -> None:
    """Leave the gradient of the selection variables in their `.grad`; the weights keep their values and lose theirs.

    Args:
        held_out: adds the gradients of the held-out loss to `.grad` of all tensors, by one or more backward passes.
        training: the same for the loss that the step was taken on. None: the first-order form.
        weights: D', trained and just stepped.
        before: D, values of `weights` before that step; not read in the first-order form.
        selections: s.
        lr: size of the step.
    """
    _clear([*weights, *selections])
    held_out()
    direct = [_grad(s) for s in selections]
    along = [_grad(w) for w in weights]
    size = torch.sqrt(sum((v.double().square().sum() for v in along), torch.zeros((), dtype=torch.double)))
    if training is not None and float(size) > 0.0:
        epsilon = EPSILON / float(size)
        after = [w.detach().clone() for w in weights]
        ends = []
        for sign in (1.0, -1.0):
            _set(weights, [d + (sign * epsilon) * v for d, v in zip(before, along, strict=True)])
            _clear([*weights, *selections])
            training()
            ends.append([_grad(s) for s in selections])
        _set(weights, after)
        for gradient, up, down in zip(direct, *ends, strict=True):
            gradient.sub_(up - down, alpha=lr / (2.0 * epsilon))
    _clear(weights)
    for selection, gradient in zip(selections, direct, strict=True):
        selection.grad = gradient


def set_aside(count: int, share: float, seed: int) -> Tensor:
    """Return which of `count` rows are held out, bool (count): each with probability `share`, drawn from `seed`."""
    bits = random_bits(seed, "held out", range(count), 1)[:, 0]
    return ((bits >> 40) & 0xFFFFFF) < share * (1 << 24)


def _grad(tensor: Tensor) -> Tensor:
    """Return a tensor's gradient, or zeros if it has none."""
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.detach().clone()


def _clear(tensors: Sequence[Tensor]) -> None:
    """Remove the gradients of tensors."""
    for tensor in tensors:
        tensor.grad = None


@torch.no_grad()
def _set(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into tensors."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
