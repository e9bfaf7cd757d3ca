"""What a lane worker says of a trial that is over, and how it finds the function that trains one."""

from __future__ import annotations

import functools
import importlib
import socket
import time
import traceback
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from sweeps.cluster.hardware import processor
from sweeps.lanes.disk import storage_fault
from trainables.errors import TrainablesError, TrialError
from trainables.runtime import device_name, pick_device

FORESEEN = (TrialError, TrainablesError)
"""Errors that leave a worker as it was, and that all ranks of a group raise at the same point."""


def load_trial(name: str) -> Callable[..., Generator[Any, Any, None]]:
    """The trial function of a name "package.module:function"."""
    module, _, function = name.partition(":")
    found: Callable[..., Generator[Any, Any, None]] = getattr(importlib.import_module(module), function)
    return found


def failed(error: BaseException) -> dict[str, Any]:
    """The outcome of a trial that raised."""
    trace = "".join(traceback.format_exception(error))
    return {
        "status": "failed",
        "reason": reason(error),
        "traceback": trace[-4000:],
        "storage": storage_fault(error),
    }


def facts(started: float, seconds: float) -> dict[str, Any]:
    """Where and when: `started` in seconds since 1970, `seconds` of the worker's time that the trial took."""
    return {**place(), "started": started, "ended": time.time(), "seconds_total": seconds}


@functools.cache
def place() -> dict[str, Any]:
    """The machine of this worker: `host`, `processor` and `device`, 'cpu' or the accelerator's name."""
    return {"host": socket.gethostname(), "processor": processor(), "device": device_name(pick_device())}


def keep(order: dict[str, Any], directory: Path) -> None:
    """Move the trained adapter out of the trial's working folder, where the order says so."""
    made = directory / "adapter"
    if order["keep"] is not None and made.exists():
        kept = Path(order["keep"])
        kept.parent.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            made.rename(kept)


def reason(error: BaseException) -> str:
    """An exception in one line: its type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:500]}" if lines else type(error).__name__
