"""What the broker bears: epochs a second by the number of trials that run at once, without Ray's calls around it.

One event loop holds the broker, a worker and a Tune trial for every trial at a time, and what the driver calls. An
epoch is a pause, so nearly all of them wait, as in a sweep; what is counted is processor time: whom an event wakes, and
what is looked through for it.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sweeps.lanes.broker import Broker

EPOCHS = 5
PER_LANE = 8
"""Workers of a lane: the GPUs of a machine."""
PACE = 1000.0
"""Epochs that end each second, if the broker keeps up."""


async def worker(broker: Broker, name: str, pace: float, draw: random.Random) -> None:
    await broker.hello(name, name)
    while (order := await broker.next(name, name, 5.0)) != "stop":
        if not isinstance(order, dict):
            continue
        for epoch in range(1, EPOCHS):
            await asyncio.sleep(draw.uniform(0.5, 1.5) * pace)
            await broker.report(name, name, order["key"], {"epoch": epoch})
        await asyncio.sleep(draw.uniform(0.5, 1.5) * pace)
        await broker.finish(name, name, order["key"], {"epoch": EPOCHS, "done": True}, {"status": "finished"})


async def tune(broker: Broker, keys: Any) -> None:
    """A Tune trial after another, and the driver's calls for it."""
    for key in keys:
        await broker.submit(key, {}, None)
        for number in itertools.count(1):
            if (await broker.step(key, number))["done"]:
                break
        await broker.take(key)


async def epochs_per_second(at_once: int, trials: int) -> float:
    """Epochs per second of processor time, while all but a few workers train and Tune waits."""
    draw, pace = random.Random(0), at_once / PACE
    broker, keys = Broker(), iter([str(k) for k in range(trials)])
    workers = [
        asyncio.create_task(worker(broker, f"lane{k // PER_LANE}/{k % PER_LANE}", pace, draw)) for k in range(at_once)
    ]
    await asyncio.sleep(0)
    begun = time.process_time()
    await asyncio.gather(*(tune(broker, keys) for _ in range(at_once)))
    spent = time.process_time() - begun
    await broker.shutdown()
    await asyncio.gather(*workers)
    return trials * EPOCHS / spent


def report(quick: bool) -> dict[str, Any]:
    found = {}
    for at_once in (2, 10, 100) if quick else (2, 10, 100, 1000):
        found[str(at_once)] = asyncio.run(epochs_per_second(at_once, max(300, 2 * at_once)))
        print(f"  {at_once:>5} trials at once: {found[str(at_once)]:,.0f} epochs a second of the broker's time")
    return {"epochs per second": found}


if __name__ == "__main__":
    report("--quick" in sys.argv)
