"""What a trial runs on: precision, matrix back end, device and package versions, all of them in its row."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from trainables.errors import TrialError

Autocast = Callable[[], AbstractContextManager[Any]]
"""Makes the mixed-precision context that a base model runs in; losses are float32 outside it."""


def choose_precision(asked: str, device: torch.device) -> tuple[str, Autocast]:
    """("fp32" or "bf16", its autocast context). Raises TrialError for bf16 on a CUDA device without it."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if asked == "bf16" and device.type == "cuda" and not has_bf16:
        raise TrialError(f"train.precision 'bf16': {torch.cuda.get_device_name(device)} has none; use 'fp32' or 'auto'")
    if asked == "bf16" or (asked == "auto" and has_bf16):

        def bf16() -> AbstractContextManager[Any]:
            return torch.autocast(device.type, dtype=torch.bfloat16)

        return "bf16", bf16
    return "fp32", contextlib.nullcontext


def choose_backend(device: torch.device) -> str:
    """The float32 matrix back end of this worker, the same for every method: torch's default, and nothing is set."""
    del device
    return "default"


def device_name(device: torch.device) -> str:
    """The accelerator's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@functools.cache
def _versions() -> str:
    packages = ("torch", "torchvision", "transformers", "open_clip_torch", "randlora-sweeps", "numpy", "pillow")
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return json.dumps(found)


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    found: dict[str, str] = json.loads(_versions())
    return found
