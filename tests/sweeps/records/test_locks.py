from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from sweeps.errors import Problem, SpecError
from sweeps.records import locks
from sweeps.records.locks import (
    KERNEL_LOCK,
    LEASE,
    FolderLock,
    IdentityError,
    LockedError,
    as_begun_in_its_folder,
    check_identity,
    holder,
    remove_folder_if_refused,
    stored_identity,
    write_identity,
)
from sweeps.spec.search import SearchSection
from sweeps.spec.sections import BudgetSection, DataSection
from sweeps.spec.spec import SweepSpec
from tests.fakes import fake_spec

IDENTITY = {"name": "a", "train": {"epochs": 3, "lr": 1e-3}, "methods": {"lora": {"alpha": 16}}}


def rewrite(folder: Path, age: float = 0.0, **values: object) -> None:
    """Change the record of a lease in place, and when it was renewed."""
    path = folder / LEASE
    fields = dict(line.split("=", 1) for line in path.read_text().splitlines()[1:])
    fields |= {name: str(value) for name, value in values.items()}
    path.write_text("\n".join(["filelock/2", *(f"{name}={value}" for name, value in fields.items()), ""]))
    os.utime(path, (time.time() - age,) * 2)


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system without the kernel's lock."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contenders wait for fractions of a second."""
    monkeypatch.setattr(locks, "STALE_S", 0.6)
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(locks, "_ENDS_S", 0.2)


def test_a_second_driver_is_refused_naming_the_first(tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        found = holder(tmp_path)
        assert found is not None
        assert found.pid == os.getpid()
        with pytest.raises(LockedError, match=rf"being run by process {os.getpid()} on host \S+; wait"):
            FolderLock(tmp_path).__enter__()
        assert holder(tmp_path) == found
    assert holder(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == [KERNEL_LOCK]


LEASES = [
    f"filelock/2\npid={pid}\nhost=h\nmode=lease\ntoken={'a' * 32}\nduration={duration}\nstart={start}\n".encode()
    for pid, duration, start in (("x", 60.0, 1), (-1, 60.0, 1), (10**30, 60.0, 1), (1, "1e999", 1), (1, 60.0, "1e300"))
]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o700), (0o077, 0o700), (0o002, 0o770), (0o007, 0o770)])
def test_a_new_results_folder_is_its_owners_and_one_that_is_there_stays(tmp_path: Path, umask: int, mode: int) -> None:
    there, new = tmp_path / "there", tmp_path / "results" / "new"
    there.mkdir(0o755)
    there.chmod(0o755)
    before = os.umask(umask)
    try:
        for folder in (there, new):
            with FolderLock(folder):
                pass
    finally:
        os.umask(before)
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (there, new)] == [0o755, mode]
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError), FolderLock(tmp_path / "file"):
        pass


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"9" * 5000, *LEASES])
def test_a_damaged_lease_is_nobodys(tmp_path: Path, text: bytes) -> None:
    (tmp_path / LEASE).write_bytes(text)
    assert holder(tmp_path) is None
    with FolderLock(tmp_path):
        assert holder(tmp_path) is not None


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"[]", b"[" * 100_000, b'{"identity": [1]}', b'{"identity": 1}'])
def test_a_damaged_identity_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "spec.json").write_bytes(text)
    with pytest.raises(IdentityError, match=r"spec\.json.*can't be read as a sweep's identity; restore it"):
        check_identity(tmp_path, IDENTITY)


