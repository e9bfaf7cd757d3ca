"""Lanes end, whatever they are in the middle of, before their session does, and leave no room taken."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup, PlacementGroupID

from sweeps.backends.ray.lanes import controllers, lanes
from sweeps.backends.ray.lanes.broker import Broker, BrokerActor
from sweeps.backends.ray.lanes.lanes import Lanes
from sweeps.backends.ray.pool import Pool
from sweeps.backends.resources import LaneShape, Node, ResourceError
from tests.fakes import FakeResources
from tests.sweeps.lanes.support import W0, Answers, run, started

pytestmark = pytest.mark.timeout(300)


def wait_for(ready: Callable[[], object], timeout: float = 90.0) -> None:
    end = time.monotonic() + timeout
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


def context(words: str) -> ActorDiedErrorContext:
    """Why an actor died, as Ray's control store says it."""
    return ActorDiedErrorContext(error_message=words, class_name="RayTrainWorker", actor_id=bytes(16))


def waiting_groups() -> set[str]:
    return {group for group, facts in placement_group_table().items() if facts["state"] == "PENDING"}


def test_lanes_that_came_back_are_not_given_up(tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each machine was away once, one after the other: one lane was always up."""
    broker = ray.remote(num_cpus=0)(Broker).remote()
    tries: dict[str, int] = {"lane0": 0, "lane1": 0}
    away, over = {"lane0"}, threading.Event()

    def fit(self: Lanes, lane: Any, number: int) -> None:
        tries[lane.name] += 1
        if lane.name not in away:
            ray.get(broker.hello.remote(f"{lane.name}/0", str(number)))
            while not over.is_set() and lane.name not in away:
                time.sleep(0.01)
        if not over.is_set():
            raise ControllerError(RuntimeError(f"no room for {lane.name}"))

    monkeypatch.setattr(Lanes, "_run_once", fit)
    monkeypatch.setattr(lanes, "RETRY_S", 0.01)
    started = Lanes(broker, [LaneShape(1, False, {"CPU": 1.0})] * 2, tmp_path)
    started.start()
    try:
        wait_for(lambda: tries["lane0"] > 2 * lanes.LANE_TRIES)
        away.remove("lane0")
        wait_for(lambda: "lane0/0" in ray.get(broker.status.remote())["workers"])
        away.add("lane1")
        wait_for(lambda: tries["lane1"] > 2 * lanes.LANE_TRIES)
        assert ray.get(broker.status.remote())["dead"] is None and started.down is None
        away.update(tries)
        wait_for(lambda: ray.get(broker.status.remote())["dead"])
        assert ray.get(broker.status.remote())["dead"].startswith("RuntimeError: no room for lane")
    finally:
        over.set()
        assert started.stop(5.0)
        ray.kill(broker)


def test_a_lane_under_which_trials_get_on_is_not_given_up() -> None:
    async def scenario() -> None:
        broker = await started("a")
        await broker.next(W0, "t", 1)
        await broker.report(W0, "t", "a", {"epoch": 1})
        assert [await broker.lane_lost("lane0", "gone", True, 60.0) for _ in "12"] == [
            "worked"
        ] * 2  # Ray may ask twice
        assert await broker.lane_lost("lane0", "gone for good", True, 0.0) == "gone"  # nothing since it was started

    run(scenario())


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (ray.exceptions.ActorDiedError(context("The actor died because its node has died. Node Id: 7")), None),
        (ray.exceptions.ActorUnavailableError("RPC failed", None), None),
        (ray.exceptions.ActorDiedError(context("The process was killed")), "ActorDiedError: The actor died"),
        (ray.exceptions.OutOfMemoryError("too much"), "OutOfMemoryError: too much"),
    ],
)
def test_what_is_told_of_a_worker_that_died(
    cause: Exception, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controllers.ray, "get", lambda answer: answer)
    broker = Answers()
    failure = WorkerHealthCheckFailedError("a worker health check failed", cause)
    controllers.Deaths(broker, "lane0", False).after_exception(None, {1: failure})
    (((lane, reasons),),) = broker.given.values()
    assert lane == "lane0" and list(reasons) == ["lane0/1"]
    assert reasons["lane0/1"] is None if said is None else reasons["lane0/1"].startswith(said)


def test_what_others_have_taken_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [{}, {"a": {"CPU": 1.0}}, {"a": {"CPU": 2.0}}]
    monkeypatch.setattr("sweeps.backends.ray.pool.free_resources", lambda: free.pop(0))
    monkeypatch.setattr("sweeps.backends.ray.pool._resources_in_use", lambda: "2 of 2 CPU(s) are taken")
    monkeypatch.setattr("sweeps.backends.ray.pool._LOOK_S", 0.01)
    notes: list[str] = []
    joined = Pool(FakeResources(), tmp_path, address="auto", note=notes.append)
    joined._wait_for_room([LaneShape(2, False, {"CPU": 1.0}), LaneShape(1, False, {"CPU": 2.0})])
    assert (free, notes) == ([], ["waiting for room beside what others run (2 of 2 CPU(s) are taken)"])


def test_a_pool_without_room_is_refused_and_says_who_has_it(
    tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool's lane has two CPUs."""
    wait_for(lambda: len(ray.get(pool.broker.status.remote())["workers"]) == 2)
    monkeypatch.setattr("sweeps.backends.ray.pool.ROOM_S", 0.1)
    cpus = ray.cluster_resources()["CPU"]
    said = rf"no lane fits beside what others run \(2 of {cpus:g} CPU\(s\) are taken\).*the same command when they are"
    with pytest.raises(ResourceError, match=said), Pool(FakeResources(cpus_per_worker=cpus), tmp_path):
        pass
    assert ray.is_initialized()


def test_each_machine_is_asked_for_its_smallest_gpu(
    tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here = Node(2.0, 2.0, ray.get_runtime_context().get_node_id())
    assert pool._memories([Node(2.0, 1.0, "one is all there is")]) == []
    assert pool._memories([here]) == []
    assert "all GPUs are assumed to be as large as the probed one" in caplog.text  # there is none
    monkeypatch.setattr("sweeps.backends.ray.pool.smallest_gpu", lambda: 40 * 2**30)
    assert pool._memories([here, here]) == [40 * 2**30] * 2


class Waiting:
    """A lane that waits for room, as after the loss of its machine: the pool's lane has all CPUs."""

    def __init__(self, folder: Path) -> None:
        self.others, self.threads = waiting_groups(), set(threading.enumerate())
        self.broker = ray.remote(num_cpus=0)(Broker).remote()
        self.lanes = Lanes(self.broker, [LaneShape(2, False, {"CPU": 1.0})], folder)
        self.lanes.start()

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


class _OfKnownProcess(BrokerActor):
    async def process(self) -> int:
        return os.getpid()


def test_sigterm_ends_a_broker_although_a_call_of_it_waits(pool: Pool) -> None:
    """Ray's own handler waits for the call, which waits for the call of a worker that is not taken any more."""
    broker = ray.remote(num_cpus=0)(_OfKnownProcess).remote()
    ray.get(broker.submit.remote({"a": {"timeout": None, "attempts": 1}}, None))
    waiting = broker.step.remote("a", 1)
    process = ray.get(broker.process.remote())
    assert not ray.wait([waiting], timeout=0.5)[0]
    os.kill(process, signal.SIGTERM)
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(waiting, timeout=120)


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
    refused, real, before = [], lanes.free_room_of, waiting.controller
    monkeypatch.setattr(lanes, "_TELL_S", 0.1)

    def free(controller: Any) -> None:
        if len(refused) < 2:
            refused.append(controller)
            raise RuntimeError("the control store is busy")
        real(controller)

    monkeypatch.setattr(lanes, "free_room_of", free)
    ray.kill(before)
    wait_for(lambda: waiting.controller not in (None, before))
    assert len(refused) == 2 and waiting.lanes.down is None
    assert "could not be started again: RuntimeError: the control store is busy" in caplog.text


def test_a_lane_that_ray_never_frees_is_down_and_says_why(waiting: Waiting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "_TELL_S", 0.01)
    monkeypatch.setattr(lanes, "free_room_of", lambda _: 1 / 0)
    assert waiting.lanes.down is None
    ray.kill(waiting.controller)
    wait_for(waiting.ended)
    assert "could not be started again: ZeroDivisionError" in str(waiting.lanes.down)
    monkeypatch.undo()
    waiting.lanes.ending()
    assert waiting.lanes.down is None  # nobody is missed
