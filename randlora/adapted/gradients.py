"""Take the gradient of a loss at the frozen weights, for a method that starts from it (LoRA-GA).

gradients = weight_gradients(model, targets, lambda: loss(model(x)).backward())
adapted = attach(model, LoraGaConfig(8), targets, gradients=gradients)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from randlora.adapter import Adapter, Shape
from randlora.errors import AdapterError
from randlora.methods.method import Method
from randlora.model.targets import select


class _Change(Adapter):
    """An adapter that adds zeros to a weight. Their gradient after a backward pass is the gradient at the weight.

    So the gradient of every target is read in the same way: of a part of a packed weight, a transposed weight or a
    quantised one.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(shape)
        self.change = nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))

    def delta(self, base: Tensor) -> Tensor:
        return self.change

    def weight(self, base: Tensor) -> Tensor:
        return base + self.change.to(base.dtype)

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, self.weight(base), bias)


def weight_gradients(model: nn.Module, targets: Sequence[str], backward: Callable[[], object]) -> dict[str, Tensor]:
    """Return the gradient (out x in) at every target weight by name, summed over all that `backward` runs.

    The model stays as it was. All gradients are in memory at once, in float32 (float64 for a float64 model), so they
    need as much memory as the targets.

    Args:
        model: the plain model, without adapters.
        targets: names of weights, as those of `attach`.
        backward: runs the model and `loss.backward()`, once or more.

    Raises:
        AdapterError: the loss does not depend on a target, or its gradient there is zero or not finite.
    """
    sites = select(model, targets)
    required = {p: p.requires_grad for p in model.parameters()}
    changes = {}
    for name, site in sites.items():
        dtype = torch.float64 if site.parameter.dtype == torch.float64 else torch.float32
        changes[name] = _Change(site.shape, dtype, site.parameter.device)
    installed = []
    try:
        model.requires_grad_(False)
        for name, site in sites.items():
            site.install(changes[name])
            installed.append(site)
        with torch.enable_grad():
            backward()
    finally:
        for site in reversed(installed):
            site.remove()
        for parameter, flag in required.items():
            parameter.requires_grad_(flag)
    return {name: _usable(name, change.change.grad) for name, change in changes.items()}


def _usable(name: str, gradient: Tensor | None) -> Tensor:
    """Return the gradient, or raise AdapterError if no start can be made from it."""
    if gradient is None:
        state = "no gradient"
    elif not gradient.isfinite().all():
        state = "a gradient that is not finite"
    elif not gradient.any():
        state = "a gradient of zero"
    else:
        return gradient
    raise AdapterError(
        f"the loss has {state} at {name}, so no start can be made from it; leave {name} out of targets, give other "
        "rows, or take a start that needs no data, such as pissa"
    )


def zero_gradients(method: Method, shapes: Mapping[str, Shape]) -> dict[str, Tensor] | None:
    """Return zeros that `attach` accepts as gradients; None if the method needs no gradients.

    They are enough if parameters are only counted, or if a file holds the start that the method made.
    """
    if not method.needs_gradients:
        return None
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
