"""Lanes end, whatever they are in the middle of, before their session does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup, PlacementGroupID

from sweeps.broker import Broker
from sweeps.cluster import Pool
from sweeps.lanes import Lanes
from sweeps.resources import LaneShape


def wait_for(ready: Callable[[], object], timeout: float = 30.0) -> None:
    end = time.monotonic() + timeout
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


def waiting_groups() -> set[str]:
    return {group for group, facts in placement_group_table().items() if facts["state"] == "PENDING"}


@pytest.mark.timeout(120)
def test_a_lane_that_waits_for_room_is_ended(tmp_path: Path, pool: Pool) -> None:
    """As after the loss of its machine: its thread is in Ray, which ends a process that calls it too late."""
    others, threads = waiting_groups(), set(threading.enumerate())
    broker = ray.remote(num_cpus=0)(Broker).remote()
    try:
        lanes = Lanes(broker, [LaneShape(2, False, {"CPU": 1.0})], tmp_path)  # the pool's lane has all CPUs
        wait_for(lambda: waiting_groups() - others)
        controller = ray.get(broker.controllers.remote())["lane0"]
        ray.get(broker.shutdown.remote())
        assert lanes.stop(0.2)
        assert "lane0" not in {thread.name for thread in set(threading.enumerate()) - threads}
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(controller.get_result.remote(), timeout=10)
    finally:
        ray.kill(broker)
        for group in waiting_groups() - others:
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group)))
