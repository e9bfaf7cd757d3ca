"""An allowance in seconds on a joined cluster of two raylets, whose machines are of one kind or of two."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.sweeps.cluster.support import OwnRay

CODE = """
import json, os, sys
from pathlib import Path
from tests.sweeps.cluster.two_raylets import SMALL, Cluster  # sets what keeps Ray on loopback
from sweeps import devices
from sweeps.cluster.hardware import DeviceError
from sweeps.engine.run import run
from tests.fakes import TRIAL, FakeCell, FakeResources, FakeSamples, FakeSearch, fake_plan

def names():
    return os.environ.get("TEST_CPU", "none"), ()

devices.names_here = names
cluster = Cluster()
said = []
try:
    cluster.add_node(num_cpus=0, object_store_memory=SMALL, include_dashboard=False)
    cells = (FakeCell("lora", options=(("seconds", 20.0),)),)
    search = FakeSearch(sampler="qmc", allowance=FakeSamples(seconds=320))
    for number, kind in enumerate(("Xeon 6", "EPYC 9")):
        cluster.add_node(num_cpus=1, object_store_memory=SMALL, env_vars={"TEST_CPU": kind})
        plan = fake_plan(Path(sys.argv[1]) / str(number), cells, search=search, resources=FakeResources())
        try:
            said.append(run(plan, trial=TRIAL, progress=False, address=cluster.address).finished)
        except DeviceError as error:
            said.append(str(error))
finally:
    cluster.shutdown()
print(json.dumps(said))
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_cluster_of_one_kind_runs_and_of_two_is_refused(tmp_path: Path, own_ray: OwnRay) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)],
        cwd=ROOT,
        env=own_ray.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=380,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    finished, refused = json.loads(done.stdout.splitlines()[-1])
    assert finished == 5 + 1 + 2
    assert "trials may run on Xeon 6 (" in refused
    assert "; EPYC 9 (" in refused
    assert (tmp_path / "0" / "journal.jsonl").exists()
    assert not (tmp_path / "1").exists()
