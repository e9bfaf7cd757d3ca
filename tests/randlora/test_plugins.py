"""A method of a package of one's own: found through its entry point by every process, and a method like any other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

EXAMPLE = ROOT / "examples" / "own_method"

_USE = """
from randlora import METHODS
from randlora.testing import check
from sweeps import Plan, SweepSpec

tree = {"name": "t", "model": {"id": "embedded:tiny-clip"}, "data": {"datasets": ["embedded:fashion-mnist"]},
        "budgets": {"lora_rank": [4]}, "methods": {"lora": {}, "lora-fa": {"scale": 2.0}}}
(cell,) = [c for c in Plan.from_spec(SweepSpec.parse(tree)).feasible if c.method == "lora-fa"]
assert 0 < cell.count <= 1.05 * cell.budget, cell
assert METHODS["lora-fa"].count((5, 6), 2) == 10
check("lora-fa")
check("lora-fa", options={"scale": 3.0})
"""


def installed(folder: Path, module: str) -> None:
    """As pip leaves a package: its metadata beside its modules."""
    info = folder / "lora_fa-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lora-fa\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[randlora.methods]\nlora-fa = {module}\n")


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_example_is_a_method_like_any_other(tmp_path: Path) -> None:
    installed(tmp_path, "lora_fa")
    shutil.copy(EXAMPLE / "lora_fa.py", tmp_path)
    assert "lora-fa" in (EXAMPLE / "pyproject.toml").read_text(encoding="utf-8")
    done = python(_USE, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("body", [None, "from randlora import METHODS, register\nregister(METHODS['lora'])\n"])
def test_a_package_that_fails_is_named_when_a_method_is_looked_up(tmp_path: Path, body: str | None) -> None:
    installed(tmp_path, "not_here")
    if body is not None:
        (tmp_path / "not_here.py").write_text(body)
    done = python("import randlora; print('imported', flush=True); 'lora' in randlora.METHODS", tmp_path)
    assert done.stdout == "imported\n" and done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "entry point lora-fa = 'not_here' of the package lora-fa" in last
    assert "pip uninstall lora-fa" in last
