"""Weights that FSDP2 splits over processes: gathered to be saved, refused where a part of them would be taken for all.

Each process holds rows of a split tensor, and torch mixes no such tensor with a whole one, as frozen bases are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from randlora.errors import AdapterError


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part; told without an import, which would be slow."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The tensor, detached; of a split one, gathered from all its processes, each of which must call this."""
    split: Any = tensor.detach()
    full: Tensor = split.full_tensor() if is_sharded(split) else split
    return full


def is_writer(tensors: Iterable[Tensor]) -> bool:
    """Whether this process is the one to write them: of split tensors' processes the first."""
    meshes = (getattr(tensor, "device_mesh", None) for tensor in tensors if is_sharded(tensor))
    return all(mesh is None or not any(mesh.get_coordinate() or ()) for mesh in meshes)


def reshard(model: nn.Module) -> None:
    """Split again what FSDP2 leaves gathered after a forward without a backward: there it would pass for plain, and
    after weights were set the next forward must gather them anew."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    for module in model.modules():
        if isinstance(module, kind):
            module.reshard()


def check_whole(verb: str, model: nn.Module, tensors: Iterable[Tensor]) -> None:
    """Refuse what needs whole tensors where some are split."""
    reshard(model)
    if any(map(is_sharded, tensors)):
        raise AdapterError(
            f"cannot {verb}: the weights are split over processes (FSDP2); save() in all of them, load() the folder "
            f"into the plain model, and {verb} there"
        )
