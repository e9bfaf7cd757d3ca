"""Checks of a machine before a sweep: what is there, and what to do where something is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

DISTRIBUTION = "randlora-sweeps"
PACKAGES = ("randlora", "trainables", "analysis", "sweeps")


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, whether it is well, what was found, and how to mend it."""

    name: str
    ok: bool
    found: str
    mend: str


def examine() -> list[Check]:
    """Run every check; none starts Ray or touches an accelerator's settings."""
    return [_python(), *_names(), *_versions(), _devices(), _memory(), _disk()]


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info >= (3, 11), version, "Python 3.11 or newer is needed")


def _names() -> list[Check]:
    """The wheel installs four generic top-level names; another package may have overwritten one of them."""
    home = Path(__file__).resolve().parent.parent
    checks = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
        ours = origin is not None and origin.parent.parent == home
        mend = f"another package provides `{name}` (wandb[sweeps] installs one): use a virtual environment of its own"
        checks.append(Check(f"package {name}", ours, str(origin), mend))
    return checks


def _versions() -> list[Check]:
    checks = []
    for name in ("ray", "torch", "open_clip_torch", "transformers", "optuna", "pyarrow", "duckdb"):
        try:
            checks.append(Check(name, True, importlib.metadata.version(name), ""))
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(name, False, "not installed", f"pip install {name}"))
    return checks


def _devices() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check(
            "accelerators", True, f"none; trials run on {psutil.cpu_count(logical=False) or 1} CPU core(s)", ""
        )
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check("accelerators", True, ", ".join(names), "")


def _memory() -> Check:
    free = psutil.virtual_memory().available / 2**30
    return Check("memory", free > 3, f"{free:.1f} GiB free", "Ray and two workers take about 3 GiB: close something")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return Check("disk", free > 1, f"{free:.1f} GiB free here", "give `output` a folder on a disk with more room")
