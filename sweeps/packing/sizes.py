"""Computes how many trials share a worker's base model, and how many workers share a GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sweeps.spec.resources import ResourceSection

MOST = 8
"""The largest number of trials that "auto" puts into a pack or on a GPU. More would slow each other down."""
CONTEXT_BYTES = 700 * 2**20
"""Bytes that a process holds on a GPU besides torch's tensors: CUDA context, cuBLAS and cuDNN workspaces."""
USABLE = 0.9
"""Share of a GPU's memory that is handed out: allocators fragment, and a probe sees few batches."""


@dataclass(frozen=True)
class Measured:
    """Memory that a probe measured, in bytes.

    Attributes:
        peak: the largest peak of torch's allocator over the probed methods.
        device: memory of the smallest GPU.
    """

    peak: int
    device: int


def smallest_gpu() -> int:
    """Return the bytes of memory of the smallest GPU that this process sees.

    Raises:
        ValueError: it sees no GPU.
    """
    import torch

    return min(torch.cuda.get_device_properties(k).total_memory for k in range(torch.cuda.device_count()))


def pack_size(asked: ResourceSection, measured: Measured | None, share: float = 1.0) -> int:
    """Return the largest number of trials in a pack; 1 if trials have several workers or are isolated.

    `pack = "auto"` is 1 on CPUs, where packing does not pay (docs/performance.md). On GPUs it is as many as fit.

    Args:
        asked: `[resources]` of the sweep.
        measured: a trial's peak memory on a GPU; None if there is no GPU, or it was not measured.
        share: the fraction of a GPU that a worker has; 0 if it has none.
    """
    if asked.workers > 1 or asked.isolated:
        return 1
    if asked.pack != "auto":
        return asked.pack
    if measured is None or share == 0:
        return 1
    room = USABLE * min(1.0, share) * measured.device - CONTEXT_BYTES
    return min(MOST, max(1, math.floor(room / max(1, measured.peak))))


def least_share(asked: ResourceSection) -> float:
    """Return the smallest fraction of a GPU that a worker may get.

    A request that does not fit even with this fraction is refused before anything is measured.
    """
    return 1 / MOST if asked.gpus_per_worker == "auto" and asked.workers == 1 else 1.0


def gpu_share(measured: Measured, cpus_per_gpu: float, cpus_per_worker: float, packed: int = 1) -> float:
    """Return the fraction of a GPU that one worker gets: 1, 1/2, ... 1/8.

    Args:
        measured: a trial's peak memory.
        cpus_per_gpu: the smallest number of CPUs per GPU over all nodes.
        cpus_per_worker: number of CPUs that a worker takes.
        packed: number of trials that a worker trains at once. They take at most `packed` times the memory of one.
    """
    by_memory = math.floor(USABLE * measured.device / (packed * measured.peak + CONTEXT_BYTES))
    by_cpus = math.floor(cpus_per_gpu / cpus_per_worker + 1e-9)
    return 1 / max(1, min(by_memory, by_cpus, MOST))


def worker_share(asked: ResourceSection, measured: Measured, cpus_per_gpu: float) -> float:
    """Return `gpu_share` of a worker if `gpus_per_worker` is "auto" and a trial has one worker; else 1."""
    if asked.gpus_per_worker != "auto" or asked.workers > 1:
        return 1.0
    return gpu_share(measured, cpus_per_gpu, asked.cpus_per_worker, pack_size(asked, measured))
