"""Serve a sweep: Ray Tune's Tuners one after another until nothing is left, or a signal or a limit ends it."""

from __future__ import annotations

import contextlib
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray import tune

from sweeps.cluster.nodes import HEAD
from sweeps.cluster.session import EXIT_LOST, RayLostError
from sweeps.cluster.signals import signals
from sweeps.engine.limits import Meter
from sweeps.errors import reason
from sweeps.lanes.packs import Packing
from sweeps.lanes.pool import Pool
from sweeps.lanes.proxy import Proxy
from sweeps.lanes.tune import Dispatcher, PerCell
from sweeps.records.ledger import Ledger

WAVE = 1000
"""Trials of one Tuner, which keeps each in memory; more where many run at once (`wave`)."""
ROUNDS = 20
"""Trials of a Tuner per trial at a time, at least: lanes fall idle during a Tuner's last trials."""
_EVERY_S = 0.5
_NEXT_TO_NOTHING = {HEAD: 0.0001}
"""Of Ray's resources, for a Tune trial: it has no process, but Tune reserves something for each: 9,990 fit."""


class EngineError(RuntimeError):
    """The sweep can't go on: no lane or no broker can be kept up. What is finished stays; the same command goes on."""

    exit_code = EXIT_LOST


class Stop:
    """Whether a sweep is to end, and why: a signal, a limit that is reached, or a journal that is gone.

    Args:
        check: called every moment; raises OSError when the journal is gone.
    """

    def __init__(self, meter: Meter, check: Callable[[], None] = lambda: None) -> None:
        self.signalled = threading.Event()
        self.limit: str | None = None
        self.fault: Exception | None = None
        self._meter, self._check = meter, check

    def __bool__(self) -> bool:
        return self.signalled.is_set() or self.limit is not None or self.fault is not None

    def wait(self) -> bool:
        """Wait a moment for a signal, look at the journal and the limits; whether to end."""
        self.signalled.wait(_EVERY_S)
        self._meter.tick()
        try:
            self._check()
        except Exception as error:  # noqa: BLE001  # the thread lives on to tell the broker; `drive` raises it
            self.fault = error
        if not self.signalled.is_set():
            self.limit = self.limit or self._meter.reached()
        return bool(self)


@contextlib.contextmanager
def watch(stop: Stop, dispatcher: Dispatcher, pool: Pool) -> Iterator[None]:
    """Carry a stop, or the end of all lanes, to the broker.

    From a thread, since a handler may have interrupted Ray in the middle of a call.
    """
    over = threading.Event()

    def carry() -> None:
        while not over.is_set():
            down = pool.down
            if stop.wait() or down is not None:
                dispatcher.dead = dispatcher.dead or down
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


def wave(at_once: int) -> int:
    """Trials of one Tuner when `at_once` of them run together."""
    return max(WAVE, ROUNDS * at_once)


def drive(ledger: Ledger, pool: Pool, trial: str, changed: Callable[[], None], stop: Stop, packed: int) -> None:
    """Tuner after Tuner until nothing is left, or `stop`."""
    with _lost_unless(stop.signalled), signals(stop.signalled, lambda: pool.lost), pool.minded():
        try:
            ray.get(pool.broker.reset.remote())
        except ray.exceptions.RayError as error:
            raise EngineError(f"the broker can't run on the cluster's head: {reason(error)}") from error
        packing = Packing(packed, pool.trials, {})
        while not stop:
            most = wave(pool.trials * packed)
            dispatcher = Dispatcher(ledger, pool.broker, pool.broker_name, trial, most, changed, packing)
            with watch(stop, dispatcher, pool):
                _tune(dispatcher, pool)
            if stop.fault is not None:
                raise stop.fault
            if dispatcher.error is not None:
                raise dispatcher.error
            if dispatcher.dead is not None:
                raise EngineError(f"no lane could be kept up: {dispatcher.dead}")
            if all(cell.finished for cell in ledger.state.cells.values()):
                return


@contextlib.contextmanager
def _lost_unless(signalled: threading.Event) -> Iterator[None]:
    """A signal that ends the sweep may reach Ray too: then Ray's end is an interruption, and no error."""
    try:
        yield
    except RayLostError:
        if signalled.is_set():
            raise KeyboardInterrupt from None
        raise


def _tune(dispatcher: Dispatcher, pool: Pool) -> None:
    storage = pool.storage / "tune"
    name = uuid.uuid4().hex[:8]
    tuner = tune.Tuner(
        tune.with_resources(Proxy, _NEXT_TO_NOTHING),
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
        ),
    )
    tuner.fit()
    shutil.rmtree(storage / name, ignore_errors=True)


def _trial_name(trial: Any) -> str:
    return str(trial.trial_id)
