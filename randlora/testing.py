"""Check a method of your own: does it keep what `attach` promises of every method?

import my_method  # which registers it
from randlora.testing import check

check("my-method")
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from randlora.adapted.adapted import Adapted
from randlora.adapted.attach import attach
from randlora.adapted.gradients import weight_gradients, zero_gradients
from randlora.adapted.load import load
from randlora.errors import AdapterError
from randlora.methods.method import Method
from randlora.methods.registry import get_method

SHAPES = ((24, 16), (16, 24), (16, 16))
"""(out, in) of the model's weights: taller, wider and square."""
TARGETS = [str(layer) for layer in range(len(SHAPES))]
TOLERANCE = 1e-5
"""The largest difference between outputs (of size about 1) that counts as float32 rounding."""


class CheckError(AdapterError):
    """A method breaks promises. The message has one line for each of them."""


def check(name: str, *, capacity: int | None = None, options: Mapping[str, Any] | None = None) -> None:
    """Check that a registered method keeps what `attach` promises.

    The checks: counts are exact, also at other capacities; the start changes nothing; the same seeds give the same
    start; every trainable gets a gradient; all forms of the product agree, for inputs of two and three dimensions;
    files restore the adapter; and `detach` leaves no trace. A method whose small deltas are lost under bf16 autocast
    gets a warning.

    Args:
        name: the registered method.
        capacity: the capacity of every weight. None: 4, or the nearest capacity that fits the small weights of this
            check.
        options: option name -> value for the method's configuration; the others keep their default.

    Raises:
        CheckError: the method breaks promises; the message lists all of them. If the method's own code raises an
            error, the message ends with it, and the error is the cause of this one.
        UnknownMethodError: no method has this name.
        ConfigError: the method does not take these options.
    """
    method = get_method(name)
    if capacity is None:
        reach = method.max_capacity(SHAPES, **(options or {}))
        capacity = max(method.min_capacity, min(4, reach))
    checked = _Check(method, capacity, options or {})
    broken = [f"method {name!r} at {method.capacity_field} = {capacity}:"]
    try:
        for line in checked.broken_promises():
            broken.append(line)
    except Exception as error:  # a foreign method may raise anything; it is raised again after the promises before it
        raise CheckError("\n".join([*broken, f"{type(error).__name__}: {error}"])) from error
    if len(broken) > 1:
        raise CheckError("\n".join(broken))
    if method.mergeable and checked.loses_small_deltas():
        warnings.warn(
            f"method {name!r} rounds small deltas away under bf16 autocast; add them to outputs instead of weights to "
            "keep them",
            stacklevel=2,
        )


