"""Lanes end, whatever they are in the middle of, before their session does, and leave no room taken."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup, PlacementGroupID

from sweeps.cluster.resources import LaneShape
from sweeps.lanes import lanes
from sweeps.lanes.broker import Broker
from sweeps.lanes.lanes import Lanes
from sweeps.lanes.pool import Pool

pytestmark = pytest.mark.timeout(300)


def wait_for(ready: Callable[[], object], timeout: float = 90.0) -> None:
    end = time.monotonic() + timeout
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


def waiting_groups() -> set[str]:
    return {group for group, facts in placement_group_table().items() if facts["state"] == "PENDING"}


class Waiting:
    """A lane that waits for room, as after the loss of its machine: the pool's lane has all CPUs."""

    def __init__(self, folder: Path) -> None:
        self.others, self.threads = waiting_groups(), set(threading.enumerate())
        self.broker = ray.remote(num_cpus=0)(Broker).remote()
        self.lanes = Lanes(self.broker, [LaneShape(2, False, {"CPU": 1.0})], folder)

    def groups(self) -> set[str]:
        return waiting_groups() - self.others

    @property
    def controller(self) -> Any:
        return self.lanes._lanes[0].controller

    def ended(self) -> bool:
        """Its thread is in Ray, which ends a process that calls it too late."""
        return "lane0" not in {thread.name for thread in set(threading.enumerate()) - self.threads}


@pytest.fixture
def waiting(tmp_path: Path, pool: Pool) -> Iterator[Waiting]:
    made = Waiting(tmp_path)
    try:
        wait_for(lambda: made.groups() and made.controller is not None)
        yield made
    finally:
        made.lanes.stop(0.0)
        ray.kill(made.broker)
        for group in made.groups():
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group)))


def test_a_lane_that_waits_for_room_is_ended(waiting: Waiting) -> None:
    controller = waiting.controller
    ray.get(waiting.broker.shutdown.remote())
    assert waiting.lanes.stop(0.2)
    assert waiting.ended()
    wait_for(lambda: not waiting.groups())
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(controller.get_result.remote(), timeout=10)


def test_lanes_end_without_their_broker(waiting: Waiting) -> None:
    ray.kill(waiting.broker)
    assert waiting.lanes.stop(0.2)
    assert waiting.ended()


@pytest.mark.slow
def test_a_lane_whose_controller_hangs_leaves_ray(waiting: Waiting) -> None:
    """As when Ray's own processes died, and nobody hears of anything any more."""
    family = psutil.Process().children(recursive=True)
    process = max((p for p in family if "TrainController" in " ".join(p.cmdline())), key=lambda p: p.create_time())
    process.suspend()
    try:
        assert waiting.lanes.leave()
        assert waiting.ended()
    finally:
        process.kill()


@pytest.mark.slow
def test_a_controller_that_dies_early_leaves_no_room_taken(waiting: Waiting) -> None:
    """Before its workers have told anybody that they are there: the next one would wait for their room for ever."""
    before = waiting.groups()
    ray.kill(waiting.controller)
    wait_for(lambda: waiting.groups() - before)
    wait_for(lambda: not waiting.groups() & before)
    assert waiting.lanes.stop(0.2)


@pytest.mark.slow
def test_a_lane_is_started_again_where_ray_refuses_for_a_moment(
    waiting: Waiting, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refused, real, before = [], lanes._free, waiting.controller
    monkeypatch.setattr(lanes, "_TELL_S", 0.1)

    def free(controller: Any) -> None:
        if len(refused) < 2:
            refused.append(controller)
            raise RuntimeError("the control store is busy")
        real(controller)

    monkeypatch.setattr(lanes, "_free", free)
    ray.kill(before)
    wait_for(lambda: waiting.controller not in (None, before))
    assert len(refused) == 2 and waiting.lanes.down is None
    assert "could not be started again: RuntimeError: the control store is busy" in caplog.text


def test_a_lane_that_ray_never_frees_is_down_and_says_why(waiting: Waiting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "_TELL_S", 0.01)
    monkeypatch.setattr(lanes, "_free", lambda _: 1 / 0)
    assert waiting.lanes.down is None
    ray.kill(waiting.controller)
    wait_for(waiting.ended)
    assert "could not be started again: ZeroDivisionError" in str(waiting.lanes.down)
    monkeypatch.undo()
    waiting.lanes.ending()
    assert waiting.lanes.down is None  # nobody is missed
