"""Whole sweeps of the fake trial on the inline backend, with something to happen between trials."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sweeps.backends.backend import Event, Order, Reported, Stopped
from sweeps.backends.inline import InlineBackend
from sweeps.backends.reports import facts
from sweeps.engine.run import RunSummary, run
from tests.fakes import TRIAL, FakePlan


def go_inline(
    plan: FakePlan, before: Callable[[int], None] = lambda _: None, trial: str = TRIAL, **how: Any
) -> RunSummary:
    """`sweeps.engine.run.run` on the inline backend, with one date and duration for all trials, not waiting for disks.

    Args:
        before: called before every trial, with the number of those that ended.
    """

    class _Before(InlineBackend):
        ended = 0

        def start(self, orders: Sequence[Order]) -> None:
            before(self.ended)
            super().start(orders)

        def events(self, timeout: float) -> list[Event]:
            found = super().events(timeout)
            self.ended += sum(not isinstance(event, Reported | Stopped) for event in found)
            return found

    with (
        patch("sweeps.backends.inline.InlineBackend", _Before),
        patch("sweeps.backends.trials.facts", lambda *given: facts(1.7e9, 2.0, given[2])),
        patch.object(os, "fsync", lambda _: None),
    ):
        return run(plan, backend="inline", trial=trial, progress=False, **how)


def lines(folder: Path) -> list[bytes]:
    """The journal's lines."""
    return (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
