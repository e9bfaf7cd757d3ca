"""Base weights in 4 or 8 bits, by bitsandbytes (extra `quantised`): layers that keep their own product.

A quantised layer has no matrix to multiply by or to merge into. Its output stays what its own forward makes, and the
adapter adds its share beside it (`Adapter.beside`). Shapes and counts are those of the weight as it was, (out x in).
Where a method needs W0 itself (DoRA's norms, singular vectors, deltas) it is read back in full precision for a moment.

    quantise(model, ["q_proj", "v_proj"], bits=4)       # or a model that transformers loaded quantised
    adapted = attach(model, LoraConfig(r=16), ["q_proj", "v_proj"])

Rounding W0 + delta to so few bits would lose most of the delta, so merging is refused; PEFT rounds with a warning.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

from torch import Tensor, nn

from randlora.adapter import Adapter
from randlora.errors import AdapterError, ConfigError, TargetError
from randlora.parts import PartAdapters

_LAYERS = ("Linear4bit", "Linear8bitLt")


def is_quantised(module: nn.Module) -> bool:
    """Whether `module` is one of bitsandbytes' linear layers. Told by name: this package does not import it."""
    return any(c.__name__ in _LAYERS and c.__module__.startswith("bitsandbytes.") for c in type(module).__mro__)


def dequantised(module: nn.Module) -> Tensor:
    """The weight (out x in) that a bitsandbytes layer stands for, in the precision it was quantised from or float32."""
    weight = cast(Tensor, module.weight)
    if weight.is_floating_point():  # not quantised yet: that happens when the layer is first moved to its device
        return weight
    functional = _bitsandbytes().functional
    state = getattr(weight, "quant_state", None)
    if state is not None:
        return cast(Tensor, functional.dequantize_4bit(weight.data, state))
    scales = getattr(weight, "SCB", None)
    if scales is None:  # the first forward moves them
        scales = cast(Any, module.state).SCB
    if scales is None:
        raise AdapterError("an 8-bit layer without its scales cannot be read: load its state before attaching")
    return cast(Tensor, functional.int8_vectorwise_dequant(weight.data, scales.to(weight.device)))


class _Beside(nn.Module):
    """Mixed into a quantised layer's class while an adapter is on it."""

    adapter: Adapter | PartAdapters
    plain: ClassVar[Any]
    """The class of before."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        y: Tensor = super().forward(x)
        return self.adapter.beside(x, y, lambda: dequantised(self), cast("Tensor | None", self.bias))


@functools.cache
def _beside_class(kind: Any) -> Any:
    return type(f"Adapted{kind.__name__}", (_Beside, kind), {"plain": kind})


def put_beside(layer: nn.Module, adapter: Adapter | PartAdapters) -> None:
    """Put an adapter beside the product of a quantised layer, which takes on a class of its own for that."""
    layer.add_module("adapter", adapter)
    kind: Any = type(layer)
    layer.__class__ = _beside_class(kind)


def has_beside(module: nn.Module) -> bool:
    """Whether an adapter is on a quantised layer."""
    return isinstance(module, _Beside)


def take_away(layer: nn.Module) -> None:
    """Undo `put_beside`."""
    assert isinstance(layer, _Beside)
    del layer._modules["adapter"]
    layer.__class__ = layer.plain


def quantise(model: nn.Module, targets: Sequence[str], bits: Literal[4, 8] = 4, **options: Any) -> list[str]:
    """Turn the targets, all of them called `nn.Linear`s, into bitsandbytes layers of `bits` bits, in place.

    Args:
        model: a model on the device it will run on. Everything else in it stays as it is.
        targets: as in `attach`.
        bits: 4 (NF4 unless `options` has another `quant_type`) or 8.
        options: passed on to `bitsandbytes.nn.Linear4bit` or `Linear8bitLt`.

    Returns:
        The names of the weights.

    Raises:
        ConfigError: bitsandbytes is not installed, or `bits` is neither 4 nor 8.
        TargetError: a target matches nothing, or a weight that is not a called `nn.Linear`'s.
    """
    from randlora.targets import select

    if bits not in (4, 8):
        raise ConfigError(f"bits must be 4 or 8 but got {bits!r}")
    library = _bitsandbytes()
    sites = select(model, targets)
    for name, site in sites.items():
        if type(site.owner) is not nn.Linear or not site.by_activation or site.part is not None:
            raise TargetError(f"{name} cannot be quantised: only whole weights of called nn.Linear layers are")
    for site in sites.values():
        old = cast(nn.Linear, site.owner)
        if bits == 4:
            new = library.nn.Linear4bit(*_sizes(old), **{"quant_type": "nf4", **options})
        else:
            new = library.nn.Linear8bitLt(*_sizes(old), **{"has_fp16_weights": False, **options})
        new.weight.data = old.weight.detach().clone()
        new.bias = old.bias
        new.train(old.training)
        _replace(model, site.module_name, new.to(old.weight.device))  # the move quantises
    return list(sites)


def _sizes(layer: nn.Linear) -> tuple[int, int, bool]:
    return layer.in_features, layer.out_features, layer.bias is not None


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    owner = model.get_submodule(parent) if parent else model
    owner.register_module(last, module)


def _bitsandbytes() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its import uses torch's old names
            import bitsandbytes
            import bitsandbytes.functional
    except ImportError as error:
        raise ConfigError(
            "4-bit and 8-bit weights need bitsandbytes, which is missing: pip install 'randlora-sweeps[quantised]'"
        ) from error
    return bitsandbytes
