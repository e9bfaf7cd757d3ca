"""What breaks without each of Ray's private names, and that there are no others.

After a release of Ray this file fails first: `make test-ray RAY=2.61`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import create_scaling_policy
from ray.util import list_named_actors, placement_group, placement_group_table

from sweeps.backends.ray import compat
from sweeps.backends.ray.compat import NEWEST, OLDEST, OwnController, supported
from sweeps.backends.ray.pool import Pool
from tests.fakes import FakeCell, FakeSearch, fake_plan
from tests.support import ROOT, wait_for
from tests.sweeps.support import go

PRIVATE = re.compile(
    r"\bray(\.\w+)*\._[a-z]|\b_raylet\b|\bcore\.generated\b|\bray\.\S+ import .*\b_[a-zA-Z]|\._actor_id"
)


def python(code: str) -> subprocess.CompletedProcess[str]:
    """What a new process does, without the variables of the session that this one has."""
    usual = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=usual, capture_output=True, text=True, check=False)


def test_private_names_stand_in_one_file() -> None:
    files = [path for room in ("sweeps", "trainables", "analysis") for path in (ROOT / room).rglob("*.py")]
    found = {
        path.relative_to(ROOT).as_posix(): line
        for path in files
        for line in path.read_text(encoding="utf-8").splitlines()
        if PRIVATE.search(line)
    }
    assert set(found) == {"sweeps/backends/ray/compat.py"}, found


@pytest.mark.parametrize(
    ("release", "is_one"),
    [(f"{OLDEST}.0", True), (f"{NEWEST}.3", True), ("2.54.1", False), ("2.61.0", False), ("3.0.0.dev0", False)],
)
def test_which_releases_are_supported(release: str, is_one: bool) -> None:
    assert supported(release) == is_one


def test_the_window_is_the_one_that_is_installed_and_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    major, newest = NEWEST.split(".")
    bounds = f">={OLDEST},<{major}.{int(newest) + 1}"
    asked = [*project["dependencies"], *project["optional-dependencies"]["cluster"]]
    assert [line.partition("]")[2] for line in asked if line.startswith("ray[")] == [bounds] * 2
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs["ray"]["strategy"]["matrix"]["ray"] == [OLDEST, NEWEST]
    assert int(newest) - int(OLDEST.split(".")[1]) >= 2  # the three newest minor releases
    assert supported(ray.__version__)


def test_the_command_is_this_rays() -> None:
    said = subprocess.run([*compat.COMMAND, "--version"], capture_output=True, text=True, check=True).stdout
    assert ray.__version__ in said


def test_nodes_are_labelled_with_their_ids(pool: Pool) -> None:
    (node,) = ray.nodes()
    assert node["Labels"][compat.NODE_LABEL] == node["NodeID"]


def test_ray_binds_loopback_though_it_was_imported_before() -> None:
    """Without: Ray's ports are open to the network, under the machine's own address."""
    code = """
import ray
from sweeps.backends.ray.compat import loopback
with loopback():
    print(ray.util.get_node_ip_address())
"""
    assert python(code).stdout.split() == ["127.0.0.1"]


TWO = """
import os, ray
from sweeps.backends.ray.cluster.session import Session

@ray.remote(num_cpus=0, max_retries=0)
def die():
    os._exit(7)

for _ in range(2):
    with Session() as session:
        session.connect()
        try:
            ray.get(die.remote())
        except ray.exceptions.RayError as error:
            print(type(error).__name__)
"""


@pytest.mark.timeout(300)
def test_one_session_after_another_each_with_its_token() -> None:
    """Without `read_authentication` the second refuses its driver; without the log stdout has Ray's words too."""
    done = python(TWO)
    assert done.stdout.split() == ["WorkerCrashedError"] * 2, done.stderr


def test_what_is_free_is_known_node_by_node(pool: Pool) -> None:
    (node,) = ray.nodes()
    assert set(compat.free_resources()) == {node["NodeID"]}
    wait_for(lambda: compat.free_resources()[node["NodeID"]].items() >= cpus(ray.available_resources()), "the same")


def cpus(resources: dict[str, float]) -> set[tuple[str, float]]:
    return {(name, value) for name, value in resources.items() if name == "CPU"}


@ray.remote(num_cpus=0)
class Maker:
    """An actor that makes a placement group, as a lane's controller does."""

    def make(self) -> str:
        return str(placement_group([{"node:__internal_head__": 0.001}]).id.hex())


def test_room_of_a_dead_actor_is_freed(pool: Pool) -> None:
    """Without: Ray keeps it until the driver ends."""
    makers: list[Any] = [Maker.remote() for _ in range(2)]  # type: ignore[attr-defined]  # Ray's decorator
    dead, other = ray.get([maker.make.remote() for maker in makers])

    def state(group: str) -> str:
        return str(placement_group_table()[group]["state"])

    def answers(maker: Any) -> bool:
        try:
            ray.get(maker.__ray_ready__.remote())
        except ray.exceptions.RayActorError:
            return False
        return True

    ray.kill(makers[0])
    wait_for(lambda: not answers(makers[0]), "the actor's death")
    assert state(dead) != "REMOVED"
    compat.free_room_of(makers[0])
    wait_for(lambda: state(dead) == "REMOVED", "its room")
    assert state(other) != "REMOVED"
    compat.free_room_of(makers[1])
    ray.kill(makers[1])


def test_a_death_is_told_from_an_error_of_a_trial() -> None:
    """Without: workers that died are not known as such, and their trials' reasons are lost."""
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    cause = ray.exceptions.OutOfMemoryError("too much")
    assert compat.death_of(WorkerHealthCheckFailedError("a check failed", cause)) is cause
    assert compat.death_of(ValueError("a trial's")) is None


class Controlled(OwnController, TorchTrainer):  # type: ignore[misc]
    pass


def test_a_lane_starts_two_processes_less(tmp_path: Path) -> None:
    """Without: each lane has two processes more. That its controller can be ended is in test_lanes.py."""
    how: dict[str, Any] = {"scaling_config": ScalingConfig(), "run_config": RunConfig(storage_path=str(tmp_path))}
    usual, ours = (made(lambda: None, **how)._create_default_callbacks() for made in (TorchTrainer, Controlled))
    names = [{type(callback).__name__ for callback in callbacks} for callbacks in (usual, ours)]
    assert names[0] - names[1] == {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    assert "_initialize_and_run_controller" in vars(OwnController) and hasattr(
        TorchTrainer, "_initialize_and_run_controller"
    )


def test_lanes_leave_the_request_for_nodes_to_the_pool(tmp_path: Path, pool: Pool) -> None:
    """Without: Ray Train starts a process for requests, which replace the pool's own in the autoscaler's memory."""
    policy = create_scaling_policy(ScalingConfig(num_workers=1))
    names = {
        name for name in dir(policy) if re.fullmatch("_[a-z_]*send_resource_request|_cancel_resource_request", name)
    }
    compat.ask_no_autoscaler(policy)
    assert len(names) == 3 and names <= set(vars(policy))
    search = FakeSearch(trials=1, rerun_rates=0, rerun_seeds=0)
    assert go(fake_plan(tmp_path / "r", (FakeCell("lora"),), search=search), pool).complete
    assert "AutoscalingCoordinator" not in {actor["name"] for actor in list_named_actors(all_namespaces=True)}


def test_controllers_load_no_torch() -> None:
    """Without: each takes twice the memory."""
    done = python("import sys, sweeps.backends.ray.lanes.controllers; print('torch' in sys.modules)")
    assert done.stdout.split() == ["False"], done.stderr
