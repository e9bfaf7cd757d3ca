from __future__ import annotations

import pytest

from sweeps.backends.resources import LaneShape, Node, ResourceError, plan_lanes, workers_that_fit
from tests.fakes import FakeResources

LAPTOP = [Node(2, 0)]
SERVER = [Node(16, 4)]


def lanes(nodes: list[Node], **asked: object) -> list[tuple[int, bool]]:
    return [(lane.workers, lane.group) for lane in plan_lanes(FakeResources(**asked), nodes)]  # type: ignore[arg-type]


def test_independent_workers_share_one_lane_a_machine() -> None:
    assert lanes(LAPTOP) == [(2, False)]
    assert lanes(LAPTOP, concurrent=1) == [(1, False)]
    assert lanes(LAPTOP, cpus_per_worker=2) == [(1, False)]
    assert lanes(LAPTOP, cpus_per_worker=0.5) == [(4, False)]
    assert lanes([Node(4, 0), Node(8, 0)], concurrent=10) == [(8, False), (2, False)]


def test_a_lane_leaves_larger_machines_to_larger_lanes() -> None:
    nodes = [Node(4, 0, "c"), Node(8, 0, "a"), Node(8, 0, "b"), Node(0, 0, "head")]
    found = [(lane.workers, lane.avoids) for lane in plan_lanes(FakeResources(concurrent=18), nodes)]
    assert found == [(8, ()), (8, ()), (2, ("a", "b"))]


def test_groups_have_a_lane_each() -> None:
    assert lanes([Node(4, 0), Node(4, 0)], workers=2) == [(2, True)] * 4
    assert lanes([Node(4, 0)], workers=3) == [(3, True)]


def test_gpus_are_used_where_there_are_any() -> None:
    assert lanes(SERVER, gpus_per_worker="auto") == [(4, False)]
    assert lanes(LAPTOP, gpus_per_worker="auto") == [(2, False)]
    assert lanes(SERVER, gpus_per_worker=0.5) == [(8, False)]
    assert plan_lanes(FakeResources(gpus_per_worker="auto"), SERVER) == [LaneShape(4, False, {"CPU": 1.0, "GPU": 1.0})]


def test_the_room_that_others_leave() -> None:
    free = {"a": {"CPU": 4.0, "GPU": 0.5}, "b": {"CPU": 2.5, "memory": 1e9}}
    assert workers_that_fit(LaneShape(4, False, {"CPU": 1.0}), free) == 4
    assert workers_that_fit(LaneShape(4, False, {"CPU": 1.0}, avoids=("a",)), free) == 2
    assert workers_that_fit(LaneShape(4, True, {"CPU": 1.0}), free) == 6
    assert workers_that_fit(LaneShape(4, False, {"CPU": 1.0, "GPU": 0.25}), free) == 2
    assert workers_that_fit(LaneShape(1, False, {"CPU": 1.0}), {}) == 0


@pytest.mark.parametrize(
    ("nodes", "asked", "message"),
    [
        (LAPTOP, {"concurrent": 3}, r"concurrent = 3: 2 trial\(s\).*Nearest: concurrent = 2"),
        (
            LAPTOP,
            {"cpus_per_worker": 64},
            r"cpus_per_worker = 64.0: this machine has 2 CPU.*Nearest: cpus_per_worker = 2",
        ),
        (
            LAPTOP,
            {"gpus_per_worker": 1},
            r"gpus_per_worker = 1.0: this machine has 0 GPU.*Nearest: gpus_per_worker = 0",
        ),
        (LAPTOP, {"workers": 4}, r"workers = 4: 2 worker\(s\) of 1 CPU\(s\) fit.*Nearest: workers = 2"),
        (SERVER, {"workers": 2, "gpus_per_worker": 0.5}, r"takes whole GPUs"),
        (SERVER, {"gpus_per_worker": 1.5}, r"whole number.*gpus_per_worker = 1"),
        ([Node(2, 0), Node(4, 0)], {"cpus_per_worker": 8}, r"the largest of 2 machines has 4 CPU"),
    ],
)
def test_too_much_names_what_there_is_and_the_nearest_choice(
    nodes: list[Node], asked: dict[str, object], message: str
) -> None:
    with pytest.raises(ResourceError, match=message):
        lanes(nodes, **asked)
