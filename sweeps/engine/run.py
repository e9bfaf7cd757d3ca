"""Runs a plan: opens its folder and a backend, runs the missing trials, and closes both."""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from analysis.store.remote import Location
from sweeps.backends.backend import OpenBackend
from sweeps.backends.signals import last_signal
from sweeps.engine.prepare import Prepared, prepare
from sweeps.engine.runner import TRIAL, Runner, Sweep
from sweeps.plan.plan import Plan
from sweeps.records.declared import declare
from sweeps.records.journal import Journal
from sweeps.records.ledger import Ledger, pruned_outcome
from sweeps.records.locks import KERNEL_LOCK, LEASE, REFUSALS, write_identity
from sweeps.records.replay import replay
from sweeps.records.sealing import Sealer
from sweeps.records.upload import EVERY_S, Upload
from sweeps.search.rules import RULES
from sweeps.search.stages import SweepState
from sweeps.watch.displays import Progress, make_progress
from sweeps.watch.observers import Observer, Observers


@dataclass(frozen=True)
class RunSummary:
    """What one run of a sweep did.

    Attributes:
        folder: the results folder.
        finished: number of trials that ended in this run without a failure, with pruned ones.
        failed: number of trials that failed in this run.
        pruned: number of trials in `finished` that were stopped early.
        skipped: number of trials of the plan that had ended before.
        seconds: wall time in seconds.
        interrupted: whether a signal stopped the run; the same command goes on.
        signal: the number of that signal; None if there was none.
        damaged: names of table files that were damaged and set aside.
        stuck: labels of cells in which no learning rate finished, so that nothing could be confirmed.
        failed_before: number of trials of the plan that failed in earlier runs and were not tried again.
        stopped_by: the limit that ended the run, such as "limits.max_hours = 2"; the same command with a larger limit
            goes on. None if no limit did.
        not_uploaded: why the copy elsewhere is not complete; the same command tries again. None if it is complete.
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
        """Return whether every trial of the plan ended without a failure."""
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
    """Run the missing trials of a plan. Finished trials are never repeated.

    Args:
        plan: the plan. Its infeasible cells become rows of `cells` and are not run.
        backend: what runs the trials: "ray", "inline" (one after another in this process), a name that another package
            registers, or a function that opens one.
        address: a Ray cluster to join ("auto", "HOST:PORT"); None for a local session on loopback.
        restart: whether to open the backend again if it is lost, up to `LOSSES` times without a finished trial in
            between. A backend that a function opens is never opened again.
        trial: the trial function as "package.module:function". It gets the arguments of
            `trainables.training.worker.run_trial`, a `TrialConfig` first, and yields the same kind of reports.
        progress: True for a live display, False for none, "json" for JSON lines on standard error, or your own object.
        retry_failed: whether to try trials again that failed in earlier runs, as a further attempt.
        observers: objects that are told what happens. An observer that fails is left out with a warning.
        upload: a URI that pyarrow reaches, or a location, that gets a copy of the results (`records.upload`). A folder
            without results starts from the copy.
        estimate: the expected cost (`Estimate.as_dict()`), which the journal keeps for a later comparison.

    Raises:
        SpecError: the request can't be met (resources, sampler), or the folder belongs to another sweep or process. No
            trial was begun then, and a new folder is removed again. With the trial function of this package, also if
            `plan.inputs` refuses data or weights.
        DataError: data can't be read. The rest is as for SpecError.
        BackendError: nothing can run trials any more, or the backend was lost too often; the same command goes on.
        OSError: the journal can't be written, or the journal or its folder was moved or removed during the run.
    """
    with prepare(plan, backend=backend, address=address, restart=restart, trial=trial, upload=upload) as prepared:
        return run_prepared(
            prepared, progress=progress, retry_failed=retry_failed, observers=observers, estimate=estimate
        )


def run_prepared(
    prepared: Prepared,
    *,
    progress: bool | Literal["json"] | Progress = True,
    retry_failed: bool = False,
    observers: Sequence[Observer] = (),
    estimate: Mapping[str, Any] | None = None,
) -> RunSummary:
    """Run the missing trials of a plan whose folder `prepare` holds. The arguments are those of `run`."""
    begun = time.monotonic()
    plan, location = prepared.plan, prepared.location
    folder = plan.spec.folder.absolute()
    with Journal(folder / "journal.jsonl") as journal:
        sealer = Sealer(folder, None if location is None else EVERY_S)
        sweep = _open(plan, folder, journal, sealer, make_progress(progress), retry_failed)

        @functools.cache  # once, also if the backend is lost and opened again
        def declare_once() -> None:
            _declare(plan, sweep)

        ended = sealer.rows or any(event["ev"] == "finish" for event in journal.events)
        if not (ended and sweep.left):
            declare_once()
        with _observed(sweep, observers, location):
            if sweep.left:
                Runner(sweep, plan, prepared.opener, begun, prepared.restart, declare_once).run(estimate)
    if not (sweep.interrupted or sweep.limit):
        shutil.rmtree(folder / "work", ignore_errors=True)
    return _summary(sweep, time.monotonic() - begun)


def _open(plan: Plan, folder: Path, journal: Journal, sealer: Sealer, display: Progress, retry_failed: bool) -> Sweep:
    """Return the sweep in the state of its folder, after writing what an earlier run left unwritten."""
    spec = plan.spec
    state = SweepState(plan.feasible, spec)
    earlier: dict[str, int] = {}
    unfinished = replay(state, sealer, journal.events, sealer.rows, earlier if retry_failed else None, sealer.curves)
    write_identity(folder, spec.identity())
    skipped = sum(cell.counted() for cell in state.cells.values())
    for line in sealer.damaged:
        display.note(f"damaged table file set aside: {line}")
    ledger = Ledger(state, journal, sealer, folder, spec.keep.adapters, earlier)
    for slot, trained in unfinished:
        ledger.finish(slot, pruned_outcome(state, slot, {"seconds_total": trained}))
    for cell_id in state.cells:
        ledger.settle(cell_id)
    return Sweep(ledger, display, skipped)


def _declare(plan: Plan, sweep: Sweep) -> None:
    """Write what the sweep declares, and its table of cells.

    If trials have ended and others are left to run, this is done once the backend is open: a run that is refused asks
    for nothing, so it must not count as an interim analysis.
    """
    ledger, known = sweep.ledger, sweep.state.cells
    cells = (known.get(cell.cell_id, cell) for cell in plan.cells)
    ledger.sealer.write_cells(replace(cell.row(), seed_rule=RULES["seed_rule"]) for cell in cells)
    declare(plan.spec, ledger.journal, ledger.sealer.rows, known)


@contextlib.contextmanager
def _observed(sweep: Sweep, observers: Sequence[Observer], location: Location | None) -> Iterator[None]:
    """Tell observers about the sweep and copy its results elsewhere during the block. Then seal and copy the tables."""
    folder, note = sweep.ledger.folder, sweep.display.note
    copies = None if location is None else Upload(folder, location, note=note)
    sweep.ledger.observers = watching = Observers(observers, note)
    watching.start(sweep.state)
    shutil.rmtree(folder / "work" / "ray", ignore_errors=True)  # left by an earlier run
    if copies is not None:
        copies.start()
    refused = False
    try:
        try:
            yield
        except KeyboardInterrupt:  # it came while the backend was opened, or is the second one
            sweep.interrupted = True
            sweep.signal = last_signal()
        sweep.ledger.seal()
    except BaseException as error:
        refused = isinstance(error, REFUSALS) and not sweep.skipped
        with contextlib.suppress(OSError):  # the disk may be full or gone, as the first error says
            sweep.ledger.seal()
        if folder.is_dir() and {path.name for path in folder.iterdir()} <= {"work", LEASE, KERNEL_LOCK}:
            shutil.rmtree(folder, ignore_errors=True)  # the folder was moved away, and Ray made it again
        raise
    finally:
        watching.close()
        sweep.not_uploaded = None if copies is None else copies.finish(rest=not refused)


def _summary(sweep: Sweep, seconds: float) -> RunSummary:
    rows = sweep.ledger.finished
    cells = sweep.state.cells.values()
    failed = sum(row.status == "failed" for row in rows)
    ran = {row.trial_id for row in rows}
    before = [row for cell in cells for row in cell.counting() if row.trial_id not in ran]
    return RunSummary(
        folder=sweep.ledger.folder,
        finished=len(rows) - failed,
        failed=failed,
        pruned=sum(row.status == "pruned" for row in rows),
        skipped=sweep.skipped,
        seconds=seconds,
        interrupted=sweep.interrupted,
        damaged=tuple(sweep.ledger.sealer.damaged),
        stuck=tuple(cell.cell.label for cell in cells if cell.phase == "stuck"),
        failed_before=sum(row.status == "failed" for row in before),
        stopped_by=sweep.limit,
        not_uploaded=sweep.not_uploaded,
        signal=sweep.signal,
    )
