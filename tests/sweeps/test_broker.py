"""The broker without Ray: its coroutines on a plain event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from sweeps.broker import MAX_ATTEMPTS, Broker

W0, W1 = "lane0/0", "lane0/1"


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 10))


async def started(*keys: str, window: int | None = None) -> Broker:
    broker = Broker()
    for worker in (W0, W1):
        await broker.hello(worker, "t", 1, "group")
    for key in keys:
        await broker.submit(key, {"config": key}, window)
    return broker


def test_a_trial_goes_to_a_worker_and_its_reports_to_the_proxy() -> None:
    async def scenario() -> None:
        broker = await started("a")
        order = await broker.next(W0, "t", 1)
        assert order == {"config": "a", "key": "a", "attempt": 1, "ahead": True}
        assert await broker.report(W0, "t", "a", {"epoch": 1, "val_score": 0.5}) == "go"
        assert await broker.poll("a", 0, 1) == ({"epoch": 1, "val_score": 0.5}, "running")
        waiting = asyncio.create_task(broker.poll("a", 1, 5))
        await broker.finish(W0, "t", "a", {"epoch": 2, "done": True}, {"status": "finished", "result": {"x": 1}})
        assert await waiting == ({"epoch": 2, "done": True}, "finished")
        taken = await broker.take("a")
        assert taken is not None
        assert (taken["state"], taken["result"], len(taken["events"])) == ("finished", {"x": 1}, 2)
        assert await broker.take("a") is None
        assert await broker.poll("a", 2, 1) == (None, "unknown")

    run(scenario())


def test_a_window_holds_the_lane_back_until_the_driver_has_seen() -> None:
    async def scenario() -> None:
        broker = await started("a", window=1)
        await broker.next(W0, "t", 1)
        assert await broker.report(W0, "t", "a", {"epoch": 1}) == "go"
        second = asyncio.create_task(broker.report(W0, "t", "a", {"epoch": 2}))
        await asyncio.sleep(0.05)
        assert not second.done()
        await broker.poll("a", 1, 1)
        assert await second == "go"
        third = asyncio.create_task(broker.report(W0, "t", "a", {"epoch": 3}))
        await asyncio.sleep(0.05)
        await broker.take("a")  # the pruner has decided
        assert await third == "stop"

    run(scenario())


def test_a_worker_that_starts_again_gets_its_trial_back() -> None:
    async def scenario() -> None:
        broker = await started("a", "b")
        await broker.next(W0, "t", 1)
        await broker.hello(W0, "new", 2, "group")
        assert await broker.report(W0, "t", "a", {"epoch": 1}) == "stop"  # the old process is fenced off
        assert await broker.next(W0, "t", 1) == "stop"
        order = await broker.next(W0, "new", 1)
        assert order is not None
        assert order != "stop"
        assert (order["key"], order["attempt"]) == ("a", 2)

    run(scenario())


def test_a_trial_that_keeps_killing_its_worker_fails_itself_only() -> None:
    async def scenario() -> None:
        broker = await started("poison", "good")
        for attempt in range(MAX_ATTEMPTS):
            order = await broker.next(W0, f"{attempt}" if attempt else "t", 1)
            assert order is not None
            assert order != "stop"
            assert (order["key"], order["attempt"]) == ("poison", attempt + 1)
            if attempt < MAX_ATTEMPTS - 1:
                if attempt == 0:
                    assert (await broker.next(W1, "t", 1))["key"] == "good"  # type: ignore[index, call-overload]
                    await broker.finish(W1, "t", "good", None, {"status": "finished"})
            else:
                await broker.submit("other", {}, None)
                assert await broker.next(W1, "t", 0.05) is None  # the last attempt runs alone, so it blames no one else
            await broker.hello(W0, f"{attempt + 1}", 3, "group")
        event, state = await broker.poll("poison", 0, 1)
        assert (event, state) == (None, "failed")
        taken = await broker.take("poison")
        assert taken is not None
        assert "died 3 times" in taken["reason"]
        assert (await broker.next(W1, "t", 1))["key"] == "other"  # type: ignore[index, call-overload]

    run(scenario())


@pytest.mark.parametrize("ending", ["interrupt", "shutdown"])
def test_an_end_reaches_lanes_and_proxies(ending: str) -> None:
    async def scenario() -> None:
        broker = await started("a", "b")
        await broker.next(W0, "t", 1)
        waiting = asyncio.create_task(broker.poll("a", 0, 5))
        await asyncio.sleep(0)
        await getattr(broker, ending)()
        assert await waiting == (None, "stopped")
        assert await broker.next(W1, "t", 0.05) == (None if ending == "interrupt" else "stop")
        if ending == "interrupt":
            assert await broker.report(W0, "t", "a", {"epoch": 1}) == "stop"
            await broker.reset()
            await broker.submit("c", {}, None)
            assert (await broker.next(W0, "t", 1))["key"] == "c"  # type: ignore[index, call-overload]

    run(scenario())


def test_losing_the_last_lane_is_said_with_its_reason() -> None:
    async def scenario() -> None:
        broker = await started("a")
        await broker.next(W0, "t", 1)
        assert await broker.lane_lost("lane0", "gone", False) == "group"
        assert (await broker.poll("a", 0, 0.05))[1] == "queued"
        assert await broker.lane_lost("lane0", "gone for good", True) is None
        assert (await broker.poll("a", 0, 1))[1] == "stopped"
        assert (await broker.status())["dead"] == "gone for good"

    run(scenario())
