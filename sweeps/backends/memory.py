"""Out of memory: a trial goes on with smaller micro-batches, and says so; its global batch and its id stay."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sweeps.records.journal import write_atomically
from trainables.config import contrastive
from trainables.errors import TrialError

FILE = "memory.json"
_ACCELERATOR: tuple[type[BaseException], ...] = tuple(
    error for error in (getattr(torch, "AcceleratorError", None),) if error is not None
)  # torch 2.6 and 2.7 have none
_SAYS = (
    "DefaultCPUAllocator",
    "not enough memory: you tried to allocate",  # the CPU's
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",  # of cuDNN 8
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",  # of cuDNN 9
    "Cuda failure 2 'out of memory'",  # NCCL's
)
"""What a RuntimeError says when memory is used up that torch's allocator of CUDA tensors does not hand out."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the device's or the machine's memory is used up."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAYS)


def accelerator_lost(error: BaseException) -> bool:
    """Whether an exception is a CUDA error that is not for want of memory: each later call would fail, of any trial."""
    return not out_of_memory(error) and (isinstance(error, _ACCELERATOR) or "CUDA error" in str(error))


def end_if_lost(error: BaseException) -> None:
    """End this process if its accelerator is lost.

    The broker hears of it as of any dead worker: the trial is tried again, and fails after so many attempts.
    """
    if accelerator_lost(error):
        traceback.print_exception(error)
        sys.stderr.flush()
        os._exit(1)


def free_memory() -> None:
    """Give back what an abandoned trial held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class MicroBatch:
    """How many examples of one trial pass through the model at once, and how often that had to be made smaller.

    It is kept in the trial's folder, so a trial that is started again goes on with what has fitted.

    Args:
        directory: the trial's own folder.
        config: the trial's configuration; `train.micro_batch_size` and `train.global_batch_size` are read.
        world: workers that share the trial.
        events: as another worker has read them; None: from the folder.

    Attributes:
        asked: examples at once by the configuration; None where it does not say.
        size: examples at once now.
        events: one per reduction: `micro_batch_size` and the `reason`.
    """

    def __init__(
        self, directory: Path, config: Mapping[str, Any], world: int, events: list[dict[str, Any]] | None = None
    ) -> None:
        self._path = directory / FILE
        self._whole_batch = contrastive(config.get("adapt"), str(config.get("method")))
        train = config["train"]
        batch = train.get("global_batch_size")
        share = None if batch is None else math.ceil(batch / world)
        micro = train.get("micro_batch_size")
        self.asked: int | None = share if micro is None else min(micro, share or micro)
        self.events: list[dict[str, Any]] = events or []
        if events is None:
            with contextlib.suppress(FileNotFoundError, ValueError):  # damaged: memory runs out once more
                self.events = json.loads(self._path.read_text(encoding="utf-8"))
        self.size: int | None = self.events[-1]["micro_batch_size"] if self.events else self.asked

    @property
    def smaller(self) -> int | None:
        """The size to train with where it is not the configured one."""
        return self.size if self.events else None

    def shrink(self, reason: str) -> None:
        """Halve it. Raises TrialError: it can't be smaller, with the reason."""
        if self.size is None:
            raise TrialError(f"out of memory, and this trial has no micro-batch to make smaller ({reason})")
        if self._whole_batch:
            raise TrialError(
                f"out of memory with {self.size} images at once, and the contrastive loss of adapt = 'both' compares "
                f"them all, so they can't be split: lower train.global_batch_size, or use adapt = 'vision' "
                f"({reason})"
            )
        if self.size == 1:
            raise TrialError(f"out of memory with a single example at once (micro_batch_size 1): {reason}")
        self.size = max(1, self.size // 2)
        self.events.append({"micro_batch_size": self.size, "reason": reason})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, json.dumps(self.events))
