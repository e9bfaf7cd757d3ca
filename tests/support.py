"""The repository's root, the command line, and waiting for what another process does."""

from __future__ import annotations

import functools
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from typer.testing import CliRunner, Result

ROOT = Path(__file__).resolve().parents[1]


def sweeps(*words: object) -> Result:
    """What the command line does with these words, in this process."""
    from sweeps.cli.main import app

    return CliRunner().invoke(app, [str(word) for word in words])


@functools.cache
def needs_ray(file: Path) -> bool:
    """Return whether tests of this file ask for a fixture that starts Ray."""
    text = file.read_text(encoding="utf-8")
    return any(word in text for word in ("pool: Pool", "pool: object", "start_driver", "own_ray"))


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


def flipped(whole: bytes, times: int) -> Iterator[bytes]:
    """Give the bytes of a safetensors file with one bit of its tensors flipped, at random and so many times."""
    begin, chance = 8 + int.from_bytes(whole[:8], "little"), random.Random(0)
    for _ in range(times):
        data = bytearray(whole)
        data[chance.randrange(begin, len(data))] ^= 1 << chance.randrange(8)
        yield bytes(data)


@contextmanager
def pipe(path: Path) -> Iterator[None]:
    """A named pipe, which a reader finds empty: without a writer, a reader would wait for ever."""
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.open("wb").close(), daemon=True)  # open() waits for a reader
    writer.start()
    try:
        yield
    finally:
        while writer.is_alive():
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
            writer.join(0.01)
