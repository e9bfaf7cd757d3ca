"""Base weights in 4 or 8 bits, by bitsandbytes (extra `quantised`): layers that compute their own product.

A quantised layer has no matrix to multiply by or to merge into. Its output stays that of its own forward, and the
adapter adds its share to the output (`Adapter.beside`). Shapes and counts are those of the original weight, (out x in).
If a method needs W0 itself (DoRA's norms, singular vectors, deltas), it is unpacked in full precision for a moment.

Rounding W0 + delta to 4 or 8 bits would lose most of the delta. So merging is refused. (PEFT rounds with a warning.)
"""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn

from randlora.adapter import Adapter, Shape
from randlora.errors import AdapterError, ConfigError
from randlora.model.parts import PartAdapters


def is_quantised(module: nn.Module) -> bool:
    """Return whether `module` is one of bitsandbytes' linear layers, or stands for one."""
    layers = getattr(sys.modules.get("bitsandbytes"), "nn", None)  # if it was never imported, no module is one
    return isinstance(
        module, PlannedLayer if layers is None else (PlannedLayer, layers.Linear4bit, layers.Linear8bitLt)
    )


def dequantised(module: nn.Module) -> Tensor:
    """Return the weight (out x in) that a bitsandbytes layer stands for, in its original precision or float32."""
    if isinstance(module, PlannedLayer):
        return module.read_back()
    weight = cast(Tensor, module.weight)
    if weight.is_floating_point():  # not quantised yet: that happens when the layer is first moved to its device
        return weight
    functional = bitsandbytes_library().functional
    if getattr(weight, "quant_state", None) is not None:
        keep_layout(module)
        state, weight = cast(Any, module.weight).quant_state, cast(Tensor, module.weight)
        return cast(Tensor, functional.dequantize_4bit(weight.data, state))
    scales = getattr(weight, "SCB", None)
    if scales is None:  # the first forward moves them
        scales = cast(Any, module.state).SCB
    if scales is None:
        raise AdapterError("an 8-bit layer without its scales cannot be read: load its state before attaching")
    return cast(Tensor, functional.int8_vectorwise_dequant(weight.data, scales.to(weight.device)))


def keep_layout(layer: nn.Module) -> None:
    """Keep the order of a 4-bit weight's bytes on CPUs with AVX512-BF16.

    There bitsandbytes reorders them in the first evaluation. The product of a reordered weight has no gradient, and
    `dequantize_4bit` reads other numbers from it. A weight that is reordered already is put back.
    """
    unchecked: Any = layer
    unchecked.support_avx512bf16_for_cpu = False
    if getattr(getattr(unchecked.weight, "quant_state", None), "packing_format_for_cpu", False):
        layer.state_dict()  # saving puts them back


def scale_tensors(layer: nn.Module) -> list[Tensor]:
    """Return the scales with which a bitsandbytes layer reads its packed numbers. They are no parameters."""
    weight, state = cast(Any, layer.weight), cast(Any, getattr(layer, "state", None))
    found = [getattr(weight, "SCB", None), getattr(state, "SCB", None)]
    for part in (quant := getattr(weight, "quant_state", None), getattr(quant, "state2", None) if quant else None):
        found += [getattr(part, name, None) for name in ("absmax", "code", "offset")]
    return [t for t in found if isinstance(t, Tensor)]


def packed_bytes(shape: Shape, bits: int) -> tuple[int, int]:
    """Return the bytes of a quantised weight (out x in): those of its numbers, and those of their scales.

    In 8 bits each row has a float32 scale. In 4 bits, 64 numbers share a scale of 8 bits (double quantisation), and
    256 of these share a float32 scale.
    """
    out, width = shape
    if bits == 8:
        return out * width, 4 * out
    blocks = -(-out * width // 64)
    return -(-out * width // 2), blocks + 4 * -(-blocks // 256)


class PlannedLayer(nn.Module):
    """Stands for a quantised layer whose weight has no values, to find what training costs.

    Its tensors are as large as those of bitsandbytes. A product makes the weight in the input's precision for a moment,
    forward and backward, as bitsandbytes does on CPUs. An 8-bit product also keeps its input.

    Args:
        layer: the layer that it stands for, an `nn.Linear` or the like.
        shape: (out, in) of its weight.
        bits: 4 or 8.
        dtype: the precision that its weight was quantised from.
    """

    def __init__(self, layer: nn.Module, shape: Shape, bits: int, dtype: torch.dtype) -> None:
        super().__init__()
        (self.out_features, self.in_features), self.bits, self.dtype = shape, bits, dtype
        device = cast(Tensor, layer.weight).device
        numbers, scales = (torch.empty(size, dtype=torch.uint8, device=device) for size in packed_bytes(shape, bits))
        self.weight = nn.Parameter(numbers, requires_grad=False)
        self.register_buffer("scales", scales)
        self.bias = cast("nn.Parameter | None", layer.bias)

    def read_back(self) -> Tensor:
        """Return a weight (out x in) without values."""
        return torch.empty(self.out_features, self.in_features, dtype=self.dtype, device=self.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        shape = (self.out_features, self.in_features)
        y: Tensor = cast(Any, _Product).apply(x, self.bias, shape, self.bits == 8)  # only some releases type it
        return y


class _Product(torch.autograd.Function):
    """The product of `PlannedLayer`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, shape: Shape, keeps_input: bool) -> Tensor:
        ctx.shape = shape
        ctx.save_for_backward(*([x] if keeps_input else []))
        return nn.functional.linear(x, x.new_empty(shape), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        return gradient @ gradient.new_empty(ctx.shape), None, None, None


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
    keep_layout(layer)
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
    # it warns of a kernel that it did not download, and at each 8-bit product that the input is cast
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
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
