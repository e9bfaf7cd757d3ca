from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sweeps.records import locks
from sweeps.records.locks import (
    STALE_S,
    FolderLock,
    IdentityError,
    LockedError,
    check_identity,
    holder,
    stored_identity,
    write_identity,
)

IDENTITY = {"name": "a", "train": {"epochs": 3, "lr": 1e-3}, "methods": {"lora": {"alpha": 16}}}


def rewrite(folder: Path, **values: object) -> None:
    path = folder / "lock.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_second_driver_is_refused_naming_the_first(tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        held = holder(tmp_path)
        assert held is not None
        assert held.pid == os.getpid()
        with pytest.raises(LockedError, match=rf"being run by process {os.getpid()} on host \S+, running since"):
            FolderLock(tmp_path).__enter__()
        assert holder(tmp_path) == held
    assert holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


WRONG = b'{"host": 1, "pid": "x", "process_start": [], "started": 0, "heartbeat": "now", "token": 0}'


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"[]", b"[" * 100_000, b"9", b'{"host": "h"}', WRONG])
def test_a_damaged_lock_is_nobodys(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "lock.json").write_bytes(text)
    assert holder(tmp_path) is None
    with FolderLock(tmp_path):
        assert holder(tmp_path) is not None


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"[]", b"[" * 100_000, b'{"identity": [1]}', b'{"identity": 1}'])
def test_a_damaged_identity_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "spec.json").write_bytes(text)
    with pytest.raises(IdentityError, match=r"spec\.json.*can't be read as a sweep's identity; restore it"):
        check_identity(tmp_path, IDENTITY)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links_locks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    test_a_second_driver_is_refused_naming_the_first(tmp_path)


def test_a_dead_process_loses_its_lock(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from sweeps.records.locks import FolderLock\n"
    code += "FolderLock(Path(sys.argv[1])).__enter__(); os._exit(0)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert (tmp_path / "lock.json").exists()
    assert holder(tmp_path) is None
    with FolderLock(tmp_path):
        assert holder(tmp_path) is not None


def test_a_killed_process_that_nobody_waited_for_loses_its_lock(tmp_path: Path) -> None:
    """As in a container whose first process looks after no others: it stays in the list of processes."""
    code = "import os, sys; from pathlib import Path; from sweeps.records.locks import FolderLock\n"
    code += "FolderLock(Path(sys.argv[1])).__enter__(); os.kill(os.getpid(), 9)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as driver:
        while psutil.Process(driver.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.02)
        with FolderLock(tmp_path):
            assert holder(tmp_path) is not None


def test_a_reused_pid_does_not_count_as_alive(tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        rewrite(tmp_path, process_start=12345.0)
        with FolderLock(tmp_path):
            pass


def test_another_host_counts_by_its_heartbeat(tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        rewrite(tmp_path, host="elsewhere")
        with pytest.raises(LockedError, match="on host elsewhere"):
            FolderLock(tmp_path).__enter__()
        rewrite(tmp_path, host="elsewhere", heartbeat=time.time() - 2 * STALE_S)
        with FolderLock(tmp_path):
            pass


def test_an_unreadable_lock_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_text("{")
    with FolderLock(tmp_path):
        assert holder(tmp_path) is not None


def test_a_driver_that_lost_its_folder_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host that was suspended until another took the folder over: it must not write on, nor take it back."""
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.1)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a run has its own; under nohup it is ignored
    try:
        with pytest.raises(KeyboardInterrupt), FolderLock(tmp_path):
            rewrite(tmp_path, token="theirs", host="elsewhere")
            time.sleep(240)  # the interrupt ends it
    finally:
        signal.signal(signal.SIGINT, before)
    assert json.loads((tmp_path / "lock.json").read_text())["token"] == "theirs"


def test_identity_refusal_shows_each_difference(tmp_path: Path) -> None:
    check_identity(tmp_path, IDENTITY)  # an empty folder belongs to nobody
    write_identity(tmp_path, IDENTITY)
    check_identity(tmp_path, IDENTITY)
    changed = {"name": "a", "train": {"epochs": 5, "lr": 1e-3, "extra": 1}, "methods": {"lora": {"alpha": 32}}}
    with pytest.raises(IdentityError) as refused:
        check_identity(tmp_path, changed)
    fields = [(p.field, p.value, p.nearest) for p in refused.value.problems]
    assert fields == [
        ("results", str(tmp_path), None),
        ("train.epochs", 5, "train.epochs = 3"),
        ("train.extra", 1, "leave train.extra out"),
        ("methods.lora.alpha", 32, "methods.lora.alpha = 16"),
    ]
    assert "were made with 3" in str(refused.value)


def test_methods_may_come_and_go_but_keep_their_settings(tmp_path: Path) -> None:
    write_identity(tmp_path, IDENTITY)
    with_vera = {**IDENTITY, "methods": {"vera": {"d": 1}}}
    check_identity(tmp_path, with_vera)
    write_identity(tmp_path, with_vera)
    stored = stored_identity(tmp_path)
    assert stored is not None
    assert stored["methods"] == {"lora": {"alpha": 16}, "vera": {"d": 1}}
    with pytest.raises(IdentityError, match=r"methods\.lora\.alpha"):
        check_identity(tmp_path, {**IDENTITY, "methods": {"lora": {"alpha": 1}}})


def test_an_unreadable_spec_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # an error shortens a long path
    Path("spec.json").write_text("{")
    with pytest.raises(IdentityError, match=r"spec\.json"):
        check_identity(Path(), IDENTITY)
