"""Base weights in 4 or 8 bits, by bitsandbytes (extra `quantised`): layers that compute their own product.

A quantised layer has no matrix to multiply by or to merge into. Its output stays that of its own forward, and the
adapter
adds its share to the output (`Adapter.beside`). Shapes and counts are those of the original weight, (out x in). If a
method needs W0 itself (DoRA's norms, singular vectors, deltas), it is unpacked in full precision for a moment.

Rounding W0 + delta to 4 or 8 bits would lose most of the delta. So merging is refused. (PEFT rounds with a warning.)
"""

from __future__ import annotations

import functools
import warnings
from typing import Any, cast

from torch import Tensor, nn

from randlora.adapter import Adapter
from randlora.errors import AdapterError, ConfigError
from randlora.model.parts import PartAdapters

_LAYERS = ("Linear4bit", "Linear8bitLt")


def is_quantised(module: nn.Module) -> bool:
    """Return whether `module` is one of bitsandbytes' linear layers, by its name: this package does not import
    bitsandbytes."""
    return any(c.__name__ in _LAYERS and c.__module__.startswith("bitsandbytes.") for c in type(module).__mro__)


def dequantised(module: nn.Module) -> Tensor:
    """Return the weight (out x in) that a bitsandbytes layer stands for, in its original precision or float32."""
    weight = cast(Tensor, module.weight)
    if weight.is_floating_point():  # not quantised yet: that happens when the layer is first moved to its device
        return weight
    functional = bitsandbytes_library().functional
    state = getattr(weight, "quant_state", None)
    if state is not None:
        return cast(Tensor, functional.dequantize_4bit(weight.data, state))
    scales = getattr(weight, "SCB", None)
    if scales is None:  # the first forward moves them
        scales = cast(Any, module.state).SCB
    if scales is None:
        raise AdapterError("an 8-bit layer without its scales cannot be read: load its state before attaching")
    return cast(Tensor, functional.int8_vectorwise_dequant(weight.data, scales.to(weight.device)))


class Beside(nn.Module):
    """Mixed into a quantised layer's class while an adapter is on it."""

    adapter: Adapter | PartAdapters

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (..., out) for x (..., in)."""
        y: Tensor = super().forward(x)
        return self.adapter.beside(x, y, lambda: dequantised(self), cast("Tensor | None", self.bias))


@functools.cache
def adapted_class(mixin: Any, kind: Any) -> Any:
    """Return the class of a layer while an adapter is on it. Its attribute `plain` is `kind`, the layer's own class."""
    return type(f"Adapted{kind.__name__}", (mixin, kind), {"plain": kind, "__reduce_ex__": _reduce})


def _reduce(layer: Any, _protocol: int) -> tuple[Any, ...]:
    """Pickle a layer whose class was made here, and which no module has under its name."""
    mixin, plain = type(layer).__bases__
    return _empty, (mixin, plain), layer.__getstate__()


def _empty(mixin: Any, plain: Any) -> Any:
    kind = adapted_class(mixin, plain)
    return kind.__new__(kind)


def put_beside(layer: nn.Module, adapter: Adapter | PartAdapters) -> None:
    """Let an adapter add its share to the output of a quantised layer. The layer's class changes for that."""
    layer.add_module("adapter", adapter)
    kind: Any = type(layer)
    layer.__class__ = adapted_class(Beside, kind)


def take_away(layer: nn.Module) -> None:
    """Undo `put_beside`, or a similar change of a layer whose class has a `plain`."""
    del layer._modules["adapter"]
    kind: Any = type(layer)
    layer.__class__ = kind.plain


def bitsandbytes_library() -> Any:
    """Return the module `bitsandbytes`. Raises ConfigError if it is missing."""
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
