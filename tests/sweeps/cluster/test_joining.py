"""Which cluster an address names; and a local session, or a port that says nothing, is none."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from sweeps.backends.ray.cluster import joining, session
from sweeps.backends.ray.cluster.joining import ask, find
from sweeps.backends.ray.cluster.session import Session
from sweeps.backends.ray.pool import Pool
from sweeps.backends.resources import ResourceError
from sweeps.engine.analyze import ray_tasks


def raylet(address: str, folder: str) -> SimpleNamespace:
    line = ["/ray/raylet", f"--gcs-address={address}", f"--temp-dir={folder}/r"]
    return SimpleNamespace(name=lambda: "raylet", cmdline=lambda: line)


def test_auto_passes_private_sessions_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    running = [raylet("127.0.0.1:1", "/tmp/sweeps-ray-a1"), raylet("10.0.0.1:6379", "/tmp/ray")]
    monkeypatch.setattr(psutil, "process_iter", lambda: running)
    assert find("auto") == "10.0.0.1:6379"
    running.append(raylet("10.0.0.3:6379", "/tmp/ray"))
    with pytest.raises(ResourceError) as several:
        find("auto")
    assert several.value.problems[0].nearest == "10.0.0.1:6379 or 10.0.0.3:6379"
    del running[1:]
    with pytest.raises(ResourceError, match=r"--address = 'auto': no Ray cluster runs on this machine"):
        find("auto")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert find("auto") == "10.0.0.2:6379"
    assert find("head:6379") == "head:6379"


def test_a_local_session_is_no_cluster(pool: Pool) -> None:
    import ray

    assert ray.get_runtime_context().gcs_address not in joining._running()


def test_a_cluster_answers_with_its_token_only(pool: Pool) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    assert ask(address) is None
    assert "InvalidAuthToken" in str(ask(address, token=False))


def test_what_does_not_answer_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session, "connected", lambda: False)
    said: list[str] = []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ResourceError, match=rf"{address}.*no Ray cluster answers there \(.*refused"):
            Session(address, said.append).connect()
        with pytest.raises(ResourceError):
            list(ray_tasks(address)(tmp_path, []))
        server.listen()
        assert ask(address, seconds=0.5) == "no answer within 0.5 s"
    assert said == [f"joining the Ray cluster at {address}"] == capsys.readouterr().err.splitlines()


INIT = """Version mismatch: The cluster was started with:
    Ray: {0}
    Python: {1}
This process on node 127.0.0.1 was started with:
    Ray: 2.60.0
    Python: 3.11.7
"""
STATUS = "RuntimeError: Ray version mismatch: cluster has Ray version {0} but local Ray version is 2.60.0"
OTHERS = [
    ("2.58.1", "3.11.7", "pip install 'ray[tune,train]==2.58.1'"),
    ("2.44.0", "3.11.7", "a cluster with Ray 2.60.0"),  # this package does not work with it
    ("2.60.0", "3.12.1", "Python 3.12 here"),
]
"""Releases of Ray and Python in the cluster, and what to do here, where they are 2.60.0 and 3.11.7."""


@pytest.mark.parametrize("said", [INIT, STATUS])
@pytest.mark.parametrize(("theirs", "python", "nearest"), OTHERS)
def test_a_cluster_of_another_release_is_refused(
    monkeypatch: pytest.MonkeyPatch, said: str, theirs: str, python: str, nearest: str
) -> None:
    if said is STATUS and theirs == "2.60.0":
        return  # `ray status` says nothing of Python

    def init(**_: object) -> None:
        raise RuntimeError(said.format(theirs, python))

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr(session, "connected", lambda: False)
    monkeypatch.setattr(session, "_knock", lambda _: None)
    monkeypatch.setattr(session, "ask", lambda _: said.format(theirs) if said is STATUS else None)
    with pytest.raises(ResourceError) as refused:
        Session("head:1").connect()
    (problem,) = refused.value.problems
    assert (problem.field, problem.value, problem.nearest) == ("--address", "head:1", nearest)
    assert f"Ray {theirs}" in problem.rule and "Ray 2.60.0" in problem.rule
    assert ("needs Ray" in problem.rule) == (theirs == "2.44.0")


def test_a_ray_that_nobody_tried_joins_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.__version__", "3.0.0.dev0")
    monkeypatch.setattr(session, "connected", lambda: False)
    with pytest.raises(ResourceError) as refused:
        Session("head:1").connect()
    assert "3.0.0.dev0" in refused.value.problems[0].rule
