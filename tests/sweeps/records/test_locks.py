from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from sweeps.errors import Problem, SpecError
from sweeps.records import locks
from sweeps.records.locks import (
    STALE_S,
    FolderLock,
    Holder,
    IdentityError,
    LockedError,
    check_identity,
    holder,
    nothing_if_refused,
    stored_identity,
    write_identity,
)
from sweeps.spec.sections import BudgetSection, DataSection
from tests.fakes import fake_spec

IDENTITY = {"name": "a", "train": {"epochs": 3, "lr": 1e-3}, "methods": {"lora": {"alpha": 16}}}


def held(folder: Path) -> Holder:
    found = holder(folder)
    assert found is not None
    return found


def rewrite(folder: Path, **values: object) -> None:
    path = folder / "lock.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system without the kernel's lock."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)


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


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[]", b"[" * 100_000, b"9", b'{"host": "h"}', WRONG])
def test_a_damaged_lock_is_nobodys(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "lock.json").write_bytes(text)
    assert holder(tmp_path) is None
    with FolderLock(tmp_path):
        assert holder(tmp_path) is not None


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"[]", b"[" * 100_000, b'{"identity": [1]}', b'{"identity": 1}'])
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


@pytest.mark.parametrize("other", [{"ticks": 12345}, {"ticks": None, "process_start": 12345.0}], ids=["now", "before"])
def test_a_reused_pid_does_not_count_as_alive(tmp_path: Path, no_flock: None, other: dict[str, object]) -> None:
    with FolderLock(tmp_path):
        rewrite(tmp_path, **other)
        with FolderLock(tmp_path):
            pass


def test_a_clock_that_is_set_kills_nobody(tmp_path: Path, no_flock: None) -> None:
    """The start of a process since 1970 moves with it."""
    with FolderLock(tmp_path):
        rewrite(tmp_path, process_start=psutil.Process().create_time() + 3)
        with pytest.raises(LockedError):
            FolderLock(tmp_path).__enter__()


ELSEWHERE = {"another machine": {"host": "elsewhere", "place": "b n"}, "another container": {"place": "b n"}}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_a_process_elsewhere_counts_by_its_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_flock: None, where: str
) -> None:
    """Another container of this host, or a host of the same name, has other processes of the same numbers."""
    with FolderLock(tmp_path):
        lock = (tmp_path / "lock.json").read_text()
        monkeypatch.setattr(locks, "HEARTBEAT_S", 0.1)  # of what waits from here on
        rewrite(tmp_path, pid=2**22, **ELSEWHERE[where])
        with pytest.raises(LockedError, match="on host"):
            FolderLock(tmp_path).__enter__()
        for clock in (-2 * STALE_S, 2 * STALE_S):
            (tmp_path / "lock.json").write_text(lock)
            rewrite(tmp_path, pid=2**22, **ELSEWHERE[where], heartbeat=time.time() + clock)
            with FolderLock(tmp_path):
                pass


def test_a_heartbeat_that_moves_counts_whatever_the_clocks_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_flock: None
) -> None:
    with FolderLock(tmp_path):
        rewrite(tmp_path, host="elsewhere", place="b n", heartbeat=1.0)
        monkeypatch.setattr("sweeps.records.locks.time.sleep", lambda _: rewrite(tmp_path, heartbeat=2.0))
        with pytest.raises(LockedError, match="on host elsewhere"):
            FolderLock(tmp_path).__enter__()


