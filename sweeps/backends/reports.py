"""What a worker says of a trial that is over, and of its node; and how it finds the function that trains one."""

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
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

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
"""How safetensors, written in Rust, tells what the system said."""


def load_trial(name: str) -> Callable[..., Generator[Any, Any, None]]:
    """The trial function of a name "package.module:function"."""
    module, _, function = name.partition(":")
    found: Callable[..., Generator[Any, Any, None]] = getattr(importlib.import_module(module), function)
    return found


def failed(error: BaseException, directory: Path) -> dict[str, Any]:
    """The outcome of a trial that raised. `directory`: its own folder."""
    trace = "".join(traceback.format_exception(error))[-4000:]
    return {"status": "failed", "reason": reason(error), "traceback": trace, "storage": storage_fault(error, directory)}


def make_folder(directory: Path) -> None:
    """Make a trial's own folder. Raises FileNotFoundError: the results folder is gone, and must not begin anew."""
    if not results_of(directory).is_dir():
        raise FileNotFoundError(errno.ENOENT, "the results folder is gone", str(results_of(directory)))
    directory.mkdir(parents=True, exist_ok=True)


def results_of(directory: Path) -> Path:
    """The results folder of a trial's own folder, `work/trials/ID` in it."""
    return directory.parents[2]


def facts(started: float, seconds: float) -> dict[str, Any]:
    """Where and when: `started` in seconds since 1970, `seconds` of the worker's time that the trial took."""
    return {**place(), "started": started, "ended": time.time(), "seconds_total": seconds}


@functools.cache
def place() -> dict[str, Any]:
    """The machine of this worker: `host`, `processor` and `device`, 'cpu' or the accelerator's name."""
    return {"host": socket.gethostname(), "processor": processor(), "device": device_name(pick_device())}


@functools.cache
def processor() -> str:
    """Model of this machine's CPU, as its kernel names it; the architecture where it does not."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def keep(order: dict[str, Any], directory: Path) -> None:
    """Move the trained adapter out of the trial's working folder, where the order says so."""
    made = directory / "adapter"
    if order["keep"] is not None and made.exists():
        kept = Path(order["keep"])
        kept.parent.mkdir(exist_ok=True)
        if kept.exists():  # of an attempt that nobody heard end: the row will have this one's scores
            shutil.rmtree(kept)
        made.rename(kept)


def storage_fault(error: BaseException | None, directory: Path) -> int | None:
    """The system's error number when an exception, or its cause, says that storage is full, read-only or gone; or None.

    No trial is to blame for that: it is tried again, or the sweep ends (`sweeps.engine.loop`). A file that is refused
    or missing counts if it is in the results folder: elsewhere it is the trial's own mistake.

    Args:
        directory: the trial's own folder, in the results folder.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        code = error.errno if isinstance(error, OSError) else None
        if code is None and (found := _RUST.search(str(error))):
            code = int(found.group(1))
        if code in _STORAGE or (code in _REFUSED and _refuses(error, code, directory)):
            return code
        error = error.__cause__ or error.__context__
    return None


def _refuses(error: BaseException, code: int | None, directory: Path) -> bool:
    """Whether it is the results folder that refuses or is gone."""
    gone = not directory.is_dir()
    named = [error.filename, error.filename2] if isinstance(error, OSError) else []
    paths = [Path(os.fsdecode(name)) for name in named if isinstance(name, str | bytes)]
    if not paths:  # safetensors names none
        return gone or not os.access(directory, os.W_OK)
    inside = any(path.absolute().is_relative_to(results_of(directory)) for path in paths)
    return inside and (gone or code != errno.ENOENT)
