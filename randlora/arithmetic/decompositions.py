"""Decompositions of base weights, kept: attaching a method that makes one costs it once for a model and not every time.

Singular vectors of all weights of a ViT-B take 20 to 100 s (PEFT's OSF, PSOFT, TinyLoRA and FRoD). The keeper stands
between a method's code, also PEFT's, and `torch.linalg`: what it was asked for before, by the bits of the matrices, it
gives again, to the bit. So it needs no list of methods, and methods share what they have in common.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

LIMIT = 2**30
"""Bytes of results that are kept, in main memory."""
_KNOWN = (torch.linalg.svd, torch.linalg.qr, torch.linalg.eigh, torch.linalg.inv, torch.linalg.pinv, torch.linalg.solve)
"""They draw no random numbers, so a result may stand in for a call."""


class Decompositions(TorchFunctionMode):
    """`with keeper: attach(...)`. Results beyond the limit are not kept; those of earlier blocks make way first.

    `made` and `given` count results that were computed, and those that were kept; `nbytes` is what the kept ones take.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        super().__init__()
        self.limit, self.made, self.given = limit, 0, 0
        self._kept: dict[Any, tuple[type[Any], list[Tensor]]] = {}  # the longest unused first
        self._used: set[Any] = set()  # in this block
        self.nbytes = self._in_use = 0  # counted along: a method may make ten thousand small ones

    def __enter__(self) -> Self:
        self._used.clear()
        self._in_use = 0
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        inputs = [value for value in (*args, *named.values()) if isinstance(value, Tensor)]
        apart = any(t.device.type == "meta" or (t.requires_grad and torch.is_grad_enabled()) for t in inputs)
        if func not in _KNOWN or apart or "out" in named:
            return func(*args, **named)
        key = (func, *map(_key, args), *((name, _key(value)) for name, value in sorted(named.items())))
        if key not in self._kept:
            self.made += 1
            result = func(*args, **named)
            self._keep(key, result)
            return result
        self.given += 1
        kind, parts = self._kept[key] = self._kept.pop(key)
        self._in_use += 0 if key in self._used else _size(parts)
        self._used.add(key)
        found = [part.to(inputs[0].device, copy=True) for part in parts]
        return found[0] if issubclass(kind, Tensor) else kind(found)

    def _keep(self, key: Any, result: Any) -> None:
        parts = [result] if isinstance(result, Tensor) else list(result)
        size = _size(parts)
        if self._in_use + size > self.limit:
            return
        while self.nbytes + size > self.limit:
            _, longest_unused = self._kept.pop(next(iter(self._kept)))
            self.nbytes -= _size(longest_unused)
        self._kept[key] = type(result), [part.detach().to("cpu", copy=True) for part in parts]
        self._used.add(key)
        self.nbytes += size
        self._in_use += size


def _size(parts: list[Tensor]) -> int:
    return sum(part.numel() * part.element_size() for part in parts)


def _key(value: Any) -> Any:
    """A tensor's bits and layout, which rounding may depend on; anything else itself."""
    if not isinstance(value, Tensor):
        return value
    bits = value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
    return value.dtype, value.device, value.shape, value.stride(), hashlib.sha256(bits.data).digest()
