"""Cache decompositions of base weights, so that a method that makes them pays for them once per model.

Singular vectors of all weights of a ViT-B take 20 to 100 s (PEFT's OSF, PSOFT, TinyLoRA and FRoD need them). The cache
stands between a method's code, also PEFT's, and `torch.linalg`. If a function was called before with matrices of the
same bits, it returns the same result, bit for bit. So it needs no list of methods, and methods share their results.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

LIMIT = 2**30
"""Bytes of results that are cached, in main memory."""
_KNOWN = (torch.linalg.svd, torch.linalg.qr, torch.linalg.eigh, torch.linalg.inv, torch.linalg.pinv, torch.linalg.solve)
"""The functions that are cached. They draw no random numbers, so a cached result can replace a call."""


class Decompositions(TorchFunctionMode):
    """A block that caches decompositions: `with keeper: attach(...)`.

    A result that does not fit into the limit beside those of this block is not cached. Results of earlier blocks are
    removed first, the longest unused ones before the others.

    Attributes:
        limit: bytes of results that are cached at most.
        computed: number of results that were computed.
        reused: number of results that came from the cache.
        nbytes: bytes of the cached results.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        super().__init__()
        self.limit, self.computed, self.reused = limit, 0, 0
        self._kept: dict[Any, tuple[type[Any], list[Tensor]]] = {}  # the longest unused result comes first
        self._used: set[Any] = set()  # keys that were used in this block
        self.nbytes = self._in_use = 0  # running sums, because a method may make ten thousand small results

    def __enter__(self) -> Self:
        self._used.clear()
        self._in_use = 0
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        inputs = [value for value in (*args, *keywords.values()) if isinstance(value, Tensor)]
        bypass = any(t.device.type == "meta" or (t.requires_grad and torch.is_grad_enabled()) for t in inputs)
        if func not in _KNOWN or bypass or "out" in keywords:
            return func(*args, **keywords)
        key = (func, *map(_key, args), *((name, _key(value)) for name, value in sorted(keywords.items())))
        if key not in self._kept:
            self.computed += 1
            result = func(*args, **keywords)
            self._keep(key, result)
            return result
        self.reused += 1
        kind, parts = self._kept[key] = self._kept.pop(key)
        self._in_use += 0 if key in self._used else _size(parts)
        self._used.add(key)
        copies = [part.to(inputs[0].device, copy=True) for part in parts]
        return copies[0] if issubclass(kind, Tensor) else kind(copies)

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
    """Return what identifies an argument: of a tensor its bits and layout (rounding may depend on it), else the value
    itself."""
    if not isinstance(value, Tensor):
        return value
    bits = value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
    return value.dtype, value.device, value.shape, value.stride(), hashlib.sha256(bits.data).digest()
