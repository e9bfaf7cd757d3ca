"""The surroundings of a trial: precision, matrix back end, device and package versions (all in its row), other
workers."""

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
"""Returns the mixed-precision context in which a base model runs. Losses are computed in float32 outside it."""


def pick_device() -> torch.device:
    """Return the worker's accelerator: the current CUDA device, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def broadcast(words: Any, by: int = 0) -> Any:
    """Broadcast what worker `by` of a group passes as `words` to all its workers, and return it.

    It may be anything that JSON can hold; tuples become lists. torch's own calls for objects unpickle data from the
    group's sockets, and so could run code from them: the sockets ask for no password.
    """
    is_speaker, device = torch.distributed.get_rank() == by, pick_device()
    payload = bytearray(json.dumps(words).encode()) if is_speaker else bytearray()
    size = torch.tensor(len(payload), device=device)
    torch.distributed.broadcast(size, src=by)
    text = torch.frombuffer(payload or bytearray(int(size)), dtype=torch.uint8).to(device)
    torch.distributed.broadcast(text, src=by)
    return json.loads(text.cpu().numpy().tobytes())


def choose_precision(asked: str, device: torch.device) -> tuple[str, Autocast]:
    """Return "fp32" or "bf16", and its autocast context.

    Args:
        asked: "auto", "fp32" or "bf16".
        device: where the trial runs.

    Raises:
        TrialError: bf16 is asked for on a CUDA device that does not have it.
    """
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if asked == "bf16" and device.type == "cuda" and not has_bf16:
        raise TrialError(f"train.precision 'bf16': {torch.cuda.get_device_name(device)} has none; use 'fp32' or 'auto'")
    if asked == "bf16" or (asked == "auto" and has_bf16):
        return "bf16", functools.partial(torch.autocast, device.type, dtype=torch.bfloat16)
    return "fp32", contextlib.nullcontext


def slow_bf16() -> bool:
    """Return whether bf16 is slower than fp32 here: there is no CUDA device, and oneDNN has no bf16 products for the
    processor.

    torch's own products then replace them, and a step takes 15 to 40 times as long as in float32 (an AMD with AVX2).
    """
    if torch.cuda.is_available() or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextlib.contextmanager
def float32_backend(asked: str, device: torch.device) -> Iterator[str]:
    """Set the float32 matrix back end of a trial for the block, and restore it at the end. It is the same for every
    method.

    "default" is torch's own, and nothing is set. "fast" lets oneDNN compute float32 products on the CPU, which is
    faster if torch's default library is slow. Only the switch of that back end is set, not torch's global precision or
    CUDA's TF32. On processors with AMX the same switch computes in bfloat16. So it is used only if products keep
    float32's accuracy, which is checked once per process. Timings do not matter, so all workers of one kind choose
    alike. On CUDA both also compute convolutions in float32. (torch's own default for them is TF32, unlike for matrix
    products.)

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
    """Switch TF32 off for convolutions during the block.

    It uses torch's older switch. After the newer one, reading the older one raises an error, and torch's compiler reads
    it.
    """
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def _fast(matmul: Any) -> Iterator[None]:
    """Let oneDNN compute float32 products during the block."""
    before, matmul.fp32_precision = matmul.fp32_precision, _FAST
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _switch() -> Any:
    """Return oneDNN's switch for matrix products; None if this torch has none."""
    return getattr(torch.backends.mkldnn, "matmul", None)


_FAST = "bf16"
"""The value that lets oneDNN round to bfloat16. Without hardware for that, it computes in float32 by its own
kernels."""
_LOSS = 4.0
"""A back end is accurate if its error is at most this multiple of the default's. Another order of sums differs too."""


@functools.cache
def _why_not_fast() -> str | None:
    """Return why "fast" cannot be used in this process; None if it can."""
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
    """Return the relative error, against float64, of the products that training consists of, as they are
    computed now."""
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
    return {name: float((result - exact).norm() / exact.norm()) for name, (result, exact) in pairs.items()}


def device_name(device: torch.device) -> str:
    """Return the accelerator's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide a result."""
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
    """Return the versions of those packages that are installed."""
    versions_of = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions_of[package] = importlib.metadata.version(package)
    return versions_of


class PeakMemory:
    """Measures the largest memory in use since it was made, in bytes.

    Without CUDA it is that of the whole process, with base model and decoded images. Linux can reset that maximum, so
    that a long-lived process measures each trial. On other systems it is the maximum of the process's life.
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
        """Return the maximum until now."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if self._reset:
            peak = re.search(r"VmHWM:\s+(\d+) kB", (self._proc / "status").read_text())
            if peak:
                return int(peak.group(1)) * 1024
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return max(int(most), int(psutil.Process().memory_info().rss))
