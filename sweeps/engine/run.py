"""Run a plan: open its folder and a backend, run what is missing, close. The journal makes every step final."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from analysis.store.remote import Location
from sweeps.backends.backend import OpenBackend
from sweeps.backends.signals import received
from sweeps.engine.prepare import Prepared, prepare
from sweeps.engine.runner import TRIAL, Runner, Sweep
from sweeps.plan.plan import Plan
from sweeps.records.declared import declare
from sweeps.records.journal import Journal
from sweeps.records.ledger import Ledger, pruned
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
    """Run what is missing of a plan whose folder `prepare` holds. The arguments are those of `run`."""
    begun = time.monotonic()
    plan, location = prepared.plan, prepared.location
    folder = plan.spec.folder.absolute()
    with Journal(folder / "journal.jsonl") as journal:
        sealer = Sealer(folder, None if location is None else EVERY_S)
        sweep = _open(plan, folder, journal, sealer, make_progress(progress), retry_failed)
        with _followed(sweep, observers, location):
            if sweep.left:
                Runner(sweep, plan, prepared.opener, begun, prepared.restart).run(estimate)
    if not (sweep.interrupted or sweep.limit):
        shutil.rmtree(folder / "work", ignore_errors=True)
    return _summary(sweep, time.monotonic() - begun)


def _open(plan: Plan, folder: Path, journal: Journal, sealer: Sealer, display: Progress, retry_failed: bool) -> Sweep:
    """The sweep as its folder has it; what an earlier run left half written is written."""
    spec = plan.spec
    state = SweepState(plan.feasible, spec)
    earlier: dict[str, int] = {}
    unfinished = replay(state, sealer, journal.events, sealer.rows, earlier if retry_failed else None)
    write_identity(folder, spec.identity())
    cells = (state.cells.get(cell.cell_id, cell) for cell in plan.cells)
    sealer.write_cells(replace(cell.row(), seed_rule=RULES["seed_rule"]) for cell in cells)
    declare(spec, journal, sealer.rows, state.cells)
    skipped = sum(cell.counted() for cell in state.cells.values())
    for line in sealer.damaged:
        display.note(f"damaged table file set aside: {line}")
    ledger = Ledger(state, journal, sealer, folder, spec.keep.adapters, earlier)
    for slot, trained in unfinished:
        ledger.finish(slot, pruned(state, slot, {"seconds_total": trained}))
    for cell_id in state.cells:
        ledger.settle(cell_id)
    return Sweep(ledger, display, skipped)


@contextlib.contextmanager
def _followed(sweep: Sweep, observers: Sequence[Observer], location: Location | None) -> Iterator[None]:
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
        if folder.is_dir() and {path.name for path in folder.iterdir()} <= {"work", LEASE, KERNEL_LOCK}:
            shutil.rmtree(folder, ignore_errors=True)  # what Ray made anew of a folder that was moved away
        raise
    finally:
        watching.close()
        sweep.not_uploaded = None if copies is None else copies.finish(rest=not refused)


def _summary(sweep: Sweep, seconds: float) -> RunSummary:
    rows, cells = sweep.ledger.finished, sweep.state.cells.values()
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
