"""What `sweeps doctor` looks at, and what it says where something is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray

from sweeps.backends.ray.compat import NEWEST
from sweeps.cli import doctor
from sweeps.errors import Problem


def found() -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.examine()}


def test_everything_is_looked_at() -> None:
    checks = found()
    assert {"python", "package sweeps", "ray", "ray parts", "accelerators", "memory", "disk", "hub cache"} <= set(
        checks
    )
    assert all(checks[f"package {name}"].ok for name in doctor.PACKAGES)
    assert f"tune and train of {ray.__version__}" in checks["ray parts"].found


def test_cores_are_those_that_trials_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert "trials run on 3 CPU core(s)" in doctor._devices().found


def test_another_ray_another_package_and_a_closed_cache_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(ray, "__version__", "2.99.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    monkeypatch.setattr(doctor, "PACKAGES", ("sweeps", "json"))  # as if another package had taken a name
    checks = found()
    assert not checks["ray parts"].ok
    assert "2.99.1" in checks["ray parts"].found
    assert f"=={NEWEST}." in checks["ray parts"].mend
    assert not checks["hub cache"].ok
    assert "HF_HOME" in checks["hub cache"].mend
    assert checks["package sweeps"].ok
    assert not checks["package json"].ok


def test_a_cluster_without_authentication_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.backends.resources import ResourceError

    answers = {"open:1": None, "closed:1": "AuthenticationError: InvalidAuthToken", "gone:1": "no answer within 10 s"}
    monkeypatch.setattr("sweeps.backends.ray.joining.ask", lambda address, **_: answers[address])
    monkeypatch.setattr("sweeps.backends.ray.joining.try_release", lambda _: None)
    seen = {address: doctor._cluster(address)[0] for address in answers}
    assert [(check.ok, check.warns) for check in seen.values()] == [(True, True), (True, False), (False, False)]
    assert "open:1 answers without a token" in seen["open:1"].found
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("sweeps.backends.ray.joining._running", list)
    assert doctor._cluster(None) == []
    with pytest.raises(ResourceError):
        doctor._cluster("auto")


def test_a_cluster_of_another_ray_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Problem("--address", "open:1", "runs Ray 2.58.1", "pip install 'ray[tune,train]==2.58.1'")
    monkeypatch.setattr("sweeps.backends.ray.joining.ask", lambda *_, **__: None)
    monkeypatch.setattr("sweeps.backends.ray.joining.try_release", lambda _: other)
    token, release = doctor._cluster("open:1")
    assert token.ok and not release.ok
    assert "Ray 2.58.1" in release.found and release.mend == other.nearest
