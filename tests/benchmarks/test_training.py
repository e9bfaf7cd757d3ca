"""The benchmark of the training loop starts, finds both sides equal and writes its numbers."""

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
    pytest.importorskip("peft")
    command = [sys.executable, str(ROOT / "benchmarks" / "training.py"), "--quick", "--rounds", "1"]
    options = ["--images", "64", "--texts", "16", "--json", str(tmp_path / "out.json")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *options], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    for model in ("clip", "llama"):
        assert found[model]["ratio"]["median"] > 0.2
        assert 0 < found[model]["waiting"]["median"] < 0.5
        assert found[model]["samples"] >= 16
    assert found["llama"]["trainer_ratio"]["median"] > 0.2
