"""Finds the processes of a local Ray session, watches whether they run, and ends those that are left."""

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
    ray_processes = []
    for pid in psutil.pids():  # not process_iter, whose processes may be earlier ones of the same number
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.pid == os.getpid() or process.uids().real != os.getuid():
                continue
            words = " ".join(process.cmdline())
            files = process.open_files() if words.startswith("ray::") else []  # a title in place of its arguments
            if str(folder) in words or any(file.path.startswith(f"{folder}/") for file in files):
                ray_processes.append(process)
    return ray_processes


def vital(folder: Path) -> dict[str, psutil.Process]:
    """Return the processes without which the session cannot go on, by name.

    They are the raylet, the control store, and the raylet's agents for the dashboard and for runtime environments.
    """
    by_name = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if process.name() in ("raylet", "gcs_server") and any(str(folder) in word for word in words):
                by_name[process.name()] = process
                if process.name() == "raylet":
                    by_name |= _agents(process)
    return by_name


def _agents(raylet: psutil.Process) -> dict[str, psutil.Process]:
    by_name = {}
    for child in raylet.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            words = " ".join(child.cmdline()).lower()
            if "agent" in words:
                by_name["runtime-environment agent" if "runtime" in words else "dashboard agent"] = child
    return by_name


def runs(process: psutil.Process) -> bool:
    """Return whether a process still runs. A zombie does not run."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def ended(processes: Sequence[psutil.Process]) -> Iterator[Callable[[float], object]]:
    """Yield a function that waits for a number of seconds, or until one of the processes has ended."""
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
    """End the processes that are left of a session, and remove its folder.

    Ray's own shut-down leaves two agents, which try for a minute to reach a control store that is gone. A worker that
    has just started may make the folder again, so this is done twice.
    """
    for _ in range(2):
        processes = processes_of(folder)
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=_WAIT_S)
        shutil.rmtree(folder, ignore_errors=True)
        if not processes:
            return
