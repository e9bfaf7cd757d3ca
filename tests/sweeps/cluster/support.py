"""Ray sessions beside the pool's, each with a folder for its files, and a sweep file for them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import psutil

from tests.support import wait_for

TINY = {
    "name": "tiny",
    "model": {"id": "embedded:tiny-clip", "adapt": "vision", "targets": ["attn.in_proj_weight"]},
    "data": {"datasets": ["embedded:fashion-mnist"], "train_size": ["4-shot"]},
    "budgets": {"lora_rank": [1]},
    "methods": {"lora": {}},
    "search": {"trials": 2, "rerun_rates": 0, "rerun_seeds": 0},
    "confirm": {"seeds": 1},
    "train": {"epochs": 1, "global_batch_size": 16},
    "resources": {"concurrent": 1},
}


class OwnRay:
    """A folder for Ray's files, with a path short enough for Unix sockets, and what runs with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Ray's variables in this process are those of the session that other tests have in it
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.environment |= {"RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}

    def processes(self) -> list[psutil.Process]:
        """Everything whose files of Ray are in the folder or below, whoever started it."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("RAY_TMPDIR", "").startswith(str(self.folder)):
                    found.append(process)
        return found

    def end(self) -> None:
        """Kill what is left, until nothing is."""
        while left := [p for p in self.processes() if p.status() != psutil.STATUS_ZOMBIE]:
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=5)


class Head:
    """A cluster of one machine with two CPUs, as `ray start --head` makes it, on loopback and with a token.

    Args:
        own: where its files go; ends it with the test.
        port: of its control store; 0 for any that is free.
        variables: environment variables of everything in it, also of drivers (`environment`).
    """

    def __init__(self, own: OwnRay, port: int = 0, **variables: str) -> None:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        self.environment = own.environment | token | variables
        options = [f"--port={port}", "--num-cpus=2", "--include-dashboard=false", f"--object-store-memory={80 * 2**20}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *options, "--block"]
        out = own.folder / "head.log"
        with out.open("wb") as log:
            self._started = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        wait_for(lambda: self.address or self._started.poll() is not None, "the head's raylet")
        assert self.address, out.read_text()

    @property
    def family(self) -> list[psutil.Process]:
        started = psutil.Process(self._started.pid)
        return [started, *started.children(recursive=True)]

    @property
    def address(self) -> str:
        """Of its control store, from its raylet's command line; empty before that is up."""
        with contextlib.suppress(psutil.Error):
            words = [word for process in self.family if process.name() == "raylet" for word in process.cmdline()]
            return next((word.partition("=")[2] for word in words if word.startswith("--gcs-address=")), "")
        return ""

    def kill(self, name: str) -> None:
        """SIGKILL of the process of that name, or of "everything" at once."""
        for process in self.family:
            with contextlib.suppress(psutil.Error):
                if name in ("everything", process.name()):
                    process.kill()

    def close(self) -> None:
        if self._started.poll() is None:
            self.kill("everything")
        self._started.wait()