class _Check:
    """A method at one capacity, attached to a small model."""

    def __init__(self, method: Method, capacity: int, options: Mapping[str, Any]) -> None:
        self.method, self.config = method, method.config.from_options(capacity, options)
        self.x = torch.randn(5, SHAPES[0][1], generator=torch.Generator().manual_seed(1))

    def model(self, device: str = "cpu") -> nn.Sequential:
        draw = torch.Generator().manual_seed(0)
        layers = nn.Sequential(*(nn.Linear(width, out, device=device) for out, width in SHAPES))
        for parameter in layers.parameters() if device == "cpu" else ():
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=draw)
        return layers.eval()

    def attached(self, model: nn.Module, capacity: int | None = None) -> Adapted:
        config = self.config if capacity is None else type(self.config).from_options(capacity, self.config.options())
        gradients = None
        if self.method.needs_gradients and not next(model.parameters()).is_meta:
            gradients = weight_gradients(model, TARGETS, lambda: model(self.x).square().mean().backward())
        return attach(model, config, TARGETS, init_seed=3, basis_seed=4, gradients=gradients)

    def broken_promises(self) -> Iterator[str]:
        """Yield a line for every promise that does not hold."""
        if not self.method.scheduled:
            yield from self._counted()
        model = self.model()
        before, state = model(self.x), {name: t.clone() for name, t in model.state_dict().items()}
        adapted = self.attached(model)
        for mode in ("eval", "train"):
            if (off := _largest_difference(model.train(mode == "train")(self.x), before)) > TOLERANCE:
                yield f"the start changes the model's outputs in {mode} mode, by {off:.1e}"
        twin = dict(self.attached(self.model()).named_parameters())
        if unlike := [name for name, p in adapted.named_parameters() if not torch.equal(p, twin[name])]:
            yield f"the same seeds give another start of {unlike[0]}: draw all random numbers from the seeds"
        if frozen := [name for name, p in adapted.named_parameters() if not p.requires_grad]:
            yield f"{frozen[0]} does not require a gradient: what is not trained is a buffer"
        yield from self._trained(model, adapted)
        yield from self._of_tokens(model)
        yield from self._again(model(self.x), adapted)
        if self.method.mergeable:
            yield from self._merged(model, adapted)
        adapted.detach()
        after = model.state_dict()
        if after.keys() != state.keys() or any(not torch.equal(after[name], state[name]) for name in state):
            yield "detach does not give the model back as it was, bit for bit"

    def _counted(self) -> Iterator[str]:
        """Compare counts with what is built, at the capacity and at the smallest and largest that fit."""
        method, options = self.method, self.config.options()
        reach = min(method.max_capacity(SHAPES, **options), 2 * self.config.capacity)
        for capacity in sorted({method.min_capacity, self.config.capacity, max(method.min_capacity, reach)}):
            counted = method.total(SHAPES, capacity, **options)
            for device in ("meta", "cpu") if capacity == self.config.capacity else ("meta",):
                built = self.attached(self.model(device), capacity).count()
                if built != counted:
                    at = f"at {method.capacity_field} = {capacity} "
                    yield f"{at}count says {counted} trainable parameters, {built} are built on {device!r}"

    def _of_tokens(self, model: nn.Module) -> Iterator[str]:
        """Compare the outputs for rows with those for the same rows as (batch x tokens x in)."""
        rows = self.x[:4]
        outputs = model(rows.reshape(2, 2, -1)).reshape(4, -1)
        if not self.method.mixes_rows and (off := _largest_difference(outputs, model(rows))) > TOLERANCE:
            yield f"inputs of shape (batch, tokens, in) give other outputs than their rows, by {off:.1e}"

    def _trained(self, model: nn.Module, adapted: Adapted) -> Iterator[str]:
        """Train for two steps: at the start some trainables multiply zeros, and have no gradient yet."""
        start = {name: p.detach().clone() for name, p in adapted.named_parameters()}
        model.train()
        optimiser = torch.optim.SGD(list(adapted.parameters()), lr=0.1)
        for _ in range(2):
            optimiser.zero_grad()
            (model(self.x) - 1.0).square().mean().backward()
            nn.utils.clip_grad_norm_(adapted.parameters(), 1.0)  # outputs stay near 1, whatever the method's scale
            optimiser.step()
        model.eval()
        still = [name for name, p in adapted.named_parameters() if p.requires_grad and torch.equal(p, start[name])]
        if still:
            yield f"two steps leave {', '.join(still[:3])} as it was"

    def _again(self, outputs: Tensor, adapted: Adapted) -> Iterator[str]:
        """Build the adapter again from its seeds and tensors, in this process and from files, and compare outputs."""
        other = self.model()
        twin = self.attached(other)
        twin.load_state_dict(adapted.state_dict())
        if (off := _largest_difference(other(self.x), outputs)) > TOLERANCE:
            yield f"the same seeds and tensors give other outputs, by {off:.1e}: draw all random numbers from the seeds"
        with tempfile.TemporaryDirectory() as folder:
            adapted.save(folder)
            loaded = self.model()
            load(loaded, folder)
        if (off := _largest_difference(loaded(self.x), outputs)) > TOLERANCE:
            yield f"save and load give other outputs, by {off:.1e}"

    def _merged(self, model: nn.Module, adapted: Adapted) -> Iterator[str]:
        """Compare merged weights with the base plus the delta, and their outputs with those of `linear`."""
        outputs = model(self.x)
        deltas = adapted.deltas()
        for name, site in adapted.sites.items():
            weight = adapted.adapters[name].weight(site.base)
            if (off := _largest_difference(weight, site.base + deltas[name])) > TOLERANCE:
                yield f"weight is not the base and delta of {name}, by {off:.1e}"
        with adapted.merging():
            off = _largest_difference(model(self.x), outputs)
        if off > TOLERANCE:
            yield f"merged weights give other outputs than linear, by {off:.1e}"

    def loses_small_deltas(self) -> bool:
        """Return whether autocast loses a delta that is smaller than bf16's resolution at the weight.

        The batch has many rows, so that adding the delta to the weight is the cheaper form.
        """
        layer = nn.Sequential(nn.Linear(*SHAPES[0][::-1], bias=False)).eval()
        gradients = zero_gradients(self.method, {"0.weight": SHAPES[0]})
        adapted = attach(layer, self.config, ["0"], init_seed=3, basis_seed=4, gradients=gradients)
        draw = torch.Generator().manual_seed(2)
        with torch.no_grad():
            adapted.sites["0.weight"].parameter.fill_(8.0)  # bf16's steps at 8 are 1 / 16
            for parameter in adapted.parameters():
                parameter.add_(1e-3 * torch.randn(parameter.shape, generator=draw))
            x = torch.zeros(512, SHAPES[0][1])
            x[:, 0], x[:, 1] = 1.0, -1.0  # the constant weight maps these rows to 0
            with torch.autocast("cpu", dtype=torch.bfloat16):
                outputs = layer(x).float()
            [delta] = adapted.deltas().values()
        return _largest_difference(outputs, x @ delta.t()) > 0.05 * float(delta.abs().max())


def _largest_difference(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference."""
    return float((a - b).detach().abs().max())
