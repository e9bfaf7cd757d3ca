"""Prints what differs between two locks of versions: `python -m tools.lock OLD NEW`. `make lock` ends with it."""

from __future__ import annotations

import sys
from pathlib import Path


def pins(lock: Path) -> dict[str, str]:
    """Return the pinned version of each package; several, separated by commas, if it depends on the Python."""
    versions: dict[str, list[str]] = {}
    for line in lock.read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition(";")[0].strip().partition("==")
        versions.setdefault(name, []).append(version)
    return {name: ", ".join(those) for name, those in versions.items()}


def changes(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Return a line for each package that was added, removed, or pinned to another version."""
    lines = [f"added    {name} {new[name]}" for name in sorted(new.keys() - old.keys())]
    lines += [f"removed  {name} {old[name]}" for name in sorted(old.keys() - new.keys())]
    moved = (name for name in sorted(old.keys() & new.keys()) if old[name] != new[name])
    return [*lines, *(f"changed  {name} {old[name]} -> {new[name]}" for name in moved)]


if __name__ == "__main__":
    print("\n".join(changes(*(pins(Path(given)) for given in sys.argv[1:3]))) or "no version changed")
