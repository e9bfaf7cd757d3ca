"""What a trial runs on: precision, matrix back end, device and package versions (all in its row), other workers."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import platform
import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed
from torch.nn.functional import linear
from torch.nn.functional import scaled_dot_product_attention as attention

from trainables.errors import TrialError

Autocast = Callable[[], AbstractContextManager[Any]]
"""Makes the mixed-precision context that a base model runs in; losses are float32 outside it."""


def pick_device() -> torch.device:
    """The worker's accelerator: the current CUDA device, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def told(words: Any, by: int = 0) -> Any:
    """What worker `by` of a group says, as all its workers hear it: what JSON can hold, tuples as lists.

    torch's own calls for objects unpickle, and so run, what comes by the group's sockets, which ask for no password.
    """
    mine, device = torch.distributed.get_rank() == by, pick_device()
    said = bytearray(json.dumps(words).encode()) if mine else bytearray()
    size = torch.tensor(len(said), device=device)
    torch.distributed.broadcast(size, src=by)
    text = torch.frombuffer(said or bytearray(int(size)), dtype=torch.uint8).to(device)
    torch.distributed.broadcast(text, src=by)
    return json.loads(text.cpu().numpy().tobytes())


def choose_precision(asked: str, device: torch.device) -> tuple[str, Autocast]:
    """("fp32" or "bf16", its autocast context). Raises TrialError for bf16 on a CUDA device without it."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if asked == "bf16" and device.type == "cuda" and not has_bf16:
        raise TrialError(f"train.precision 'bf16': {torch.cuda.get_device_name(device)} has none; use 'fp32' or 'auto'")
    if asked == "bf16" or (asked == "auto" and has_bf16):
        return "bf16", functools.partial(torch.autocast, device.type, dtype=torch.bfloat16)
    return "fp32", contextlib.nullcontext


def slow_bf16() -> bool:
    """Whether bf16 is slower than fp32 here: no CUDA device, and a processor that oneDNN has no bf16 products for.

    There torch's own take their place, and a step takes 15 to 40 times float32's (an AMD with AVX2).
    """
    if torch.cuda.is_available() or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextlib.contextmanager
def float32_backend(asked: str, device: torch.device) -> Iterator[str]:
    """The float32 matrix back end of a trial, the same for every method: set inside the block, restored at its end.

    "default" is torch's own, and nothing is set. "fast" lets oneDNN compute float32 products on the CPU, faster where
    torch's default library is slow, by the switch of that back end alone: neither torch's global precision nor CUDA's
    TF32 is touched. On processors with AMX the same switch computes in bfloat16, so it is used only where products
    keep float32's accuracy, checked once per process; timings play no part, so all workers of one kind choose alike.
    On CUDA both are float32 in convolutions too, where torch's own would be TF32 as it is not in matrix products.

    Yields:
        What the block computes with, for the trial's row: "default", "fast", or "default" with the reason.
    """
    if device.type == "cuda":
        with _convolutions_without_tf32():
            yield "default"
        return
    if asked == "default" or device.type != "cpu":
        yield "default"
        return
    reason = _why_not_fast()
    if reason is not None:
        yield f"default ({reason})"
        return
    with _fast(_switch()):
        yield "fast"


@contextlib.contextmanager
def _convolutions_without_tf32() -> Iterator[None]:
    """By the older switch: after the newer one, whatever reads the older raises, as torch's compiler does."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def _fast(matmul: Any) -> Iterator[None]:
    before, matmul.fp32_precision = matmul.fp32_precision, _FAST
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _switch() -> Any:
    """oneDNN's matrix products; None for a torch without a switch of their own."""
    return getattr(torch.backends.mkldnn, "matmul", None)


_FAST = "bf16"
"""oneDNN may round to bfloat16; without hardware for that it computes in float32, by its own kernels."""
_LOSS = 4.0
"""A back end is accurate when its error is at most this multiple of the default's: other orders of sums differ too."""


@functools.cache
def _why_not_fast() -> str | None:
    """Why "fast" can't be had in this process; None where it can."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "fast refused: torch was built without oneDNN"
    if (matmul := _switch()) is None:
        return f"fast refused: torch {torch.__version__} has no switch for it"
    plain = _errors()
    with _fast(matmul):
        fast = _errors()
    name = max(fast, key=lambda product: fast[product] / plain[product])
    if fast[name] > _LOSS * plain[name]:
        return f"fast refused: relative error of {name} {fast[name]:.1e}, of the default {plain[name]:.1e}"
    return None


def _errors() -> dict[str, float]:
    """Relative error against float64 of the products that training is made of, as they are computed now."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=draw) for _ in range(2))
    left, right = torch.randn(4, 64, 256, generator=draw), torch.randn(4, 256, 64, generator=draw)
    q = torch.randn(2, 4, 64, 32, generator=draw)
    pairs = {
        "mm": (a @ b, a.double() @ b.double()),
        "linear": (linear(a, b, b[0]), linear(a.double(), b.double(), b[0].double())),
        "addmm": (torch.addmm(a, a, b), torch.addmm(a.double(), a.double(), b.double())),
        "bmm": (torch.bmm(left, right), torch.bmm(left.double(), right.double())),
        "attention": (attention(q, q, q), attention(q.double(), q.double(), q.double())),
    }
    return {name: float((found - exact).norm() / exact.norm()) for name, (found, exact) in pairs.items()}


def device_name(device: torch.device) -> str:
    """The accelerator's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    packages = (
        "torch",
        "torchvision",
        "transformers",
        "open_clip_torch",
        "peft",
        "bitsandbytes",
        "randlora-sweeps",
        "numpy",
        "pillow",
    )
    return {"python": platform.python_version(), **installed(packages)}


@functools.cache
def installed(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of those of these packages that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


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
