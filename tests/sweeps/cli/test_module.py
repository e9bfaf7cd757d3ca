"""`python -m sweeps` is the program."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version


def test_the_package_runs_as_the_program() -> None:
    done = subprocess.run([sys.executable, "-m", "sweeps", "--version"], check=True, capture_output=True, text=True)
    assert version("randlora-sweeps") in done.stdout
