"""A joined cluster whose head dies under the sweep, and one of another Ray: a message and an exit code each."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from sweeps.backends.ray.cluster.session import EXIT_LOST
from sweeps.backends.ray.pool import Pool
from tests.fakes import fake_plan
from tests.support import gone, wait_for
from tests.sweeps.cluster.support import Head, OwnRay
from tests.sweeps.support import DRIVER, StartDriver, Undisturbed, assert_same_tables, go, logged

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a head, and a driver that waits for it

GIVEN_UP_S = 26
"""After so many seconds without its control store Ray ends the driver with exit code 1."""
JOINING = DRIVER.replace(
    "print(run(plan, trial=TRIAL, progress=False).interrupted)",
    """
try:
    print(run(plan, trial=TRIAL, progress=False, address=address, restart=False).interrupted)
except RuntimeError as error:
    print("error:", error, file=sys.stderr)
    sys.exit(error.exit_code)
""",
)


@pytest.fixture
def head(own_ray: OwnRay) -> Iterator[Head]:
    started = Head(own_ray, RAY_gcs_rpc_server_reconnect_timeout_s=str(GIVEN_UP_S))
    yield started
    started.close()


@pytest.mark.parametrize("victim", ["gcs_server", "everything"])
def test_a_lost_head(
    tmp_path: Path,
    own_ray: OwnRay,
    head: Head,
    pool: Pool,
    undisturbed: Undisturbed,
    start_driver: StartDriver,
    victim: str,
) -> None:
    log, address = tmp_path / "log", head.address
    code = JOINING.replace("=address", f"={address!r}")
    running = start_driver(tmp_path / "r", log, 0.5, code, env=head.environment, stderr=subprocess.PIPE)
    wait_for(log.exists, "an epoch", 200)
    head.kill(victim)
    errors = running.communicate(timeout=100)[1]
    assert running.returncode == EXIT_LOST
    lost = f"Ray's control store at {address} takes no connections any more"
    given_up = "the process of Ray's driver ended with exit code 1"  # a busy machine lets Ray notice it first
    assert f"error: {lost}; finished" in errors or f"error: {given_up}" in errors
    assert "; finished trials are kept, and the same command goes on" in errors
    head.close()
    wait_for(lambda: gone(own_ray.processes()), "everything of the cluster to end", 60)
    go(fake_plan(tmp_path / "r", logged(log)), pool)
    assert_same_tables(tmp_path / "r", undisturbed(logged(log)))


def test_a_cluster_of_another_ray_is_refused(tmp_path: Path, head: Head, start_driver: StartDriver) -> None:
    # Ray's driver is in the same process here, for the release to be another one there too
    other = "import ray; ray.__version__ = '2.57.9'\nfrom sweeps.backends.ray.backend import open_here\n"
    code = other + JOINING.replace("=address", f"={head.address!r}").replace("restart=False", "backend=open_here")
    code = code.replace("sys.exit(error.exit_code)", "sys.exit(2)").replace("RuntimeError", "ValueError")
    running = start_driver(tmp_path / "r", tmp_path / "log", 0, code, env=head.environment, stderr=subprocess.PIPE)
    errors = running.communicate(timeout=200)[1]
    assert running.returncode == 2
    assert "error: --address" in errors and "Ray 2.57.9" in errors
    assert f"pip install 'ray[tune,train]=={ray.__version__}'" in errors
