"""Ray's driver is started before the plan is made, and ended if no backend is opened."""

from __future__ import annotations

from typing import Any

import pytest

from sweeps.backends import registry
from sweeps.backends.ray import process


def test_a_driver_that_no_backend_takes_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_has_session", lambda: False)
    with registry.started_early("ray", ["sweeps.plan.estimate"]):
        (early,) = process._EARLY
        assert early.process.poll() is None
        command: Any = early.process.args
        assert command[-1] == "sweeps.plan.estimate"
    assert process._EARLY == []
    assert early.process.poll() is not None


def test_nothing_is_started_for_backends_that_need_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    with registry.started_early("inline"):
        assert process._EARLY == []
    monkeypatch.setattr(process, "_has_session", lambda: True)
    with registry.started_early("ray"):
        assert process._EARLY == []
