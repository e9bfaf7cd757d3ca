"""Frozen bases that came in a file instead of from a seed: those of an imported adapter."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from randlora.arithmetic.bases import Bases, Draw, _bytes
from randlora.errors import CheckpointError
from randlora.files.protocol import Adapted


class StoredBases(Bases):
    """As `Bases`, but its values are given, so a checkpoint has to hold them; `seed` says nothing."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(0, {}, device, dtype)
        for name, values in tensors.items():
            self.draws[name] = Draw(values.shape[0], values.shape[1])
            self.register_buffer(name, values.to(device=device, dtype=dtype), persistent=False)

    def digest(self) -> str:
        """SHA-256 over names, shapes and float32 bits."""
        total = hashlib.sha256()
        for name, spec in sorted(self.draws.items()):
            total.update(f"{name}:{spec.rows}x{spec.cols}:".encode())
            total.update(_bytes(self.get(name)))
        return total.hexdigest()


def use_stored_bases(adapted: Adapted, tensors: Mapping[str, Tensor]) -> StoredBases:
    """Give all adapters of `adapted` the same given bases in place of the drawn ones.

    Every tensor must be at least as large as the drawn one, whose leading part the layers read.
    """
    drawn = adapted.bases()
    if drawn is None:
        raise CheckpointError(f"method {adapted.method.name} has no bases, but the file holds {sorted(tensors)}")
    for name in drawn.draws:
        need = tuple(drawn.get(name).shape)
        have = tuple(tensors[name].shape) if name in tensors else ()
        if len(have) != 2 or any(h < n for h, n in zip(have, need, strict=True)):
            raise CheckpointError(f"basis {name} has shape {have} in the file but the layers need at least {need}")
    first = drawn.get(next(iter(drawn.draws)))
    stored = StoredBases({name: tensors[name] for name in drawn.draws}, first.device, first.dtype)
    for adapter in adapted.adapters.values():
        for module in adapter.modules():
            for key, child in list(module._modules.items()):
                if child is drawn:
                    module._modules[key] = stored
    return stored
