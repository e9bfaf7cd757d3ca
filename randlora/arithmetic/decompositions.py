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

    `made` and `given` count results that were computed, and those that were kept.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        super().__init__()
        self.limit, self.made, self.given = limit, 0, 0
        self._kept: dict[Any, tuple[type[Any], list[Tensor]]] = {}  # the longest unused first
        self._used: set[Any] = set()  # in this block

    def __enter__(self) -> Self:
        self._used.clear()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    @property
    def nbytes(self) -> int:
        """What the kept results take."""
        return sum(_size(parts) for _, parts in self._kept.values())

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
        self._used.add(key)
        kind, parts = self._kept[key] = self._kept.pop(key)
        found = [part.to(inputs[0].device, copy=True) for part in parts]
        return found[0] if issubclass(kind, Tensor) else kind(found)

    def _keep(self, key: Any, result: Any) -> None:
        parts = [result] if isinstance(result, Tensor) else list(result)
        over = self.nbytes + _size(parts) - self.limit
        earlier = {k: _size(kept) for k, (_, kept) in self._kept.items() if k not in self._used}
        if over > sum(earlier.values()):
            return
        for old, size in earlier.items():
            if over <= 0:
                break
            del self._kept[old]
            over -= size
        self._kept[key] = type(result), [part.detach().to("cpu", copy=True) for part in parts]
        self._used.add(key)


def _size(parts: list[Tensor]) -> int:
    return sum(part.numel() * part.element_size() for part in parts)


def _key(value: Any) -> Any:
    """A tensor's bits and layout, which rounding may depend on; anything else itself."""
    if not isinstance(value, Tensor):
        return value
    bits = value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
    return value.dtype, value.device, value.shape, value.stride(), hashlib.sha256(bits.data).digest()
