"""A trial's own checkpoint: one safetensors file and one JSON file that names it, replaced by renaming."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

INDEX = "checkpoint.json"

CHECKPOINT_SHARE = 0.02
"""Checkpoints may take this share of the training time; epochs that are too quick share one."""


@dataclass(frozen=True)
class Checkpoint:
    """State after `epoch` finished epochs, with their reports."""

    epoch: int
    history: list[dict[str, Any]]
    tensors: dict[str, Tensor]


def save_checkpoint(
    directory: Path, trial_id: str, epoch: int, history: list[dict[str, Any]], tensors: dict[str, Tensor]
) -> None:
    """Write the state after `epoch`. A kill at any moment leaves the old state or the new one, never a mixture.

    Nothing is forced to the disk: after a power cut the files may be torn, or zeros, which `load_checkpoint` notices.
    """
    directory.mkdir(exist_ok=True)  # not its parents: a results folder that was moved away is not made anew
    path = directory / f"epoch-{epoch:05d}.safetensors"
    temporary = path.with_suffix(".tmp")
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(temporary))
    checksum = _checksum(temporary)
    temporary.replace(path)
    index = {"trial_id": trial_id, "epoch": epoch, "file": path.name, "history": history}
    index |= {"bytes": path.stat().st_size, "crc32": checksum}
    text = json.dumps(index, allow_nan=False)
    body = json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "index": text})
    temporary = directory / f"{INDEX}.tmp"
    temporary.write_text(body, encoding="utf-8")
    temporary.replace(directory / INDEX)
    for old in directory.glob("epoch-*"):
        if old != path:
            old.unlink()


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            total = zlib.crc32(part, total)
    return total


def load_checkpoint(directory: Path, trial_id: str) -> Checkpoint | None:
    """The last state of this trial; None when there is none, it is damaged, or belongs to another configuration.

    Nothing is lost by None but time: the trial starts over and comes to the same result.
    """
    path = directory / INDEX
    if not path.is_file():
        return None
    try:
        body = json.loads(path.read_text("utf-8"))
        text = body["index"]
        if hashlib.sha256(text.encode()).hexdigest() != body["sha256"]:
            return None
        index = json.loads(text)
        file = directory / index["file"]
        if index["trial_id"] != trial_id or file.stat().st_size != index["bytes"]:
            return None
        if "crc32" in index and _checksum(file) != index["crc32"]:  # versions before it knew the size alone
            return None
        return Checkpoint(index["epoch"], index["history"], load_file(str(file)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError, SafetensorError):
        return None


class Pace:
    """Tells when a trial's next checkpoint is due, by what the last one cost (`CHECKPOINT_SHARE`)."""

    def __init__(self) -> None:
        self._saved, self._cost = time.perf_counter(), 0.0

    def due(self) -> bool:
        """Whether enough time has passed since the last checkpoint; always true before the first."""
        return self._cost == 0.0 or time.perf_counter() - self._saved >= self._cost / CHECKPOINT_SHARE

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Measures a checkpoint that the block writes."""
        begun = time.perf_counter()
        yield
        self._saved = time.perf_counter()
        self._cost = self._saved - begun
