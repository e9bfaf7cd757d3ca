"""Weights that FSDP2 splits over processes: gathered to be saved, and refused if a part would be taken for the whole.

Each process holds rows of a split tensor. torch cannot mix a split tensor with a whole one, such as a frozen basis.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from randlora.errors import AdapterError


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this process holds only a part of the tensor. It imports nothing, because that would be slow."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return the tensor, detached. A split one is gathered from all its processes, each of which must call this."""
    split: Any = tensor.detach()
    full: Tensor = split.full_tensor() if is_sharded(split) else split
    return full


def is_writer(tensors: Iterable[Tensor]) -> bool:
    """Return whether this process is the one that writes the tensors: the first process of those that share split
    tensors."""
    meshes = (getattr(tensor, "device_mesh", None) for tensor in tensors if is_sharded(tensor))
    return all(mesh is None or not any(mesh.get_coordinate() or ()) for mesh in meshes)


def reshard(model: nn.Module) -> None:
    """Split the weights again that FSDP2 left gathered after a forward without a backward.

    They would otherwise be taken for plain ones. If weights were set, the next forward must gather them anew.
    """
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    for module in model.modules():
        if isinstance(module, kind):
            module.reshard()


def check_whole(verb: str, model: nn.Module, tensors: Iterable[Tensor]) -> None:
    """Raise AdapterError if something needs whole tensors and some are split.

    Args:
        verb: what cannot be done, for the message.
        model: the model.
        tensors: the tensors that are needed.
    """
    reshard(model)
    if any(map(is_sharded, tensors)):
        raise AdapterError(
            f"cannot {verb}: the weights are split over processes (FSDP2); save() in all of them, load() the folder "
            f"into the plain model, and {verb} there"
        )
