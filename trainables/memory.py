"""Peak memory of a trial: the device's allocator on CUDA, the process's resident set elsewhere."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import psutil
import torch


class PeakMemory:
    """The high-water mark since construction, in bytes.

    Off CUDA it is the whole process's, base model and decoded images included. Linux can reset that mark, so that a
    long-lived process measures each trial; elsewhere it is the mark of the process's life.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._proc = Path("/proc/self")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            (self._proc / "clear_refs").write_text("5")  # proc(5): resets the peak resident set size
            self._reset = True
        except OSError:
            self._reset = False

    def bytes(self) -> int:
        """The mark now."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if self._reset:
            found = re.search(r"VmHWM:\s+(\d+) kB", (self._proc / "status").read_text())
            if found:
                return int(found.group(1)) * 1024
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return max(int(most), int(psutil.Process().memory_info().rss))
