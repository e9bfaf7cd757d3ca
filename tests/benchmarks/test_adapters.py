"""The benchmark script starts, runs its contenders and writes its numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT


@pytest.mark.slow
def test_one_image_through_one_layer(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("peft")
    command = [sys.executable, str(ROOT / "benchmarks" / "adapters.py"), "--depth", "1", "--tokens", "50"]
    options = ["--rounds", "1", "--only", "randlora", "ternary", "peft-randlora", "--json", str(tmp_path / "out.json")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *options], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert "dense RandLoRA / PEFT RandLoRA" in found["tokens_50"]["ratios"]
    assert found["regime"]["highest"]["relative_error"] < 1e-5
