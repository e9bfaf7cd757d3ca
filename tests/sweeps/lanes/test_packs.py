"""Packs at the broker and in the pool; no Ray, nothing trained."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sweeps.backends.ray.lanes.broker import Broker
from sweeps.backends.ray.lanes.leases import KILLED_FOR_MEMORY, Lease
from sweeps.backends.ray.pool import Pool
from sweeps.backends.resources import LaneShape, Node
from sweeps.packing.sizes import Measured
from tests.fakes import FakeResources
from tests.sweeps.lanes.support import W0, W1, lease, run, started

GIB = 2**30


def test_a_pool_knows_how_many_trials_fit_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is here, and none of this starts Ray: a made-up probe, and lanes set by hand."""
    found = Measured(peak=12 * GIB, device=80 * GIB)
    others: list[int] = []
    monkeypatch.setattr(Pool, "_measured", lambda self, measure: found)
    monkeypatch.setattr(Pool, "_memories", lambda self, nodes: others)

    def pool_of(**given: Any) -> Pool:
        return Pool(FakeResources(gpus_per_worker="auto", **given), tmp_path, measure=lambda: found)

    auto, nodes = pool_of(pack="auto"), [Node(16, 2)]
    share = auto._gpu_share(nodes)
    auto.shapes = [LaneShape(2, False, {"CPU": 1.0, "GPU": share})]
    assert (share, auto.pack(auto.resources)) == (1.0, 5)  # five times 12 GiB, and a context, in 90 % of 80
    half = pool_of(pack=2)
    half.shapes = [LaneShape(4, False, {"CPU": 1.0, "GPU": half._gpu_share(nodes)})]
    assert half.shapes[0].per_worker["GPU"] == 1 / 2
    assert half.pack(half.resources) == 2
    assert pool_of()._gpu_share(nodes) == 1 / 5
    others.append(40 * GIB)  # another machine's GPU is smaller than the probed one
    small = pool_of(pack="auto")
    small.shapes = [LaneShape(2, False, {"CPU": 1.0, "GPU": small._gpu_share(nodes)})]
    assert (small.measured, small.pack(small.resources)) == (Measured(peak=12 * GIB, device=40 * GIB), 2)
    assert pool_of()._gpu_share(nodes) == 1 / 2
    others.clear()
    fixed = Pool(FakeResources(gpus_per_worker=0.5, pack="auto"), tmp_path, measure=lambda: found)
    fixed._gpu_share(nodes)
    fixed.shapes = [LaneShape(4, False, {"CPU": 1.0, "GPU": 0.5})]
    assert fixed.pack(fixed.resources) == 2
    cpus = Pool(FakeResources(pack="auto"), tmp_path, measure=lambda: found)
    cpus._gpu_share([Node(4, 0)])
    cpus.shapes = [LaneShape(4, False, {"CPU": 1.0})]
    assert cpus.pack(cpus.resources) == 1
    for given in ({"workers": 2}, {"isolated": True}):
        assert auto.pack(FakeResources(pack="auto", **given)) == 1


async def packed(*names: str, **order: Any) -> Broker:
    broker = await started()
    await broker.submit({name: {"config": name, **order} for name in names}, None)
    return broker


def names_of(orders: Any) -> list[str]:
    return [order["key"] for order in orders]


def test_a_pack_goes_to_one_worker_whole() -> None:
    async def scenario() -> None:
        broker = await packed("a", "b", "c")
        await broker.submit({"d": {}}, None)
        orders = await broker.next(W0, "t", 1)
        assert names_of(orders) == ["a", "b", "c"]
        assert all(order["ahead"] and order["attempt"] == 1 for order in orders)  # type: ignore[index, union-attr]
        assert (await lease(broker, W1))["key"] == "d"
        await broker.finish(W0, "t", "b", {"epoch": 1}, {"status": "finished"})
        taken = await broker.take("b")
        assert taken is not None
        assert (taken["packed"], taken["unpacked"], taken["attempt"]) == (3, None, 1)
        await broker.take("a")  # given up by the driver
        assert await broker.report(W0, "t", "a", {"epoch": 1}) == "stop"
        assert await broker.report(W0, "t", "c", {"epoch": 1}) == "go"

    run(scenario())


