"""A broker without Ray, and the tables of sweeps that train the same."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from analysis.store.store import open_store
from sweeps.lanes.broker import Broker

W0, W1 = "lane0/0", "lane0/1"


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 10))


async def started(*keys: str, window: int | None = None) -> Broker:
    broker = Broker()
    for worker in (W0, W1):
        await broker.hello(worker, "t", 1)
    for key in keys:
        await broker.submit(key, {"config": key}, window)
    return broker


async def lease(broker: Broker, worker: str, token: str = "t") -> dict[str, Any]:
    order = await broker.next(worker, token, 0.2)
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
