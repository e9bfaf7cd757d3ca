"""Compares the installed versions of packages with those that were tested, or with those that a sweep ran with."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from packaging.requirements import Requirement

from analysis.store.store import Store
from trainables.runtime import installed

NOT_FROM_PIP = ("python", "randlora-sweeps")
"""What a sweep records the version of, and pip does not find in an index."""


@dataclass(frozen=True)
class Difference:
    """A package that is not installed in the version that is known, or not at all.

    Attributes:
        package: its name; "python" for Python itself.
        known: the version that was tested, or that a sweep ran with.
        here: the installed version; None if there is none.
    """

    package: str
    known: str
    here: str | None

    def __str__(self) -> str:
        return f"{self.package} {self.known}, here {self.here or 'not installed'}"


def differences(known: Mapping[str, str]) -> list[Difference]:
    """Return the packages whose installed version is not the known one.

    A build such as 2.13.0+cpu counts as 2.13.0, unless the known version names a build itself.
    """
    here = {"python": platform.python_version(), **installed(tuple(known))}
    return [
        Difference(package, version, here.get(package))
        for package, version in known.items()
        if version not in (found := here.get(package, ""), found.partition("+")[0])
    ]


def lock_file() -> Path:
    """Return the path of `lock.txt`, from the wheel or the repository."""
    within = Path(str(resources.files("sweeps"))) / "lock.txt"
    return within if within.is_file() else Path(__file__).resolve().parents[2] / "lock.txt"


def tested() -> dict[str, str]:
    """Return the versions with which this release was tested, on this Python and platform: those of `lock.txt`."""
    pins = map(Requirement, lock_file().read_text(encoding="utf-8").splitlines())
    return {pin.name: str(pin.specifier)[2:] for pin in pins if pin.marker is None or pin.marker.evaluate()}


def ran_with(store: Store) -> dict[str, list[str]]:
    """Return the versions of packages that a sweep ran with, by name. The latest one is the last.

    Those of a package that decides results are from the rows of finished trials, those of Ray and Optuna from the
    journal. {} if neither has any.
    """
    finished = [row for row in store.table("last_attempts").to_pylist() if row["status"] == "finished"]
    finished.sort(key=lambda row: (row["ended_at"] is not None, row["ended_at"]))
    by_trials = _in_order(json.loads(row["versions"] or "{}") for row in finished)
    by_runs = _in_order(event.get("versions") or {} for event in store.events() if event["ev"] == "sweep")
    return dict(sorted({**by_runs, **by_trials}.items()))


def latest(store: Store) -> dict[str, str]:
    """Return the latest version of each package that a sweep ran with, by name."""
    return {package: versions[-1] for package, versions in ran_with(store).items()}


def constraints(known: Mapping[str, Sequence[str]]) -> list[str]:
    """Return lines of a constraints file for pip.

    pip installs neither Python nor, from an index, this package, so that these are comments. Nor does an index have
    builds such as 2.13.0+cpu: the version is written without its build, which pip takes for any build of it.

    Args:
        known: the versions of packages as `ran_with` returns them.
    """
    lines = [f"# {name} {' and '.join(known[name])}" for name in NOT_FROM_PIP if name in known]
    for package, (*earlier, last) in known.items():
        if package not in NOT_FROM_PIP:
            before = f"  # before: {', '.join(earlier)}" if earlier else ""
            lines.append(f"{package}=={last.partition('+')[0]}{before}")
    return lines


def _in_order(records: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    """Return the versions of each package without repeats, ordered by their last appearance."""
    versions: dict[str, dict[str, None]] = {}
    for record in records:
        for package, version in record.items():
            of_package = versions.setdefault(package, {})
            of_package.pop(version, None)
            of_package[version] = None
    return {package: list(of_package) for package, of_package in versions.items()}
