"""Use PEFT's layers as adapters of this package.

PEFT's tuner never gets the model. It runs on a tree that contains the target weights alone, each as an `nn.Linear` on
the model's memory. Every layer that it wraps becomes one `Adapter`. Weights of different capacities are in different
trees. For each call, the layer gets the weight and the bias that the model has at that moment.

For a weight that is read and not called, the layer is applied to the identity. Starts are those after
`torch.manual_seed(init_seed)`. Random numbers in training come from the adapter's own stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from randlora.adapter import Adapter, Request
from randlora.errors import AdapterError, ConfigError
from randlora.methods.bridge.config import PeftOptions
from randlora.methods.bridge.counts import layer_kind
from randlora.methods.bridge.installed import peft, quiet


def module_name(weight: str) -> str:
    """Return the name of a weight's module in the tree. For a bare parameter it is the parameter's name."""
    return weight.removesuffix(".weight")


class PeftAdapter(Adapter):
    """A layer of PEFT as an adapter.

    `trained` has the layer's trainables by name. A trainable that layers share is in the first adapter that has it.
    """

    def __init__(
        self, layer: nn.Module, request: Request, name: str, tuner: Any, trained: Mapping[str, nn.Parameter]
    ) -> None:
        config = request.config
        assert isinstance(config, PeftOptions)
        super().__init__(request.shapes[name], config.dropout)
        self.kind, self._tuner = config.kind, (tuner,)  # in a tuple, so that it is not a submodule
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
            # FRoD's layers refer to V, which belongs to the tuner and is not among their buffers
            shared = (f"layer.frod_V.{key}" for key in getattr(layer, "frod_V", ()))
            self.derived = (*(key for key, _ in self.named_buffers()), *shared)  # type: ignore[misc]  # PEFT's own names

    def _forget_handles(self) -> None:
        """Forget OSF's handles of its gradient hooks, which cannot be pickled. The hooks stay."""
        layer: Any = self.layer
        if hasattr(layer, "hook_handles"):
            layer.hook_handles = []

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Attach OSF's gradient hooks again: a tensor that is copied or pickled loses them."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        layer: Any = self.layer
        if hasattr(layer, "hook_handles"):
            layer._attach_hooks("default")
            self._forget_handles()

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the trainables alone. PEFT freezes some parameters of its layers."""
        prefix = args[0] if args else kwargs.get("prefix", "")
        for key in self._trained:
            yield f"{prefix}.{key}" if prefix else key, self.get_parameter(key)

    def stored(self) -> Iterator[Tensor]:
        """Yield all frozen tensors, also those that no `state_dict` shows: indices, and matrices of PEFT's tuner."""
        return (t for t in _tensors(self.layer, set()) if not (isinstance(t, nn.Parameter) and t.requires_grad))

    def redrawn(self) -> Iterator[Tensor]:
        return self.stored() if self.kind.seed is not None and not self.kind.derived else iter(())

    @property
    def tuner(self) -> Any:
        """Return PEFT's model around the tree that contains this layer."""
        return self._tuner[0]

    @property
    def draws(self) -> bool:
        return self.kind.draws or super().draws

    def _lend(self, base: Tensor | None, bias: Tensor | None) -> None:
        """Give the layer the weight and the bias to use; None takes them away."""
        layer: Any = self.layer
        leaf: Any = layer.base_layer
        leaf._parameters["weight"], leaf._parameters["bias"] = base, bias
        if base is not None and self.kind.bias_column:
            layer.dtype = base.dtype  # AdaMSS casts to the type that it was built with

    def _call(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output for the given weight and bias."""
        if (
            bias is not None and self.kind.bias_column and not self.moves_bias
        ):  # the bias is not a column of the decomposed weight
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
        """Return W0 + delta, by applying the layer to the identity. Raises AdapterError if the update is not a
        matrix."""
        if not self.kind.matrix:
            raise AdapterError(
                f"{self.kind.title} is not a change of a weight, so it cannot be merged or exported as a matrix; "
                "save() and export_peft() keep the adapter itself"
            )
        eye, training = torch.eye(self.shape[1], dtype=base.dtype, device=base.device), self.layer.training
        self.layer.eval()  # no dropout, which is for inputs alone
        try:
            with torch.autocast(base.device.type, enabled=False):
                if not (self.moves_bias and self.kind.bias_column):
                    return self._call(eye, base, None).t()
                y = self._call(torch.cat([eye, torch.zeros_like(eye[:1])]), base, base.new_zeros(len(base)))
                return (y[:-1] - y[-1:]).t()  # minus the change of the bias
        finally:
            self.layer.train(training)

    def weight(self, base: Tensor) -> Tensor:
        return self._matrix(base.to(_precision(base))).to(base.dtype)

    def delta(self, base: Tensor) -> Tensor:
        base = base.to(_precision(base))
        return self._matrix(base) - base


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yield every tensor in the attributes of modules, however deep in containers."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
        return
    inside = vars(value) if isinstance(value, nn.Module) else value
    parts = inside.values() if isinstance(inside, Mapping) else inside if isinstance(inside, list | tuple) else ()
    for part in parts:
        yield from _tensors(part, seen)


def _precision(base: Tensor) -> torch.dtype:
    """Return the type in which a weight is computed: float64 if it is float64, else float32."""
    return torch.float64 if base.dtype == torch.float64 else torch.float32


class Counted(Adapter):
    """An adapter with the right number of parameters, for a weight that PEFT cannot build without its values."""

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
    """Return modules with the weights' own names. Each weight is an `nn.Linear` on the given memory."""
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
    """Run the block with torch's global random state at `init_seed`, and restore the state at its end."""
    devices = [request.device] if request.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(request.init_seed)
        yield


def legal_capacities(request: Request) -> dict[str, int]:
    """Return the capacity that each weight really gets."""
    config = request.config
    assert isinstance(config, PeftOptions)
    options = config.options()
    return {n: config.kind.legal_of(request.shapes[n], c, options) for n, c in request.capacities.items()}


def build(request: Request) -> dict[str, Adapter]:
    """Build the adapters of a request, with one tree and one tuner for every capacity that occurs."""
    config = request.config
    assert isinstance(config, PeftOptions)
    kind, legal = config.kind, legal_capacities(request)
    if request.quantised and kind.needs_float_weight is not None:
        unquantised = [name for name in request.weights if name not in request.quantised]
        raise ConfigError(
            f"{config.method} {kind.needs_float_weight}, and {min(request.quantised)} is kept in 4 or 8 bits: "
            f"of these targets it can adapt {', '.join(unquantised[:3]) or 'none'}"
        )
    if kind.together is not None and len(sizes := sorted(set(legal.values()))) > 1:
        raise ConfigError(f"{config.method} has one {config.capacity_field} for all weights but got {sizes}")
    groups: dict[int, list[str]] = {}
    for name, capacity in legal.items():
        groups.setdefault(0 if kind.pooled else capacity, []).append(name)
    options = config.options()
    for names in groups.values():
        if (misfit := kind.misfit_of({name: request.shapes[name] for name in names}, options)) is not None:
            raise ConfigError(f"{config.method}: {misfit.reason}; nearest: {misfit.remedy}")
    adapters: dict[str, Adapter] = {}
    with _seeded(request):
        for capacity, names in groups.items():
            try:
                adapters |= _build_tree(request, config, sum(legal.values()) if kind.pooled else capacity, names)
            except NotImplementedError:
                if request.device.type != "meta":
                    raise
                return {n: Counted(n, request, kind.count_of(request.shapes[n], c, options)) for n, c in legal.items()}
    return {name: adapters[name] for name in request.weights}


def target_names(config: PeftOptions, names: Iterable[str]) -> list[str]:
    """Return how PEFT is told the weights: the names of their modules, or the ends of names that layers of one kind
    share."""
    modules = [module_name(name) for name in names]
    if not config.kind.by_tail:
        return modules
    tails = sorted({layer_kind(module) for module in modules})
    for module in modules:
        if len(matching := [t for t in tails if module.endswith(t)]) > 1:
            raise ConfigError(f"{config.method}: PEFT cannot tell {' and '.join(matching)} apart by name; adapt one")
    return tails


def _build_tree(request: Request, config: PeftOptions, capacity: int, names: list[str]) -> dict[str, Adapter]:
    """Build the adapters of the weights that share a tree."""
    fields: dict[str, Any] = {"target_modules": target_names(config, names)}
    if config.kind.seed is not None:
        fields[config.kind.seed] = request.basis_seed
    shapes = [request.shapes[name] for name in names]
    peft_config = config.peft_config(capacity, **fields, **config.kind.settled(shapes, config.options()))
    root = tree({name: request.weights[name] for name in names}, request.biases if config.kind.bias_column else {})
    try:
        with quiet():
            tuner = peft().get_peft_model(root, peft_config)
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, NotImplementedError) and request.device.type == "meta":
            raise  # it needs values of the weights
        raise ConfigError(
            f"{config.method}: PEFT refuses weights of {sorted(set(shapes))} with "
            f"{config.capacity_field} = {config.kind.value(capacity)}: {error}"
        ) from error
    layers = {name: root.get_submodule(module_name(name)) for name in names}
    seen: set[int] = set()
    trained: dict[str, dict[str, nn.Parameter]] = {}
    for name, layer in layers.items():
        layer_trainables = {
            f"layer.{k}": p for k, p in layer.named_parameters() if p.requires_grad and id(p) not in seen
        }
        seen.update(map(id, layer_trainables.values()))
        trained[name] = layer_trainables
    unseen = [p for p in tuner.parameters() if p.requires_grad and id(p) not in seen]
    trained[names[0]] |= {f"shared_{i}": p for i, p in enumerate(unseen)}
    return {name: PeftAdapter(layer, request, name, tuner, trained[name]) for name, layer in layers.items()}
