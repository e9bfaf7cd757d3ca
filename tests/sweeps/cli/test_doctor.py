"""What `sweeps doctor` looks at, and what it says where something is wrong."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

from sweeps.cli import doctor
from tests.support import ROOT


def found() -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.examine()}


def test_everything_is_looked_at() -> None:
    checks = found()
    assert {"python", "package sweeps", "ray", "ray parts", "accelerators", "memory", "disk", "hub cache"} <= set(
        checks
    )
    assert all(checks[f"package {name}"].ok for name in doctor.PACKAGES)
    assert "tune and train of 2.60" in checks["ray parts"].found


def test_cores_are_those_that_trials_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert "trials run on 3 CPU core(s)" in doctor._devices().found


def test_the_ray_it_knows_is_the_one_that_is_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any(f">={doctor.RAY_MINOR}," in line for line in project["dependencies"] if line.startswith("ray["))


def test_another_ray_another_package_and_a_closed_cache_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from huggingface_hub import constants

    monkeypatch.setattr(ray, "__version__", "2.58.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    monkeypatch.setattr(doctor, "PACKAGES", ("sweeps", "json"))  # as if another package had taken a name
    checks = found()
    assert not checks["ray parts"].ok
    assert "2.60" in checks["ray parts"].mend
    assert not checks["hub cache"].ok
    assert "HF_HOME" in checks["hub cache"].mend
    assert checks["package sweeps"].ok
    assert not checks["package json"].ok


def test_a_cluster_without_authentication_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.cluster.resources import ResourceError

    answers = {"open:1": None, "closed:1": "AuthenticationError: InvalidAuthToken", "gone:1": "no answer within 10 s"}
    monkeypatch.setattr("sweeps.cluster.joining.ask", lambda address, *_, **__: answers[address])
    seen = {address: doctor._cluster(address)[0] for address in answers}
    assert [(check.ok, check.warns) for check in seen.values()] == [(True, True), (True, False), (False, False)]
    assert "open:1 answers without a token" in seen["open:1"].found
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.utils.read_ray_address", lambda: None)
    monkeypatch.setattr("sweeps.cluster.joining._running", list)
    assert doctor._cluster(None) == []
    with pytest.raises(ResourceError):
        doctor._cluster("auto")
