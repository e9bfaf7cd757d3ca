"""`examples/cluster/machines.sh` on two machines, as far as one machine is two: network, process and name spaces."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from analysis.store.store import open_store
from tests.support import ROOT
from tests.sweeps.cluster.support import TINY, OwnRay

SPACES = ["unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]


def has_spaces() -> bool:
    """Whether this machine lets us make name spaces and cables between them."""
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return False
    try_it = [*SPACES, "ip", "link", "add", "one", "type", "veth", "peer", "name", "other"]
    return subprocess.run(try_it, capture_output=True, check=False).returncode == 0


def assert_same_results(one: Path, other: Path) -> None:
    """What was learnt is the same to the last bit; times, memory and host may differ."""
    stores = open_store(one), open_store(other)
    names = ["trial_id", "stage", "status", "lr", "train_loss", "val_score", "test_score", "samples"]
    first, second = (s.table("trials").select(names).sort_by("trial_id").to_pylist() for s in stores)
    assert first == second
    first, second = (s.table("predictions").sort_by("trial_id").to_pylist() for s in stores)
    assert first == second != []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not has_spaces(), reason="no network name spaces with a cable between them on this machine")
def test_two_machines_run_the_same_line(tmp_path: Path, own_ray: OwnRay) -> None:
    """Each is a lane; both train; and when the sweep is done, both are free of Ray again."""
    sweep, output = tmp_path / "tiny.json", tmp_path / "results"
    # long enough that the second machine's worker comes up before the first has done everything
    longer = {"search": TINY["search"] | {"trials": 6}, "train": TINY["train"] | {"epochs": 2}}
    cpus = len(os.sched_getaffinity(0))  # a trial takes a whole machine
    wide = {**TINY, **longer, "resources": {"concurrent": 2, "cpus_per_worker": cpus}}
    sweep.write_text(json.dumps(wide))
    variables = own_ray.environment | {
        "HEAD": "10.77.0.1",
        "NODES": "2",
        "OUTPUT": str(output),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_TOKEN": "0" * 32,
    }
    script = [str(ROOT / "tests" / "sweeps" / "cluster" / "two_machines.sh"), str(own_ray.folder)]
    line = ["bash", str(ROOT / "examples" / "cluster" / "machines.sh"), str(sweep), "--quiet", "--no-report"]
    command = [*SPACES, "bash", *script, *line]
    done = subprocess.run(
        command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=800
    )
    logs = {name: (own_ray.folder / f"{name}.log").read_text() for name in ("alpha", "beta")}
    assert own_ray.processes() == []
    # exit codes say nothing: Ray's command has 0 where Ray did not come up, and 1 once the Ray that it joined stops
    assert output.is_dir(), (done.stderr, logs)
    trials = open_store(output).table("trials").to_pylist()
    assert {row["status"] for row in trials} == {"finished"}
    assert set(Counter(row["host"] for row in trials)) == {"alpha", "beta"}
    alone = json.dumps({**wide, "resources": {**wide["resources"], "concurrent": 1}})  # as many threads a trial
    sweep.write_text(alone)
    command = [sys.executable, "-m", "sweeps.cli.main", "run", str(sweep), "--set", f"output={tmp_path / 'whole'}"]
    subprocess.run([*command, "--quiet", "--no-report"], env=variables, cwd=tmp_path, capture_output=True, check=True)
    assert_same_results(output, tmp_path / "whole")
