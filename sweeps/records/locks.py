"""Locks a results folder for one driver, and checks that it belongs to the same sweep.

A driver holds two locks of `filelock` in its folder (docs/decisions/0013-lock-of-a-folder.md):

    .lock   the kernel's lock, which ends with the process. It refuses a second driver at once, on this machine and on
            other machines if the file system shares locks, such as NFS. The file itself stays.
    lock    a lease: process, host and start of the driver, renewed every `HEARTBEAT_S` seconds. It refuses drivers on
            other hosts if the file system does not share locks.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil
from filelock import FileLock, LeaseCompromise, OwnerRecord, SoftFileLease, Timeout

from analysis.store.journal import JOURNAL, read_journal
from sweeps.errors import Problem, SpecError
from sweeps.records.journal import write_atomically
from sweeps.search.rules import RULES
from trainables.errors import TrainablesError

if TYPE_CHECKING:
    from sweeps.spec.spec import SweepSpec  # pydantic's sections, which `status` need not load

KERNEL_LOCK = ".lock"
LEASE = "lock"
HEARTBEAT_S = 5.0
STALE_S = 60.0
"""A lease that was not renewed for this long, by the clock of the driver that waits for it, is taken over."""
_ENDS_S = 5.0
"""Seconds to wait for the threads of a killed driver to end: the kernel keeps its lock until then."""


class LockedError(SpecError):
    """Raised if another driver runs this results folder."""


class IdentityError(SpecError):
    """Raised if the results folder belongs to a sweep that differs in fields which must not change."""


@dataclass(frozen=True)
class Holder:
    """The driver that holds a results folder."""

    pid: int
    host: str

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}"


def holder(folder: Path) -> Holder | None:
    """Return the driver that runs a results folder now; None if there is none, or if it has ended."""
    record = SoftFileLease(folder / LEASE, lease_duration=STALE_S).owner
    beat = _last_beat(folder)
    if record is None or beat is None or abs(time.time() - beat) >= STALE_S or _has_ended(record):
        return None
    return Holder(record.pid, record.hostname.partition("?")[0])


def _has_ended(record: OwnerRecord) -> bool:
    """Return whether the driver of a record ran on this host and has ended. A zombie has ended."""
    if record.hostname != _this_host():
        return False
    try:
        return bool(psutil.Process(record.pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _last_beat(folder: Path) -> float | None:
    """Return when the lease was renewed, by the clock of its driver; None if there is no lease."""
    try:
        return (folder / LEASE).stat().st_mtime
    except FileNotFoundError:
        return None


@functools.cache
def _this_host() -> str:
    """Return the name that `filelock` records for this host (or container, with its own process numbers)."""
    with tempfile.TemporaryDirectory() as folder, SoftFileLease(Path(folder) / LEASE) as lease:
        return lease.owner.hostname if lease.owner else ""


def make_results_folder(folder: Path) -> None:
    """Make a results folder that only its owner may enter. An existing folder stays as it is.

    If the umask leaves new folders writable for the group, the group may enter it too.

    Raises:
        OSError: it can't be made.
    """
    try:
        folder.mkdir(0o770, parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise
        return
    mode = stat.S_IMODE(folder.stat().st_mode)
    if not mode & stat.S_IWGRP:
        with contextlib.suppress(OSError):  # a file system without modes
            folder.chmod(mode & ~stat.S_IRWXG)


class FolderLock:
    """Holds a results folder while in its `with` block.

    Raises:
        LockedError: on entry, if a living driver holds the folder. The lock of a dead driver is taken over: at once if
            its process is known to have ended, else after `STALE_S` seconds without a heartbeat. If a driver's lock was
            taken over, such as after its host was suspended, it interrupts itself when it notices.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kernel = FileLock(folder / KERNEL_LOCK, fallback_to_soft=False)
        self._lease = SoftFileLease(
            folder / LEASE, lease_duration=STALE_S, heartbeat_interval=HEARTBEAT_S, on_compromise=self._stop
        )

    def __enter__(self) -> Self:
        make_results_folder(self.folder)
        with contextlib.ExitStack() as cleanup:
            try:
                self._kernel.acquire(_ENDS_S, 0.05, cancel_check=lambda: holder(self.folder) is not None)
                cleanup.callback(self._kernel.release)
            except Timeout as error:
                raise self._locked_error() from error
            except OSError as error:  # the file system has no kernel locks: only the lease decides
                logging.getLogger("sweeps").debug("%s has no kernel locks (%s)", self.folder, error)
            self._take_lease()
            cleanup.pop_all()
        return self

    def _take_lease(self) -> None:
        seen, record = _last_beat(self.folder), self._lease.owner
        if self._kernel.is_locked and seen is not None and (record is None or _has_ended(record)):
            self._lease.force_break()  # a living driver of this host would have the kernel's lock
        with contextlib.suppress(Timeout):
            self._lease.acquire(blocking=False)
            return
        if holder(self.folder) is None:  # the last heartbeat is old, but the clocks may differ: so wait for the next
            logging.getLogger("sweeps").warning(
                "%s was held by %s; waiting %.0f s for its next heartbeat", self.folder, self._owner(), STALE_S
            )

            def beats() -> bool:
                return _last_beat(self.folder) not in (seen, None)

            with contextlib.suppress(Timeout):
                self._lease.acquire(2 * STALE_S, HEARTBEAT_S / 10, cancel_check=beats)
                return
        raise self._locked_error()

    def _owner(self) -> Holder | str:
        record = self._lease.owner
        return "another process" if record is None else Holder(record.pid, record.hostname.partition("?")[0])

    def _locked_error(self) -> LockedError:
        rule = f"is being run by {self._owner()}; wait for it, stop it, or give this sweep another folder"
        return LockedError([Problem("results", str(self.folder), rule)])

    def __exit__(self, *_: object) -> None:
        self._lease.release()
        self._kernel.release()

    def _stop(self, loss: LeaseCompromise) -> None:
        """End this run as Ctrl-C does: Ray is ended, and finished trials are kept."""
        logging.getLogger("sweeps").error(
            "%s: this run stops, for it lost its lock (%s); now held by %s", self.folder, loss.reason, self._owner()
        )
        os.kill(os.getpid(), signal.SIGINT)


