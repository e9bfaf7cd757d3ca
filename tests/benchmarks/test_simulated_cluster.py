"""`benchmarks/simulated_cluster.py`: a head without devices, and one node."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_node_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # Ray gives no node more GPUs than that names
    command = [sys.executable, str(ROOT / "benchmarks" / "simulated_cluster.py"), "--nodes", "1", "--every", "0"]
    subprocess.run([*command, "--trials", "20", "--json", str(tmp_path / "s.json")], check=True, capture_output=True)
    (found,) = json.loads((tmp_path / "s.json").read_text())
    assert (found["nodes"], found["devices"], found["lost"]) == (1, 2, 0)
    assert (found["finished"], found["failed"]) == (20, 0)
    assert 0 < found["trials per second"] < 2 / 1.5 * 1.1  # two devices, three pauses of half a second
    assert found["MB"]["driver"] > 0 and found["MB"]["broker"] > 0
