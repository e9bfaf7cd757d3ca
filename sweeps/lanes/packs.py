"""Packing on the driver's side: which trials share a worker's base model, and how many share a worker and a GPU.

A pack changes when trials run, never which: it is a prefix of what the sweep would hand out anyway, without a result of
one of them in between. What a worker does with it is in `packed_worker`; the reasons are in docs/decisions/0004.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sweeps.search.slots import Slot
from sweeps.search.stages import CellState, SweepState
from sweeps.spec.resources import ResourceSection
from trainables.config import alike

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
    from randlora.packing.dropouts import draws_of  # loads torch
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
        drops = draws_of(meta_model(model))
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


@dataclass
class Packing:
    """What the packs of a sweep may be.

    Attributes:
        most: trials of a pack; 1: none are packed.
        workers: lane workers that each run one trial, or one pack, at a time.
        limits: trials of a pack at most in cells where a larger one did not do.
    """

    most: int
    workers: int
    limits: dict[str, int]

    def next(self, state: SweepState, packs: int, left: int) -> list[Slot]:
        """The next trials for one worker, in the order in which they would run one by one; empty while all cells wait.

        As long as workers have nothing to do, a cell's trials are spread over them instead of packed.

        Args:
            packs: packs and single trials that are not over.
            left: trials at most.
        """
        first = state.next_slot()
        if first is None:
            return []
        cell = state.cells[first.cell_id]
        most = min(self.most, self.limits.get(first.cell_id, self.most), left)
        if most <= 1 or not self._may(cell, first):
            return [first]
        idle = max(1, self.workers - packs)
        like = alike(dict(first.config))
        slots = list(itertools.takewhile(lambda s: alike(dict(s.config)) == like, cell.peek(most * idle)))
        others = (c for c in state.awake() if c != first.cell_id and state.cells[c].next_slot() is not None)
        for_others = sum(1 for _ in itertools.islice(others, idle - 1))
        return slots[: min(most, -(-len(slots) // (idle - for_others)))]

    def _may(self, cell: CellState, slot: Slot) -> bool:
        if not slot.config or cell.prunable(slot):
            return False
        saving = bool(slot.config.get("train", {}).get("gradient_checkpointing", False))
        return unpackable(slot.config["method"], slot.config.get("model"), saving) is None

    def learn(self, cell_id: str, given_up: Mapping[str, Any]) -> None:
        """Make a cell's packs smaller after one was given up (`Lease.unpacked`)."""
        if given_up["cause"] == "memory":
            self.limits[cell_id] = min(self.limits.get(cell_id, self.most), max(1, given_up["packed"] // 2))
        elif given_up["cause"] == "refused":
            self.limits[cell_id] = 1
