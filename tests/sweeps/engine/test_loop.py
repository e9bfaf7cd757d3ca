"""The engine's loop on a backend whose workers change."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sweeps.backends.backend import Event, Failed, Order
from tests.fakes import fake_plan
from tests.sweeps.engine.scripted import Scripted, loop_of
from tests.sweeps.support import PAIR, events


def test_a_change_of_workers_is_used_and_written_down(tmp_path: Path) -> None:
    most = 0

    def says(orders: Sequence[Order]) -> list[Event]:
        nonlocal most
        most = max(most, backend._open)
        workers = {2: 3, 6: 1}.get(len(backend.tried))
        if workers is not None:
            backend.facts = replace(backend.facts, workers=workers)
        return [Failed(order.trial_id, {"status": "failed", "reason": "no matter"}) for order in orders]

    backend = Scripted(says)
    with contextlib.contextmanager(loop_of)(fake_plan(tmp_path, PAIR), tmp_path, backend) as (loop, ledger):
        loop.run()
        assert ledger.state.workers == 1
    assert most == 3
    assert [event["workers"] for event in events(tmp_path, "workers")] == [3, 1]
