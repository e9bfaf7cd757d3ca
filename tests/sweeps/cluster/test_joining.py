"""Which cluster an address names; and a local session, or a port that says nothing, is none."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from sweeps.backends.ray.pool import Pool
from sweeps.cluster import joining, session
from sweeps.cluster.joining import ask, find
from sweeps.cluster.resources import ResourceError
from sweeps.cluster.session import Session
from sweeps.engine.analyze import ray_tasks


def raylet(address: str, folder: str) -> SimpleNamespace:
    line = ["/ray/raylet", f"--gcs-address={address}", f"--temp-dir={folder}/r"]
    return SimpleNamespace(name=lambda: "raylet", cmdline=lambda: line)


def test_auto_passes_private_sessions_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.utils.read_ray_address", lambda: None)
    running = [raylet("127.0.0.1:1", "/tmp/sweeps-ray-a1"), raylet("10.0.0.1:6379", "/tmp/ray")]
    monkeypatch.setattr(psutil, "process_iter", lambda: running)
    assert find("auto") == "10.0.0.1:6379"
    running.pop()
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
    assert ask(address, address) is None
    assert "InvalidAuthToken" in str(ask(address, address, token=False))


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
        assert ask(address, address, seconds=0.5) == "no answer within 0.5 s"
    assert said == [f"joining the Ray cluster at {address}"] == capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("differs", ["ray_version", "python_version"])
def test_a_cluster_of_other_versions_is_refused(monkeypatch: pytest.MonkeyPatch, differs: str) -> None:
    from ray._private.utils import check_version_info, compute_version_info

    def init(**_: object) -> None:
        mine = dict(zip(("ray_version", "python_version"), compute_version_info(), strict=True))
        check_version_info(mine | {differs: "1.2.3"}, "node 127.0.0.1:1")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr(session, "connected", lambda: False)
    monkeypatch.setattr(session, "_knock", lambda _: None)
    monkeypatch.setattr(session, "ask", lambda *_: None)
    with pytest.raises(ResourceError, match=r"--address = 'head:1'.*another version of Ray or Python \(.*1\.2\.3.*\)"):
        Session("head:1").connect()
