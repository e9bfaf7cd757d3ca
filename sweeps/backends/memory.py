"""Halves the micro-batch of a trial that runs out of memory. Its global batch and its id stay the same."""

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
)  # torch 2.7 has none
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
"""Parts of the message of a RuntimeError if memory runs out elsewhere than in torch's allocator of CUDA tensors."""


_LOADER_SAYS = ("failed to map segment from shared object", "Cannot allocate memory")
"""Ends of the message of an ImportError if there is no memory for a library. If the file system forbids programs, the
message goes on with that.
"""


def out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that the memory of the device or of the machine is used up."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, ImportError):
        return str(error).endswith(_LOADER_SAYS)
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAYS)


def accelerator_lost(error: BaseException) -> bool:
    """Return whether an exception is a CUDA error other than out of memory. Every later CUDA call would fail too."""
    return not out_of_memory(error) and (isinstance(error, _ACCELERATOR) or "CUDA error" in str(error))


def end_if_lost(error: BaseException) -> None:
    """End this process if its accelerator is lost.

    The broker treats it like any dead worker: the trial is started again, and fails after `Order.attempts` attempts.
    """
    if accelerator_lost(error):
        traceback.print_exception(error)
        sys.stderr.flush()
        os._exit(1)


def free_memory() -> None:
    """Free the memory of an abandoned trial."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class MicroBatch:
    """The number of examples of one trial that pass through the model at once, with all reductions of it.

    It is stored in the trial's folder. So a trial that is started again begins with the last size.

    Args:
        directory: the trial's own folder.
        config: the trial's configuration; `train.micro_batch_size` and `train.global_batch_size` are read.
        world: workers that share the trial.
        events: the reductions so far, as another worker has read them. None: they are read from the folder.

    Attributes:
        asked: number of examples at once in the configuration; None if it does not say.
        size: number of examples at once now; None if the configuration does not say.
        events: one dictionary for each reduction, with `micro_batch_size` and `reason`.
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
        """Return the reduced size; None if there was no reduction."""
        return self.size if self.events else None

    def shrink(self, reason: str) -> None:
        """Halve the size, and store that with its reason.

        Raises:
            TrialError: the size can't be smaller.
        """
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
