"""A trial's own checkpoint: one safetensors file and one JSON file that names it, replaced by renaming."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
import uuid
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
_STALE_S = 3600.0
"""A draft that nobody has written to for so long is a killed worker's."""


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
    with _replaced(path) as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, str(temporary))
        written, checksum = temporary.stat(), _checksum(temporary)
    index = {"trial_id": trial_id, "epoch": epoch, "file": path.name, "bytes": written.st_size}
    index |= {"history": [_finite(report) for report in history], "crc32": checksum}
    text = json.dumps(index, allow_nan=False)
    body = json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "index": text})
    with _replaced(directory / INDEX) as temporary:
        temporary.write_text(body, encoding="utf-8")
    for old in directory.glob("epoch-*.safetensors"):
        if old != path:
            old.unlink(missing_ok=True)
    for draft in directory.glob("*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if written.st_mtime - draft.stat().st_mtime > _STALE_S:  # both by the clock of the file system
                draft.unlink()


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A draft that takes the path's place: no other worker has its name, such as one that was thought dead."""
    draft = path.with_name(f"{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield draft
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def _finite(value: Any) -> Any:
    """A copy for JSON, with null for what is not finite, such as a score after a step that diverged.

    The next epoch's loss is the trial's error: it names the step.
    """
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
    for _ in range(2):  # another worker of the trial may put a new file and index in place of these
        with contextlib.suppress(FileNotFoundError):
            return _read(directory, trial_id)
    return None


def _read(directory: Path, trial_id: str) -> Checkpoint | None:
    try:
        body = json.loads((directory / INDEX).read_text("utf-8"))
        text = body["index"]
        if hashlib.sha256(text.encode()).hexdigest() != body["sha256"]:
            return None
        index = json.loads(text)
        file = directory / index["file"]
        if index["trial_id"] != trial_id or file.stat().st_size != index["bytes"]:
            return None
        if _checksum(file) != index["crc32"]:
            return None
        return Checkpoint(index["epoch"], index["history"], load_file(str(file)))
    except FileNotFoundError:
        raise
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
