"""The benchmark of packing starts, finds both ways equal and writes its numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("text", [None, "llama", "gpt2", "bert"])
def test_one_short_round(tmp_path: Path, text: str | None) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "packing.py"), "--rounds", "1", "--images", "64"]
    if text is not None:
        command += ["--text", text, "--width", "32", "--layers", "1", "--batch", "8"]
    options = ["--sizes", "2", "--methods", "lora", "randlora", "--json", str(tmp_path / "out.json")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *options], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    for method in ("lora", "randlora"):
        assert 0.2 < found[method]["2"]["ratio"]["median"] < 5
        assert found[method]["2"]["alone_per_hour"]["median"] > 0
        assert (found[method]["2"]["padded"] > 1) == (text is not None)
