"""A broker without Ray, trials in the real worker, and the tables of sweeps that train the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.store.store import open_store
from sweeps.backends.ray.lanes.broker import Broker
from sweeps.backends.ray.lanes.worker import _Worker
from tests.trainables.support import one_tower_trial
from trainables.config import TrialConfig
from trainables.models.shapes import target_shapes
from trainables.tasks.images.clip import BothTask, VisionTask

W0, W1 = "lane0/0", "lane0/1"


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; the scenario's own time limit ends a wait in vain."""
    while not condition():
        await asyncio.sleep(0.02)


async def started(*keys: str, window: int | None = None) -> Broker:
    broker = Broker()
    for worker in (W0, W1):
        await broker.hello(worker, "t")
    for key in keys:
        await broker.submit({key: {"config": key}}, window)
    return broker


async def lease(broker: Broker, worker: str, token: str = "t") -> dict[str, Any]:
    (order,) = await broker.next(worker, token, 0.2)
    assert isinstance(order, dict), order
    return order


def check_equal(packed: Path, whole: Path, score: float, test: float) -> None:
    """Tables of two sweeps: equal, scores within tolerances, losses to 1 in 1,000."""
    found, wanted = (
        {row["trial_id"]: row for row in open_store(folder).table("trials").to_pylist()} for folder in (packed, whole)
    )
    assert found.keys() == wanted.keys()
    for trial_id, want in wanted.items():
        got = found[trial_id]
        for name in ("stage", "slot", "lr", "status", "adapter_params", "samples", "epochs", "metric", "precision"):
            assert got[name] == want[name], name
        assert got["val_score"] == pytest.approx(want["val_score"], abs=score)
        if want["test_score"] is not None:
            assert got["test_score"] == pytest.approx(want["test_score"], abs=test)
        if want["train_loss"] is not None:
            assert got["train_loss"] == pytest.approx(want["train_loss"], rel=1e-3)
    chosen = [
        {row["cell_id"]: row["lr"] for row in open_store(f).table("choices").to_pylist()} for f in (packed, whole)
    ]
    assert chosen[0] == chosen[1]


class Answers:
    """A broker whose methods all say "go", and keep what they were given."""

    def __init__(self) -> None:
        self.given: dict[str, list[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        class Method:
            @staticmethod
            def remote(*arguments: Any, **_: Any) -> str:
                self.given.setdefault(name, []).append(arguments)
                return "go"

        return Method


def _refuse() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")


def refuse_more_than(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch, refuse: Callable[[], object] = _refuse
) -> list[int]:
    """Let no loss be taken of more rows: `refuse` raises there. Returns how many rows each was asked for."""
    seen: list[int] = []

    def limited(real: Any) -> Any:
        def loss_sum(self: Any, rows: torch.Tensor, plan: Any) -> Any:
            seen.append(len(rows))
            if len(rows) > rows_at_once:
                refuse()
            return real(self, rows, plan)

        return loss_sum

    for task in (VisionTask, BothTask):
        monkeypatch.setattr(task, "loss_sum", limited(task.loss_sum))
    return seen


def tiny_trial(adapt: str) -> TrialConfig:
    model, targets = "embedded:tiny-clip", ["attn.in_proj_weight"]
    return one_tower_trial(
        "lora",
        model=model,
        adapt=adapt,
        targets=tuple(targets),
        dataset="embedded:fashion-mnist-turned",
        train_size="4-shot",
        capacities=tuple((name, 1) for name in target_shapes(model, targets, adapt)),
        stage="TUNE",
        lr=1e-3,
        train={"epochs": 1, "global_batch_size": 32},
    )


def outcome_in_a_lane(trial: TrialConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any]]:
    """The last report of a trial that the real worker runs, and its outcome."""
    monkeypatch.setattr("sweeps.backends.ray.lanes.line.ray.get", lambda answer: answer)
    broker = Answers()
    where = {"trial": "trainables.training.worker:run_trial", "directory": str(folder), "keep": None}
    order = {"key": "k", "config": trial.model_dump(mode="json"), "ahead": True, "shrink": None}
    _Worker(broker, "lane0/0", 0, 1).run([{**order, **where}])
    ((_, _, _, last, outcome),) = broker.given["finish"]
    return last, outcome
