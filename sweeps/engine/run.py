"""Run a plan: one Tuner over light proxies, warm lanes that train, and a journal that makes every step final."""

from __future__ import annotations

import contextlib
import functools
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from analysis.format import Row
from analysis.store.remote import Location
from sweeps.cluster.resources import accelerators
from sweeps.cluster.session import RayLostError
from sweeps.cluster.signals import signals
from sweeps.engine.limits import Meter
from sweeps.engine.stop import Stop, watch
from sweeps.lanes.packs import TOGETHER, Packing
from sweeps.lanes.pool import Pool, host_facts
from sweeps.plan.estimate import probe_gpu
from sweeps.plan.plan import Plan
from sweeps.records.journal import Journal
from sweeps.records.ledger import Ledger, pruned
from sweeps.records.locks import FolderLock, check_identity, write_identity
from sweeps.records.replay import replay
from sweeps.records.rows import git_commit, utc
from sweeps.records.sealing import Sealer
from sweeps.records.upload import EVERY_S, Upload, check_there, restore
from sweeps.search.stages import SweepState
from sweeps.watch.displays import Progress, make_progress
from sweeps.watch.observers import Observer, Observers

if TYPE_CHECKING:
    from sweeps.lanes.dispatch import Dispatcher

TRIAL = "trainables.training.worker:run_trial"
WAVE = 1000
"""Trials of one Tuner, which keeps each in memory; more where many run at once (`wave`)."""
ROUNDS = 20
"""Trials of a Tuner per trial at a time, at least: while its last ones run the lanes run empty, one after another."""


class EngineError(RuntimeError):
    """The sweep can't go on: no lane can be kept up. What is finished stays; the same command goes on from there."""


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
        trial: the trial function as "package.module:function" (contract: `trainables.training.worker.run_trial`).
        progress: live display, none, "json" for JSON lines on standard error, or an object of your own.
        pool: lanes to use, which stay up afterwards; None starts them and stops them.
        retry_failed: try trials again that failed in earlier runs, with the same configuration, as a further attempt.
        observers: told what happens, never asked; one that fails is left out with a warning.
        upload: a URI that pyarrow reaches, or a location, that gets a copy of the results (`records.upload`); a folder
            without results starts from what is there.
        estimate: what it is thought to take (`Estimate.as_dict()`), kept in the journal to be compared afterwards.

    Raises:
        SpecError: the request can't be met (resources, sampler), or the folder belongs to another sweep or process;
            nothing was written then.
        EngineError: no lane can be kept up.
        RayLostError: Ray's own processes died; the same command goes on.
        OSError: the journal can't be written.
    """
    begun = time.monotonic()
    spec = plan.spec
    folder = spec.folder.absolute()
    location = Location.of(upload) if isinstance(upload, str) else upload
    check_identity(folder, spec.identity())
    if location is not None:
        check_there(location, spec.identity())
    with FolderLock(folder):
        if location is not None:
            restore(folder, location)
        sealer = Sealer(folder, None if location is None else EVERY_S)
        with Journal(folder / "journal.jsonl") as journal:
            state = SweepState(plan.feasible, spec)
            earlier: dict[str, int] = {}
            unfinished = replay(state, sealer, journal.events, sealer.rows, earlier if retry_failed else None)
            write_identity(folder, spec.identity())
            sealer.write_cells(cell.row() for cell in plan.cells)
            skipped = sum(cell.counted() for cell in state.cells.values())
            display = make_progress(progress)
            show = _Show(display, state)
            for line in sealer.damaged:
                display.note(f"damaged table file set aside: {line}")
            ledger = Ledger(state, journal, sealer, folder, spec.keep.adapters, earlier)
            for slot, trained in unfinished:
                ledger.finish(slot, pruned(state, slot, {"seconds_total": trained}))
            for cell_id in state.cells:
                ledger.settle(cell_id)
            interrupted, limit = False, None
            copies = None if location is None else Upload(folder, location, note=display.note)
            ledger.observers = watching = Observers(observers, display.note)
            watching.start(state)
            shutil.rmtree(folder / "work" / "ray", ignore_errors=True)  # of an earlier run
            if copies is not None:
                copies.start()
            try:
                if any(not cell.finished for cell in state.cells.values()):
                    with show, signals(None), contextlib.ExitStack() as stack:
                        if pool is None:
                            measure = functools.partial(probe_gpu, plan) if trial == TRIAL else None
                            ray_folder = folder / "work" / "ray"
                            started = Pool(spec.resources, ray_folder, address=address, measure=measure)
                            pool = stack.enter_context(started)
                        state.workers = pool.trials
                        if estimate is not None:
                            held = {**estimate, "accelerators": accelerators(pool.shapes)}
                            journal.write({"ev": "estimate", "at": utc(time.time()), "estimate": held})
                        packed = pool.pack(spec.resources) if trial in TOGETHER else 1
                        journal.write(_provenance(spec.name, trial, pool, packed))
                        state.used = meter = Meter(spec.limits, state, pool.shapes, begun)
                        stop = Stop(meter)
                        try:
                            _drive(ledger, pool, trial, show.changed, stop, packed)
                        finally:
                            left = any(not cell.finished for cell in state.cells.values())
                            interrupted, limit = stop.signalled.is_set(), stop.limit if left else None
            except KeyboardInterrupt:  # while Ray came up, or the second one
                interrupted = True
            finally:
                sealer.seal()
                watching.close()
                not_uploaded = None if copies is None else copies.finish()
        if not (interrupted or limit):
            shutil.rmtree(folder / "work", ignore_errors=True)
    done = _summary(folder, ledger.finished, skipped, time.monotonic() - begun, interrupted, sealer.damaged, state)
    return replace(done, stopped_by=limit, not_uploaded=not_uploaded)


def wave(at_once: int) -> int:
    """Trials of one Tuner when so many run at once."""
    return max(WAVE, ROUNDS * at_once)


def _drive(ledger: Ledger, pool: Pool, trial: str, changed: Callable[[], None], stop: Stop, packed: int) -> None:
    """Tuner after Tuner until nothing is left, or `stop`."""
    import ray

    from sweeps.lanes.dispatch import Dispatcher

    with _lost_unless(stop.signalled), signals(stop.signalled, lambda: pool.lost), pool.minded():
        ray.get(pool.broker.reset.remote())
        packing = Packing(packed, pool.trials, {})
        while not stop:
            most = wave(pool.trials * packed)
            dispatcher = Dispatcher(ledger, pool.broker, pool.broker_name, trial, most, changed, packing)
            with watch(stop, dispatcher):
                _tune(dispatcher, pool, packed)
            if dispatcher.error is not None:
                raise dispatcher.error
            if dispatcher.dead is not None:
                raise EngineError(f"no lane could be kept up: {dispatcher.dead}")
            if all(cell.finished for cell in ledger.state.cells.values()):
                return


@contextlib.contextmanager
def _lost_unless(signalled: threading.Event) -> Iterator[None]:
    """Ray may have had the signal that ends a sweep, too: then the sweep is interrupted, and Ray's end no error."""
    try:
        yield
    except RayLostError:
        if signalled.is_set():
            raise KeyboardInterrupt from None
        raise


