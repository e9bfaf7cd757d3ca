"""What the pruner compares a trial with, and what becomes of one that it stops, without Ray."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.backends.backend import Reported
from sweeps.backends.ray.lanes.broker import Broker
from sweeps.backends.ray.lanes.worker import _Worker
from tests.fakes import FakeCell, FakeSearch, fake_plan
from tests.sweeps.engine.scripted import Scripted, loop_of
from tests.sweeps.lanes.support import W0, Answers, lease, run, started


@pytest.mark.parametrize("beside", [{}, {"seeds": (1, 1, 1)}, {"stage": "CONFIRM"}, {"score": math.nan}])
def test_rates_are_judged_against_scores_of_rates_alone(tmp_path: Path, beside: dict[str, Any]) -> None:
    plan = fake_plan(tmp_path, (FakeCell("lora"),), search=FakeSearch(pruner="asha"))
    told: list[str] = []
    backend = Scripted(lambda _: [])
    with contextmanager(loop_of)(plan, tmp_path, backend, lambda: told.append("epoch")) as (loop, ledger):
        slot = ledger.state.next_slot()
        assert slot is not None
        best = beside.get("score", 0.9)
        better = replace(slot, trial_id="better", **{k: v for k, v in beside.items() if k != "score"})
        for each, score in ((better, best), (slot, 0.5)):
            ledger.state.start(each)
            loop._running[each.trial_id] = each
            loop._take(Reported(each.trial_id, 1, 0.1, score, 1.0))
    assert backend.stopped == ([] if beside else [(slot.trial_id, True)])
    # trials may be long, and displays and logs are not silent meanwhile
    assert told == ["epoch"] * (1 + math.isfinite(best))


def test_a_worker_hears_that_its_trial_is_over_and_not_where_it_goes_on() -> None:
    async def scenario() -> None:
        broker = await started("pruned", "stopped", "next", window=1)
        for key, over in (("pruned", True), ("stopped", False)):
            await lease(broker, W0)
            assert await broker.report(W0, "t", key, {"epoch": 1}) == "go"  # and it begins the next epoch
            assert (await broker.step(key, 1))["epoch"] == 1
            last = asyncio.create_task(broker.judged(W0, "t", key, 3))
            await asyncio.sleep(0.01)
            assert not last.done()  # nobody has seen the second
            await broker.take(key, over)
            answer = "over" if over else "stop"
            assert await last == await broker.report(W0, "t", key, {"epoch": 2}) == answer
        assert (await lease(broker, W0))["key"] == "next"
        assert await broker.report(W0, "t", "pruned", {"epoch": 2}) == "stop"

    run(scenario())


def test_a_worker_that_hangs_in_a_trial_that_was_stopped_is_ended() -> None:
    async def scenario() -> None:
        killed: list[str] = []
        broker = Broker(kill=killed.append)
        await broker.hello(W0, "t", "handle")
        for key in ("answers", "hangs"):
            await broker.submit({key: {"timeout": 0.1}}, 1)
            await lease(broker, W0)
            await broker.report(W0, "t", key, {"epoch": 1})
            await broker.take(key, True)
            if key == "answers":
                assert await broker.next(W0, "t", 0.0) == []
                await asyncio.sleep(0.3)
                assert not killed
        while not killed:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert killed == ["handle"]

    run(scenario())


def test_a_driver_that_stands_still_keeps_no_rank_in_a_collective(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        broker = await started("a", window=0)
        await lease(broker, W0)
        monkeypatch.setattr("sweeps.backends.ray.lanes.broker.WAIT_S", 0.01)
        assert await broker.report(W0, "t", "a", {"epoch": 1}) == "wait"
        assert (await broker.step("a", 1))["epoch"] == 1
        after = asyncio.create_task(broker.step("a", 2))
        monkeypatch.setattr("sweeps.backends.ray.lanes.broker.WAIT_S", 5.0)
        assert await broker.report(W0, "t", "a", {"epoch": 1}) == "go"
        after.cancel()

    run(scenario())


class _Over(Answers):
    """A broker that says so of the second epoch, once it was asked twice."""

    def __getattr__(self, name: str) -> Any:
        method, given = super().__getattr__(name), self.given

        class Method:
            @staticmethod
            def remote(*arguments: Any) -> str:
                method.remote(*arguments)
                second = name == "judged" or (name == "report" and arguments[-1]["epoch"] == 2)
                return "go" if not second else "over" if len(given[name]) > 1 + (name == "report") else "wait"

        return Method


@pytest.mark.parametrize("epochs", [2, 3])
def test_a_trial_that_is_over_leaves_no_folder_and_keeps_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    """`epochs`: the pruner stopped it after the first, and it was in the second, which may have been its last."""
    work, kept, ran = tmp_path / "work" / "trials" / "T", tmp_path / "adapters" / "T", list[int]()

    def trial(_: Any, directory: Path, **__: Any) -> Generator[dict[str, Any], None, None]:
        for epoch in range(1, epochs + 1):
            (directory / "adapter").mkdir(parents=True, exist_ok=True)
            ran.append(epoch)
            yield {"epoch": epoch, "done": epoch == epochs, "result": {}}

    monkeypatch.setattr("sweeps.backends.trials.load_trial", lambda _: trial)
    monkeypatch.setattr("sweeps.backends.trials.TrialConfig.model_validate", lambda config: config)
    monkeypatch.setattr(
        "sweeps.backends.ray.lanes.worker.MicroBatch", lambda *_: SimpleNamespace(smaller=None, events=[], size=1)
    )
    monkeypatch.setattr("sweeps.backends.ray.lanes.line.ray.get", lambda answer: answer)
    broker = _Over()
    order = {"key": "T", "trial": "", "config": {}, "ahead": False, "shrink": None}
    _Worker(broker, W0, 0, 1).run([{**order, "directory": str(work), "keep": str(kept)}])
    assert ran == [1, 2]
    assert "finish" not in broker.given
    assert not work.exists()
    assert not kept.exists()
