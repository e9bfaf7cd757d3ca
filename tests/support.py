"""The repository's root, the command line, and waiting for what another process does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
from typer.testing import CliRunner, Result

ROOT = Path(__file__).resolve().parents[1]


def sweeps(*words: object) -> Result:
    """What the command line does with these words, in this process."""
    from sweeps.cli.main import app

    return CliRunner().invoke(app, [str(word) for word in words])


def wait_for(condition: Any, what: str, seconds: float = 240.0) -> None:
    """Wait until a condition holds, however loaded the machine is."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def gone(processes: list[psutil.Process]) -> bool:
    return all(map(_ended, processes))


def _ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # between the two questions
        return True
