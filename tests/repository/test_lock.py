"""`lock.txt`: the versions that every target of the Makefile installs, on each Python and platform."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import ROOT

LINES = (ROOT / "lock.txt").read_text(encoding="utf-8").splitlines()
FILE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = FILE["project"]
PYTHONS = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
PLATFORMS = {"linux": "x86_64", "darwin": "arm64", "win32": "AMD64"}


def test_the_lock_has_only_plain_lines() -> None:
    """A name and a version, with a marker where needed: no index, no hash, no build such as +cpu."""
    plain = re.compile(r"[a-z0-9-]+==[0-9a-z.]+( ; [a-z_'.0-9A-Z<>=!() ]+)?")
    assert [line for line in LINES if not plain.fullmatch(line)] == []
    assert len(LINES) > len(PROJECT["dependencies"])


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_lock_has_a_version_in_the_range_of_every_requirement(python: str, platform: str) -> None:
    where = {"python_version": python, "python_full_version": f"{python}.9"}
    where |= {"sys_platform": platform, "platform_machine": PLATFORMS[platform]}
    locked: dict[str, list[str]] = {}
    for pin in map(Requirement, LINES):
        if pin.marker is None or pin.marker.evaluate(where):
            locked.setdefault(pin.name, []).append(str(pin.specifier).removeprefix("=="))
    asked = [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
    asked += chain(*FILE["dependency-groups"].values())
    for requirement in map(Requirement, asked):
        (version,) = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement
    assert {name: versions for name, versions in locked.items() if len(versions) > 1} == {}


def test_what_a_new_lock_changed_is_printed(tmp_path: Path) -> None:
    before, now = tmp_path / "before.txt", tmp_path / "now.txt"
    before.write_text("numpy==2.4.6\nold==1 ; sys_platform == 'linux'\nrich==14.0.0\n", encoding="utf-8")
    now.write_text(
        "new==3\nnumpy==2.4.6 ; python_version < '3.12'\nnumpy==2.5.5 ; python_version >= '3.12'\nrich==14.0.0\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "tools.lock", before, now]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == "added    new 3\nremoved  old 1\nchanged  numpy 2.4.6 -> 2.4.6, 2.5.5\n"
