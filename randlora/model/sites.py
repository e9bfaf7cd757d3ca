"""Where a weight is, and how an adapter gets between it and the model's arithmetic.

There are two ways, and both are undone without a trace.

1. An `nn.Linear` gets another class, `AdaptedLinear`. If the layer is called, the adapter chooses how to compute the
   product: for example (W0 + delta) x, or W0 x + B (A x). Whoever reads `layer.weight` instead gets W0 + delta. So the
   result is the same whether the model calls the layer or reads its weight. transformers' `Conv1D` is treated in
   the same way.
2. Any other 2-D parameter gets a parametrisation, so that all code that reads it sees W0 + delta. One example is the
   parameter `in_proj_weight` of attention, in which queries, keys and values are packed. Another is a subclass of
   `nn.Linear`, which may have a forward of its own. A third is a layer whose `forward` was replaced by a hook of
   accelerate. In attention of the usual form, adapters are still applied to the input instead
   (`randlora.model.attention`).

Parts of one weight share its place (`randlora.model.parts`).
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils import parametrize

from randlora.adapter import Adapter, Shape
from randlora.errors import AdapterError
from randlora.model.attention import mount_attention, unmount_attention
from randlora.model.parts import PartAdapters, Rows
from randlora.model.quantised import Beside, adapted_class, dequantised, is_quantised, put_beside, take_away


class _Readable(nn.Module):
    """Mixed into the class of a layer while an adapter is on it: its `weight` is W0 + delta for all who read it."""

    adapter: Adapter | PartAdapters
    transposed: ClassVar[bool] = False
    """Whether the weight is stored as (in x out)."""

    @property
    def weight(self) -> Tensor:
        """Return W0 + delta in the stored shape, differentiable in the trainables (see `Adapter.read`)."""
        stored = self.stored
        try:
            return self.adapter.read(stored.t()).t() if self.transposed else self.adapter.read(stored)
        except AttributeError as error:  # Python would take it for a missing property, and nn.Module would return W0
            raise AdapterError(f"the adapter cannot make W0 + delta: {error}") from error

    @weight.setter
    def weight(self, value: Tensor) -> None:
        """Take the plain tensor that nn.DataParallel puts into the place of the parameter."""
        self.__dict__["weight"] = value

    @property
    def stored(self) -> Tensor:
        """Return the frozen weight as it is stored."""
        parameter = self._parameters.get("weight")
        return cast(Tensor, self.__dict__["weight"]) if parameter is None else parameter

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register or replace a parameter. nn.Module would first read a `weight`, to see whether the name is free."""
        if name == "weight" or name in self._parameters:
            self._parameters[name] = param
        else:
            super().register_parameter(name, param)


class AdaptedLinear(_Readable, nn.Linear):
    """The class of an `nn.Linear` while an adapter is on it. Existing layers change to this class; it is never
    built."""

    plain: ClassVar[Any] = nn.Linear
    """The layer's own class."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the output (..., out) for x (..., in). Nested tensors are multiplied by W0 + delta, as one matrix."""
        if input.is_nested:
            return linear(input, self.weight, self.bias)
        return self.adapter.apply_to(input, self.stored, self.bias)


