"""Methods x families x precisions on a CUDA device that torch pretends to have (`matrix.py`); a compiler is needed.

In a process of its own: the pretended device must be there before torch is loaded.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support import ROOT

START = """
import ctypes, runpy, sys
if (library := sys.argv.pop(1)):
    ctypes.CDLL(library).pretend()
runpy.run_module("tests.gpu.matrix", run_name="__main__")
"""


@pytest.fixture(scope="session")
def pretended(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The library of `pretended.cpp`; none for a torch with CUDA, whose fake tensors need no more."""
    if torch.version.cuda is not None:
        return ""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("a torch without CUDA needs g++ or clang++ on Linux to pretend a device")
    target, home = tmp_path_factory.mktemp("pretended") / "pretended.so", Path(torch.__file__).parent
    libraries = [f"-L{home / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{home / 'lib'}"]
    command = [compiler, "-std=c++20", "-shared", "-fPIC", f"-I{home / 'include'}"]
    source = ROOT / "tests" / "gpu" / "pretended.cpp"
    subprocess.run([*command, str(source), *libraries, "-o", str(target)], check=True)
    return str(target)


def run(pretended: str, *words: str) -> dict[str, dict[str, str]]:
    """What failed, by precision and method."""
    command = [sys.executable, "-c", START, pretended, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", ["clip", "vit", "bert", "llama"])
def test_no_mixed_devices_and_types(pretended: str, family: str) -> None:
    pytest.importorskip("peft")
    assert not {precision: broken for precision, broken in run(pretended, family).items() if broken}
