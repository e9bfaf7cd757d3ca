"""How many trials share a worker's base model, and how many workers share a GPU.

Which trials form a pack is in `sweeps.engine.packing`; what a worker does with it in `packed`; the reasons are in
docs/decisions/0004.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

from sweeps.spec.resources import ResourceSection

TOGETHER = {"trainables.training.worker:run_trial": "trainables.training.packed:run_pack"}
"""Trial functions, and what runs several of their trials together."""
MOST = 8
"""Most trials that "auto" puts into a pack or on a GPU: more would wait for each other longer than they gain."""
CONTEXT_BYTES = 700 * 2**20
"""What a process holds on a GPU beside torch's tensors: the CUDA context, and cuBLAS and cuDNN workspaces."""
USABLE = 0.9
"""Share of a GPU's memory that is handed out: allocators fragment, and a probe sees few batches."""


@dataclass(frozen=True)
class Measured:
    """The smallest GPU's memory and the largest peak of torch's allocator over the probed methods, in bytes."""

    peak: int
    device: int


def smallest_gpu() -> int:
    """Bytes of memory of the smallest GPU that this process sees. Raises ValueError: it sees none."""
    import torch

    return min(torch.cuda.get_device_properties(k).total_memory for k in range(torch.cuda.device_count()))


@functools.cache
def unpackable(method: str, model: str | None = None, checkpointing: bool = False) -> str | None:
    """Why trials of a method, a name of the registry or one without a budget, are not packed; None if they may be.

    What only a loaded model shows comes up when a pack starts: its trials then run one by one.

    Args:
        model: a model id; None: any that can be packed.
        checkpointing: `train.gradient_checkpointing`.
    """
    from randlora.methods.registry import METHODS
    from randlora.packing.dropouts import drops_activations  # loads torch
    from randlora.packing.turns import PackingError
    from trainables.models.families import ModelError
    from trainables.models.shapes import meta_model

    if method not in METHODS:
        return "adds no adapter to the base model"
    if METHODS[method].prompts:
        return "puts prompts of its own before the towers"
    if METHODS[method].holds_out:
        return "holds some rows of each batch out, other numbers in every trial"
    if METHODS[method].mixes_rows:
        return "mixes the rows of a batch, which a pack pads otherwise"
    if model is None:
        return None
    try:
        drops = drops_activations(meta_model(model))
    except ModelError:
        return None
    except PackingError as error:
        return f"cannot be: {error}"
    if drops and checkpointing:
        return "trains a model with dropout under train.gradient_checkpointing"
    return None


def pack_size(asked: int | Literal["auto"], measured: Measured | None, share: float = 1.0) -> int:
    """Trials of a pack at most.

    Args:
        asked: `resources.pack`. "auto": 1 on CPUs, where packing does not pay (docs/performance.md); on GPUs as many
            as fit.
        measured: a trial's peak memory on a GPU; None: there is none, or it was not measured.
        share: of the GPU, that a worker has.
    """
    if asked != "auto":
        return asked
    if measured is None:
        return 1
    room = USABLE * share * measured.device - CONTEXT_BYTES
    return min(MOST, max(1, math.floor(room / max(1, measured.peak))))


def least_share(asked: ResourceSection) -> float:
    """The smallest part of a GPU that a worker may get; what does not fit even so is refused before any probe."""
    return 1 / MOST if asked.gpus_per_worker == "auto" and asked.workers == 1 else 1.0


def gpu_share(measured: Measured, cpus_per_gpu: float, cpus_per_worker: float, packed: int = 1) -> float:
    """The fraction of a GPU that one worker gets: 1, 1/2, ... 1/8.

    Args:
        cpus_per_gpu: CPUs of the machine with the fewest for each of its GPUs.
        cpus_per_worker: CPUs that a worker takes.
        packed: trials that it trains at once; together they take at most that many times the memory of one.
    """
    by_memory = math.floor(USABLE * measured.device / (packed * measured.peak + CONTEXT_BYTES))
    by_cpus = math.floor(cpus_per_gpu / cpus_per_worker + 1e-9)
    return 1 / max(1, min(by_memory, by_cpus, MOST))


def worker_share(asked: ResourceSection, measured: Measured, cpus_per_gpu: float) -> float:
    """`gpu_share` of a worker where `[resources]` leaves it to us; 1 where it does not."""
    if asked.gpus_per_worker != "auto" or asked.workers > 1:
        return 1.0
    pack = 1 if asked.isolated else pack_size(asked.pack, measured)
    return gpu_share(measured, cpus_per_gpu, asked.cpus_per_worker, pack)