class _AdaptedConv1D(_Readable):
    """Mixed into the class of transformers' Conv1D while an adapter is on it."""

    transposed = True

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (..., out) for x (..., in)."""
        return self.adapter.apply_to(x, self.stored.t(), cast(Tensor, self.bias))


class PackedWeight(nn.Module):
    """A parametrisation that maps the stored weight to the weight plus delta. Layouts of (in x out) are transposed.

    `nn.MultiheadAttention` reads its weight three times in a forward. Between the owner's forward hooks the first
    result is kept. It is dropped at the end, so that each forward has its own graph.
    """

    def __init__(self, adapter: Adapter | PartAdapters, transposed: bool) -> None:
        super().__init__()
        self.adapter = adapter
        self.transposed = transposed
        self._holding = False
        self._held: Tensor | None = None

    def forward(self, base: Tensor) -> Tensor:
        """Return the weight plus delta, in the stored shape."""
        if self._held is not None:
            return self._held
        weight = self.adapter.matrix(base.t()).t() if self.transposed else self.adapter.matrix(base)
        if self._holding:
            self._held = weight
        return weight

    def forget(self) -> None:
        """Drop the kept result, because another adapter is active now."""
        self._held = None

    def mount(self, owner: nn.Module, order: list[str]) -> None:
        """Add the forward hooks of `owner`, whose parameters were in this order before."""
        self._order = order
        self._hooks = (
            owner.register_forward_pre_hook(self.hold),
            owner.register_forward_hook(self.release, always_call=True),
        )

    def unmount(self, owner: nn.Module) -> None:
        """Undo `mount`, once the parametrisation is gone."""
        for hook in self._hooks:
            hook.remove()
        table = owner._parameters
        ordered = {name: table[name] for name in self._order}
        table.clear()
        table.update(ordered)

    def hold(self, module: nn.Module, args: Any) -> None:
        """Start to keep the result; a forward pre-hook of the owner."""
        self._holding, self._held = True, None

    def release(self, module: nn.Module, args: Any, output: Any) -> None:
        """Drop the kept result; a forward hook of the owner, which is called after an error too."""
        self._holding, self._held = False, None


_MEETING = (AdaptedLinear, _AdaptedConv1D, Beside)
"""Classes of layers whose adapter acts on the input."""


def _conv1d() -> tuple[type[nn.Module], ...]:
    """Return transformers' class Conv1D. It is () if the class was never imported, because no module can have it."""
    kind = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return () if kind is None else (kind,)


def is_conv1d(module: nn.Module) -> bool:
    """Return whether a module is transformers' Conv1D, which stores (in x out)."""
    return isinstance(module, _conv1d())


