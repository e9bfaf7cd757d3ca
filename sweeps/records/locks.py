"""One driver per results folder, and one sweep per name: the lock file and the identity check."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import psutil

from analysis.store.journal import JOURNAL, read_journal
from sweeps.errors import Problem, SpecError
from sweeps.records.journal import write_atomically
from sweeps.search.rules import RULES
from trainables.errors import TrainablesError

HEARTBEAT_S = 5.0
STALE_S = 60.0
"""A lock held elsewhere is alive while its heartbeat is younger than this; one that seems older is watched first."""
_WATCHED = 2.5
"""For so many heartbeats: clocks may differ, or have been set."""
_ENDS_S = 5.0
"""For the threads of a process that was killed to let the kernel's lock go, or for a contender to write its name."""


class LockedError(SpecError):
    """Another driver runs this results folder."""


class IdentityError(SpecError):
    """The results folder belongs to a sweep that differs in what must not change."""


@dataclass(frozen=True)
class Holder:
    """Who holds a results folder: host, process, its start and last heartbeat in seconds since 1970.

    Attributes:
        place: where its process number means that process: the boot of a machine, and a name space. Hosts' names may be
            equal, and containers of one host count processes apart. Empty in locks of before.
        ticks: the process's start by the machine's clock since its boot, which nobody sets; None where unknown.
    """

    host: str
    pid: int
    process_start: float
    started: float
    heartbeat: float
    token: str
    place: str = ""
    ticks: int | None = None

    @property
    def here(self) -> bool:
        """Whether its process can be looked up."""
        return self.place == _place() if self.place else self.host == socket.gethostname()

    @property
    def alive(self) -> bool:
        """Whether it still runs: by its process where that can be looked up, by its heartbeat elsewhere."""
        if not self.here:
            return abs(time.time() - self.heartbeat) < STALE_S
        try:
            process = psutil.Process(self.pid)
            start, over = process.create_time(), process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        if over:  # killed, and its parent has not looked after it: in a container there may be nobody to
            return False
        # else the pid has been given to another process; a start since 1970 moves when the clock is set
        known = self.ticks is not None
        return bool(_ticks(self.pid) == self.ticks if known else abs(start - self.process_start) < 2.0)

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.started, UTC).isoformat(sep=" ", timespec="seconds")
        return f"process {self.pid} on host {self.host}, running since {since}"


