"""What the workers of a data-parallel group tell each other, as JSON: a pickle would run what a stranger sends."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

import pytest
import torch
from torch import Tensor

from sweeps.backends.ray.lanes.worker import _Worker
from tests.sweeps.lanes.support import W0, lease, run, started
from trainables.runtime import broadcast
from trainables.tasks.text.causal_lm import gathered

Group = Callable[..., list[Any]]


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    """Gives what two functions return that run as the two workers of a group."""
    here, ways = threading.local(), (Queue[Tensor](), Queue[Tensor]())

    def broadcast(tensor: Tensor, src: int) -> None:
        if here.rank == src:
            ways[src].put(tensor.clone())
        else:
            tensor.copy_(ways[src].get(timeout=60))

    def run(rank: int, does: Callable[[], Any]) -> Any:
        here.rank = rank
        return does()

    def both(*do: Callable[[], Any]) -> list[Any]:
        with ThreadPoolExecutor(2) as threads:
            return list(threads.map(run, (0, 1), do))

    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: here.rank)
    return both


@pytest.mark.parametrize("by", [0, 1])
def test_all_hear_what_one_says(group: Group, by: int) -> None:
    words = {"lr": math.inf, "model": "local:größe\udcff", "shrink": None, "targets": ("a", 1)}
    heard = group(lambda: broadcast(words if by == 0 else "-", by), lambda: broadcast(words if by == 1 else "-", by))
    assert heard == [{**words, "targets": ["a", 1]}] * 2


def test_rank_0_decides_and_says_so_in_json(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Tensor] = []
    whole = torch.distributed.broadcast

    def watched(text: Tensor, src: int) -> None:
        whole(text, src)
        sent.append(text)

    monkeypatch.setattr(torch.distributed, "broadcast", watched)

    def order(rank: int) -> Any:
        return _Worker(None, "lane0/0", rank, 2).broadcast(lambda: {"key": "1.1", "rank": rank})

    assert group(lambda: order(0), lambda: order(1)) == [{"key": "1.1", "rank": 0}] * 2
    texts = [json.loads(bytes(text.tolist())) for text in sent if text.ndim]
    assert texts.count({"key": "1.1", "rank": 0}) == 2 and len(texts) == 4  # the token of the process goes first


def test_texts_are_gathered_in_the_order_of_their_rows(group: Group) -> None:
    found = group(lambda: gathered(["a", "ç\udcff", "e"], 5, 2), lambda: gathered(["b", "d"], 5, 2))
    assert found == [["a", "b", "ç\udcff", "d", "e"]] * 2


def test_ranks_that_leave_together_say_so_and_one_alone_does_not() -> None:
    async def scenario() -> None:
        broker = await started("a", "b")
        await lease(broker, W0)
        both = [asyncio.create_task(broker.leave_together(W0, "t", "a", rank, 2, 1.0)) for rank in range(2)]
        assert await asyncio.gather(*both) == [True, True]
        await broker.finish(W0, "t", "a", None, {"status": "failed"})
        await lease(broker, W0)
        assert not await broker.leave_together(W0, "t", "b", 1, 2, 0.05)

    run(scenario())