@dataclass
class Site:
    """One 2-D weight: `owner.attr` with the qualified `name`, or the `rows` of it that are its `part`."""

    name: str
    owner: nn.Module
    attr: str
    parent: nn.Module | None
    part: str | None = None
    rows: Rows | None = None

    @property
    def transposed(self) -> bool:
        """Return whether the weight is stored as (in x out)."""
        return self.attr == "weight" and is_conv1d(self.owner)

    @property
    def by_activation(self) -> bool:
        """Return whether an adapter acts on the input if the layer is called: in an exact `nn.Linear` or Conv1D, or a
        quantised layer.

        A forward of the instance's own (from accelerate's hooks) would bypass an adapter in the class.
        """
        if self.attr != "weight" or self._meets:
            return self._meets
        known = type(self.owner) in (nn.Linear, *_conv1d()) or self.quantised
        return known and "forward" not in vars(self.owner)

    @property
    def _meets(self) -> bool:
        """Return whether an adapter acts on the input there now."""
        return self.attr == "weight" and isinstance(self.owner, _MEETING)

    @property
    def quantised(self) -> bool:
        """Return whether the weight is stored in 4 or 8 bits, and cannot be read as a matrix."""
        return self.attr == "weight" and is_quantised(self.owner)

    @property
    def parameter(self) -> nn.Parameter:
        """Return the frozen weight as stored, whole, whether or not an adapter is installed."""
        if parametrize.is_parametrized(self.owner, self.attr):
            value = self._parametrizations()[self.attr].original
        else:
            value = self.owner._parameters[self.attr]
        assert isinstance(value, nn.Parameter)
        return value

    @property
    def base(self) -> Tensor:
        """Return the frozen weight as (out x in), a view of what is stored. A quantised one is unpacked into a new
        tensor."""
        if self.quantised:
            unpacked = dequantised(self.owner)
            return unpacked if self.rows is None else unpacked[slice(*self.rows)]
        return self.view(self.parameter)

    def view(self, stored: Tensor) -> Tensor:
        """Return the part of a tensor, shaped as the stored weight, that belongs to this site, as (out x in)."""
        matrix = stored.t() if self.transposed else stored
        return matrix if self.rows is None else matrix[slice(*self.rows)]

    @property
    def shape(self) -> Shape:
        """Return (out, in)."""
        if self.quantised:  # what is stored has another shape
            layer: Any = self.owner
            out, width = layer.out_features, layer.in_features
        else:
            out, width = reversed(self.parameter.shape) if self.transposed else self.parameter.shape
        return (out, width) if self.rows is None else (self.rows[1] - self.rows[0], width)

    @property
    def whole(self) -> Site:
        """Return the site of the whole weight, of which this one may be a part."""
        return replace(self, name=self.stored_name, part=None, rows=None)

    @property
    def stored_name(self) -> str:
        """Return the qualified name of the whole weight."""
        return self.name if self.part is None else self.name.removesuffix(f"[{self.part}]")

    @property
    def module_name(self) -> str:
        """Return the owner's qualified name."""
        return self.stored_name.rpartition(".")[0]

    def _parametrizations(self) -> Any:
        return self.owner.parametrizations

    def _group(self) -> PartAdapters | None:
        """Return the adapters of the weight's parts that are in place now; None if there are none."""
        if self._meets:
            installed = cast(nn.Module, self.owner.adapter)
        elif parametrize.is_parametrized(self.owner, self.attr):
            installed = self._parametrizations()[self.attr][0].adapter
        else:
            return None
        return installed if isinstance(installed, PartAdapters) else None

    def install(self, adapter: Adapter) -> None:
        """Put the adapter in place."""
        if self.part is None or self.rows is None:
            self._put(adapter)
            return
        group = self._group()
        if group is None:
            group = PartAdapters(self.whole.shape[0])
            group.train(self.owner.training)
            self._put(group)
        group.add(self.part, self.rows, adapter)

    def _put(self, adapter: Adapter | PartAdapters) -> None:
        if self.quantised:
            put_beside(self.owner, adapter)
            return
        if self.by_activation:
            self.owner.add_module("adapter", adapter)
            kind: Any = type(self.owner)
            self.owner.__class__ = AdaptedLinear if kind is nn.Linear else adapted_class(_AdaptedConv1D, kind)
            return
        order = list(self.owner._parameters)
        packed = PackedWeight(adapter, self.transposed)
        packed.train(self.owner.training)
        parametrize.register_parametrization(self.owner, self.attr, packed, unsafe=True)
        packed.mount(self.owner, order)
        mount_attention(reader_of(self))

    def remove(self) -> None:
        """Undo `install`: the parameter is the same object under the same name, in the same order and class as
        before."""
        group = self._group()
        if group is not None and self.part is not None:
            group.drop(self.part)
            if len(group):
                return
        if self._meets:
            take_away(self.owner)
            return
        packed: PackedWeight = self._parametrizations()[self.attr][0]
        parametrize.remove_parametrizations(self.owner, self.attr, leave_parametrized=False)
        packed.unmount(self.owner)
        unmount_attention(reader_of(self))


def reader_of(site: Site) -> nn.Module:
    """Return the module whose forward reads a weight that has a parametrisation.

    This is the weight's own layer. But `nn.MultiheadAttention` reads the weight of its `out_proj` and never calls it.
    """
    return site.parent if isinstance(site.parent, nn.MultiheadAttention) else site.owner


def is_adapted(model: nn.Module) -> bool:
    """Return whether an adapter of this package is installed anywhere in the model."""
    return any(isinstance(m, Adapter) for m in model.modules())


def find_sites(model: nn.Module) -> dict[str, Site]:
    """Return every floating-point 2-D parameter by qualified name, in the model's order, each tensor once."""
    modules = dict(model.named_modules())
    sites: dict[str, Site] = {}
    for name, parameter in model.named_parameters():
        owner_name, _, attr = name.rpartition(".")
        quantised = attr == "weight" and is_quantised(modules[owner_name])
        if quantised or (parameter.ndim == 2 and parameter.is_floating_point()):
            parent = modules.get(owner_name.rpartition(".")[0]) if owner_name else None
            sites[name] = Site(name, modules[owner_name], attr, parent)
    return sites


def holders(model: nn.Module) -> Counter[int]:
    """Return `id` of a parameter -> number of modules that hold it. A module in several places counts once."""
    return Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())


def shared_names(model: nn.Module, parameter: Tensor) -> list[str]:
    """Return all names under which `parameter` appears, also those of a module that is in several places."""
    return [n for n, p in model.named_parameters(remove_duplicate=False) if p is parameter]
