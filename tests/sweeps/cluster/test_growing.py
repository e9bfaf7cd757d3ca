"""A joined cluster that grows and shrinks during a sweep, and the nodes that join."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from analysis.store.store import open_store
from sweeps.backends.needs import Needs
from sweeps.backends.ray.cluster import nodes
from sweeps.backends.ray.cluster.nodes import ClusterNodes
from sweeps.backends.ray.lanes.lanes import Lanes
from sweeps.backends.ray.pool import Pool
from sweeps.backends.resources import LaneShape, Node, ResourceError
from tests.fakes import FakeResources
from tests.support import ROOT, wait_for
from tests.sweeps.cluster.support import OwnRay
from tests.sweeps.support import Undisturbed, assert_same_tables, events, logged


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_lanes_follow_a_cluster_that_grows_and_shrinks(
    tmp_path: Path, own_ray: OwnRay, pool: Pool, undisturbed: Undisturbed
) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-m", "tests.sweeps.cluster.growing", str(tmp_path / "r"), str(log)]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=own_ray.environment, timeout=700, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["finished"], found["failed"]) == (32, 0)
    assert found["before"] == 1
    assert found["workers"] == 3  # two at a time, and another one after the loss
    assert [event["workers"] for event in events(tmp_path / "r", "workers")] == [2]
    assert any("trials at a time: 2 (before: 1)" in note for note in found["notes"])
    assert set(open_store(tmp_path / "r").table("trials")["attempt"].to_pylist()) == {1}
    assert_same_tables(tmp_path / "r", undisturbed(logged(log)))


def test_a_node_that_joins_is_asked_before_it_gets_trials(
    tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (node,) = ray.nodes()
    monkeypatch.setattr(ray, "nodes", lambda: [])
    cluster = ClusterNodes(tmp_path / "work" / "ray", Needs(("/not/there",)))
    assert cluster.check() == []
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    assert cluster.usable_nodes() == []  # it has not answered
    wait_for(lambda: cluster.usable_nodes() or cluster.refused, "the node's answer", 60)
    assert list(cluster.refused) == [node["NodeID"]] and "/not/there" in caplog.text
    assert cluster.usable_nodes() == []
    assert list((tmp_path / "work" / "ray").iterdir()) == []
    fit = ClusterNodes(tmp_path / "work" / "ray", Needs())
    wait_for(fit.usable_nodes, "the node's answer", 60)
    assert fit.usable_nodes() == [Node(node["Resources"]["CPU"], node["Resources"].get("GPU", 0.0), node["NodeID"])]
    monkeypatch.setattr(nodes, "NodeCheck", None)  # nobody is asked twice
    monkeypatch.setattr(ray, "nodes", lambda: [node | {"Alive": False}])
    assert fit.usable_nodes() == []


def test_a_pool_starts_and_ends_lanes_as_nodes_join_and_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = [Node(2, 0, "a")]
    shapes = {"lane0": LaneShape(2, False, {"CPU": 1.0})}
    ended: list[str] = []

    def change(start: list[LaneShape], end: list[str]) -> None:
        for shape in start:
            shapes[f"lane{len(shapes) + len(ended)}"] = shape
        for name in end:
            ended.append(name)
            del shapes[name]

    notes: list[str] = []
    joined = Pool(FakeResources(max_concurrent=5), tmp_path, address="auto", note=notes.append)
    joined._cluster = SimpleNamespace(usable_nodes=lambda: there, refused={})  # type: ignore[assignment]
    joined._lanes = SimpleNamespace(shapes=shapes, change=change)
    joined.shapes, joined._broker_status = [*shapes.values()], {"busy": 0, "nodes": {"lane0": "a"}}
    joined.follow_nodes()
    assert joined.trials == 2 and not notes
    there += [Node(2, 0, "b"), Node(0, 0, "head"), Node(2, 0, "c")]
    joined.follow_nodes()
    assert joined.trials == 2  # it looked a moment ago
    monkeypatch.setattr("sweeps.backends.ray.pool.FOLLOW_S", 0.0)
    joined.follow_nodes()
    assert [shape.workers for shape in joined.shapes] == [2, 2, 1]  # five at most
    assert notes == ["nodes that can train: 3; trials at a time: 5 (before: 2)"]
    joined._broker_status["nodes"] |= {"lane1": "b", "lane2": "c"}
    there[:] = there[-1:]
    joined.follow_nodes()
    assert joined.trials == 5 and not ended  # the losses may not all be known
    monkeypatch.setattr("sweeps.backends.ray.pool.UNPLACED_S", -1.0)
    joined.follow_nodes()
    assert ended == ["lane0", "lane1"] and joined.trials == 2  # another lane has taken the room that is left
    del there[:]
    joined.follow_nodes()
    assert list(shapes) == ["lane2", "lane3"]
    joined.follow_nodes()
    assert list(shapes) == ["lane3"]  # the last lane waits, and tells if no node comes any more


def test_a_lane_that_is_too_large_for_every_node_gives_its_trials_to_smaller_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.backends.ray.pool.FOLLOW_S", 0.0)
    monkeypatch.setattr("sweeps.backends.ray.pool.UNPLACED_S", -1.0)
    changes: list[tuple[list[int], list[str]]] = []
    shapes = {"lane0": LaneShape(2, False, {"CPU": 1.0})}
    pool = Pool(FakeResources(max_concurrent=2), tmp_path, address="auto")
    pool._cluster = SimpleNamespace(usable_nodes=lambda: [Node(1, 0, "small")], refused={})  # type: ignore[assignment]
    change = lambda start, end: changes.append(([shape.workers for shape in start], end))  # noqa: E731
    pool._lanes = SimpleNamespace(shapes=shapes, change=change)
    pool.follow_nodes()
    pool.follow_nodes()
    assert changes == [([], []), ([1], ["lane0"])]


def test_the_start_waits_for_the_room_that_the_sweep_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[Node] = []
    looks = iter([[Node(1, 0, "a")], [Node(1, 0, "a"), Node(2, 0, "b")]])

    def look() -> list[Node]:
        there[:] = next(looks, there)
        return there

    monkeypatch.setattr("sweeps.backends.ray.pool.session_nodes", look)
    monkeypatch.setattr("sweeps.backends.ray.pool._LOOK_S", 0.0)
    notes: list[str] = []
    joined = Pool(FakeResources(min_concurrent=3), tmp_path, address="auto", note=notes.append)
    joined._wait_for_nodes(1.0, time.monotonic() + 60)
    (note,) = notes
    assert note.startswith("waiting 600 s at most for room for 3 trials at a time (resources.min_concurrent). Now: 1 ")
    joined = Pool(FakeResources(min_concurrent=4), tmp_path, address="auto")
    with pytest.raises(ResourceError) as raised:
        joined._wait_for_nodes(1.0, time.monotonic())
    (problem,) = raised.value.problems
    assert (problem.field, problem.value, problem.nearest) == ("resources.min_concurrent", 4, "min_concurrent = 3")
    here = Pool(FakeResources(min_concurrent=4), tmp_path)
    here._wait_for_nodes(1.0, time.monotonic())  # nothing joins a session of our own: the plan is refused at once


def test_lanes_that_are_added_run_beside_the_others_and_those_that_are_ended_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: Pool
) -> None:
    running: dict[str, Any] = {}
    killed: list[Any] = []

    def fit(self: Lanes, lane: Any, number: int) -> None:
        lane.trainer = running[lane.name] = SimpleNamespace(controller=lane.name)
        wait_for(lambda: lane.name in killed or self._stopping.is_set(), "the end", 60)
        if lane.name in killed:
            raise RuntimeError("the actor died")

    told: list[tuple[str, bool]] = []

    def lane_lost(lane: str, why: str, final: bool, up_s: float) -> Any:
        told.append((lane, final))
        return ray.put("failed")

    monkeypatch.setattr(Lanes, "_run_once", fit)
    monkeypatch.setattr("sweeps.backends.ray.lanes.lanes.free_room_of", lambda _: None)
    monkeypatch.setattr(ray, "kill", killed.append)
    one = LaneShape(1, False, {"CPU": 1.0})
    lanes = Lanes(SimpleNamespace(lane_lost=SimpleNamespace(remote=lane_lost)), [one, one], tmp_path)
    lanes.start()
    try:
        wait_for(lambda: len(running) == 2, "two lanes", 60)
        first = dict(running)
        lanes.change([LaneShape(2, False, {"CPU": 1.0})], ())
        wait_for(lambda: len(running) == 3, "the third lane", 60)
        assert first.items() <= running.items() and list(lanes.shapes) == ["lane0", "lane1", "lane2"]
        lanes.change([], ["lane1"])
        assert list(lanes.shapes) == ["lane0", "lane2"]
        wait_for(lambda: told, "the end of the lane", 60)
        assert killed == ["lane1"] and told == [("lane1", False)]
        lanes.change([one], ())
        assert list(lanes.shapes) == ["lane0", "lane2", "lane3"]
    finally:
        assert lanes.stop(10.0)
