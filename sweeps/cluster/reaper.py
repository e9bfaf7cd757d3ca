"""Ends what is left of a local Ray session when its driver was killed.

Ray's processes go with the driver, but for two agents of the raylet: they try for a minute to tell a control store that
is gone (`publish_error_to_driver` in Ray waits 60 s, and no setting changes that). A waiting child of ours ends them.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

_WAIT = """
import json, os, shutil, signal, sys, time

def started(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except OSError:
        return None

def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:  # it has ended
        pass

def names_it(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read()
    inside = os.fsencode(folder + "/")
    if words.startswith(b"ray::"):  # a title in place of its arguments
        files = os.fsencode(f"/proc/{pid}/fd")
        return any(os.readlink(files + b"/" + file).startswith(inside) for file in os.listdir(files))
    return b"/ray/" in words and inside in words

def named():
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if os.stat(f"/proc/{pid}").st_uid == os.getuid() and names_it(pid):
                found.append(pid)
        except OSError:
            pass
    return found

folder, seen, quiet = json.loads(sys.stdin.readline()), {}, 0
for line in sys.stdin:  # ends when the driver closes the pipe, or is gone
    seen |= {pid: started(pid) for pid in json.loads(line)}
for pid, start in seen.items():
    if start is not None and started(pid) == start:  # else the number belongs to another process by now
        kill(pid)
for _ in range(50):  # workers that had just begun, which nobody told of, outlive Ray and make its folders again
    left = named()
    for pid in left:
        kill(pid)
    shutil.rmtree(folder, ignore_errors=True)
    quiet = 0 if left or os.path.exists(folder) else quiet + 1
    if quiet > 1:  # a process between fork and exec bears another name
        break
    time.sleep(0.1)
"""


def own_processes() -> dict[str, int]:
    """Process ids of Ray's own processes of the local session that this process has started, by their names."""
    import ray

    node = ray._private.worker._global_node
    if node is None:
        return {}
    return {name: info.process.pid for name, infos in node.all_processes.items() for info in infos}


def ray_processes() -> list[int]:
    """Those, and what they have started."""
    found = own = list(own_processes().values())
    for pid in own:
        with contextlib.suppress(psutil.NoSuchProcess):
            found = found + [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return found


def agents(raylet: psutil.Process) -> dict[str, psutil.Process]:
    """The agents of a raylet, without which it ends: of the dashboard, and of runtime environments."""
    found = {}
    for child in raylet.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            words = " ".join(child.cmdline()).lower()
            if "agent" in words:
                found["runtime-environment agent" if "runtime" in words else "dashboard agent"] = child
    return found


@contextlib.contextmanager
def ended(processes: Sequence[psutil.Process]) -> Iterator[Callable[[float], object]]:
    """Gives what waits for so many seconds, or until one of the processes has ended."""
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


def runs(process: psutil.Process) -> bool:
    """Whether it has not ended; one that nobody waited for has."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Reaper:
    """Watches over processes, by their ids, and their folder. Linux only; elsewhere `close` removes the folder.

    Args:
        folder: removed at the end, whoever ends.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        if not sys.platform.startswith("linux"):
            return
        command = [sys.executable, "-I", "-S", "-c", _WAIT]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
        self._tell(str(folder))

    def mind(self, pids: Sequence[int]) -> None:
        """These are to end too."""
        self._tell(list(pids))

    def _tell(self, words: object) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(json.dumps(words) + "\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """End it, and with it what is left of those processes; to be called after Ray's own shutdown."""
        if self._process is not None:
            self._process.communicate()
        shutil.rmtree(self._folder, ignore_errors=True)
