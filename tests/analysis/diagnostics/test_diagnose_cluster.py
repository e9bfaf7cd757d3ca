"""Diagnostics on a joined cluster, as far as one machine is two: both compute, and one may be lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from analysis import open_store
from analysis.diagnostics.analyze import analyze
from tests.analysis.diagnostics.test_diagnose import numbers
from tests.analysis.diagnostics.tiny import tiny_results
from tests.sweeps.cluster.own_ray import OwnRay
from tests.sweeps.engine.test_engine_faults import ROOT


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("after", ["", "lose"], ids=["both-compute", "one-is-lost"])
def test_a_cluster_computes_what_this_process_does(tmp_path: Path, own_ray: OwnRay, after: str) -> None:
    folder, log = tiny_results(tmp_path / "tiny"), tmp_path / "log"
    alone = open_store(shutil.copytree(folder, tmp_path / "alone" / "tiny"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.analysis.diagnostics.diagnose_cluster", str(folder), str(log), *after.split()],
        cwd=ROOT,
        env=own_ray.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    code, said = found["refused"]
    assert code == 2 and "the largest machine has 1" in " ".join(said.split())
    code, said = found["done"]
    assert code == 0, (found["error"], said)
    answer = json.loads(said)
    assert "landscape.txt" in answer["paths"] and "barrier" in answer["says"]
    table, _, _ = analyze(alone, "landscape", points=4, examples=16)
    store = open_store(folder)
    again = analyze(store, "landscape", points=4, examples=16, execute=lambda *_: pytest.fail("computed again"))[0]
    assert answer["rows"] == again.num_rows == table.num_rows
    for mine, wanted in zip(numbers(again), numbers(table), strict=True):
        about = {k: pytest.approx(wanted[k], rel=1e-4, abs=1e-5) for k in ("loss", "barrier") if wanted[k] is not None}
        assert mine == {**wanted, **about}
    lines = [line.split() for line in log.read_text().splitlines()]
    assert {int(raylet) for _, raylet, _ in lines} == set(found["raylets"]), "a machine had nothing to do"
    begun = Counter(unit for unit, _, _ in lines)
    assert set(begun) == set(store.table("landscape").column("unit").to_pylist()) and len(begun) == 4 + 3
    twice = {unit for unit, times in begun.items() if times > 1}
    assert twice == {unit for unit, _, process in lines if int(process) in found["lost"]}
    assert bool(twice) == (after == "lose")
