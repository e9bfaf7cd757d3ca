"""A whole machine is lost in the middle of its trials: two raylets on loopback, one of them killed with all it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.store.store import open_store
from sweeps.backends.ray.pool import Pool
from tests.support import ROOT
from tests.sweeps.cluster.support import OwnRay
from tests.sweeps.support import Undisturbed, assert_same_tables, logged


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "how", ["", "back", "away"], ids=["none-comes-back", "another-takes-its-place", "controllers-away-from-the-head"]
)
def test_a_lost_machine(tmp_path: Path, own_ray: OwnRay, pool: Pool, undisturbed: Undisturbed, how: str) -> None:
    log = tmp_path / "log"
    delay = "1" if how == "back" else "0.3"  # a worker on the other machine takes a while to start
    command = [
        sys.executable,
        "-m",
        "tests.sweeps.cluster.two_raylets",
        str(tmp_path / "r"),
        str(log),
        delay,
        *how.split(),
    ]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=own_ray.environment, timeout=600, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["finished"], found["failed"]) == (32, 0)
    lines = [line.split() for line in log.read_text().splitlines()]
    lost = {trial for trial, _, pid in lines if int(pid) in found["lost"]}
    moved = {trial for trial, _, pid in lines if trial in lost and int(pid) not in found["lost"]}
    assert moved, "no trial of the lost machine was in the middle"
    epochs = [int(epoch) for trial, epoch, pid in lines if trial in moved and int(pid) not in found["lost"]]
    assert 1 not in epochs, "a trial did not go on from its checkpoint"
    workers = {int(pid) for _, _, pid in lines}
    if how == "away":  # a lane whose controller was lost too starts again, with another worker
        assert found["controllers"] == 0 and len(workers) >= 2
    else:
        assert found["controllers"] == 2 and len(workers) == (3 if how else 2)
    assert set(open_store(tmp_path / "r").table("trials")["attempt"].to_pylist()) == {1}  # a loss is no trial's doing
    assert_same_tables(tmp_path / "r", undisturbed(logged(log)))
