"""The broker without Ray: its coroutines on a plain event loop."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from sweeps.backends.ray.lanes.broker import Broker
from sweeps.backends.ray.lanes.leases import MAX_ATTEMPTS
from tests.sweeps.lanes.support import W0, W1, lease, run, started, until


def test_a_trial_goes_to_a_worker_and_its_reports_to_tune() -> None:
    async def scenario() -> None:
        broker = await started("a")
        order = await lease(broker, W0)
        assert order == {"config": "a", "key": "a", "attempt": 1, "ahead": True, "shrink": None}
        assert await broker.report(W0, "t", "a", {"epoch": 1, "val_score": 0.5}) == "go"
        told = {"epoch": 1, "train_loss": None, "score": 0.5, "seconds": 0.0, "done": False, "status": "running"}
        assert await broker.step("a", 1) == told
        waiting = asyncio.create_task(broker.step("a", 2))
        await broker.finish(W0, "t", "a", {"epoch": 2, "done": True}, {"status": "finished", "result": {"x": 1}})
        assert await waiting == {**told, "epoch": 2, "score": None, "done": True, "status": "finished"}
        taken = await broker.take("a")
        assert taken is not None
        assert (taken["state"], taken["result"], len(taken["events"])) == ("finished", {"x": 1}, 2)
        assert await broker.take("never") is None
        assert (await broker.step("a", 3))["status"] == "stopped"

    run(scenario())


def test_a_window_holds_the_lane_back_until_the_driver_has_seen() -> None:
    async def scenario() -> None:
        broker = await started("a", window=1)
        await broker.next(W0, "t", 1)
        assert await broker.report(W0, "t", "a", {"epoch": 1}) == "go"
        second = asyncio.create_task(broker.report(W0, "t", "a", {"epoch": 2}))
        await asyncio.sleep(0.05)
        assert not second.done()
        assert (await broker.step("a", 1))["epoch"] == 1
        assert not second.done()  # Tune was told, and is not done with it
        assert (await broker.step("a", 2))["epoch"] == 2
        assert await second == "go"
        third = asyncio.create_task(broker.report(W0, "t", "a", {"epoch": 3}))
        await asyncio.sleep(0.05)
        await broker.take("a")  # the pruner has decided
        assert await third == "stop"

    run(scenario())


def test_a_step_that_is_asked_for_again_has_the_same_answer() -> None:
    """Ray calls again where a reply was lost; the first call may still be waiting."""

    async def scenario() -> None:
        broker = await started("a", window=1)
        await broker.next(W0, "t", 1)
        both = [asyncio.create_task(broker.step("a", 1)) for _ in range(2)]
        await asyncio.sleep(0)
        assert await broker.report(W0, "t", "a", {"epoch": 1, "val_score": 0.5}) == "go"
        second = asyncio.create_task(broker.report(W0, "t", "a", {"epoch": 2}))
        first, again = await asyncio.gather(*both)
        assert first == again == await broker.step("a", 1)
        assert (first["epoch"], first["score"]) == (1, 0.5)
        assert not second.done()  # that was no step further
        assert (await broker.step("a", 2))["epoch"] == 2
        assert await second == "go"

    run(scenario())


def test_a_worker_that_asks_again_is_given_the_same_trial() -> None:
    """Ray calls again where a reply was lost, and the first call may still be waiting: nobody would hear its answer."""

    async def scenario() -> None:
        broker = await started()
        unheard = asyncio.create_task(broker.next(W0, "t", 5))
        await asyncio.sleep(0)
        await broker.submit({"a": {"config": "a"}}, None)
        await broker.submit({"b": {"config": "b"}}, None)
        lost = await unheard
        assert await broker.next(W0, "t", 1) == lost
        assert (await lease(broker, W1))["key"] == "b"
        await broker.again(W0, "t", "a", "OutOfMemoryError: 3 GiB")
        await broker.hello(W0, "new")
        assert await lease(broker, W0, "new") == await lease(broker, W0, "new")  # that it is to be smaller, too
        assert (await broker.status())["busy"] == 2
        await broker.finish(W0, "new", "a", None, {"status": "finished"})
        assert await broker.next(W0, "new", 0.05) == []

    run(scenario())


def test_a_trial_that_is_submitted_or_taken_again_is_so_once() -> None:
    async def scenario() -> None:
        broker = await started("a")
        await broker.submit({"a": {"config": "a"}}, None)
        assert (await lease(broker, W0))["key"] == "a"
        await broker.submit({"a": {"config": "a"}}, None)
        assert await broker.next(W1, "t", 0.05) == []
        assert await broker.report(W0, "t", "a", {"epoch": 1}) == "go"
        await broker.finish(W0, "t", "a", None, {"status": "finished"})
        both = await asyncio.gather(broker.take("a"), broker.take("a"))
        assert both[0] == both[1] == await broker.take("a")
        assert both[0] is not None and both[0]["worker"] == (W0, "")

    run(scenario())


def test_a_worker_that_starts_again_gets_its_trial_back() -> None:
    async def scenario() -> None:
        broker = await started("a", "b")
        await broker.next(W0, "t", 1)
        await broker.hello(W0, "new")
        assert await broker.report(W0, "t", "a", {"epoch": 1}) == "stop"  # the old process is fenced off
        assert await broker.next(W0, "t", 1) == "stop"
        order = await lease(broker, W0, "new")
        assert (order["key"], order["attempt"]) == ("a", 2)

    run(scenario())


def test_a_trial_that_keeps_killing_its_worker_fails_itself_only() -> None:
    async def scenario() -> None:
        broker = await started("poison", "good")
        for attempt in range(MAX_ATTEMPTS):
            order = await lease(broker, W0, f"{attempt}" if attempt else "t")
            assert (order["key"], order["attempt"]) == ("poison", attempt + 1)
            if attempt < MAX_ATTEMPTS - 1:
                if attempt == 0:
                    assert (await lease(broker, W1))["key"] == "good"
                    await broker.finish(W1, "t", "good", None, {"status": "finished"})
            else:
                await broker.submit({"other": {}}, None)
                assert await broker.next(W1, "t", 0.05) == []  # the last attempt runs alone, so it blames no one else
            await broker.hello(W0, f"{attempt + 1}")
        result = await broker.step("poison", 1)
        assert (result["done"], result["status"], result["score"]) == (True, "failed", None)
        taken = await broker.take("poison")
        assert taken is not None
        assert "died 3 times" in taken["reason"]
        assert (await lease(broker, W1))["key"] == "other"

    run(scenario())


def test_after_one_death_no_worker_idles() -> None:
    async def scenario() -> None:
        broker = await started("poison", "good", "next")
        await lease(broker, W0)
        await lease(broker, W1)
        await broker.hello(W0, "new")
        assert (await lease(broker, W0, "new"))["attempt"] == 2
        await broker.finish(W1, "t", "good", None, {"status": "finished"})
        assert (await lease(broker, W1))["key"] == "next"

    run(scenario())


@pytest.mark.parametrize("ending", ["interrupt", "shutdown"])
def test_an_end_reaches_lanes_and_tune(ending: str) -> None:
    async def scenario() -> None:
        broker = await started("a", "b")
        await broker.next(W0, "t", 1)
        waiting = asyncio.create_task(broker.step("a", 1))
        await asyncio.sleep(0)
        await getattr(broker, ending)()
        result = await waiting
        assert (result["done"], result["status"]) == (True, "stopped")
        assert await broker.next(W1, "t", 0.05) == ([] if ending == "interrupt" else "stop")
        if ending == "interrupt":
            assert await broker.report(W0, "t", "a", {"epoch": 1}) == "stop"
            await broker.reset()
            await broker.submit({"c": {}}, None)
            assert (await lease(broker, W0))["key"] == "c"

    run(scenario())


def test_losing_the_last_lane_is_said_with_its_reason() -> None:
    async def scenario() -> None:
        broker = await started("a")
        await broker.next(W0, "t", 1)
        await broker.lane_lost("lane0", "gone", False, 1.0)
        waiting = asyncio.create_task(broker.step("a", 1))
        await asyncio.sleep(0.05)
        assert not waiting.done()  # it is queued again
        await broker.lane_lost("lane0", "gone for good", True, 1.0)
        assert (await waiting)["status"] == "stopped"
        assert (await broker.status())["dead"] == "gone for good"

    run(scenario())


def test_no_lane_is_the_last_while_workers_of_another_are_there() -> None:
    async def scenario() -> None:
        broker = await started()
        await broker.hello("lane1/0", "u")
        assert await broker.lane_lost("lane0", "gone", True, 1.0) == "failed"
        await broker.died("lane1", {"lane1/0": None})  # its lane starts it again
        assert await broker.lane_lost("lane0", "gone", True, 1.0) == "failed"
        assert await broker.lane_lost("lane1", "gone for good", True, 1.0) == "gone"
        assert (await broker.status())["dead"] == "gone for good"

    run(scenario())


def test_a_silent_trial_loses_its_worker_and_is_issued_again_but_not_for_ever() -> None:
    async def scenario() -> None:
        killed: list[str] = []
        broker = Broker(kill=killed.append)
        await broker.hello(W0, "t", "handle 0")
        await broker.hello(W1, "t1", "handle 1")
        await broker.submit({"hangs": {"timeout": 0.2, "attempts": 2}}, None)
        await broker.submit({"good": {}}, None)
        assert (await lease(broker, W0))["key"] == "hangs"
        assert (await lease(broker, W1, "t1"))["key"] == "good"
        for _ in range(5):  # reports keep it alive
            await asyncio.sleep(0.08)
            assert await broker.report(W0, "t", "hangs", {"epoch": 1}) == "go"
        await until(lambda: killed == ["handle 0"])
        assert await broker.report(W0, "t", "hangs", {"epoch": 2}) == "stop"
        assert await broker.next(W1, "t1", 0.05) == []  # that process is about to be ended too
        await broker.hello(W0, "t2", "handle 2")
        await broker.hello(W1, "t3", "handle 3")
        orders = [await lease(broker, W0, "t2"), await lease(broker, W1, "t3")]
        assert sorted((o["key"], o["attempt"]) for o in orders) == [("good", 1), ("hangs", 2)]
        await until(lambda: killed[1:] == ["handle 2" if orders[0]["key"] == "hangs" else "handle 3"])
        taken = await broker.take("hangs")
        assert taken is not None
        assert taken["reason"] == "no report for 0.2 s (resources.trial_timeout); started 2 times"

    run(scenario())


def test_what_a_broker_that_stood_still_did_not_hear_is_not_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    now, looks, killed = [0.0], [0], list[str]()

    def monotonic() -> float:
        looks[0] += 1
        return now[0]

    for module in ("broker", "leases"):
        monkeypatch.setattr(
            f"sweeps.backends.ray.lanes.{module}.time", SimpleNamespace(monotonic=monotonic, time=time.time)
        )

    async def scenario() -> None:
        broker = Broker(kill=killed.append)
        await broker.hello(W0, "t", "handle")
        await broker.submit({"a": {"timeout": 0.04}}, None)
        await lease(broker, W0)
        await asyncio.sleep(0)  # its watch has begun to wait
        now[0] += 100.0
        seen = looks[0]
        while looks[0] < seen + 9:
            await asyncio.sleep(0.001)
        assert not killed
        while not killed:
            now[0] += 0.001
            await asyncio.sleep(0.001)

    run(scenario())


def test_waiting_for_the_driver_is_not_silence() -> None:
    async def scenario() -> None:
        killed: list[str] = []
        broker = Broker(kill=killed.append)
        await broker.hello(W0, "t", "handle")
        await broker.submit({"a": {"timeout": 0.1}}, 0)
        await lease(broker, W0)
        held = asyncio.create_task(broker.report(W0, "t", "a", {"epoch": 1}))
        await asyncio.sleep(0.4)
        assert not held.done()
        assert not killed
        assert (await broker.step("a", 1))["epoch"] == 1
        after = asyncio.create_task(broker.step("a", 2))
        assert await held == "go"
        after.cancel()

    run(scenario())


def test_a_death_is_charged_to_the_trial_that_died_with_its_reason() -> None:
    async def scenario() -> None:
        broker = await started()
        await broker.submit({"poison": {"attempts": 1}}, None)
        await broker.submit({"good": {}}, None)
        await lease(broker, W0)
        await lease(broker, W1)
        await broker.died("lane0", {W0: "ActorDiedError: gone"})
        taken = await broker.take("poison")
        assert taken is not None
        assert taken["reason"] == "its worker process died 1 times while running it: ActorDiedError: gone"
        await broker.hello(W1, "new")
        assert (await lease(broker, W1, "new"))["attempt"] == 1

    run(scenario())


def test_trials_of_a_lane_that_does_not_come_back_go_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.backends.ray.lanes.broker.ENDED_S", 0.1)

    async def scenario() -> None:
        broker = await started("a", "b")
        await broker.hello("lane1/0", "u")
        await lease(broker, W0)
        await lease(broker, W1)
        await broker.died("lane0", {W0: "its node has died"})  # and W1 with it, which nobody says
        assert (await lease(broker, "lane1/0", "u"))["key"] == "a"
        await broker.finish("lane1/0", "u", "a", None, {"status": "finished"})
        await asyncio.sleep(0.2)
        order = await lease(broker, "lane1/0", "u")
        assert (order["key"], order["attempt"]) == ("b", 1)

    run(scenario())


def test_a_lost_machine_costs_its_trials_no_attempt_and_takes_no_pack_apart() -> None:
    async def scenario() -> None:
        broker = await started("a")
        await broker.submit({"b": {}, "c": {}}, None)
        for loss in range(MAX_ATTEMPTS + 1):
            token = f"{loss}" if loss else "t"
            given = [await broker.next(worker, token, 0.2) for worker in (W0, W1)]
            orders = [order for orders in given for order in orders if isinstance(order, dict)]
            assert len(given) < len(orders)
            assert {order["key"]: order["attempt"] for order in orders} == {"a": 1, "b": 1, "c": 1}
            if loss % 2:
                await broker.died("lane0", {W0: None, W1: None})
            else:
                await broker.lane_lost("lane0", "its controller died", False, 1.0)
            assert (await broker.status())["busy"] == 0
            for worker in (W0, W1):
                await broker.hello(worker, f"{loss + 1}")

    run(scenario())


def test_a_trial_that_always_loses_its_machine_fails_in_the_end() -> None:
    """It may be what takes the machines down."""

    async def scenario() -> None:
        broker = await started("poison")
        for loss in range(10 + 3):  # ten losses are forgiven
            assert (await lease(broker, W0, f"{loss}" if loss else "t"))["attempt"] == max(1, loss - 10 + 1)
            await broker.died("lane0", {W0: None})
            await broker.hello(W0, f"{loss + 1}")
        assert await broker.next(W0, f"{loss + 1}", 0.1) == []
        taken = await broker.take("poison")
        assert taken is not None and taken["state"] == "failed" and "died 3 times" in taken["reason"]

    run(scenario())


def test_a_trial_that_must_be_alone_is_so_when_its_lane_starts_again() -> None:
    """Not when nothing else is left."""

    async def scenario() -> None:
        broker = await started("poison", "good", "others", "more")
        for death in range(2):
            token = f"{death}" if death else "t"
            on = {(await lease(broker, worker, token))["key"]: worker for worker in (W0, W1)}
            assert on.keys() == {"poison", "good"}
            await broker.died("lane0", {on["poison"]: "killed"})
            if not death:
                for worker in (W0, W1):
                    await broker.hello(worker, "1")
        await broker.hello(W0, "2")  # the other worker has not come up yet
        assert (await lease(broker, W0, "2"))["key"] == "poison"
        await broker.hello(W1, "2")
        assert await broker.next(W1, "2", 0.05) == []
        await broker.finish(W0, "2", "poison", None, {"status": "finished"})
        assert (await lease(broker, W1, "2"))["key"] == "good"

    run(scenario())


def test_a_restarted_broker_asks_workers_to_say_hello() -> None:
    async def scenario() -> None:
        broker = Broker()
        await broker.submit({"a": {}}, None)
        assert await broker.next(W0, "t", 0.05) == "hello"
        await broker.hello(W0, "t")
        assert (await lease(broker, W0))["key"] == "a"

    run(scenario())


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_a_trial_that_had_ended_is_told_after_the_last_lane_is_lost(status: str) -> None:
    async def scenario() -> None:
        broker = await started("ended", "waits")
        await broker.next(W0, "t", 1)
        await broker.finish(W0, "t", "ended", None, {"status": status})
        await broker.lane_lost("lane0", "gone for good", True, 0.0)
        assert (await broker.status())["dead"] == "gone for good"
        assert (await broker.step("ended", 1))["status"] == status  # else it would be trained again
        assert (await broker.step("waits", 1))["status"] == "stopped"

    run(scenario())