def test_what_is_given_back_goes_out_one_by_one_and_costs_no_attempt() -> None:
    async def scenario() -> None:
        broker = await packed("a", "b", "c")
        await broker.next(W0, "t", 1)
        await broker.finish(W0, "t", "a", None, {"status": "failed"})
        await broker.unpack(W0, "t", ["b", "c"], "OutOfMemoryError: 3 GiB", "memory")
        orders = [await lease(broker, W0), await lease(broker, W1)]
        assert [(o["key"], o["attempt"], o["shrink"]) for o in orders] == [("b", 1, None), ("c", 1, None)]
        await broker.finish(W1, "t", "c", None, {"status": "finished"})
        taken = await broker.take("c")
        assert taken is not None
        assert taken["unpacked"] == {"reason": "OutOfMemoryError: 3 GiB", "cause": "memory", "packed": 3}
        assert taken["packed"] == 1

    run(scenario())


@pytest.mark.parametrize("memory", [False, True])
def test_after_a_death_each_goes_by_itself(memory: bool) -> None:
    async def scenario() -> None:
        broker = await packed("a", "b")
        await broker.next(W0, "t", 1)
        await broker.died("lane0", {W0: "ActorDiedError: gone"}, memory=memory)
        await broker.hello(W0, "u")
        orders = []
        for _ in "ab":
            orders.append(await lease(broker, W0, "u"))
            await broker.finish(W0, "u", orders[-1]["key"], None, {"status": "finished"})
        assert sorted((o["key"], o["attempt"], o["shrink"]) for o in orders) == [("a", 2, None), ("b", 2, None)]
        taken = await broker.take("a")
        assert taken is not None
        why = (KILLED_FOR_MEMORY, "memory") if memory else ("ActorDiedError: gone", "death")
        assert (taken["unpacked"]["reason"], taken["unpacked"]["cause"]) == why

    run(scenario())


def test_a_pack_that_goes_down_with_a_neighbour_stays_a_pack() -> None:
    async def scenario() -> None:
        broker = await started("poison")
        await lease(broker, W0)
        await broker.submit({"a": {}, "b": {}}, None)
        assert names_of(await broker.next(W1, "t", 1)) == ["a", "b"]
        await broker.died("lane0", {W0: "killed"})
        await broker.hello(W1, "u")
        await broker.take("poison")
        orders = await broker.next(W1, "u", 1)
        assert sorted((o["key"], o["attempt"]) for o in orders) == [("a", 1), ("b", 1)]  # type: ignore[index, union-attr]

    run(scenario())


def test_a_pack_may_be_silent_for_as_long_as_its_trials_together() -> None:
    async def scenario() -> None:
        killed: list[str] = []
        broker = Broker(kill=killed.append)
        await broker.hello(W0, "t", "handle")
        await broker.submit({name: {"timeout": 1.0} for name in "abcd"}, None)
        await broker.next(W0, "t", 1)
        await asyncio.sleep(1.2)
        assert not killed
        while not killed:
            await asyncio.sleep(0.1)
        assert killed == ["handle"]

    run(scenario())


def test_workers_that_have_a_trial_are_counted_and_a_pack_counts_once() -> None:
    async def scenario() -> None:
        broker = await started("a", "waits")
        await broker.submit({"b": {}, "c": {}}, None)
        assert (await broker.status())["busy"] == 0
        await lease(broker, W0)
        await broker.take("waits")
        assert len(await broker.next(W1, "t", 1) or "") == 2
        assert (await broker.status())["busy"] == 2
        await broker.finish(W1, "t", "b", None, {"status": "finished"})
        assert (await broker.status())["busy"] == 2
        await broker.died("lane0", {W0: None})
        assert (await broker.status())["busy"] == 1

    run(scenario())


@pytest.mark.parametrize("memory", [False, True])
def test_a_death_in_a_pack_is_no_ones_last_attempt(memory: bool) -> None:
    """Which trial is at fault shows when each runs by itself."""
    leases = [Lease(key, {"attempts": 1}, state="running", attempt=1, pack="p", packed=2) for key in ("bad", "good")]
    for each in leases:
        each.die("its worker died", memory)
        assert each.start_again() and each.pack is None
    bad = leases[0]
    bad.state, bad.attempt, bad.packed = "running", 2, 1
    bad.die("its worker died", False)
    assert not bad.start_again() and bad.state == "failed"
