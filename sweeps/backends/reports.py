"""Makes the outcome of a trial that has ended, with facts about its node, and imports the trial function."""

from __future__ import annotations

import errno
import functools
import importlib
import os
import platform
import re
import shutil
import socket
import time
import traceback
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from sweeps.backends.memory import MicroBatch
from sweeps.errors import reason
from trainables.errors import TrainablesError, TrialError
from trainables.runtime import device_name, pick_device

FORESEEN = (TrialError, TrainablesError)
"""Errors that leave a worker as it was, and that all ranks of a group raise at the same point."""
_STORAGE = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EFBIG", "EIO", "ESTALE", "ENOTCONN")
    if hasattr(errno, name)
}
_REFUSED = (errno.EPERM, errno.EACCES, errno.ENOENT)
_RUST = re.compile(r"\(os error (\d+)\)")
"""Finds the system's error number in messages of safetensors, which is written in Rust."""


def load_trial(name: str) -> Callable[..., Generator[Any, Any, None]]:
    """Import and return the trial function that `name` ("package.module:function") names."""
    module, _, function = name.partition(":")
    trial: Callable[..., Generator[Any, Any, None]] = getattr(importlib.import_module(module), function)
    return trial


def failed(error: BaseException, directory: Path) -> dict[str, Any]:
    """Return the outcome of a trial that raised `error`. `directory`: the trial's own folder."""
    trace = "".join(traceback.format_exception(error))[-4000:]
    return {"status": "failed", "reason": reason(error), "traceback": trace, "storage": storage_fault(error, directory)}


def make_folder(directory: Path) -> None:
    """Make a trial's own folder.

    Raises:
        FileNotFoundError: the results folder is gone. It must not be made anew.
    """
    if not results_of(directory).is_dir():
        raise FileNotFoundError(errno.ENOENT, "the results folder is gone", str(results_of(directory)))
    directory.mkdir(parents=True, exist_ok=True)


def results_of(directory: Path) -> Path:
    """Return the results folder of a trial's own folder (`work/trials/ID` in the results folder)."""
    return directory.parents[2]


def facts(started: float, seconds: float, micro: MicroBatch | None = None) -> dict[str, Any]:
    """Return where and when a trial ran, as the outcome has it.

    Args:
        started: when it started, in seconds since 1970.
        seconds: seconds of the worker's time that it took.
        micro: its micro-batch; None if it did not come that far.
    """
    size = {} if micro is None else {"micro_batch_size": micro.size, "memory": micro.events}
    return {**place(), "started": started, "ended": time.time(), "seconds_total": seconds, **size}


@functools.cache
def place() -> dict[str, Any]:
    """Return the machine of this worker: `host`, `processor` and `device` ('cpu' or the accelerator's name)."""
    return {"host": socket.gethostname(), "processor": processor(), "device": device_name(pick_device())}


@functools.cache
def processor() -> str:
    """Return the model of this machine's CPU as the kernel names it; its architecture if the kernel names none."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def keep(order: Mapping[str, Any], directory: Path) -> None:
    """Move the trained adapter from the trial's working folder to `order["keep"]`, if that is not None."""
    trained = directory / "adapter"
    if order["keep"] is not None and trained.exists():
        kept = Path(order["keep"])
        kept.parent.mkdir(exist_ok=True)
        if kept.exists():  # from an attempt whose end was not heard; the row will have the scores of this attempt
            shutil.rmtree(kept)
        trained.rename(kept)


def storage_fault(error: BaseException | None, directory: Path) -> int | None:
    """Return the system's error number if an exception or its cause says that storage failed; None if it does not.

    Storage fails if it is full, read-only or gone. That is not the trial's fault: the trial is run again, or the sweep
    ends (`sweeps.engine.loop`). A file without permission or a missing file counts only if it is in the results folder.
    Elsewhere it is the trial's own fault.

    Args:
        directory: the trial's own folder, in the results folder.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        code = error.errno if isinstance(error, OSError) else None
        if code is None and (os_error := _RUST.search(str(error))):
            code = int(os_error.group(1))
        if code in _STORAGE or (code in _REFUSED and _refuses(error, code, directory)):
            return code
        error = error.__cause__ or error.__context__
    return None


def _refuses(error: BaseException, code: int | None, directory: Path) -> bool:
    """Return whether the error is about the results folder: it gives no permission, or it is gone."""
    gone = not directory.is_dir()
    named = [error.filename, error.filename2] if isinstance(error, OSError) else []
    paths = [Path(os.fsdecode(name)) for name in named if isinstance(name, str | bytes)]
    if not paths:  # safetensors names none
        return gone or not os.access(directory, os.W_OK)
    inside = any(path.absolute().is_relative_to(results_of(directory)) for path in paths)
    return inside and (gone or code != errno.ENOENT)
