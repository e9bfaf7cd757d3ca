"""The verb `doctor`: checks of a machine before a sweep, and what to do where something is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.text import Text

from analysis.format import plural
from sweeps.cli.options import FAILED_TRIALS, Json
from sweeps.cli.printing import emit, out
from trainables.errors import first_line

RAY_MINOR = "2.60"
_CLUSTER_S = 10.0
PACKAGES = ("randlora", "trainables", "analysis", "sweeps")


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, whether it is well, what was found, and how to mend it.

    Attributes:
        warns: it is to be mended, but does not stand in a sweep's way.
    """

    name: str
    ok: bool
    found: str
    mend: str
    warns: bool = False


def doctor(
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to look at: auto, or HOST:PORT; default: auto, if there is one.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Check this machine: Python, packages, devices, disk, and that the four package names are ours."""
    checks = [*examine(), *_cluster(address)]
    emit(as_json, lambda: [asdict(c) for c in checks], lambda: _print(checks))
    return 0 if all(c.ok for c in checks) else FAILED_TRIALS


def _print(checks: Sequence[Check]) -> None:
    for check in checks:
        mark = Text("fail", "red") if not check.ok else Text("warn", "yellow") if check.warns else Text("ok  ", "green")
        out.print(mark, f"{check.name}: {check.found}")
        if check.warns or not check.ok:
            out.print(f"       {check.mend}")


def examine() -> list[Check]:
    """Run every check; none starts Ray or touches an accelerator's settings."""
    version = ".".join(map(str, sys.version_info[:3]))
    memory, disk = psutil.virtual_memory().available / 2**30, shutil.disk_usage(Path.cwd()).free / 2**30
    return [
        Check("python", sys.version_info >= (3, 11), version, "Python 3.11 or newer is needed"),
        *_names(),
        *_versions(),
        _ray(),
        _devices(),
        Check("memory", memory > 3, f"{memory:.1f} GiB free", "Ray and two workers take about 3 GiB: close something"),
        Check("disk", disk > 1, f"{disk:.1f} GiB free here", "give `output` a folder on a disk with more room"),
        _hub(),
    ]


def _names() -> list[Check]:
    """The wheel installs four generic top-level names; another package may have overwritten one of them."""
    home = Path(__file__).resolve().parents[2]
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


def _ray() -> Check:
    """Sweeps lean on names that Ray's minor releases move, and Ray keeps its sessions and spilled objects in /tmp."""
    from sweeps.cluster.private import room

    try:
        import ray.train
        import ray.tune
    except ImportError as error:
        return Check("ray parts", False, first_line(error), "pip install 'ray[tune,train]'")
    minor = ".".join(ray.__version__.split(".")[:2])
    place, bytes_free = room()
    free = bytes_free / 2**30
    known = minor == RAY_MINOR
    mend = f"pip install 'ray[tune,train]=={RAY_MINOR}.*'" if not known else f"make room in {place}, or set RAY_TMPDIR"
    return Check("ray parts", known and free > 1, f"tune and train of {minor}; {free:.1f} GiB free in {place}", mend)


def _cluster(asked: str | None) -> list[Check]:
    """Whether a cluster that sweeps would join asks for a token; none is fine, unless one was asked for."""
    from sweeps.cluster.joining import ask, find
    from sweeps.cluster.resources import ResourceError

    try:
        address = find(asked or "auto")
    except ResourceError:
        if asked is not None:
            raise
        return []
    said = ask(address, address, token=False, seconds=_CLUSTER_S)
    if said is None:
        mend = "whoever reaches its ports can run code on it: RAY_AUTH_MODE=token (docs/clusters.md), or a firewall"
        return [Check("cluster", True, f"{address} answers without a token", mend, warns=True)]
    refused = "InvalidAuthToken" in said
    return [Check("cluster", refused, f"{address}: {'asks for a token' if refused else said}", "start it again")]


def _hub() -> Check:
    """Where hub models and data sets are cached; none is fetched here."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    offline = ", offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    at = next(p for p in (cache, *cache.parents) if p.exists())  # made when first used
    cached = len([p for p in cache.iterdir() if "--" in p.name]) if cache.is_dir() else 0
    free = shutil.disk_usage(at).free / 2**30
    found = f"{cached} models and data sets in {cache}, {free:.1f} GiB free{offline}"
    return Check("hub cache", os.access(at, os.W_OK), found, "set HF_HOME to a folder that you can write to")


def _devices() -> Check:
    import torch

    from sweeps.cluster.session import local_node
    from trainables.runtime import slow_bf16

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    none = f"none; trials run on {plural(round(local_node().cpus), 'CPU core')}"
    if slow_bf16():
        none += ", bf16 slower than fp32"
    return Check("accelerators", True, ", ".join(names) or none, "")
