"""The benchmark of shared base models runs and finds one copy where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT


@pytest.mark.slow
def test_one_short_round(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "shared_model.py"), "--quick", "--workers", "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "out.json")], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / "out.json").read_text()).values()
    sides = found["workers"]["2"]
    assert sides["a copy each"]["uss"]["median"] > 0.9
    for side in ("first", "later"):
        assert sides[side]["uss"]["median"] < 0.5
        assert sides[side]["pss_together"]["median"] < 1.6
    assert 0.5 < found["step"]["median"] < 2
