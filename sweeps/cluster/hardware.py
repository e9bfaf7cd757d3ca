"""Kinds of devices that trials run on: which there are, and which a sweep has used.

Only an allowance in seconds depends on it: a second of one device is not a second of another.
"""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.format import Row
from sweeps.errors import Problem, SpecError
from sweeps.spec.resources import ResourceSection
from sweeps.spec.search import SearchSection
from sweeps.spec.spec import SweepSpec

SMI_S = 20.0


class DeviceError(SpecError):
    """Seconds would be compared over different kinds of devices."""


@dataclass(frozen=True)
class Machine:
    """A machine that trials may run on: its name, CPUs, GPUs, and what these are called."""

    name: str
    cpus: float
    gpus: float
    processor: str
    accelerators: tuple[str, ...] = ()


@functools.cache
def processor() -> str:
    """Model of this machine's CPU, as its kernel names it; the architecture where it does not."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def names_here() -> tuple[str, tuple[str, ...]]:
    """This machine's CPU and its accelerators: those that this process sees, or all where it was given none."""
    return processor(), _accelerators()


def _accelerators() -> tuple[str, ...]:
    import torch

    if seen := torch.cuda.device_count():
        return tuple(torch.cuda.get_device_name(k) for k in range(seen))
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]  # Ray hides them from a task that takes none
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=SMI_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())


def in_seconds(search: SearchSection) -> float | None:
    """The allowance in seconds; None where it is in something else."""
    return None if search.allowance is None else search.allowance.seconds


def machines(address: str | None) -> list[Machine]:
    """The machines that a run with this address would use: this one, or those of the cluster, which is asked."""
    import ray

    from sweeps.cluster.session import Session, local_node

    if ray.is_initialized():
        return _cluster()
    if address is None:
        node = local_node()
        return [Machine("this machine", node.cpus, node.gpus, *names_here())]
    with Session(address) as session:
        session.connect()
        return _cluster()


def _cluster() -> list[Machine]:
    from sweeps.cluster.nodes import on_every_node

    return [
        Machine(name, held.get("CPU", 0.0), held.get("GPU", 0.0), *found)
        for name, held, found in on_every_node(names_here)
    ]


def kinds(asked: ResourceSection, found: Sequence[Machine]) -> dict[str, list[str]]:
    """Kinds of devices that a trial may get, each with the names of its machines."""
    gpu = asked.gpus_per_worker
    least = (1.0 if any(m.gpus >= 1 for m in found) else 0.0) if gpu == "auto" else gpu
    by_kind: dict[str, list[str]] = {}
    for machine in found:
        if machine.cpus < asked.cpus_per_worker or machine.gpus < least:
            continue
        names = (machine.accelerators or ("GPU",)) if least else (machine.processor,)
        for name in dict.fromkeys(names):
            by_kind.setdefault(name, []).append(machine.name)
    return by_kind


def kind_of(row: Row) -> str | None:
    """The kind of device that a trial ran on; "cpu" for one of an unknown model, None where nothing is known."""
    device: str | None = row.get("device")
    return row.get("processor") or device if device in (None, "cpu") else device


def check_devices(spec: SweepSpec, rows: Iterable[Row], found: Sequence[Machine]) -> None:
    """Refuse an allowance in seconds whose trials would run on several kinds of devices.

    Args:
        rows: of the trials that the sweep has.
        found: the machines of this run.

    Raises:
        DeviceError: machines of several kinds, or TUNE trials that ran on another kind.
    """
    seconds = in_seconds(spec.search)
    if seconds is None:
        return
    now = kinds(spec.resources, found)
    rule = "seconds compare on one kind of device only, and"
    remedy = "search.allowance = { samples = N }, or machines of one kind"
    if len(now) > 1:
        listed = "; ".join(f"{kind} ({', '.join(names)})" for kind, names in now.items())
        raise DeviceError([_problem(seconds, f"{rule} trials may run on {listed}", remedy)])
    on_gpu = any(name not in {m.processor for m in found} for name in now)
    earlier = {kind_of(row) for row in rows if row["stage"] == "TUNE"} - {None, *now}
    if not on_gpu:
        earlier -= {"cpu"}  # rows older than the column `processor`
    if now and earlier:
        others = ", ".join(sorted(str(kind) for kind in earlier))
        where = f"this run has {', '.join(now)}, where TUNE trials of the sweep ran on {others}"
        raise DeviceError([_problem(seconds, f"{rule} {where}", f"a machine with {others}, or {remedy}")])


def _problem(seconds: float, rule: str, remedy: str) -> Problem:
    return Problem("search.allowance.seconds", seconds, rule, remedy)