REFUSALS = (SpecError, TrainablesError)
"""The errors by which a run is refused before it begins."""


@contextlib.contextmanager
def remove_folder_if_refused(folder: Path) -> Iterator[None]:
    """Remove a results folder that the block made, if the block refuses to run and the folder has no trial."""
    existed = folder.exists()
    try:
        yield
    except REFUSALS:
        with contextlib.suppress(LockedError):  # another driver holds it by now
            if not existed and folder.exists():
                with FolderLock(folder):
                    fetched = any((folder / "tables" / "trials").glob("*.parquet"))
                    if not fetched and not any(e["ev"] == "ask" for e in read_journal(folder / JOURNAL).events):
                        shutil.rmtree(folder, ignore_errors=True)
        raise


def check_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Check that a results folder belongs to this sweep, and was written with the rules of this version.

    Args:
        folder: the results folder. If it has no `spec.json`, it must not have a journal, tables or a folder `work`.
        identity: `SweepSpec.identity()`. Sections of single methods, and epochs of single data sets, may come and go.
            Those in both must agree.

    Raises:
        IdentityError: one problem for each difference, with the stored and the new value.
    """
    stored = _stored(folder)
    if stored is not None:
        refuse_other(stored, identity, str(folder))
        return
    journal, parts = folder / "journal.jsonl", (folder / "tables").glob("*/*.parquet")
    if any(parts) or (journal.is_file() and journal.stat().st_size):
        rule = "has results, but no spec.json that says whose; restore it, or choose another name or output"
        raise IdentityError([Problem("results", str(folder), rule)])
    if (folder / "work").exists():
        rule = "has a folder 'work' that no sweep made; a run would remove it, so give the sweep another folder"
        raise IdentityError([Problem("output", str(folder), rule, json.dumps(str(folder / "results")))])


def refuse_other(stored: Mapping[str, Any], identity: Mapping[str, Any], where: str) -> None:
    """Check that `stored`, the `spec.json` at `where`, has this identity and the rules of this version.

    Raises:
        IdentityError: it differs.
    """
    all_differences = differences(dict(stored["identity"]), json.loads(json.dumps(identity)))
    changes = [d for d in all_differences if d[:2] != _NOT_IN_0_1_0]
    if changes:
        problems = []
        for name, old, new in changes:
            key = f"confirm.{name}" if name.startswith("hold.") else name  # as a sweep file calls it
            remedy = f"leave {key} out" if old is None else f"{key} = {json.dumps(old)}"
            problems.append(Problem(key, new, f"the results in {where} were made with {_value_text(old)}", remedy))
        head = Problem("results", where, "belongs to another sweep; choose another name or output, or undo:")
        raise IdentityError([head, *problems])
    named = ((name, stored.get(name), now) for name, now in RULES.items())
    if other := [f"{name}: {_value_text(old)}, here {now!r}" for name, old, now in named if old != now]:
        rule = f"was made by another version's rules ({'; '.join(other)}); choose another name or output"
        raise IdentityError([Problem("results", where, rule)])


def _value_text(old: object) -> str:
    return "nothing there" if old is None else repr(old)


def stored_identity(folder: Path) -> dict[str, Any] | None:
    """Return the identity that is stored in a results folder; None if there is none yet."""
    stored = _stored(folder)
    return None if stored is None else dict(stored["identity"])


def as_begun(spec: SweepSpec, stored: Mapping[str, Any] | None) -> SweepSpec:
    """Return `spec` with the rules that its results were begun with.

    Results of an older version go on without a local fit, unless the sweep file names one. Their evaluated rows are
    drawn by the older rule.

    Args:
        spec: the sweep.
        stored: the identity in the results folder, or in the copy that it will be fetched from; None for a new folder.
    """
    evaluate = spec.evaluate
    if evaluate.validation_rows or evaluate.test_rows:
        by = "data" if stored is None else (stored.get("evaluate") or {}).get("rows_by")
        if by != evaluate.rows_by:
            spec = spec.model_copy(update={"evaluate": evaluate.model_copy(update={"rows_by": by})})
    if stored is None or "refine" in spec.search.model_fields_set or "refine" in (stored.get("search") or {}):
        return spec
    return spec.model_copy(update={"search": spec.search.model_copy(update={"refine": 0})})


def as_begun_in_its_folder(spec: SweepSpec) -> SweepSpec:
    """Return `as_begun` for the results folder of `spec`.

    If the stored identity cannot be read, return `spec`: `check_identity` raises the error later.
    """
    try:
        return as_begun(spec, stored_identity(spec.folder))
    except IdentityError:
        return spec


def _stored(folder: Path) -> dict[str, Any] | None:
    """Return the content of `spec.json`; None if there is no such file. Raise IdentityError if it can't be read."""
    path = folder / "spec.json"
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        dict(stored["identity"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        rule = "can't be read as a sweep's identity; restore it, or choose another output"
        raise IdentityError([Problem("results", str(path), rule)]) from error
    return dict(stored)


def write_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write `spec.json`. Methods and epochs of data sets that only earlier runs had stay in it."""
    stored = _stored(folder)
    merged = _merged(None if stored is None else dict(stored["identity"]), identity)
    if stored is None or merged != stored["identity"]:
        write_atomically(folder / "spec.json", json.dumps({"identity": merged, **RULES}, indent=1) + "\n")


_NOT_IN_0_1_0 = ("budgets.count", None)
"""A key and its stored value: folders of version 0.1.0 lack this key, whatever their sweep file had."""
_GROW = ("methods", "data.epochs")
"""Tables by method or data set, which may come and go."""


def _merged(stored: Any, asked: Any, path: str = "") -> Any:
    """Return `asked`, with the further entries that `stored` has in tables that may grow."""
    if not isinstance(stored, dict) or not isinstance(asked, dict):
        return asked
    merged = {k: _merged(stored.get(k), v, f"{path}.{k}" if path else k) for k, v in asked.items()}
    return stored | merged if path in _GROW else merged


def differences(stored: Any, asked: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Return (dotted field, stored value, asked value) for every leaf that differs. A missing value is None."""
    if not isinstance(stored, dict) or not isinstance(asked, dict):
        return [] if stored == asked else [(path, stored, asked)]
    names = list(stored) + [name for name in asked if name not in stored]
    if path in _GROW:
        names = [name for name in stored if name in asked]
    changes = []
    for name in names:
        changes += differences(stored.get(name), asked.get(name), f"{path}.{name}" if path else name)
    return changes
