"""`gpus_per_worker = "auto"`: how many trials share a GPU, from the memory that a probe of every method took on one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

CONTEXT_BYTES = 700 * 2**20
"""What a process holds on a GPU beside torch's tensors: the CUDA context, and cuBLAS and cuDNN workspaces."""
USABLE = 0.9
"""Share of a GPU's memory that is handed out: allocators fragment, and a probe sees few batches."""
MOST = 8
"""Trials of one GPU at most: beyond it they wait for each other more than they gain."""


@dataclass(frozen=True)
class Measured:
    """A GPU's memory and the largest peak of torch's allocator over the probed methods, in bytes."""

    peak: int
    device: int


Measure = Callable[[], Measured]


def gpu_share(measured: Measured, cpus_per_gpu: float, cpus_per_worker: float, packed: int = 1) -> float:
    """The fraction of a GPU that one worker gets: 1, 1/2, ... 1/8.

    Args:
        cpus_per_gpu: CPUs of the machine with the fewest for each of its GPUs.
        cpus_per_worker: CPUs that a worker takes.
        packed: trials that it trains at once; together they take at most as often the memory of one.
    """
    by_memory = math.floor(USABLE * measured.device / (packed * measured.peak + CONTEXT_BYTES))
    by_cpus = math.floor(cpus_per_gpu / cpus_per_worker + 1e-9)
    return 1 / max(1, min(by_memory, by_cpus, MOST))


def pack_that_fits(measured: Measured, share: float = 1.0) -> int:
    """Trials that one worker with a share of a GPU can train at once, at least 1."""
    room = USABLE * share * measured.device - CONTEXT_BYTES
    return max(1, math.floor(room / max(1, measured.peak)))
