"""FSDP2: a base model whose weights, gradients and optimiser state are split over the workers of one trial.

It is for full fine-tuning of models that do not fit on one accelerator together with their optimiser's state
(`train.parallel = "fsdp"`). Every worker must run the same number of forward and backward passes, because each pass
gathers the weights from all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from randlora.model.sharded import is_sharded


def shard(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy of a model on the CPU, split over the default process group and moved to `device` block by block.

    Gradients come out summed over the workers, as `optim.add_over_workers` leaves them for whole weights.
    """
    world = torch.distributed.get_world_size()
    mesh = init_device_mesh(device.type, (world,))
    split = copy.deepcopy(module)
    lists = [m for m in split.modules() if isinstance(m, nn.ModuleList)]
    for block in max(lists, key=len, default=()):  # the layers of a transformer
        fully_shard(block, mesh=mesh)
    fully_shard(split, mesh=mesh)
    for part in split.modules():
        if isinstance(part, FSDPModule):
            part.set_force_sum_reduction_for_comms(True)  # gloo has no other
            part.set_gradient_divide_factor(1.0)
    return split


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return split tensors whole, on rank 0's CPU alone, and others as they are. If one is split, every worker must
    call this.

    They are gathered one after another, so that no accelerator has to hold more than one of them whole.
    """
    whole_tensors = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor):
            whole_tensors[name] = tensor
        elif torch.distributed.get_rank() == 0:
            whole_tensors[name] = tensor.full_tensor().cpu()
        else:
            tensor.full_tensor()  # with rank 0
    return whole_tensors


def split_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return a whole tensor, split as `parameter` is."""
    if isinstance(parameter, DTensor):
        moved = tensor.to(parameter.device)
        return distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return tensor


def is_split(parameters: list[nn.Parameter]) -> bool:
    """Return whether any of the parameters is split over workers."""
    return any(map(is_sharded, parameters))
