"""A local session is its owner's alone: another account gets no answer on any port, and reads none of its files."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.train.torch import TorchConfig

from sweeps.backends.ray.cluster import private
from sweeps.backends.ray.cluster.nodes import HEAD
from sweeps.backends.ray.cluster.private import PREFIX, make_folder, session_folder, token_of
from sweeps.backends.ray.cluster.processes import clear, processes_of
from sweeps.backends.ray.lanes.groups import group_config
from sweeps.backends.ray.pool import Pool
from sweeps.backends.resources import LaneShape, ResourceError
from tests.support import ROOT, gone, wait_for

STRANGER = [sys.executable, "-m", "tests.sweeps.cluster.stranger"]
LOOPBACK = {"127.0.0.1", "::ffff:127.0.0.1"}
PORTS = {"GetNodeStats", "HTTP", "InternalKVPut", "Push", "PushTask"}
"""What refuses a stranger: raylet, runtime-environment agent, control store, object manager, workers."""


def listening(processes: list[int]) -> list[tuple[str, int]]:
    """(address, port) of the TCP sockets that some processes listen on."""
    found: list[tuple[str, int]] = []
    for pid in processes:
        with contextlib.suppress(psutil.Error):  # children come and go
            sockets = psutil.Process(pid).net_connections("tcp")
            found += [(str(s.laddr.ip), s.laddr.port) for s in sockets if s.status == psutil.CONN_LISTEN]
    return found


def knock(ports: list[int], **variables: str) -> dict[str, object]:
    import ray

    session = os.environ["RAY_AUTH_TOKEN_PATH"]
    usual = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    command = [*STRANGER, session, ray.get_runtime_context().gcs_address, *map(str, ports)]
    done = subprocess.run(command, cwd=ROOT, env=usual | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_another_account_is_refused_on_every_port(pool: Pool) -> None:
    family = [child.pid for child in psutil.Process().children(recursive=True)]
    sockets = listening([os.getpid(), *family])
    assert {address for address, _ in sockets} <= LOOPBACK
    found = knock([port for _, port in sockets], RAY_AUTH_MODE="disabled")
    assert found["said"] == "refused"
    ports = found["ports"]
    assert isinstance(ports, dict)
    assert all(ports.values()), ports
    assert {name for names in ports.values() for name in names} == PORTS
    if os.geteuid() == 0:
        assert found["read"] is False


@pytest.mark.timeout(300)
def test_workers_that_share_a_trial_listen_on_loopback_alone(tmp_path: Path, pool: Pool) -> None:
    import ray

    from sweeps.backends.ray.lanes.broker import Broker
    from sweeps.backends.ray.lanes.lanes import Lanes

    broker = ray.remote(num_cpus=0)(Broker).remote()
    lanes = Lanes(broker, [LaneShape(2, True, {HEAD: 0.001})], tmp_path)  # the pool's lane has the CPUs
    lanes.start()
    try:
        wait_for(lambda: lanes.down or ray.get(broker.status.remote())["workers"], "a group that has met")
        assert lanes.down is None
        sockets = listening([child.pid for child in psutil.Process().children(recursive=True)])
        assert {address for address, _ in sockets} <= LOOPBACK
    finally:
        lanes.stop(0.0)
        ray.kill(broker)


def test_workers_in_a_cluster_meet_as_ray_has_it(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = session_folder()
    assert folder == Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent
    usual = TorchConfig().backend_cls
    assert group_config(folder).backend_cls is not usual
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/home/user/.ray/auth_token")
    assert group_config(session_folder()).backend_cls is usual
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    assert group_config(session_folder()).backend_cls is usual


def test_the_token_is_what_lets_in(pool: Pool) -> None:
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
    assert knock([], RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)["said"] in ("1", "True")
    assert knock([], RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * len(token))["said"] == "refused"
    folder, found = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent, []
    for process in processes_of(folder):
        with contextlib.suppress(psutil.Error):
            assert token not in " ".join(process.cmdline())
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # sockets, and files that go meanwhile
            found += [path.name] if token.encode() in path.read_bytes() else []
    assert found == ["token"]


def test_the_folder_and_the_token_are_the_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "_SOCKET_BYTES", 400)  # pytest's folder is long
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    before = os.umask(0)
    try:
        folder, other = make_folder(), make_folder()
    finally:
        os.umask(before)
    assert folder.parent == tmp_path
    assert [stat.S_IMODE(p.stat().st_mode) for p in (folder, token_of(folder))] == [0o700, 0o600]
    assert len({token_of(f).read_text() for f in (folder, other)}) == 2


def test_a_path_too_long_for_sockets_gives_way_to_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    folder = make_folder()
    assert folder.parent == Path("/tmp")
    assert "bytes too long for Ray's sockets" in caplog.text
    clear(folder)
    assert not folder.exists()
    monkeypatch.setattr(private, "_SOCKET_BYTES", 30)
    with pytest.raises(ResourceError, match=r"RAY_TMPDIR = .*go nowhere .*too long.*/tmp is \d+ bytes"):
        make_folder()


def test_a_full_disk_gives_way_and_nothing_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def full(path: Path, *given: Any, **named: Any) -> int:
        if path.is_relative_to(tmp_path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, *given, **named)

    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr(private, "_SOCKET_BYTES", 400)  # pytest's folder is long
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    folder = make_folder()
    assert folder.parent == Path("/tmp") and token_of(folder).read_text()
    assert list(tmp_path.iterdir()) == []
    clear(folder)


def test_what_is_left_of_a_session_is_ended_with_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / f"{PREFIX}1"
    folder.mkdir()
    sleep = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    with subprocess.Popen([*sleep, f"--temp-dir={folder}/r"]) as own, subprocess.Popen(sleep) as other:
        process = psutil.Process(own.pid)
        clear(folder)
        wait_for(lambda: gone([process]), "its process to end")
        assert other.poll() is None
        other.kill()
    assert not folder.exists()
