"""PEFT's layers as adapters of this package.

PEFT's tuner never meets the model. It runs on a tree that has the target weights alone, each as an `nn.Linear` of its
own on the model's memory, and every layer that it wraps becomes one `Adapter`. Weights of different capacities stand in
different trees. A call lends the layer the weight and the bias that the model has at that moment.

A weight that is read and not called is the layer applied to the identity. Starts are those after
`torch.manual_seed(init_seed)`; what is drawn in training follows the adapter's own stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from randlora.adapter import Adapter, Request
from randlora.errors import AdapterError, ConfigError
from randlora.methods.bridge.config import PeftOptions, peft, quiet
from randlora.methods.bridge.counts import tail


def module_name(weight: str) -> str:
    """Where a weight stands in the tree: the name of its module, or of itself where it is a bare parameter."""
    return weight.removesuffix(".weight")


class PeftAdapter(Adapter):
    """A layer of PEFT; `trained` are the names of its trainables, each in the first adapter that has it."""

    def __init__(
        self, layer: nn.Module, request: Request, name: str, tuner: Any, trained: Mapping[str, nn.Parameter]
    ) -> None:
        config = request.config
        assert isinstance(config, PeftOptions)
        super().__init__(request.shapes[name], config.dropout)
        self.kind, self._tuner = config.kind, (tuner,)  # in a tuple: no submodule
        self.moves_bias = config.kind.bias_too and name in (
            request.biases if config.kind.bias_column else request.biased
        )
        self.layer = layer
        self._lend(None, None)
        for key, parameter in trained.items():
            if not key.startswith("layer."):
                self.register_parameter(key, parameter)
        self._trained = tuple(trained)
        self._forget_handles()
        if config.kind.derived:
            # FRoD's layers refer to the V of their tuner, which is no buffer of theirs
            shared = (f"layer.frod_V.{key}" for key in getattr(layer, "frod_V", ()))
            self.derived = (*(key for key, _ in self.named_buffers()), *shared)  # type: ignore[misc]  # PEFT's own names

    def _forget_handles(self) -> None:
        """OSF keeps handles of its hooks on gradients, which can't be pickled; the hooks stay."""
        layer: Any = self.layer
        if hasattr(layer, "hook_handles"):
            layer.hook_handles = []

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A tensor that is copied or pickled comes without its hooks: OSF puts them on again."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        layer: Any = self.layer
        if hasattr(layer, "hook_handles"):
            layer._attach_hooks("default")
            self._forget_handles()

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The trainables alone: PEFT freezes some parameters of its layers."""
        prefix = args[0] if args else kwargs.get("prefix", "")
        for key in self._trained:
            yield f"{prefix}.{key}" if prefix else key, self.get_parameter(key)

    def stored(self) -> Iterator[Tensor]:
        """Also what PEFT's layer keeps where no `state_dict` shows it: indices, and matrices of its tuner's."""
        return (t for t in _tensors(self.layer, set()) if not (isinstance(t, nn.Parameter) and t.requires_grad))

    def redrawn(self) -> Iterator[Tensor]:
        return self.stored() if self.kind.seed is not None and not self.kind.derived else iter(())

    @property
    def tuner(self) -> Any:
        """PEFT's model around the tree that the layer stands in."""
        return self._tuner[0]

    @property
    def draws(self) -> bool:
        return self.kind.draws or super().draws

    def _lend(self, base: Tensor | None, bias: Tensor | None) -> None:
        layer: Any = self.layer
        leaf: Any = layer.base_layer
        leaf._parameters["weight"], leaf._parameters["bias"] = base, bias
        if base is not None and self.kind.bias_column:
            layer.dtype = base.dtype  # AdaMSS casts to the one that it was built with

    def _call(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None and self.kind.bias_column and not self.moves_bias:  # no column of what was built
            return self._call(x, base, None) + bias
        self._lend(base, bias)
        try:
            y: Tensor = self.layer(x)
        finally:
            self._lend(None, None)
        return y

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        if not self.dropping:
            return self._call(x, base, bias)
        devices = [x.device] if x.device.type == "cuda" else []
        seed = self.masks.seed()
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            return self._call(x, base, bias)

    def _matrix(self, base: Tensor) -> Tensor:
        if not self.kind.matrix:
            raise AdapterError(
                f"{self.kind.title} is no change of a weight, so it cannot be merged or exported as a matrix; save() "
                "and export_peft() keep the adapter itself"
            )
        eye, training = torch.eye(self.shape[1], dtype=base.dtype, device=base.device), self.layer.training
        self.layer.eval()  # dropout falls on an input, and this is none
        try:
            with torch.autocast(base.device.type, enabled=False):
                if not (self.moves_bias and self.kind.bias_column):
                    return self._call(eye, base, None).t()
                y = self._call(torch.cat([eye, torch.zeros_like(eye[:1])]), base, base.new_zeros(len(base)))
                return (y[:-1] - y[-1:]).t()  # without the change of the bias
        finally:
            self.layer.train(training)

    def weight(self, base: Tensor) -> Tensor:
        return self._matrix(base.to(_precision(base))).to(base.dtype)

    def delta(self, base: Tensor) -> Tensor:
        base = base.to(_precision(base))
        return self._matrix(base) - base


def _tensors(held: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor in the attributes of modules, however deep in containers."""
    if id(held) in seen:
        return
    seen.add(id(held))
    if isinstance(held, Tensor):
        yield held
        return
    inside = vars(held) if isinstance(held, nn.Module) else held
    parts = inside.values() if isinstance(inside, Mapping) else inside if isinstance(inside, list | tuple) else ()
    for part in parts:
        yield from _tensors(part, seen)


def _precision(base: Tensor) -> torch.dtype:
    return torch.float64 if base.dtype == torch.float64 else torch.float32


class Counted(Adapter):
    """The parameters of a weight that PEFT cannot build without its values; nothing else."""

    stand_in = True

    def __init__(self, name: str, request: Request, count: int) -> None:
        super().__init__(request.shapes[name])
        self.values = nn.Parameter(torch.empty(count, device="meta"))

    def delta(self, base: Tensor) -> Tensor:
        return torch.empty_like(base)

    def weight(self, base: Tensor) -> Tensor:
        return base

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(x, base, bias)


def tree(weights: Mapping[str, Tensor], biases: Mapping[str, Tensor]) -> nn.Module:
    """Modules with the weights' own names; each weight is an `nn.Linear` on the given memory."""
    root = nn.Module()
    for name, weight in weights.items():
        *path, last = module_name(name).split(".")
        node = root
        for part in path:
            if part not in node._modules:
                node.add_module(part, nn.Module())
            node = node.get_submodule(part)
        leaf = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        leaf.weight = nn.Parameter(weight.detach(), requires_grad=False)
        if name in biases:
            leaf.bias = nn.Parameter(biases[name].detach(), requires_grad=False)
        node.add_module(last, leaf)
    return root


@contextmanager
def _seeded(request: Request) -> Iterator[None]:
    devices = [request.device] if request.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(request.init_seed)
        yield


def legal_capacities(request: Request) -> dict[str, int]:
    """The capacity that each weight really gets."""
    config = request.config
    assert isinstance(config, PeftOptions)
    options = {**config.kind.fixed, **config.options()}
    return {n: config.kind.legal(request.shapes[n], c, options) for n, c in request.capacities.items()}


def build(request: Request) -> dict[str, Adapter]:
    """One tree and one tuner for every capacity that occurs."""
    config = request.config
    assert isinstance(config, PeftOptions)
    kind, legal = config.kind, legal_capacities(request)
    if request.quantised and kind.needs_float_weight is not None:
        whole = [name for name in request.weights if name not in request.quantised]
        raise ConfigError(
            f"{config.method} {kind.needs_float_weight}, and {min(request.quantised)} is kept in 4 or 8 bits: "
            f"of these targets it can adapt {', '.join(whole[:3]) or 'none'}"
        )
    if kind.together is not None and len(sizes := sorted(set(legal.values()))) > 1:
        raise ConfigError(f"{config.method} has one {config.capacity_field} for all weights but got {sizes}")
    groups: dict[int, list[str]] = {}
    for name, capacity in legal.items():
        groups.setdefault(0 if kind.pooled else capacity, []).append(name)
    options = {**kind.fixed, **config.options()}
    for names in groups.values():
        if (found := kind.misfit({name: request.shapes[name] for name in names}, options)) is not None:
            raise ConfigError(f"{config.method}: {found.reason}; nearest: {found.remedy}")
    if request.device.type == "meta" and not kind.meta:
        return {n: Counted(n, request, kind.count(request.shapes[n], c, options)) for n, c in legal.items()}
    made: dict[str, Adapter] = {}
    with _seeded(request):
        for capacity, names in groups.items():
            made |= _grow(request, config, sum(legal.values()) if kind.pooled else capacity, names)
    return {name: made[name] for name in request.weights}


def target_names(config: PeftOptions, names: Iterable[str]) -> list[str]:
    """How PEFT is told the weights: by their modules' names, or by the ends that layers of one kind share."""
    modules = [module_name(name) for name in names]
    if not config.kind.by_tail:
        return modules
    tails = sorted({tail(module) for module in modules})
    for module in modules:
        if len(found := [t for t in tails if module.endswith(t)]) > 1:
            raise ConfigError(f"{config.method}: PEFT cannot tell {' and '.join(found)} apart by name; adapt one")
    return tails


def _grow(request: Request, config: PeftOptions, capacity: int, names: list[str]) -> dict[str, Adapter]:
    """The adapters of the weights that share a tree."""
    more: dict[str, Any] = {"target_modules": target_names(config, names)}
    if config.kind.seed is not None:
        more[config.kind.seed] = request.basis_seed
    shapes = [request.shapes[name] for name in names]
    theirs = config.at(capacity, **more, **config.kind.settled(shapes, config.options()))
    root = tree({name: request.weights[name] for name in names}, request.biases if config.kind.bias_column else {})
    try:
        with quiet():
            tuner = peft().get_peft_model(root, theirs)
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        raise ConfigError(
            f"{config.method}: PEFT refuses weights of {sorted(set(shapes))} with "
            f"{config.capacity_field} = {config.kind.value(capacity)}: {error}"
        ) from error
    layers = {name: root.get_submodule(module_name(name)) for name in names}
    seen: set[int] = set()
    trained: dict[str, dict[str, nn.Parameter]] = {}
    for name, layer in layers.items():
        own = {f"layer.{k}": p for k, p in layer.named_parameters() if p.requires_grad and id(p) not in seen}
        seen.update(map(id, own.values()))
        trained[name] = own
    left = [p for p in tuner.parameters() if p.requires_grad and id(p) not in seen]
    trained[names[0]] |= {f"shared_{i}": p for i, p in enumerate(left)}
    return {name: PeftAdapter(layer, request, name, tuner, trained[name]) for name, layer in layers.items()}