def _tune(dispatcher: Dispatcher, pool: Pool, packed: int) -> None:
    from ray import tune

    from sweeps.lanes.dispatch import PerCell
    from sweeps.lanes.proxy import Proxy

    storage = pool.storage / "tune"
    name = uuid.uuid4().hex[:8]
    tuner = tune.Tuner(
        tune.with_resources(Proxy, pool.proxy_resources(packed)),
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=-1,
            search_alg=dispatcher,
            scheduler=PerCell(dispatcher),
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(storage),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=2),
        ),
    )
    tuner.fit()
    shutil.rmtree(storage / name, ignore_errors=True)


def _trial_name(trial: Any) -> str:
    return str(trial.trial_id)


def _provenance(name: str, trial: str, pool: Pool, packed: int) -> dict[str, Any]:
    facts = host_facts() | {"lanes": [asdict(shape) for shape in pool.shapes], "pack": packed}
    if pool.measured is not None:
        facts["probe"] = asdict(pool.measured)
    return {
        "ev": "sweep",
        "name": name,
        "trial": trial,
        "git_commit": git_commit(),
        "at": utc(facts["started"]),
        **facts,
    }


class _Show:
    """Connects the state to a display, for as long as the sweep runs."""

    def __init__(self, display: Progress, state: SweepState) -> None:
        self._display, self._state = display, state

    def changed(self) -> None:
        self._display.update(self._state)

    def __enter__(self) -> None:
        self._display.start(self._state)

    def __exit__(self, *_: object) -> None:
        self._display.stop(self._state)


def _summary(
    folder: Path,
    rows: Sequence[Row],
    skipped: int,
    seconds: float,
    interrupted: bool,
    damaged: Sequence[str],
    state: SweepState,
) -> RunSummary:
    failed = sum(row["status"] == "failed" for row in rows)
    known = [row for cell in state.cells.values() for row in cell.rows.values()]
    return RunSummary(
        folder=folder,
        finished=len(rows) - failed,
        failed=failed,
        pruned=sum(row["status"] == "pruned" for row in rows),
        skipped=skipped,
        seconds=seconds,
        interrupted=interrupted,
        damaged=tuple(damaged),
        stuck=tuple(cell.cell.label for cell in state.cells.values() if cell.phase == "stuck"),
        failed_before=sum(row["status"] == "failed" for row in known) - failed,
    )
