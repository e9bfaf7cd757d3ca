"""The benchmark of GPUs runs on a CPU, says what it skipped, and writes its numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support import ROOT

SCRIPT = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_sections_on_a_cpu(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("peft")
    options = ["--device", "cpu", "--quick", "--only", "adapters", "packing", "paper", "--depth", "1", "--tokens", "50"]
    few = ["--contenders", "lora", "peft-lora", "randlora-held", "--sizes", "2", "--methods", "lora"]
    files = ["--json", str(tmp_path / "out.json"), "--markdown", str(tmp_path / "out.md")]
    done = subprocess.run([*SCRIPT, *options, *few, *files], env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    for precision in ("float32", "bf16", "autocast"):
        assert 0.1 < found["adapters"][precision]["ratios"]["LoRA / PEFT LoRA"]["median"] < 10
    assert 0.1 < found["packing"]["lora"]["2"]["median"] < 10
    assert list(found["adapters"]["four micro-batches"]) == ["accumulating() / PEFT LoRA"]
    assert {"lora", "dora", "randlora", "full"} <= found["paper"]["seconds_train"].keys()
    assert "| packing, lora, 2 |" in (tmp_path / "out.md").read_text()


def test_without_a_device_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = subprocess.run(SCRIPT, env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "torch finds no CUDA device here; --device cpu" in done.stderr
