"""A trial's own checkpoint: a safetensors file, and a JSON file that names it. Both are replaced by renaming."""

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
"""The share of the training time that checkpoints may take. If epochs are too quick, several share a checkpoint."""
_STALE_S = 3600.0
"""A draft that nobody has written to for this many seconds belongs to a killed worker."""


@dataclass(frozen=True)
class Checkpoint:
    """The state after `epoch` finished epochs, with their reports."""

    epoch: int
    history: list[dict[str, Any]]
    tensors: dict[str, Tensor]


def save_checkpoint(
    directory: Path, trial_id: str, epoch: int, history: list[dict[str, Any]], tensors: dict[str, Tensor]
) -> None:
    """Write the state after `epoch`. A kill at any moment leaves the old state or the new one, never a mixture.

    Nothing is forced to the disk. After a power cut the files may be incomplete or zeros, which `load_checkpoint`
    notices.
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
    """Yield a draft that takes the path's place at the end. Its name differs from that of any other worker's draft."""
    draft = path.with_name(f"{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield draft
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def _finite(value: Any) -> Any:
    """Return a copy for JSON, with null for numbers that are not finite, such as a score after a step that diverged.

    The next epoch's loss then fails the trial with an error that names the step.
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
    """Return the last state of this trial; None if there is none, it is damaged, or it belongs to another
    configuration.

    Without a checkpoint only time is lost: the trial starts again and comes to the same result.
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
    """Tells when a trial's next checkpoint is due, from what the last one cost (`CHECKPOINT_SHARE`)."""

    def __init__(self) -> None:
        self._saved, self._cost = time.perf_counter(), 0.0

    def due(self) -> bool:
        """Return whether enough time has passed since the last checkpoint. It is always true before the first."""
        return self._cost == 0.0 or time.perf_counter() - self._saved >= self._cost / CHECKPOINT_SHARE

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Measure the time of the block, which writes a checkpoint."""
        begun = time.perf_counter()
        yield
        self._saved = time.perf_counter()
        self._cost = self._saved - begun