def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _ticks(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except OSError:
        return None


def holder(folder: Path) -> Holder | None:
    """The driver that runs a results folder now; None when none does, or its lock is stale."""
    found = _read(folder / "lock.json")
    return found if found is not None and found.alive else None


def _read(path: Path) -> Holder | None:
    try:
        found = Holder(**json.loads(path.read_text(encoding="utf-8")))
        numbers = (found.pid, found.process_start, found.started, found.heartbeat)
        return found if all(isinstance(n, int | float) for n in numbers) and isinstance(found.pid, int) else None
    except (FileNotFoundError, ValueError, TypeError, RecursionError):  # damaged: nobody's
        return None


def _name_too(file: Path, name: Path) -> None:
    """Give a file a further name, or its copy where the file system has no hard links. Raises FileExistsError."""
    try:
        os.link(file, name)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        with name.open("xb") as copy:
            copy.write(file.read_bytes())


class FolderLock:
    """Holds `lock.json` of a results folder while in its `with` block, and renews its heartbeat.

    Beside it, the kernel's lock of the folder, where the file system has one: contenders for a dead driver's lock get
    through one at a time, and drivers of one machine see each other whatever their clocks and name spaces say.

    Raises:
        LockedError: on entry, when a living driver holds the folder. A dead driver's lock is taken over. A driver that
            stood still until another took its folder over interrupts itself when it notices.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "lock.json"
        now = time.time()
        host, pid, begun = socket.gethostname(), os.getpid(), psutil.Process().create_time()
        self._holder = Holder(host, pid, begun, now, now, uuid.uuid4().hex, _place(), _ticks(pid))
        self._kernels = contextlib.ExitStack()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as kernels:
            end = time.monotonic() + _ENDS_S
            while not self._lock_folder(kernels):
                other = _read(self._path)
                if other is None or not other.here or other.alive or time.monotonic() > end:
                    raise self._refused(other)
                time.sleep(0.05)
            self._take()
            self._kernels = kernels.pop_all()
        self._thread.start()
        return self

    def _refused(self, other: Holder | None) -> LockedError:
        rule = f"is being run by {other or 'another process'}; wait for it, stop it, or give this sweep another folder"
        return LockedError([Problem("results", str(self.folder), rule)])

    def _lock_folder(self, kernels: contextlib.ExitStack) -> bool:
        """Take the kernel's lock until `kernels` closes; False where another has it. NFS and others may have none."""
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        except OSError:
            pass
        kernels.callback(os.close, handle)
        return True

    def _take(self) -> None:
        for _ in range(10):
            if self._create():
                return
            other = _read(self._path)
            if other is not None and (other.alive or self._beats(other)):
                raise self._refused(other)
            self._clear(other)
        raise LockedError([Problem("results", str(self.folder), "its lock.json keeps changing hands; try again")])

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        found = _read(self._path)
        if found is not None and found.token == self._holder.token:
            self._path.unlink(missing_ok=True)
        self._kernels.close()

    def _beats(self, other: Holder) -> bool:
        """Whether the lock of a process elsewhere is renewed while we watch, by no clock but ours."""
        end = time.monotonic() + (0.0 if other.here else _WATCHED * HEARTBEAT_S)
        while time.monotonic() < end:
            time.sleep(HEARTBEAT_S / 10)
            found = _read(self._path)
            if found != other:
                return found is not None and found.token == other.token
        return False

    def _create(self) -> bool:
        """Make the lock file with its content in one step; False when there is one."""
        own = self._path.with_name(f".lock.{self._holder.token}")
        own.write_text(json.dumps(asdict(self._holder)), encoding="utf-8")
        try:
            _name_too(own, self._path)
        except FileExistsError:
            return False
        finally:
            own.unlink()
        return True

    def _clear(self, stale: Holder | None) -> None:
        """Move a dead lock away; put it back when another driver took the folder in between."""
        aside = self._path.with_name(f".lock.stale.{self._holder.token}")
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return
        moved = _read(aside)
        if moved is not None and moved.alive and (stale is None or moved.token != stale.token):
            with contextlib.suppress(FileExistsError):  # a third driver holds it by now; the next round says so
                _name_too(aside, self._path)
        aside.unlink()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                other = _read(self._path)
            except OSError:  # a network folder that can't be read now: the next beat tries again
                continue
            if other is not None and other.token != self._holder.token:  # this process, or its disk, had stood still
                logging.getLogger("sweeps").error("%s was taken over by %s: this run stops", self.folder, other)
                os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does: Ray is ended, and finished trials are kept
                return
            beat = Holder(**{**asdict(self._holder), "heartbeat": time.time()})
            try:
                write_atomically(self._path, json.dumps(asdict(beat)))
            except OSError:  # a full disk: the journal will say so, and the process itself still proves the lock
                continue


REFUSALS = (SpecError, TrainablesError)
"""What says that a run is not begun."""


@contextlib.contextmanager
def nothing_if_refused(folder: Path) -> Iterator[None]:
    """A results folder that the block made is gone again where the block refuses to run and it has no trial."""
    there = folder.exists()
    try:
        yield
    except REFUSALS:
        with contextlib.suppress(LockedError):  # another driver's by now
            if not there and folder.exists():
                with FolderLock(folder):
                    fetched = any((folder / "tables" / "trials").glob("*.parquet"))
                    if not fetched and not any(e["ev"] == "ask" for e in read_journal(folder / JOURNAL).events):
                        shutil.rmtree(folder, ignore_errors=True)
        raise


def check_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a results folder of a sweep that differs in what must not change, or of other rules than today's.

    Args:
        folder: the results folder; one without `spec.json` belongs to nobody, and has no journal, tables or `work`.
        identity: `SweepSpec.identity()`. Sections of single methods, and epochs of single data sets, may come and go;
            what stands in both must agree.

    Raises:
        IdentityError: one problem per difference, with the value there and the value asked.
    """
    stored = _stored(folder)
    if stored is not None:
        refuse_other(stored, identity, str(folder))
        return
    journal, parts = folder / "journal.jsonl", (folder / "tables").glob("*/*.parquet")
    if any(parts) or (journal.is_file() and journal.stat().st_size):
        rule = "holds results, and no spec.json that says whose; restore it, or choose another name or output"
        raise IdentityError([Problem("results", str(folder), rule)])
    if (folder / "work").exists():
        rule = "holds a folder work that is no sweep's; a run would remove it, so give the sweep a folder of its own"
        raise IdentityError([Problem("output", str(folder), rule, json.dumps(str(folder / "results")))])


def refuse_other(stored: Mapping[str, Any], identity: Mapping[str, Any], where: str) -> None:
    """Raise `IdentityError` when `stored`, the `spec.json` at `where`, differs from `identity` or has other rules."""
    known = dict(stored["identity"])
    found = [d for d in differences(known, json.loads(json.dumps(identity))) if d[:2] != _NOT_IN_0_1_0]
    if found:
        problems = []
        for name, old, new in found:
            remedy = f"leave {name} out" if old is None else f"{name} = {json.dumps(old)}"
            problems.append(Problem(name, new, f"the results in {where} were made with {_said(old)}", remedy))
        head = Problem("results", where, "belongs to another sweep; choose another name or output, or undo:")
        raise IdentityError([head, *problems])
    named = ((name, stored.get(name), now) for name, now in RULES.items())
    if other := [f"{name}: {_said(old)}, here {now!r}" for name, old, now in named if old != now]:
        rule = f"was made by another version's rules ({'; '.join(other)}); choose another name or output"
        raise IdentityError([Problem("results", where, rule)])


def _said(old: object) -> str:
    return "nothing there" if old is None else repr(old)


def stored_identity(folder: Path) -> dict[str, Any] | None:
    """The identity written into a results folder; None when there is none yet."""
    stored = _stored(folder)
    return None if stored is None else dict(stored["identity"])


def _stored(folder: Path) -> dict[str, Any] | None:
    path = folder / "spec.json"
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        dict(stored["identity"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        rule = "can't be read as a sweep's identity; restore it, or choose another output"
        raise IdentityError([Problem("results", str(path), rule)]) from error
    return dict(stored)


def write_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write `spec.json`; methods, and data sets' epochs, that earlier runs had stay in it."""
    stored = stored_identity(folder)
    merged = _merged(stored, identity)
    if merged != stored:
        write_atomically(folder / "spec.json", json.dumps({"identity": merged, **RULES}, indent=1) + "\n")


_NOT_IN_0_1_0 = ("budgets.count", None)
"""A key that folders of that version lack, whatever their sweep file had."""
_GROW = ("methods", "data.epochs")
"""Tables by method or data set, which may come and go."""


def _merged(stored: Any, asked: Any, path: str = "") -> Any:
    """What is asked, with what `stored` has beside it in tables that may grow."""
    if not isinstance(stored, dict) or not isinstance(asked, dict):
        return asked
    merged = {k: _merged(stored.get(k), v, f"{path}.{k}" if path else k) for k, v in asked.items()}
    return stored | merged if path in _GROW else merged


def differences(stored: Any, asked: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted field, stored value, asked value) of every leaf that differs; absent is None."""
    if not isinstance(stored, dict) or not isinstance(asked, dict):
        return [] if stored == asked else [(path, stored, asked)]
    names = list(stored) + [name for name in asked if name not in stored]
    if path in _GROW:
        names = [name for name in stored if name in asked]
    found = []
    for name in names:
        found += differences(stored.get(name), asked.get(name), f"{path}.{name}" if path else name)
    return found
