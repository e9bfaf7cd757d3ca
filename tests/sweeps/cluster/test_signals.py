"""Signals that wait until Ray's session is down."""

from __future__ import annotations

import os
import signal

import pytest

from sweeps.backends import signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_held_signals_are_heard_at_the_end(number: int) -> None:
    reached = []
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), signals.delay_signals():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        reached.append("the end")
    assert reached == ["the end"]
    assert signal.getsignal(number) is before
    with signals.delay_signals():
        reached.append("nothing came")


def test_what_hangs_can_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_PATIENCE_S", 0.0)
    with pytest.raises(KeyboardInterrupt), signals.delay_signals():
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the signal was not heard")


def test_a_terminal_that_closes_under_nohup_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.delay_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
