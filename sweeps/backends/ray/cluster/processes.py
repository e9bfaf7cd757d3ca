"""The processes of a local Ray session: which they are, whether they run, and the end of those that are left."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

_WAIT_S = 5.0


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return this user's processes of Ray that have `folder` on their command line, or a file in it open."""
    found = []
    for pid in psutil.pids():  # not process_iter, whose processes may be earlier ones of the same number
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.pid == os.getpid() or process.uids().real != os.getuid():
                continue
            words = " ".join(process.cmdline())
            files = process.open_files() if words.startswith("ray::") else []  # a title in place of its arguments
            if str(folder) in words or any(file.path.startswith(f"{folder}/") for file in files):
                found.append(process)
    return found


def vital(folder: Path) -> dict[str, psutil.Process]:
    """Return the processes that the session can't go on without, by name.

    They are the raylet, the control store, and the raylet's agents: of the dashboard, and of runtime environments.
    """
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if process.name() in ("raylet", "gcs_server") and any(str(folder) in word for word in words):
                found[process.name()] = process
                if process.name() == "raylet":
                    found |= _agents(process)
    return found


def _agents(raylet: psutil.Process) -> dict[str, psutil.Process]:
    found = {}
    for child in raylet.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            words = " ".join(child.cmdline()).lower()
            if "agent" in words:
                found["runtime-environment agent" if "runtime" in words else "dashboard agent"] = child
    return found


def runs(process: psutil.Process) -> bool:
    """Return whether a process has not ended; one that ended and that nobody waited for has."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def ended(processes: Sequence[psutil.Process]) -> Iterator[Callable[[float], object]]:
    """Give a function that waits for so many seconds, or until one of the processes has ended."""
    if not hasattr(os, "pidfd_open"):  # Linux alone has it
        yield time.sleep
        return
    ends = select.poll()
    with contextlib.ExitStack() as stack:
        for process in processes:
            with contextlib.suppress(OSError):
                handle = os.pidfd_open(process.pid)
                stack.callback(os.close, handle)
                ends.register(handle, select.POLLIN)
        yield lambda seconds: ends.poll(1000 * seconds)


def clear(folder: Path) -> None:
    """End what is left of a session, and remove its folder.

    Ray's own shut-down leaves two agents, which try for a minute to reach a control store that is gone. A worker that
    had just begun makes the folder again, so this looks twice.
    """
    for _ in range(2):
        left = processes_of(folder)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=_WAIT_S)
        shutil.rmtree(folder, ignore_errors=True)
        if not left:
            return
