"""The Triton kernel without a GPU: its numbers under Triton's interpreter, and compilations for three GPUs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from randlora.arithmetic import kernels
from randlora.errors import ConfigError
from tests.randlora.arithmetic.support import check

triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton: pip install triton")


def run(*arguments: str, **variables: str) -> str:
    root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path, "RANDLORA_KERNELS": "triton", **variables}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@triton
@pytest.mark.parametrize("what", ["products", pytest.param("layers", marks=pytest.mark.slow)])
def test_the_dense_numbers(what: str) -> None:
    found = json.loads(run("-m", "tests.randlora.arithmetic.support", what, TRITON_INTERPRET="1"))
    assert len(found) > 30
    check(found)


COMPILE = """
import itertools, json, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from randlora.arithmetic import tensor_cores as t
names = t.signed_product.arg_names
constants = {"HAS_BASE": True, "WIDE": False, **t.BLOCK}
found = {}
for arch, kind in itertools.product((80, 90, 120), ("fp32", "bf16", "fp16")):
    types = {"signs": "*i8", "x": "*" + kind, "base": "*fp32", "out": "*fp32", "scale": "fp32"}
    types |= dict.fromkeys(("outputs", "terms", "lanes"), "i32") | dict.fromkeys(constants, "constexpr")
    source = ASTSource(t.signed_product, {n: types.get(n, "i64") for n in names}, constexprs=constants)
    made = compile(source, target=GPUTarget("cuda", arch, 32), options=t.OPTIONS)
    found[f"sm_{arch} {kind}"] = ("mma" in made.asm["ptx"], len(made.asm["cubin"]), made.metadata.shared)
json.dump(found, sys.stdout)
"""


@triton
@pytest.mark.slow
def test_three_compilers_take_it(tmp_path: Path) -> None:
    """On tensor cores, and within the shared memory that a block may have on the smallest (99 KiB)."""
    found = json.loads(run("-c", COMPILE, TRITON_CACHE_DIR=str(tmp_path)))
    assert len(found) == 9
    for case, (on_tensor_cores, size, shared) in found.items():
        assert on_tensor_cores and size > 0 and shared <= 99 * 1024, case


def test_only_on_request_and_on_devices_that_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("RANDLORA_KERNELS", raising=False)
    assert not kernels.takes_triton(cuda)
    monkeypatch.setenv("RANDLORA_KERNELS", "triton")
    assert not kernels.takes_triton(cpu)
    with pytest.raises(ConfigError, match="pip install triton"):
        kernels.takes_triton(cuda)
