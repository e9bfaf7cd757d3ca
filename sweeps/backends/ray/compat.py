"""All private names of Ray that this package uses, each with its reason.

They were tried with Ray 2.56.0 and 2.60.0. Each has a test in `tests/sweeps/cluster/test_compat.py`, which says what
breaks without it. `docs/decisions/0012-ray-releases.md` says which private names were replaced by public ones.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

OLDEST, NEWEST = "2.56", "2.60"
"""The oldest and the newest minor release of Ray that this package supports. They are also in pyproject.toml."""
COMMAND = (sys.executable, "-m", "ray.scripts.scripts")
"""The command `ray` of this Python. The script `ray` may belong to another Python, or may not be on PATH."""
NODE_LABEL = "ray.io/node-id"
"""The label that Ray gives every node. Ray documents it as a string."""


def supported(release: str) -> bool:
    """Return whether a Ray release, such as "2.58.1", is one of those that this package was tested with."""
    return _minor(OLDEST) <= _minor(release) <= _minor(NEWEST)


def _minor(release: str) -> tuple[int, int]:
    major, minor = release.split(".")[:2]
    return int(major), int(minor)


@contextlib.contextmanager
def loopback() -> Iterator[None]:
    """Let `ray.init` in the block bind 127.0.0.1 alone.

    Reason: Ray has no public option for this on Linux. The variable RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER does it for Ray's
    own processes, but this process read it when it first imported Ray, perhaps long before.
    """
    from ray._private import ray_constants

    variable = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    before = ray_constants.ENABLE_RAY_CLUSTER
    users_value = os.environ.get(variable)
    os.environ[variable] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        os.environ.pop(variable)
        if users_value is not None:
            os.environ[variable] = users_value


def read_authentication() -> None:
    """Let Ray read RAY_AUTH_MODE and the token again.

    Reason: Ray reads both once a process, and keeps them. A process can have one session after another, each with a
    token of its own, and it may have imported Ray before the first.
    """
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # no stubs

    Config.initialize("")  # first: a thread of Ray's that still ends must not look for a token that is gone
    AuthenticationTokenLoader.instance().reset_cache()


def log_errors_of_workers() -> None:
    """Send what Ray prints about workers that died to the log.

    Reason: Ray prints it to standard output, also with `log_to_driver=False`, and there it would break `--json`.
    """
    from ray._private import worker

    def log(data: dict[str, Any], *_: Any, **__: Any) -> None:
        logging.getLogger("sweeps.ray").info("%s", " ".join(map(str, data.get("lines", ()))))

    worker.print_to_stdstream = log


def free_resources() -> dict[str, dict[str, float]]:
    """Return the Ray resources that are free on each node, by the node's id.

    Reason: `ray.available_resources` is public, and is the sum over all nodes.
    """
    from ray._private.state import available_resources_per_node

    return dict(available_resources_per_node())


def free_room_of(actor: Any) -> None:
    """Remove the placement groups of an actor that has died. Do nothing if `actor` is None.

    Reason: Ray removes them when the driver ends too, and nobody else can use their room until then. The public
    `placement_group_table` does not say who made a group, and Ray Train's own cleaner needs a dashboard.
    """
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, PlacementGroupID, remove_placement_group

    if actor is None:
        return
    for data in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(data)
        made = group.creator_actor_id == actor._actor_id.binary()
        if made and group.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))


def death_of(error: Exception) -> Exception | None:
    """Return why a worker died, from what Ray Train tells a `UserCallback`; None if its training function raised.

    Reason: the callback is public, and the class of the errors that it is given is not.
    """
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return error.health_check_failure if isinstance(error, WorkerHealthCheckFailedError) else None


def ask_no_autoscaler(policy: Any) -> None:
    """Keep the scaling policy of a run of Ray Train from asking the cluster's autoscaler for the run's workers.

    Reason: Ray Train starts a process for each such request, and starts no worker before that process is ready. An
    autoscaler also remembers only the last request. So the run's request would replace the one that `Pool` makes for
    the whole sweep.
    """
    for name in ("_send_resource_request", "_maybe_send_resource_request", "_cancel_resource_request"):
        setattr(policy, name, _do_nothing)


def _do_nothing() -> None:
    """Do nothing. This is no lambda, because controllers of lanes must be able to load it by its name."""


class LeftError(Exception):
    """A thread has left `fit`. In `fit`, Ray would end the whole process as soon as the session is down."""


class OwnController:
    """A base class to name before `TorchTrainer`. The caller can place and end its controller.

    Reason: `fit` returns when the run ends, and until then nobody else has the controller's handle. It also starts
    processes that lanes have no use for. Two are started for each run: one for data sets, and one that frees placement
    groups and works only beside a dashboard. The third is in `ask_no_autoscaler`. `python -m benchmarks.start_up`
    measures what they cost.

    Attributes:
        controller: handle of the actor that runs the lane; None before there is one.
        place: the value that the label "ray.io/node-id" of its node must have.
        leave: once set, `fit` ends by `LeftError`, whatever the controller does.
    """

    controller: Any = None
    place: str
    leave: threading.Event

    def _initialize_and_run_controller(self, **how: Any) -> Any:
        import ray
        from ray.train.v2._internal.execution.controller import TrainController

        ask_no_autoscaler(how["scaling_policy"])
        variables = {name: value for name, value in os.environ.items() if name.startswith("RAY_TRAIN_")}
        actor = ray.remote(num_cpus=0, label_selector={NODE_LABEL: self.place}, runtime_env={"env_vars": variables})(
            TrainController
        )
        self.controller = actor.remote(**how)
        self._wait(self.controller.run.remote())
        return self._wait(self.controller.get_result.remote())

    def _wait(self, reference: Any) -> Any:
        import ray

        while not ray.wait([reference], timeout=0.5)[0]:
            if self.leave.is_set():
                raise LeftError
        return ray.get(reference)

    def _create_default_callbacks(self) -> list[Any]:
        unused = ("DatasetsCallback", "PlacementGroupCleanerCallback")
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # of TorchTrainer, the next base class
        return [callback for callback in callbacks if type(callback).__name__ not in unused]
