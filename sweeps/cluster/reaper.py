"""Ends what is left of a local Ray session when its driver was killed.

Ray's processes go with the driver, but for two agents of the raylet: they try for a minute to tell a control store that
is gone (`publish_error_to_driver` in Ray waits 60 s, and no setting changes that). A waiting child of ours ends them.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence

import psutil

_WAIT = """
import json, os, signal, sys

def started(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except OSError:
        return None

seen = {pid: started(pid) for pid in json.loads(sys.stdin.readline())}
sys.stdin.read()  # ends when the driver closes the pipe, or is gone
for pid, start in seen.items():
    if start is not None and started(pid) == start:  # else the number belongs to another process by now
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
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


def runs(process: psutil.Process) -> bool:
    """Whether it has not ended; one that nobody waited for has."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Reaper:
    """Watches over processes, by their ids. Linux only; elsewhere it does nothing."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if not sys.platform.startswith("linux"):
            return
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WAIT], stdin=subprocess.PIPE, start_new_session=True
        )
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps(list(pids)).encode() + b"\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """End it, and with it what is left of those processes; to be called after Ray's own shutdown."""
        if self._process is not None:
            self._process.communicate()
