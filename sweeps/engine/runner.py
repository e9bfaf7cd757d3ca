"""Runs the missing trials of a sweep on a backend, and opens the backend again if it is lost."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sweeps.backends.backend import Backend, BackendError, BackendLostError, Facts, OpenBackend, Setup
from sweeps.backends.signals import last_signal, stop_on_signals
from sweeps.engine.limits import Meter
from sweeps.engine.loop import Loop, Stop
from sweeps.errors import SpecError
from sweeps.packing.choosing import TOGETHER
from sweeps.plan.estimate import probe_gpu
from sweeps.plan.inputs import data_seen, needs_of
from sweeps.plan.plan import Plan
from sweeps.records.ledger import Ledger
from sweeps.records.rows import git_commit, utc
from sweeps.search.rules import RULES
from sweeps.search.stages import SweepState
from sweeps.watch.displays import Progress

TRIAL = "trainables.training.worker:run_trial"
LOSSES = 3
"""How often in a row a backend may be lost, without a finished trial in between, before the run gives up."""
REJOIN_S = 600.0
"""Seconds to wait for a cluster that does not answer any more."""
_AGAIN_S = 5.0
_HEARD_S = 0.2
"""Seconds to wait so that a signal which ended the backend also reaches this process."""


@dataclass
class Sweep:
    """A sweep whose folder is open, and how its run ended.

    Attributes:
        ledger: records what happens to the sweep.
        display: shows the progress.
        skipped: number of trials that had ended before this run.
        interrupted: whether a signal ended the run.
        signal: the number of that signal; None if there was none.
        limit: the limit that ended the run, in words; None if no limit did.
        not_uploaded: why the copy elsewhere is not complete; None if it is.
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
        """Return whether a cell has trials left to run."""
        return any(not cell.finished for cell in self.state.cells.values())


@dataclass(frozen=True)
class Opener:
    """Opens the backend of a run."""

    open_backend: OpenBackend
    address: str | None
    function: str

    @contextlib.contextmanager
    def opened(self, sweep: Sweep, plan: Plan, patience: float) -> Iterator[Backend]:
        """Open the backend, yield it, and close it. A signal while it is being opened ends the run at once.

        Args:
            sweep: the sweep.
            plan: its plan.
            patience: seconds for which to try again if a cluster does not answer.
        """
        folder = sweep.ledger.folder
        _make_work_folder(folder / "work", private=self.address is None)
        # the probe may be a task, which runs in another folder
        absolute_plan = Plan(plan.spec, tuple(cell.with_absolute_paths() for cell in plan.cells))
        resources = plan.spec.resources
        if self.function not in TOGETHER:
            resources = resources.model_copy(update={"pack": 1})
        setup = Setup(
            resources=resources,
            storage=folder / "work" / "ray",
            address=self.address,
            needs=needs_of(plan, self.function),
            measure=functools.partial(probe_gpu, absolute_plan) if self.function == TRIAL else None,
            note=sweep.display.note,
        )
        with stop_on_signals(None):
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


