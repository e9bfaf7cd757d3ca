"""What `sweeps doctor` looks at, and what it says where something is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray

from sweeps.backends.ray.compat import NEWEST
from sweeps.cli import doctor


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
    assert "trials run on 3 CPU cores" in doctor._devices().found


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
    monkeypatch.setattr("sweeps.backends.ray.cluster.joining.ask", lambda address, **_: answers[address])
    seen = {address: doctor._cluster(address)[0] for address in answers}
    assert [(check.ok, check.warns) for check in seen.values()] == [(True, True), (True, False), (False, False)]
    assert "open:1 answers without a token" in seen["open:1"].found
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("sweeps.backends.ray.cluster.joining._running", list)
    assert doctor._cluster(None) == []
    with pytest.raises(ResourceError):
        doctor._cluster("auto")


@pytest.mark.parametrize("token", [True, False])
def test_a_cluster_of_another_ray_fails(monkeypatch: pytest.MonkeyPatch, token: bool) -> None:
    """`ray status` says so as soon as it is let in."""
    other = "RuntimeError: Ray version mismatch: cluster has Ray version 2.58.1 but local Ray version is 2.60.0"
    refusal = "AuthenticationError: InvalidAuthToken"
    answers = {False: refusal if token else other, True: other}
    monkeypatch.setattr("sweeps.backends.ray.cluster.joining.ask", lambda _, *, token=True: answers[token])
    let_in, release = doctor._cluster("head:1")
    assert (let_in.ok, let_in.warns, release.ok) == (True, not token, False)
    assert "Ray 2.58.1" in release.found and "ray[tune,train]==2.58.1" in release.mend


def test_a_cluster_whose_token_is_another_is_one_that_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sweeps.backends.ray.cluster.joining.ask", lambda *_, **__: "AuthenticationError: InvalidAuthToken"
    )
    (check,) = doctor._cluster("head:1")
    assert check.ok and "asks for a token" in check.found
