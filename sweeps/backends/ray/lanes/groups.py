"""Connects the workers of a data-parallel group. In a local session they use a file, and loopback only.

Ray Train's own way, which clusters need, opens ports to all machines. One of them is a store without a password.
"""

from __future__ import annotations

import os
import sys
import uuid
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch.distributed
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, get_device

TIMEOUT_S = 600


def group_config(folder: Path | None) -> TorchConfig:
    """Return the configuration for a lane whose workers share a trial.

    Args:
        folder: the folder of the local session, which only its owner may read; None in a cluster.
    """
    return TorchConfig(timeout_s=TIMEOUT_S) if folder is None else _OnLoopback(timeout_s=TIMEOUT_S, folder=str(folder))


@dataclass
class _OnLoopback(TorchConfig):  # type: ignore[misc]  # Ray's classes carry no types for us
    folder: str = ""

    @property
    def backend_cls(self) -> type[Backend]:
        return _LoopbackBackend


class _LoopbackBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: _OnLoopback) -> None:
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) > 0 else "gloo"
        file = f"{backend_config.folder}/group-{uuid.uuid4().hex}"
        world = len(worker_group)
        timeout = timedelta(seconds=backend_config.timeout_s)
        joins = [
            worker_group.execute_single_async(rank, _join_group, backend, timeout, file, world, rank)
            for rank in range(world)
        ]
        ray.get(joins)


def _join_group(backend: str, timeout: timedelta, file: str, world: int, rank: int) -> None:
    """Join the process group. Set the variables that torch's launcher sets, and those that Accelerate reads."""
    context = ray.train.get_context()
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
        "ACCELERATE_TORCH_DEVICE": str(get_device()),
    }
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": f"={loopback}"}
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # as Ray's own
    store = torch.distributed.FileStore(file, world)  # type: ignore[attr-defined]  # torch lists it nowhere
    store.set_timeout(timeout)
    torch.distributed.init_process_group(backend, timeout=timeout, world_size=world, rank=rank, store=store)
