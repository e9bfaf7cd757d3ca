"""Diagnostic tasks that Ray loses, and a Ray that is lost under them; without Ray."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from analysis.diagnostics.units import Unit
from sweeps.backends.ray.cluster.session import EXIT_LOST, RayLostError, Session
from sweeps.cli.main import _is_user_error
from sweeps.engine.analyze import DiagnosticError, ray_tasks, run_units


class Task:
    """A task's remote function, whose handle is itself."""

    def options(self, **_: Any) -> Task:
        return self

    def remote(self, *_: Any) -> Task:
        return self


@pytest.mark.parametrize(
    ("error", "settings", "said"),
    [
        (ray.exceptions.OutOfMemoryError("12 GiB of 16"), {"examples": 512}, "give fewer --examples, or more --cpus"),
        (ray.exceptions.WorkerCrashedError(), {"weight": "q"}, "give more --cpus"),
    ],
)
def test_a_task_that_ray_loses_is_named(
    error: Exception, settings: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(_: Task) -> None:
        raise error

    stub = SimpleNamespace(
        exceptions=ray.exceptions,
        cluster_resources=dict,
        nodes=lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}],
        remote=lambda **_: lambda _: Task(),
        wait=lambda tasks, **_: (tasks, []),
        get=lose,
    )
    monkeypatch.setitem(sys.modules, "ray", stub)  # Ray itself stays as it is: another session may run in this process
    unit = Unit("cka", ({"method": "lora", "reference": "lora-4", "dataset": "dtd", "model": "m"},), settings, {})
    with pytest.raises(DiagnosticError) as caught:
        list(run_units(tmp_path, [unit], 1.0))
    words = str(caught.value)
    assert words.startswith(f"Ray lost the task of cka lora lora-4 dtd: {type(error).__name__}") and said in words
    assert _is_user_error(caught.value)  # no traceback


def test_a_control_store_that_is_gone_ends_diagnostics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(Session):
        def connect(self) -> None:
            self._store, self._heard = "127.0.0.1:1", -math.inf  # nothing listens there
            threading.Thread(target=self._watch, daemon=True).start()

    def waiting(*_: Any) -> Iterator[Any]:
        threading.Event().wait(60)  # as for Ray's answer; it ends by a signal
        yield from ()

    monkeypatch.setattr("sweeps.backends.ray.cluster.session.Session", Lost)
    monkeypatch.setattr("sweeps.engine.analyze.run_units", waiting)
    with pytest.raises(RayLostError, match=r"control store at .* takes no connections") as caught:
        list(ray_tasks(progress=False)(tmp_path, []))
    assert caught.value.exit_code == EXIT_LOST
