"""The verb `doctor`: checks a machine before a sweep, and says what to do if something is missing."""

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

import typer
from rich.text import Text

from analysis.format import plural
from sweeps.cli.options import FAILED_TRIALS, Json
from sweeps.cli.printing import emit, out
from trainables.errors import first_line

DISTRIBUTION = "randlora-sweeps"
PACKAGES = ("randlora", "trainables", "analysis", "sweeps")


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was checked.
        ok: whether it is in order.
        found: what was found.
        mend: what to do about it.
        warns: whether something should be done, although sweeps can run.
    """

    name: str
    ok: bool
    found: str
    mend: str
    warns: bool = False


def doctor(
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to check too: auto, or HOST:PORT; default: the one on this machine, if any."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Check whether this machine is ready: Python, packages, devices, memory and disk.

    It also checks that no other package has overwritten one of the four top-level packages of this one (randlora,
    trainables, sweeps, analysis). Exit code 1 if a check fails.
    """
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
    """Run every check, and return the results. No check starts Ray or changes an accelerator's settings."""
    import psutil

    version = ".".join(map(str, sys.version_info[:3]))
    memory = psutil.virtual_memory().available / 2**30
    disk = shutil.disk_usage(Path.cwd()).free / 2**30
    return [
        Check("python", sys.version_info >= (3, 11), version, "Python 3.11 or newer is needed"),
        *_names(),
        *_versions(),
        _tested(),
        _ray(),
        _devices(),
        Check("memory", memory > 3, f"{memory:.1f} GiB free", "Ray and two workers take about 3 GiB: close something"),
        Check("disk", disk > 1, f"{disk:.1f} GiB free here", "give `output` a folder on a disk with more room"),
        _hub(),
    ]


def _names() -> list[Check]:
    """Check that the four package names are ours: they are generic, so another package may have overwritten one."""
    home = Path(__file__).resolve().parents[2]
    checks = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
        ours = origin is not None and origin.parent.parent == home
        mend = f"another package provides `{name}` (wandb[sweeps] installs one): use a separate virtual environment"
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


def _tested() -> Check:
    """Compare the versions of the libraries that ours calls, if they are installed, with those that were tested."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    from packaging.version import Version

    from sweeps.engine.versions import differences, tested
    from trainables.runtime import versions

    try:
        required = [Requirement(each).name for each in importlib.metadata.requires(DISTRIBUTION) or ()]  # extras too
        known = tested()
    except (importlib.metadata.PackageNotFoundError, FileNotFoundError) as error:
        return Check("tested versions", True, f"not known: {error}", f"pip install {DISTRIBUTION}", warns=True)
    called = {canonicalize_name(name) for name in (*required, *versions())}
    found = [each for each in differences({n: v for n, v in known.items() if n in called}) if each.here is not None]
    others = []
    for each in found:
        age = "newer" if Version(str(each.here)) > Version(each.known) else "older"
        others.append(f"{each.package} {each.here} is {age} than {each.known}")
    text = "; ".join(others) or "all libraries have the versions that were tested"
    pins = " ".join(f"{each.package}=={each.known}" for each in found)
    mend = f"they are allowed; for those that were tested: pip install {pins}"
    return Check("tested versions", True, text, mend, warns=bool(others))


def _ray() -> Check:
    """Check that this package was tested with this release of Ray, and that there is space for Ray's files."""
    from sweeps.backends.ray.cluster.private import temporary_space
    from sweeps.backends.ray.compat import NEWEST, OLDEST, supported

    try:
        import ray.train
        import ray.tune
    except ImportError as error:
        return Check("ray parts", False, first_line(error), "pip install 'ray[tune,train]'")
    release = ray.__version__
    is_supported = supported(release)
    place, bytes_free = temporary_space()
    free = bytes_free / 2**30
    text = f"tune and train of {release}, of {OLDEST} to {NEWEST}; {free:.1f} GiB free in {place}"
    if not is_supported:
        text = f"tune and train of {release}, and this package needs Ray {OLDEST} to {NEWEST}"
    mend = f"make room in {place}, or set RAY_TMPDIR" if is_supported else f"pip install 'ray[tune,train]=={NEWEST}.*'"
    return Check("ray parts", is_supported and free > 1, text, mend)


def _cluster(asked: str | None) -> list[Check]:
    """Check the cluster that sweeps would join: whether it asks for a token, and whether its Ray is this release.

    Return [] if there is no cluster, unless the user named one.
    """
    from sweeps.backends.ray.cluster.joining import ask, find, other_release
    from sweeps.backends.ray.cluster.private import users_token
    from sweeps.backends.resources import ResourceError

    try:
        address = find(asked or "auto")
    except ResourceError:
        if asked is not None:
            raise
        return []
    failure = ask(address, token=False)
    refused = failure is not None and "InvalidAuthToken" in failure
    if refused:
        with users_token():
            failure = ask(address)
    other = other_release(address, failure)
    if failure is not None and other is None and not (refused and "InvalidAuthToken" in failure):
        return [Check("cluster", False, f"{address}: {failure}", "start it again")]
    mend = "everyone who reaches its ports can run code on it: RAY_AUTH_MODE=token (docs/clusters.md), or a firewall"
    text = f"{address} {'asks for' if refused else 'answers without'} a token"
    checks = [Check("cluster", True, text, "" if refused else mend, warns=not refused)]
    if other is not None:
        checks.append(Check("cluster's Ray", False, f"{address} {other.rule}", str(other.nearest)))
    return checks


def _hub() -> Check:
    """Check the folder in which models and data sets of the Hub are cached. Nothing is downloaded."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    offline = ", offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    at = next(p for p in (cache, *cache.parents) if p.exists())  # it is made when it is first used
    cached = len([p for p in cache.iterdir() if "--" in p.name]) if cache.is_dir() else 0
    free = shutil.disk_usage(at).free / 2**30
    text = f"{cached} models and data sets in {cache}, {free:.1f} GiB free{offline}"
    return Check("hub cache", os.access(at, os.W_OK), text, "set HF_HOME to a folder that you can write to")


def _devices() -> Check:
    import torch

    from sweeps.backends.resources import local_node
    from trainables.runtime import slow_bf16

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    none = f"none; trials run on {plural(round(local_node().cpus), 'CPU core')}"
    if slow_bf16():
        none += ", bf16 slower than fp32"
    return Check("accelerators", True, ", ".join(names) or none, "")
