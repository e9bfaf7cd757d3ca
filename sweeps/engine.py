"""Run a plan: one Tuner over light proxies, warm lanes that train, and a journal that makes every step final."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from sweeps.callbacks import Progress, make_progress
from sweeps.cluster import Pool, host_facts
from sweeps.interfaces import Plan, Row
from sweeps.journal import Journal
from sweeps.ledger import Ledger, pruned
from sweeps.locks import FolderLock, check_identity, write_identity
from sweeps.rows import git_commit, utc
from sweeps.sealing import Sealer
from sweeps.space import extra_from
from sweeps.stages import Choice, Slot, SweepState

if TYPE_CHECKING:
    from sweeps.dispatch import Dispatcher

TRIAL = "trainables.worker:run_trial"
WAVE = 1000
"""Trials of one Tuner, which keeps each in memory and slows down with their number."""


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

    @property
    def complete(self) -> bool:
        """Every trial of the plan finished without failure."""
        return not (self.interrupted or self.failed or self.failed_before or self.stuck)


def run(
    plan: Plan,
    *,
    address: str | None = None,
    trial: str = TRIAL,
    progress: bool | Progress = True,
    pool: Pool | None = None,
    retry_failed: bool = False,
) -> RunSummary:
    """Run what is missing of a plan; finished trials are never repeated.

    Args:
        plan: the plan; its infeasible cells become rows of `cells` and are not run.
        address: a Ray cluster to join ("auto", "HOST:PORT"); None for a local session on loopback.
        trial: the trial function as "package.module:function" (contract: `trainables.worker.run_trial`).
        progress: live display, none, or an object of your own.
        pool: lanes to use, which stay up afterwards; None starts them and stops them.
        retry_failed: try trials again that failed in earlier runs, with the same configuration, as a further attempt.

    Raises:
        SpecError: the request can't be met (resources, sampler), the folder belongs to another sweep or process.
        EngineError: no lane can be kept up.
        OSError: the journal can't be written.
    """
    begun = time.monotonic()
    spec = plan.spec
    folder = spec.folder.absolute()
    check_identity(folder, spec.identity())
    with FolderLock(folder):
        write_identity(folder, spec.identity())
        sealer = Sealer(folder)
        with Journal(folder / "journal.jsonl") as journal:
            state = SweepState(plan.feasible, spec)
            earlier: dict[str, int] = {}
            unfinished = replay(state, sealer, journal.events, sealer.rows, earlier if retry_failed else None)
            sealer.write_cells(cell.row() for cell in plan.cells)
            skipped = sum(cell.counted() for cell in state.cells.values())
            display = make_progress(progress)
            show = _Show(display, state)
            for line in sealer.damaged:
                display.note(f"damaged table file set aside: {line}")
            ledger = Ledger(state, journal, sealer, folder, spec.keep.adapters, earlier)
            for slot in unfinished:
                ledger.finish(slot, pruned(state, slot, None))
            for cell_id in state.cells:
                ledger.settle(cell_id)
            interrupted = False
            shutil.rmtree(folder / "work" / "ray", ignore_errors=True)  # of an earlier run
            try:
                if any(not cell.finished for cell in state.cells.values()):
                    with show, _signals(None), contextlib.ExitStack() as stack:
                        if pool is None:
                            pool = stack.enter_context(Pool(spec.resources, folder / "work" / "ray", address=address))
                        state.workers = pool.trials
                        journal.write(_provenance(spec.name, trial))
                        interrupted = _drive(ledger, pool, trial, show.changed)
            except KeyboardInterrupt:  # while Ray came up, or the second one
                interrupted = True
            finally:
                sealer.seal()
        if not interrupted:
            shutil.rmtree(folder / "work", ignore_errors=True)
    return _summary(folder, ledger.finished, skipped, time.monotonic() - begun, interrupted, sealer.damaged, state)


def replay(
    state: SweepState,
    sealer: Sealer,
    events: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Row],
    retry: dict[str, int] | None = None,
) -> list[Slot]:
    """Rebuild a sweep from its journal and from sealed rows, which stand in for a journal that was lost.

    With `retry`, failed trials count as asked and not as finished, and their attempts so far are put into it.

    Returns slots that the pruner had stopped without their row being written.
    """
    stopped: dict[str, Slot] = {}
    asked: dict[str, Slot] = {}
    for event in events:
        kind = event["ev"]
        if kind == "ask":
            slot = Slot.from_config(event["cell_id"], event["stage"], event["slot"], event["trial_id"], event["config"])
            asked[slot.trial_id] = state.restore(slot)
        elif kind == "report":
            known = asked.get(event["trial_id"])
            if known is not None and known.cell_id in state.cells:
                state.report(known.cell_id, known.trial_id, event["epoch"], event["values"].get("val_score"))
                if event.get("stop"):
                    stopped[known.trial_id] = known
        elif kind == "finish":
            stopped.pop(event["trial_id"], None)
            sealer.add(event)
            if retry is not None and event["row"]["status"] == "failed":
                retry[event["trial_id"]] = event["row"]["attempt"]
            else:
                state.finish(event["row"])
        elif kind == "choose":
            sealer.add(event)
            if event["cell_id"] in state.cells:
                state.cells[event["cell_id"]].choice = _choice(event["row"])
    for trial_id, row in rows.items():
        cell = state.cells.get(row["cell_id"])
        if cell is not None and trial_id not in cell.rows and trial_id not in (retry or ()):
            state.restore(Slot.from_row(row))
            state.finish(row)
    return list(stopped.values())


def _choice(row: Row) -> Choice:
    return Choice(
        row["lr"],
        row["mean_val"],
        row["n_trials"],
        row["n_rerun_seeds"],
        row["edge"],
        extra_from(row.get("hyperparameters")),
    )


def _drive(ledger: Ledger, pool: Pool, trial: str, changed: Callable[[], None]) -> bool:
    """Tuner after Tuner until nothing is left; returns whether a signal ended it."""
    import ray

    from sweeps.dispatch import Dispatcher

    stop = threading.Event()
    with _signals(stop):
        ray.get(pool.broker.reset.remote())
        while not stop.is_set():
            dispatcher = Dispatcher(ledger, pool.broker, pool.broker_name, trial, WAVE, changed)
            with _watch(stop, dispatcher):
                _tune(dispatcher, pool)
            if dispatcher.error is not None:
                raise dispatcher.error
            if dispatcher.dead is not None:
                raise EngineError(f"no lane could be kept up: {dispatcher.dead}")
            if all(cell.finished for cell in ledger.state.cells.values()):
                return False
    return True


def _tune(dispatcher: Dispatcher, pool: Pool) -> None:
    from ray import tune

    from sweeps.dispatch import PerCell
    from sweeps.proxy import Proxy

    storage = pool.storage / "tune"
    name = uuid.uuid4().hex[:8]
    tuner = tune.Tuner(
        tune.with_resources(Proxy, pool.proxy_resources),
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


@contextlib.contextmanager
def _watch(stop: threading.Event, dispatcher: Dispatcher) -> Iterator[None]:
    """Carry a signal to the broker: from a thread, since a handler may have interrupted Ray in the middle of a call."""
    over = threading.Event()

    def carry() -> None:
        while not over.is_set():
            if stop.wait(0.5):
                dispatcher.interrupted = True
                dispatcher.broker.interrupt.remote()
                return

    thread = threading.Thread(target=carry, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def _signals(stop: threading.Event | None) -> Iterator[None]:
    """SIGINT and SIGTERM set `stop`, for a clean end; without it, or the second time, they end the run at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop is None or stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _provenance(name: str, trial: str) -> dict[str, Any]:
    facts = host_facts()
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
