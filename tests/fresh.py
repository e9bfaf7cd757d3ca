"""A fresh environment with this repository's wheel in it, as a user has it after `pip install`."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.support import ROOT


def run(*command: str | Path, place: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """In a place of its own, without this folder on any path."""
    left = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=place, env=left | variables, capture_output=True, text=True, check=False)


def installed(folder: Path) -> Path:
    """The programs of a new environment in `folder`, with the wheel that is made there from the sdist.

    What the wheel depends on is lent by this environment, as a download would take an hour.
    """
    venv.create(folder / "fresh", with_pip=True)
    programs = folder / "fresh" / "bin"
    python = programs / "python"
    if run(python, "-m", "pip", "install", "--quiet", "hatchling>=1.27", place=folder).returncode:
        pytest.skip("no package index to take hatchling from")
    built = run(python, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, place=ROOT)
    assert built.returncode == 0, built.stderr
    (sdist,) = folder.glob("*.tar.gz")
    made = run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", sdist, place=folder)
    assert made.returncode == 0, made.stderr
    (wheel,) = folder.glob("*.whl")
    assert run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel, place=folder).returncode == 0
    (library,) = (folder / "fresh" / "lib").glob("python*/site-packages")
    (library / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    home = run(python, "-c", "import sweeps; print(sweeps.__file__)", place=folder)
    assert str(library) in home.stdout, home.stderr
    return programs
