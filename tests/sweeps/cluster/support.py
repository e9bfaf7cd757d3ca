"""Ray sessions beside the pool's, each with a folder for its files, and a sweep file for them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil

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
        others = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
        self.environment = {k: v for k, v in os.environ.items() if k not in others}
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