def test_the_kernel_knows_better_than_a_lock_file(tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        rewrite(tmp_path, host="elsewhere", place="b n", heartbeat=1.0)
        with pytest.raises(LockedError, match="on host elsewhere"):
            FolderLock(tmp_path).__enter__()


CONTENDERS = """
import json, os, sys
from pathlib import Path
from sweeps.records.locks import FolderLock, LockedError

folder, rounds, several = Path(sys.argv[1]), int(sys.argv[2]), 4
for _ in range(rounds):
    (folder / "lock.json").write_text(sys.argv[3])
    go, done, end = os.pipe(), os.pipe(), os.pipe()
    for _ in range(several):
        if os.fork() == 0:
            os.close(end[1])
            os.read(go[0], 1)
            lock = FolderLock(folder)
            try:
                lock.__enter__()
                os.write(done[1], b"1")
                os.read(end[0], 1)
                lock.__exit__()
            except LockedError:
                os.write(done[1], b"0")
            os._exit(0)
    os.write(go[1], b"x" * several)
    said = b"".join(os.read(done[0], 1) for _ in range(several))
    os.close(end[1])
    for _ in range(several):
        os.wait()
    for handle in (*go, *done, end[0]):
        os.close(handle)
    print(said.count(b"1"))
"""


def test_of_contenders_for_a_dead_lock_one_gets_it(tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        stale = json.dumps({**asdict(held(tmp_path)), "pid": 2**22})
    done = subprocess.run(
        [sys.executable, "-c", CONTENDERS, str(tmp_path), "20", stale], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1"] * 20


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


def test_a_lock_that_can_not_be_read_for_a_moment_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network folder whose server starts again: the heart goes on to beat."""
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.05)
    real, asked = locks._read, list[Path]()

    def read(path: Path) -> Holder | None:
        asked.append(path)
        if threading.current_thread() is not threading.main_thread() and len(asked) < 3:
            raise OSError(errno.ESTALE, "stale")
        return real(path)

    with FolderLock(tmp_path):
        begun = held(tmp_path).heartbeat
        monkeypatch.setattr(locks, "_read", read)
        until = time.monotonic() + 240  # it ends as soon as it beats
        while held(tmp_path).heartbeat == begun and time.monotonic() < until:
            time.sleep(0.01)
        assert held(tmp_path).heartbeat != begun


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


def test_what_budgets_limit_stays(tmp_path: Path) -> None:
    """Cells of a list of capacities have the same ids under both."""
    of = {c: fake_spec(tmp_path, budgets=BudgetSection(params=(8,), count=c)).identity() for c in ("parameters", "dof")}
    write_identity(tmp_path, of["dof"])
    check_identity(tmp_path, of["dof"])
    with pytest.raises(IdentityError, match=r"budgets\.count = 'parameters': .* were made with 'dof'"):
        check_identity(tmp_path, of["parameters"])
    old = of["dof"] | {"budgets": {k: v for k, v in of["dof"]["budgets"].items() if k != "count"}}
    write_identity(tmp_path, old)
    check_identity(tmp_path, of["dof"])


def test_a_folder_of_other_rules_is_refused(tmp_path: Path) -> None:
    write_identity(tmp_path, IDENTITY)
    stored = json.loads((tmp_path / "spec.json").read_text())
    older = {"identity": IDENTITY, "seed_rule": "per-data-set", "grid_rule": "equal-steps"}
    (tmp_path / "spec.json").write_text(json.dumps(older))
    with pytest.raises(IdentityError) as refused:
        check_identity(tmp_path, IDENTITY)
    (said,) = refused.value.problems
    assert "made by another version's rules (grid_rule: 'equal-steps', here 'nested'; path_rule: nothing " in said.rule
    assert said.field == "results" and "seed_rule" not in said.rule
    with pytest.raises(IdentityError, match="belongs to another sweep"):
        check_identity(tmp_path, {**IDENTITY, "name": "b"})
    (tmp_path / "spec.json").write_text(json.dumps(stored))
    check_identity(tmp_path, IDENTITY)


def test_data_sets_with_epochs_of_their_own_may_be_added_but_keep_them(tmp_path: Path) -> None:
    def identity(names: str, **epochs: int) -> dict[str, Any]:
        return fake_spec(tmp_path, data=DataSection(datasets=tuple(names), epochs=epochs)).identity()

    write_identity(tmp_path, identity("xz", x=5))
    grown = identity("xyz", x=5, y=4)
    check_identity(tmp_path, grown)
    write_identity(tmp_path, grown)
    check_identity(tmp_path, identity("x", x=5))
    for changed, field in ((identity("x", x=6), "x"), (identity("xy", x=5), "y"), (identity("xz", x=5, z=4), "z")):
        with pytest.raises(IdentityError, match=rf"data\.epochs\.{field} = "):
            check_identity(tmp_path, changed)


@pytest.mark.parametrize("whose", ["nobody's", "another driver's", "of a trial", "fetched"])
def test_what_a_refused_run_made_is_removed_unless_someone_uses_it(tmp_path: Path, whose: str) -> None:
    folder = tmp_path / "r"
    with contextlib.ExitStack() as stack:
        with pytest.raises(SpecError, match="no such sampler"), nothing_if_refused(folder):
            folder.mkdir()
            (folder / "data.json").touch()
            if whose == "another driver's":
                stack.enter_context(FolderLock(folder))
            if whose == "of a trial":
                (folder / "journal.jsonl").write_text('{"ev": "ask", "trial_id": "a"}\n')
            if whose == "fetched":
                (folder / "tables" / "trials").mkdir(parents=True)
                (folder / "tables" / "trials" / "part-1.parquet").touch()
            raise SpecError([Problem("search.sampler", "x", "no such sampler")])
        assert folder.exists() == (whose != "nobody's")
