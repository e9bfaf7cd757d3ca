"""The reference that `make api` writes: every public name says what it is, and the pages can be made."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT


@pytest.mark.parametrize("package", ["randlora", "sweeps", "analysis", "trainables"])
def test_every_public_name_is_documented(package: str) -> None:
    module = importlib.import_module(package)
    assert inspect.getdoc(module)
    silent = []
    for name in getattr(module, "__all__", ()):
        found = getattr(module, name)
        if inspect.isroutine(found) and not inspect.getdoc(found):
            silent.append(name)
        if inspect.isclass(found):
            of = [
                m
                for m, f in vars(found).items()
                if not m.startswith("_") and (inspect.isroutine(f) or isinstance(f, property))
            ]
            silent += [name] if not inspect.getdoc(found) else []
            silent += [f"{name}.{m}" for m in of if not inspect.getdoc(getattr(found, m))]
    assert not silent


@pytest.mark.slow
def test_the_pages_are_made(tmp_path: Path) -> None:
    pytest.importorskip("pdoc")
    command = [sys.executable, "-m", "pdoc", "randlora", "--output-directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert "RandLoraConfig" in (tmp_path / "randlora.html").read_text(encoding="utf-8")