def test_a_dead_process_loses_its_lock(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from sweeps.records.locks import FolderLock\n"
    code += "FolderLock(Path(sys.argv[1])).__enter__(); os._exit(0)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert (tmp_path / LEASE).exists()
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


def test_a_reused_pid_does_not_count_as_alive(tmp_path: Path, no_flock: None) -> None:
    with FolderLock(tmp_path):
        rewrite(tmp_path, start=12345)
        with FolderLock(tmp_path):
            pass


ELSEWHERE = ["elsewhere", f"{socket.gethostname()}?pidns-1"]
"""Another host, and another container of this one: `filelock` adds its space of process numbers to the host's name."""


@pytest.mark.parametrize("host", ELSEWHERE)
def test_a_process_elsewhere_with_a_heartbeat_is_alive(tmp_path: Path, no_flock: None, host: str) -> None:
    abandon(tmp_path, 0.0, host)
    with pytest.raises(LockedError, match=f"process {2**22} on host {host.partition('?')[0]};"):
        FolderLock(tmp_path).__enter__()


@pytest.mark.parametrize("age", [-3600.0, 3600.0])  # by its clock, which may be ahead or behind
@pytest.mark.parametrize("host", ELSEWHERE)
def test_a_process_elsewhere_without_a_heartbeat_is_dead(
    tmp_path: Path, no_flock: None, short: None, host: str, age: float
) -> None:
    abandon(tmp_path, age, host)
    assert holder(tmp_path) is None
    with FolderLock(tmp_path):
        pass


def abandon(folder: Path, age: float, host: str) -> None:
    """Leave the lease of a process of another host, renewed `age` seconds ago."""
    fields = {"pid": 2**22, "host": host, "mode": "lease", "token": "theirs", "duration": locks.STALE_S}
    (folder / LEASE).write_text("filelock/2\n" + "".join(f"{name}={value}\n" for name, value in fields.items()))
    os.utime(folder / LEASE, (time.time() - age,) * 2)


def test_a_heartbeat_that_moves_counts_whatever_the_clocks_say(tmp_path: Path, no_flock: None, short: None) -> None:
    abandon(tmp_path, 3600.0, "elsewhere")
    over = threading.Event()

    def beat() -> None:
        for late in range(1, 1000):
            os.utime(tmp_path / LEASE, (time.time() - 3600 + late,) * 2)
            if over.wait(0.1):
                return

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(LockedError, match="on host elsewhere"):
            FolderLock(tmp_path).__enter__()
    finally:
        over.set()
        thread.join()


def test_the_kernel_knows_better_than_a_lease(tmp_path: Path, short: None) -> None:
    """A driver that stands still, as under SIGSTOP, keeps its folder."""
    with FolderLock(tmp_path):
        rewrite(tmp_path, age=3600.0, host="elsewhere")
        with pytest.raises(LockedError, match="on host elsewhere"):
            FolderLock(tmp_path).__enter__()


CONTENDERS = """
import json, os, sys
from pathlib import Path
from sweeps.records.locks import FolderLock, LockedError

folder, rounds, several = Path(sys.argv[1]), int(sys.argv[2]), 4
for _ in range(rounds):
    (folder / "lock").write_text(sys.argv[3])
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
        rewrite(tmp_path, pid=2**22)
        stale = (tmp_path / LEASE).read_text()
        rewrite(tmp_path, pid=os.getpid())
    done = subprocess.run(
        [sys.executable, "-c", CONTENDERS, str(tmp_path), "20", stale], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1"] * 20


def test_a_driver_that_lost_its_folder_stops(tmp_path: Path, short: None) -> None:
    """As on a host that was suspended until another took the folder over: it must not write on, nor take it back."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a run has its own; under nohup it is ignored
    try:
        with pytest.raises(KeyboardInterrupt), FolderLock(tmp_path):
            (tmp_path / "theirs").write_text("filelock/2\n")
            (tmp_path / "theirs").rename(tmp_path / LEASE)
            time.sleep(240)  # the interrupt ends it
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / LEASE).read_text() == "filelock/2\n"


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


def test_a_folder_from_before_the_local_fit_goes_on_without_it(tmp_path: Path) -> None:
    def spec(**search: Any) -> SweepSpec:
        return fake_spec(tmp_path, search=SearchSection(**search))

    new = spec()
    assert as_begun_in_its_folder(new) is new and new.identity()["search"]["refine"] == "auto"
    write_identity(tmp_path, spec(refine=0).identity())
    stored = stored_identity(tmp_path)
    assert stored is not None and "refine" not in stored["search"]
    settled = as_begun_in_its_folder(new)
    assert settled.search.refine == 0 and settled.search.refined(13) == 0
    check_identity(tmp_path, settled.identity())
    with pytest.raises(IdentityError, match=r"leave search\.refine out"):
        check_identity(tmp_path, as_begun_in_its_folder(spec(refine=4)).identity())


def test_a_folder_with_the_local_fit_keeps_it(tmp_path: Path) -> None:
    write_identity(tmp_path, fake_spec(tmp_path, search=SearchSection()).identity())
    kept = as_begun_in_its_folder(fake_spec(tmp_path, search=SearchSection(trials=17)))
    assert kept.search.refine == "auto"
    check_identity(tmp_path, kept.identity())
    with pytest.raises(IdentityError, match=r"search\.refine"):
        check_identity(tmp_path, fake_spec(tmp_path, search=SearchSection(refine=0)).identity())


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
        with pytest.raises(SpecError, match="no such sampler"), remove_folder_if_refused(folder):
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
