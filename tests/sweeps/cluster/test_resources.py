from __future__ import annotations

from typing import Literal

import pytest

from sweeps.backends.resources import LaneShape, Node, ResourceError, change_lanes, plan_lanes, workers_that_fit
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


def test_bounds_on_trials_at_a_time() -> None:
    nodes = [Node(4, 0), Node(8, 0)]
    assert lanes(nodes, max_concurrent=10) == [(8, False), (2, False)]
    assert lanes(nodes, max_concurrent=100, min_concurrent=12) == [(8, False), (4, False)]
    assert lanes(nodes, workers=3, max_concurrent=2) == [(3, True)] * 2
    with pytest.raises(ResourceError) as raised:
        lanes(nodes, min_concurrent=13)
    (problem,) = raised.value.problems
    assert (problem.field, problem.value, problem.nearest) == ("resources.min_concurrent", 13, "min_concurrent = 12")


@pytest.mark.parametrize(("concurrent", "least", "most"), [(2, None, 3), (2, 1, None), ("auto", 3, 2)])
def test_bounds_that_contradict_each_other_are_refused(
    concurrent: int | Literal["auto"], least: int | None, most: int | None
) -> None:
    with pytest.raises(ValueError, match=r"leave one out|is more than max_concurrent"):
        FakeResources(concurrent=concurrent, min_concurrent=least, max_concurrent=most)


def changed(
    nodes: list[Node], running: dict[str, str], waiting: str = "", late: tuple[str, ...] = (), **asked: object
) -> tuple[list[int], list[str]]:
    """Workers of the lanes to start, and the lanes without a node.

    `running` and `waiting` name lanes by their workers and a letter, "2x"; those that run with the node they are on.
    """
    group = {"workers", "isolated"} & {*asked}
    per_worker = {"CPU": 1.0} if "gpus_per_worker" not in asked else {"CPU": 1.0, "GPU": 0.5}
    names = [*running, *waiting.split()]
    there = {name: LaneShape(int(name[0]), bool(group), per_worker) for name in names}
    change = change_lanes(FakeResources(**asked), nodes, there, running, late)  # type: ignore[arg-type]
    return [lane.workers for lane in change.start], change.unplaced


def test_no_machine_with_enough_of_both_is_named_by_what_is_scarce() -> None:
    with pytest.raises(ResourceError) as raised:
        lanes([Node(32, 0), Node(4, 1)], cpus_per_worker=16, gpus_per_worker=1)
    (problem,) = raised.value.problems
    assert (problem.field, problem.value) == ("resources.cpus_per_worker", 16)
    assert problem.nearest == "cpus_per_worker = 4, or gpus_per_worker = 0"
    assert lanes([Node(32, 0), Node(4, 1)], cpus_per_worker=4, gpus_per_worker=1) == [(1, False)]


A, B, C, BIG = Node(2, 0, "a"), Node(2, 0, "b"), Node(2, 0, "c"), Node(8, 0, "big")


def test_lanes_follow_nodes() -> None:
    assert changed([A], {"2x": "a"}) == ([], [])
    assert changed([A, B, C], {"2x": "a"}) == ([2, 2], [])
    assert changed([A, BIG], {"2x": "a"}) == ([8], [])
    assert changed([A, Node(1, 0, "small"), Node(0, 4, "head")], {"2x": "a"}) == ([1], [])
    # those that have just been started wait for their workers, and are counted
    assert changed([A, B, C], {"2x": "a"}, "2y 2z") == ([], [])
    # nodes leave
    assert changed([A], {"2x": "a", "2y": "b"}) == ([], ["2y"])
    # another node takes the place of a lost one, or one of another size
    assert changed([A, C], {"2x": "a", "2y": "b"}) == ([], [])
    assert changed([A, BIG], {"2x": "a", "2y": "b"}) == ([6], [])
    assert changed([A, Node(1, 0, "small")], {"2x": "a", "2y": "b"}) == ([1], ["2y"])
    # a small lane that waits leaves large room alone if smaller room is there
    assert changed([BIG, A], {}, "2x 8y") == ([], [])
    # a lane that waits again was last heard from on a node whose room another has taken since
    assert changed([A], {"2x": "a", "2y": "a"}) == ([], ["2x"])
    assert changed([A, BIG], {"2x": "a", "2y": "a"}) == ([6], [])


def test_lanes_follow_nodes_within_bounds() -> None:
    assert changed([A, B, C], {"2x": "a"}, max_concurrent=5) == ([2, 1], [])
    assert changed([A, B, C], {"2x": "a"}, concurrent=2) == ([], [])
    assert changed([A, B, C], {"2x": "a", "2y": "gone"}, "2z", concurrent=6) == ([], [])
    assert changed([A, C], {"2x": "a", "2y": "gone"}, concurrent=3) == ([], [])  # more than are asked stay
    assert changed([BIG], {"1x": "gone", "1y": "gone"}, max_concurrent=3) == ([1], [])
    small = Node(1, 0, "small")
    assert changed([small], {"2x": "gone"}, max_concurrent=2) == ([], ["2x"])
    assert changed([small], {"2x": "gone"}, late=("2x",), max_concurrent=2) == ([1], ["2x"])


def test_groups_follow_nodes() -> None:
    assert changed([A, B], {"3x": "a"}, workers=3) == ([], [])
    assert changed([A, B, C], {"3x": "a"}, workers=3) == ([3], [])
    assert changed([A, B], {"3x": "a"}, "3y", workers=3) == ([], ["3y"])


def test_what_a_worker_takes_stays_as_it_was() -> None:
    nodes = [Node(8, 1, "a"), Node(8, 2, "b"), Node(8, 0, "c")]
    assert changed(nodes, {"2x": "a"}, gpus_per_worker="auto") == ([4], [])
    assert changed(nodes, {"8x": "c"}) == ([8, 8], [])


def test_a_new_lane_leaves_larger_room_to_larger_lanes() -> None:
    change = change_lanes(FakeResources(), [A, BIG, B], {"lane0": LaneShape(2, False, {"CPU": 1.0})}, {"lane0": "a"})
    assert [(lane.workers, lane.avoids) for lane in change.start] == [(8, ()), (2, ("big",))]


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
        (LAPTOP, {"min_concurrent": 3}, r"min_concurrent = 3: 2 trial\(s\).*Nearest: min_concurrent = 2"),
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
