"""Run a plan: open its folder and a backend, run what is missing, close. The journal makes every step final."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from analysis.store.remote import Location
from sweeps.backends.backend import Backend, BackendError, BackendLostError, Facts, OpenBackend, Setup
from sweeps.backends.packs import TOGETHER
from sweeps.backends.registry import find_backend
from sweeps.backends.signals import received, signals
from sweeps.engine.limits import Meter
from sweeps.engine.loop import Loop, Stop
from sweeps.errors import SpecError
from sweeps.plan.estimate import probe_gpu
from sweeps.plan.inputs import check_inputs, needs_of
from sweeps.plan.plan import Plan
from sweeps.records.declared import declare
from sweeps.records.journal import Journal
from sweeps.records.ledger import Ledger, pruned
from sweeps.records.locks import (
    REFUSALS,
    FolderLock,
    check_identity,
    nothing_if_refused,
    write_identity,
)
from sweeps.records.replay import replay
from sweeps.records.rows import git_commit, utc
from sweeps.records.sealing import Sealer
from sweeps.records.upload import EVERY_S, Upload, check_there, restore
from sweeps.search.rules import RULES
from sweeps.search.stages import SweepState
from sweeps.watch.displays import Progress, make_progress
from sweeps.watch.observers import Observer, Observers

TRIAL = "trainables.training.worker:run_trial"
LOSSES = 3
"""How often in a row a backend may be lost with no trial finished in between, before the run gives up."""
REJOIN_S = 600.0
"""How long a cluster that went away is waited for."""
_AGAIN_S = 5.0
_HEARD_S = 0.2
"""For a signal that ended the backend to reach this process too."""


@dataclass(frozen=True)
class RunSummary:
    """What one run of a sweep did.

    Attributes:
        folder: the results folder.
        finished: trials that this run brought to an end without failure, pruned ones included.
        failed: trials that this run brought to an end with a failure.
        pruned: those of `finished` that were stopped early.
        skipped: trials of the plan that were done before.
        seconds: wall time.
        interrupted: a signal stopped it; the same command goes on.
        signal: the number of that signal.
        damaged: table files that were found damaged and set aside.
        stuck: labels of cells none of whose learning rates finished, so that nothing could be confirmed.
        failed_before: trials of the plan that failed in earlier runs and were not tried again.
        stopped_by: the limit that ended it, such as "limits.max_hours = 2"; the same command with a larger one goes on.
        not_uploaded: why the copy elsewhere is not whole; the same command tries again.
    """

    folder: Path
    finished: int
    failed: int
    pruned: int
    skipped: int
    seconds: float
    interrupted: bool
    damaged: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()
    failed_before: int = 0
    stopped_by: str | None = None
    not_uploaded: str | None = None
    signal: int | None = None

    @property
    def complete(self) -> bool:
        """Every trial of the plan finished without failure."""
        return not (self.interrupted or self.stopped_by or self.failed or self.failed_before or self.stuck)


def run(
    plan: Plan,
    *,
    backend: str | OpenBackend = "ray",
    address: str | None = None,
    restart: bool = True,
    trial: str = TRIAL,
    progress: bool | Literal["json"] | Progress = True,
    retry_failed: bool = False,
    observers: Sequence[Observer] = (),
    upload: str | Location | None = None,
    estimate: Mapping[str, Any] | None = None,
) -> RunSummary:
    """Run what is missing of a plan; finished trials are never repeated.

    Args:
        plan: the plan; its infeasible cells become rows of `cells` and are not run.
        backend: what runs the trials: "ray", "inline" (one after another in this process), a name that another package
            registers, or a function that opens one.
        address: a Ray cluster to join ("auto", "HOST:PORT"); None for a local session on loopback.
        restart: open the backend again if it is lost, up to `LOSSES` times with no trial finished in between. One that
            a function opens is never opened again.
        trial: the trial function as "package.module:function". It gets what `trainables.training.worker.run_trial`
            gets, a `TrialConfig` first, and yields what that yields.
        progress: live display, none, "json" for JSON lines on standard error, or an object of your own.
        retry_failed: try trials again that failed in earlier runs, with the same configuration, as a further attempt.
        observers: told what happens, never asked; one that fails is left out with a warning.
        upload: a URI that pyarrow reaches, or a location, that gets a copy of the results (`records.upload`); a folder
            without results starts from what is there.
        estimate: what it is thought to take (`Estimate.as_dict()`), kept in the journal to be compared afterwards.

    Raises:
        SpecError: the request can't be met (resources, sampler), or the folder belongs to another sweep or process; no
            trial was begun then, and a folder that was not there before is gone again. With the trial function of this
            package also what `plan.inputs` refuses.
        DataError: the same.
        BackendError: nothing can run trials any more, or the backend was lost too often; the same command goes on.
        OSError: the journal can't be written, or it, or the folder, was moved or removed meanwhile.
    """
    begun = time.monotonic()
    folder, identity = plan.spec.folder.absolute(), plan.spec.identity()
    opener = _Opener(find_backend(backend) if isinstance(backend, str) else backend, address, trial)
    restart = restart and isinstance(backend, str)
    location = Location.of(upload) if isinstance(upload, str) else upload
    check_identity(folder, identity)
    if location is not None:
        check_there(location, identity)
    with nothing_if_refused(folder), FolderLock(folder):
        check_identity(folder, identity)  # another sweep may have come and gone meanwhile
        if location is not None:
            restore(folder, location)
        if trial == TRIAL:
            check_inputs(plan)
            plan = plan.with_sizes(download=True)
        with Journal(folder / "journal.jsonl") as journal:
            sealer = Sealer(folder, None if location is None else EVERY_S)
            sweep = _open(plan, folder, journal, sealer, make_progress(progress), retry_failed)
            with _followed(sweep, observers, location):
                if sweep.left:
                    _Runner(sweep, plan, opener, begun, restart).run(estimate)
        if not (sweep.interrupted or sweep.limit):
            shutil.rmtree(folder / "work", ignore_errors=True)
    return _summary(sweep, time.monotonic() - begun)


@dataclass
class _Sweep:
    """A sweep whose folder is open, and how its run ended.

    Attributes:
        skipped: trials that earlier runs brought to an end.
    """

    ledger: Ledger
    display: Progress
    skipped: int
    interrupted: bool = False
    signal: int | None = None
    limit: str | None = None
    not_uploaded: str | None = None

    @property
    def state(self) -> SweepState:
        return self.ledger.state

    @property
    def left(self) -> bool:
        """Whether a cell has trials left to run."""
        return any(not cell.finished for cell in self.state.cells.values())


def _open(plan: Plan, folder: Path, journal: Journal, sealer: Sealer, display: Progress, retry_failed: bool) -> _Sweep:
    """The sweep as its folder has it; what an earlier run left half written is written."""
    spec = plan.spec
    state = SweepState(plan.feasible, spec)
    earlier: dict[str, int] = {}
    unfinished = replay(state, sealer, journal.events, sealer.rows, earlier if retry_failed else None)
    write_identity(folder, spec.identity())
    cells = (state.cells.get(cell.cell_id, cell) for cell in plan.cells)
    sealer.write_cells(cell.row() | {"seed_rule": RULES["seed_rule"]} for cell in cells)
    declare(spec, journal, sealer.rows)
    skipped = sum(cell.counted() for cell in state.cells.values())
    for line in sealer.damaged:
        display.note(f"damaged table file set aside: {line}")
    ledger = Ledger(state, journal, sealer, folder, spec.keep.adapters, earlier)
    for slot, trained in unfinished:
        ledger.finish(slot, pruned(state, slot, {"seconds_total": trained}))
    for cell_id in state.cells:
        ledger.settle(cell_id)
    return _Sweep(ledger, display, skipped)


@contextlib.contextmanager
def _followed(sweep: _Sweep, observers: Sequence[Observer], location: Location | None) -> Iterator[None]:
    """Observers and a copy elsewhere follow the sweep; at its end the tables are sealed and sent."""
    folder, note = sweep.ledger.folder, sweep.display.note
    copies = None if location is None else Upload(folder, location, note=note)
    sweep.ledger.observers = watching = Observers(observers, note)
    watching.start(sweep.state)
    shutil.rmtree(folder / "work" / "ray", ignore_errors=True)  # of an earlier run
    if copies is not None:
        copies.start()
    refused = False
    try:
        try:
            yield
        except KeyboardInterrupt:  # while the backend came up, or the second one
            sweep.interrupted, sweep.signal = True, received()
        sweep.ledger.seal()
    except BaseException as error:
        refused = isinstance(error, REFUSALS) and not sweep.skipped
        with contextlib.suppress(OSError):  # of a disk that is full or gone, as the first error says
            sweep.ledger.seal()
        if folder.is_dir() and {path.name for path in folder.iterdir()} <= {"work", "lock.json"}:
            shutil.rmtree(folder, ignore_errors=True)  # what Ray made anew of a folder that was moved away
        raise
    finally:
        watching.close()
        sweep.not_uploaded = None if copies is None else copies.finish(rest=not refused)


def _close_to_others(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # a file system without modes
        folder.chmod(0o700)


@dataclass(frozen=True)
class _Opener:
    """How the backend of a run is opened."""

    open_backend: OpenBackend
    address: str | None
    function: str

    @contextlib.contextmanager
    def opened(self, sweep: _Sweep, plan: Plan, patience: float) -> Iterator[Backend]:
        """A backend that takes trials; a signal while it comes up ends the run at once.

        Args:
            patience: seconds for which a cluster that does not answer is tried again.
        """
        folder = sweep.ledger.folder
        if self.address is None:  # a cluster's workers may be other users of a group that shares the folder
            _close_to_others(folder / "work")
        there = Plan(plan.spec, tuple(cell.anchored() for cell in plan.cells))  # a task has a folder of its own
        setup = Setup(
            resources=plan.spec.resources,
            storage=folder / "work" / "ray",
            packable=self.function in TOGETHER,
            address=self.address,
            needs=needs_of(plan, self.function),
            measure=functools.partial(probe_gpu, there) if self.function == TRIAL else None,
            note=sweep.display.note,
        )
        with signals(None):
            backend = self._open(setup, patience)
        try:
            yield backend
        finally:
            backend.close()

    def _open(self, setup: Setup, patience: float) -> Backend:
        end = time.monotonic() + patience
        while True:
            try:
                return self.open_backend(setup)
            except SpecError as error:
                if self.address is None or not patience:
                    raise
                if time.monotonic() > end:
                    raise BackendError(f"the cluster did not come back within {patience:g} s: {error}") from error
            time.sleep(_AGAIN_S)


class _Runner:
    """Runs what is missing of a sweep on one backend, and on the next one if that is lost."""

    def __init__(self, sweep: _Sweep, plan: Plan, opener: _Opener, begun: float, restart: bool) -> None:
        self._sweep, self._plan, self._opener, self._restart = sweep, plan, opener, restart
        self._begun, self._signalled = begun, threading.Event()
        self._backend: Backend | None = None
        self._meter: Meter | None = None

    def run(self, estimate: Mapping[str, Any] | None) -> None:
        """Run until nothing is left, or until a signal or a limit ends it.

        Raises:
            BackendError: nothing can run trials any more, or the backend was lost too often.
        """
        sweep, losses, before = self._sweep, 0, 0
        sweep.display.start(sweep.state)
        try:
            with signals(self._signalled):
                while True:
                    try:
                        return self._run_on_a_backend(estimate, REJOIN_S if losses else 0.0)
                    except BackendLostError as error:
                        if self._signalled.wait(_HEARD_S):  # whoever sent the signal meant all processes
                            return None
                        losses = losses + 1 if len(sweep.ledger.finished) == before else 1
                        if not self._restart or losses >= LOSSES:
                            raise
                        before, estimate = len(sweep.ledger.finished), None
                        sweep.ledger.journal.write({"ev": "lost", "at": utc(time.time()), "reason": error.why})
                        sweep.display.note(f"{error.why}; a new session is started, and the sweep goes on")
        finally:
            sweep.display.stop(sweep.state)
            sweep.interrupted = self._signalled.is_set()
            sweep.signal = received() if sweep.interrupted else None

    def _run_on_a_backend(self, estimate: Mapping[str, Any] | None, patience: float) -> None:
        """Write down what the run is, then run what is missing."""
        sweep, state, journal = self._sweep, self._sweep.state, self._sweep.ledger.journal
        with self._opener.opened(sweep, self._plan, patience) as backend:
            facts = backend.facts
            state.workers = facts.workers
            if estimate is not None:
                held = {**estimate, "accelerators": facts.accelerators}
                journal.write({"ev": "estimate", "at": utc(time.time()), "estimate": held})
            retried = {"retried": sorted(sweep.ledger.earlier)} if sweep.ledger.earlier else {}
            journal.write(_provenance(state, self._opener.function, facts) | retried)
            meter = self._metered(backend, facts)
            stop = Stop(self._signalled, meter, sweep.ledger.look)
            changed = functools.partial(sweep.display.update, state)
            try:
                Loop(sweep.ledger, backend, self._opener.function, changed, stop).run()
            finally:
                meter.tick()
                self._backend = None
                with contextlib.suppress(OSError):  # of a journal that is gone, as the first error says
                    journal.write({"ev": "used", "at": utc(time.time()), "used": meter.seconds})
                sweep.limit = stop.limit if sweep.left else None

    def _metered(self, backend: Backend, facts: Facts) -> Meter:
        """The meter of the run, which reads this backend from now on."""
        state, journal = self._sweep.state, self._sweep.ledger.journal
        if self._meter is None:
            limits = state.spec.limits
            state.used = self._meter = Meter(
                limits, state, facts.accelerators, self._begun, self._busy, events=journal.events
            )
        self._meter.tick()  # nothing was busy since the last backend
        self._meter.each, self._backend = facts.accelerators, backend
        return self._meter

    def _busy(self) -> int:
        return 0 if self._backend is None else self._backend.busy


def _provenance(state: SweepState, trial: str, facts: Facts) -> dict[str, Any]:
    host = host_facts() | dict(facts.provenance) | {"pack": facts.pack, "accelerators": facts.accelerators}
    return {
        "ev": "sweep",
        "name": state.spec.name,
        "trial": trial,
        **RULES,
        "git_commit": git_commit(),
        "at": utc(host["started"]),
        **host,
        "price_per_hour": state.spec.limits.price_per_hour,
    }


def host_facts() -> dict[str, Any]:
    """Provenance of a run: host, process, start and versions."""
    versions = {"python": platform.python_version()}
    for name in ("ray", "optuna", "torch", "randlora-sweeps"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time(), "versions": versions}


def _summary(sweep: _Sweep, seconds: float) -> RunSummary:
    rows, cells = sweep.ledger.finished, sweep.state.cells.values()
    failed = sum(row["status"] == "failed" for row in rows)
    ran = {row["trial_id"] for row in rows}
    before = [row for cell in cells for row in cell.counting() if row["trial_id"] not in ran]
    return RunSummary(
        folder=sweep.ledger.folder,
        finished=len(rows) - failed,
        failed=failed,
        pruned=sum(row["status"] == "pruned" for row in rows),
        skipped=sweep.skipped,
        seconds=seconds,
        interrupted=sweep.interrupted,
        damaged=tuple(sweep.ledger.sealer.damaged),
        stuck=tuple(cell.cell.label for cell in cells if cell.phase == "stuck"),
        failed_before=sum(row["status"] == "failed" for row in before),
        stopped_by=sweep.limit,
        not_uploaded=sweep.not_uploaded,
        signal=sweep.signal,
    )