class Runner:
    """Runs the missing trials of a sweep on a backend, and opens the backend again if it is lost.

    Args:
        sweep: the sweep.
        plan: its plan.
        opener: opens the backend.
        begun: when the run began, by `time.monotonic`.
        restart: whether to open a lost backend again.
        declare: writes what the sweep declares, when it is called first. It is called whenever a backend is open,
            before a trial is asked.
    """

    def __init__(
        self, sweep: Sweep, plan: Plan, opener: Opener, begun: float, restart: bool, declare: Callable[[], None]
    ) -> None:
        self._sweep = sweep
        self._plan = plan
        self._opener = opener
        self._restart = restart
        self._declare = declare
        self._begun = begun
        self._signalled = threading.Event()
        self._backend: Backend | None = None
        self._meter: Meter | None = None

    def run(self, estimate: Mapping[str, Any] | None) -> None:
        """Run until no trial is left, or until a signal or a limit ends the run.

        Raises:
            BackendError: nothing can run trials any more, or the backend was lost too often.
        """
        sweep = self._sweep
        losses = 0
        before = 0
        sweep.display.start(sweep.state)
        try:
            with stop_on_signals(self._signalled):
                while True:
                    try:
                        return self._run_on_a_backend(estimate, REJOIN_S if losses else 0.0)
                    except BackendLostError as error:
                        if self._signalled.wait(_HEARD_S):  # the signal was meant for all processes
                            return None
                        losses = losses + 1 if len(sweep.ledger.finished) == before else 1
                        if not self._restart or losses >= LOSSES:
                            raise
                        before = len(sweep.ledger.finished)
                        estimate = None
                        sweep.ledger.journal.write({"ev": "lost", "at": utc(time.time()), "reason": error.why})
                        sweep.display.note(f"{error.why}; a new session is started, and the sweep goes on")
        finally:
            sweep.display.stop(sweep.state)
            sweep.interrupted = self._signalled.is_set()
            sweep.signal = last_signal() if sweep.interrupted else None

    def _run_on_a_backend(self, estimate: Mapping[str, Any] | None, patience: float) -> None:
        """Open the backend, record facts about the run, and run the missing trials."""
        sweep = self._sweep
        state = self._sweep.state
        journal = self._sweep.ledger.journal
        with self._opener.opened(sweep, self._plan, patience) as backend:
            facts = backend.facts
            state.workers = facts.workers
            self._declare()
            if estimate is not None:
                kept_estimate = {**estimate, "accelerators": facts.accelerators}
                journal.write({"ev": "estimate", "at": utc(time.time()), "estimate": kept_estimate})
            retried = {"retried": sorted(sweep.ledger.earlier)} if sweep.ledger.earlier else {}
            journal.write(_provenance(state, self._opener.function, facts) | retried)
            meter = self._metered(backend, facts)
            stop = Stop(self._signalled, meter, sweep.ledger.seal_if_late)
            changed = functools.partial(sweep.display.update, state)
            try:
                Loop(sweep.ledger, backend, self._opener.function, changed, stop).run()
            finally:
                meter.tick()
                self._backend = None
                with contextlib.suppress(OSError):  # the journal may be gone, as the first error says
                    journal.write({"ev": "used", "at": utc(time.time()), "used": meter.seconds})
                sweep.limit = stop.limit if sweep.left else None

    def _metered(self, backend: Backend, facts: Facts) -> Meter:
        """Return the meter of the run, which reads this backend from now on."""
        state = self._sweep.state
        journal = self._sweep.ledger.journal
        if self._meter is None:
            limits = state.spec.limits
            state.used = self._meter = Meter(
                limits, state, facts.accelerators, self._begun, self._busy, events=journal.events
            )
        self._meter.tick()  # no worker was busy since the last backend
        self._meter.each = facts.accelerators
        self._backend = backend
        return self._meter

    def _busy(self) -> int:
        return 0 if self._backend is None else self._backend.busy


def _make_work_folder(folder: Path, *, private: bool) -> None:
    """Make the folder of checkpoints, or let the workers of a cluster into the one that a local run made.

    Args:
        folder: the folder `work` of the results folder.
        private: whether only its owner may enter. Workers of a cluster may run as other users, who share the results
            folder in a group.
    """
    if private and not folder.exists():
        folder.mkdir(parents=True, mode=0o700)
    elif not private and folder.exists():
        with contextlib.suppress(OSError):  # a file system without modes
            folder.chmod(stat.S_IMODE(folder.parent.stat().st_mode))


def _provenance(state: SweepState, trial: str, facts: Facts) -> dict[str, Any]:
    """Return the `sweep` event of this run: rules, versions, host and backend."""
    host = host_facts() | dict(facts.provenance) | {"pack": facts.pack, "accelerators": facts.accelerators}
    seen = data_seen(state.spec.folder)
    return {
        "ev": "sweep",
        "name": state.spec.name,
        "trial": trial,
        **RULES,
        "git_commit": git_commit(),
        "at": utc(host["started"]),
        **host,
        "price_per_hour": state.spec.limits.price_per_hour,
        **({"data": seen} if seen else {}),
    }


def host_facts() -> dict[str, Any]:
    """Return facts about this process: host, process id, start (seconds since 1970) and versions."""
    versions = {"python": platform.python_version()}
    for name in ("ray", "optuna", "torch", "randlora-sweeps"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time(), "versions": versions}
