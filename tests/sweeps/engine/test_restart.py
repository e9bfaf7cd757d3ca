"""A backend that is lost is opened again, unless it is lost again and again; without Ray."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.backends.backend import BackendError, BackendLostError, Event, Reported, Setup
from sweeps.backends.inline import InlineBackend, open_inline
from sweeps.backends.resources import ResourceError
from sweeps.engine.run import RunSummary, run
from sweeps.errors import Problem
from tests.fakes import TRIAL, FakeConfirm, FakePlan, fake_plan
from tests.sweeps.inline import go_inline
from tests.sweeps.support import PAIR, assert_same_tables, events


class Notes:
    """A display that keeps the lines it is given."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def start(self, state: Any) -> None: ...
    def stop(self, state: Any) -> None: ...
    def update(self, state: Any) -> None: ...


def dying(after: int, times: int, opened: list[int]) -> type[InlineBackend]:
    """A backend that is lost once `after` of its trials have ended, as are the next ones up to `times`."""

    class Dying(InlineBackend):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            opened.append(0)

        def events(self, timeout: float) -> list[Event]:
            if len(opened) <= times and opened[-1] >= after:
                raise BackendLostError("it died")
            found = super().events(timeout)
            opened[-1] += sum(not isinstance(event, Reported) for event in found)
            return found

    return Dying


Go = Callable[..., RunSummary]


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch) -> Go:
    def with_deaths(plan: FakePlan, after: int, times: int, opened: list[int], **how: Any) -> RunSummary:
        with monkeypatch.context() as patch:
            patch.setattr("sweeps.backends.inline.InlineBackend", dying(after, times, opened))
            return run(plan, backend="inline", trial=TRIAL, **{"progress": False, **how})

    return with_deaths


def test_a_lost_backend_is_opened_again(tmp_path: Path, go: Go) -> None:
    notes, opened = Notes(), list[int]()
    assert go(fake_plan(tmp_path / "r", PAIR), 2, 5, opened, progress=notes).complete
    assert len(opened) == 6
    assert len(notes.lines) == 5
    assert all(line.startswith("it died") for line in notes.lines)
    assert [event["reason"] for event in events(tmp_path / "r", "lost")] == ["it died"] * 5
    go_inline(fake_plan(tmp_path / "whole", PAIR))
    assert_same_tables(tmp_path / "r", tmp_path / "whole")


def test_what_a_sweep_declares_is_written_once_though_the_backend_is_lost(tmp_path: Path, go: Go) -> None:
    folder = tmp_path / "r"
    go_inline(fake_plan(folder, PAIR, confirm=FakeConfirm((0, 1))))
    assert go(fake_plan(folder, PAIR, confirm=FakeConfirm((0, 1, 2, 3))), 1, 2, []).complete
    assert [event["seeds"] for event in events(folder, "declare")] == [[0, 1], [0, 1, 2, 3]]


def test_one_that_is_lost_before_any_trial_ends_is_given_up(tmp_path: Path, go: Go) -> None:
    opened = list[int]()
    with pytest.raises(BackendLostError) as caught:
        go(fake_plan(tmp_path / "r", PAIR), 0, 99, opened)
    assert (len(opened), caught.value.why, caught.value.exit_code) == (3, "it died", 4)
    assert go_inline(fake_plan(tmp_path / "r", PAIR)).complete


def test_without_restart_the_first_loss_is_an_error(tmp_path: Path, go: Go) -> None:
    opened = list[int]()
    with pytest.raises(BackendLostError):
        go(fake_plan(tmp_path / "r", PAIR), 3, 1, opened, restart=False)
    assert len(opened) == 1
    assert go_inline(fake_plan(tmp_path / "r", PAIR)).skipped == 3


def test_a_loss_by_a_signal_is_an_interruption(tmp_path: Path, go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    def events_(self: InlineBackend, timeout: float) -> list[Event]:
        os.kill(os.getpid(), signal.SIGTERM)
        raise BackendLostError("ended by signal 15")

    monkeypatch.setattr(InlineBackend, "events", events_)
    summary = run(fake_plan(tmp_path / "r", PAIR), backend="inline", trial=TRIAL, progress=False)
    assert (summary.interrupted, summary.signal) == (True, signal.SIGTERM)


@pytest.mark.parametrize("back", [True, False])
def test_a_cluster_that_went_away_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: bool) -> None:
    opened = list[int]()
    monkeypatch.setattr("sweeps.backends.inline.InlineBackend", dying(2, 1, opened))
    now = [0.0]
    clock = {"monotonic": lambda: now[0], "sleep": lambda seconds: now.append(now.pop() + seconds)}
    monkeypatch.setattr("sweeps.engine.runner.time", SimpleNamespace(time=time.time, **clock))
    refused = []

    def join(setup: Setup) -> InlineBackend:
        if opened and not (back and len(refused) > 2):
            refused.append(setup.address)
            raise ResourceError([Problem("--address", setup.address, "no Ray cluster answers there")])
        return open_inline(Setup(setup.resources, setup.storage))  # type: ignore[return-value]

    monkeypatch.setattr("sweeps.engine.prepare.find_backend", lambda _: join)
    plan = fake_plan(tmp_path / "r", PAIR)
    if back:
        assert run(plan, address="head:1", trial=TRIAL, progress=False).complete
        assert len(refused) == 3
    else:
        with pytest.raises(BackendError):
            run(plan, address="head:1", trial=TRIAL, progress=False)
        assert len(refused) > 100 and now[0] > 600  # every five seconds, for ten minutes
