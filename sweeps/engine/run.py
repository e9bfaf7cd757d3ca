"""Run a plan: open its folder, start the lanes, serve what is missing, close. The journal makes every step final."""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from analysis.store.remote import Location
from sweeps.cluster.nodes import check_nodes
from sweeps.cluster.resources import accelerators
from sweeps.cluster.signals import signals
from sweeps.engine.drive import Stop, drive
from sweeps.engine.limits import Meter
from sweeps.lanes.packs import TOGETHER
from sweeps.lanes.pool import Pool, host_facts
from sweeps.plan.estimate import probe_gpu
from sweeps.plan.inputs import check_inputs, needs_of
from sweeps.plan.plan import Plan
from sweeps.records.declared import declare
from sweeps.records.journal import Journal
from sweeps.records.ledger import Ledger, pruned
from sweeps.records.locks import (
    KERNEL_LOCK,
    LEASE,
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

    @property
    def complete(self) -> bool:
        """Every trial of the plan finished without failure."""
        return not (self.interrupted or self.stopped_by or self.failed or self.failed_before or self.stuck)


def run(
    plan: Plan,
    *,
    address: str | None = None,
    trial: str = TRIAL,
    progress: bool | Literal["json"] | Progress = True,
    pool: Pool | None = None,
    retry_failed: bool = False,
    observers: Sequence[Observer] = (),
    upload: str | Location | None = None,
    estimate: Mapping[str, Any] | None = None,
) -> RunSummary:
    """Run what is missing of a plan; finished trials are never repeated.

    Args:
        plan: the plan; its infeasible cells become rows of `cells` and are not run.
        address: a Ray cluster to join ("auto", "HOST:PORT"); None for a local session on loopback.
        trial: the trial function as "package.module:function". It gets what `trainables.training.worker.run_trial`
            gets, a `TrialConfig` first, and yields what that yields.
        progress: live display, none, "json" for JSON lines on standard error, or an object of your own.
        pool: lanes to use, which stay up afterwards; None starts them and stops them.
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
        EngineError: no lane can be kept up, or no broker.
        RayLostError: Ray's own processes died; the same command goes on.
        OSError: the journal can't be written, or it, or the folder, was moved or removed meanwhile.
    """
    begun = time.monotonic()
    folder, identity = plan.spec.folder.absolute(), plan.spec.identity()
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
                    with _started(sweep, plan, address, trial, pool) as lanes:
                        _serve(sweep, lanes, trial, begun, estimate)
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
        except KeyboardInterrupt:  # while Ray came up, or the second one
            sweep.interrupted = True
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


@contextlib.contextmanager
def _started(sweep: _Sweep, plan: Plan, address: str | None, trial: str, pool: Pool | None) -> Iterator[Pool]:
    """The display, and lanes that are up; those given stay up afterwards."""
    sweep.display.start(sweep.state)
    try:
        with signals(None), contextlib.ExitStack() as stack:
            if pool is None:
                if address is None:  # a cluster's workers may be other users of a group that shares the folder
                    _close_to_others(sweep.ledger.folder / "work")
                there = Plan(plan.spec, tuple(cell.anchored() for cell in plan.cells))  # a task has a folder of its own
                measure = functools.partial(probe_gpu, there) if trial == TRIAL else None
                place = sweep.ledger.folder / "work" / "ray"
                note, asked = sweep.display.note, plan.spec.resources
                needs = needs_of(plan, trial)
                made = Pool(asked, place, address=address, measure=measure, note=note, needs=needs)
                pool = stack.enter_context(made)
            elif pool.address is not None:  # it may have been another sweep's: folder and needs are this one's
                check_nodes(sweep.ledger.folder / "work" / "ray", needs_of(plan, trial))
            yield pool
    finally:
        sweep.display.stop(sweep.state)


def _close_to_others(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # a file system without modes
        folder.chmod(0o700)


def _serve(sweep: _Sweep, pool: Pool, trial: str, begun: float, estimate: Mapping[str, Any] | None) -> None:
    """Write down what the run is, then run what is missing until nothing is left, or a signal or a limit ends it."""
    state, journal = sweep.state, sweep.ledger.journal
    state.workers = pool.trials
    if estimate is not None:
        held = {**estimate, "accelerators": accelerators(pool.shapes)}
        journal.write({"ev": "estimate", "at": utc(time.time()), "estimate": held})
    packed = pool.pack(state.spec.resources) if trial in TOGETHER else 1
    retried = {"retried": sorted(sweep.ledger.earlier)} if sweep.ledger.earlier else {}
    journal.write(_provenance(state, trial, pool, packed) | retried)
    limits = state.spec.limits
    state.used = meter = Meter(limits, state, pool.shapes, begun, lambda: pool.busy, events=journal.events)
    stop = Stop(meter, sweep.ledger.look)
    try:
        drive(sweep.ledger, pool, trial, functools.partial(sweep.display.update, state), stop, packed)
    finally:
        meter.tick()
        with contextlib.suppress(OSError):  # of a journal that is gone, as the first error says
            journal.write({"ev": "used", "at": utc(time.time()), "used": meter.seconds})
        sweep.interrupted = stop.signalled.is_set()
        sweep.limit = stop.limit if sweep.left else None


def _provenance(state: SweepState, trial: str, pool: Pool, packed: int) -> dict[str, Any]:
    facts = host_facts() | {"lanes": [asdict(replace(shape, avoids=())) for shape in pool.shapes], "pack": packed}
    facts |= {"accelerators": accelerators(pool.shapes), "price_per_hour": state.spec.limits.price_per_hour}
    if pool.measured is not None:
        facts["probe"] = asdict(pool.measured)
    return {
        "ev": "sweep",
        "name": state.spec.name,
        "trial": trial,
        **RULES,
        "git_commit": git_commit(),
        "at": utc(facts["started"]),
        **facts,
    }


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
    )
