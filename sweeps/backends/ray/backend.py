"""The backend on Ray, in the process that has the Ray session: Tune holds the trials, lanes of Ray Train run them."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import ray

from sweeps.backends.backend import (
    Backend,
    BackendError,
    BackendLostError,
    Event,
    Facts,
    Failed,
    Finished,
    Lost,
    Order,
    Outcome,
    Setup,
    Stopped,
)
from sweeps.backends.ray.cluster.nodes import check_nodes
from sweeps.backends.ray.cluster.session import RayLostError
from sweeps.backends.ray.pool import Pool
from sweeps.backends.ray.tune import Ended, SharedTrials, TuneReport, run_tuner, trials_per_tuner
from sweeps.backends.resources import accelerators
from sweeps.errors import reason
from sweeps.spec.resources import ResourceSection

_END_S = 20.0
"""Seconds that Tune's thread gets to end. Tune checks every tenth of a second whether it is to end."""


class RayBackend:
    """The backend that runs trials on the lanes of a pool.

    Tune runs in a separate thread, because `Tuner.fit` returns only at the end.

    Args:
        pool: the running session, broker and lanes.
        resources: `[resources]` of the sweep. It may differ from that with which the pool was opened.
    """

    def __init__(self, pool: Pool, resources: ResourceSection) -> None:
        self._pool = pool
        self._pack = pool.pack(resources)
        self._held = SharedTrials()
        self._keys: dict[str, str] = {}  # the lease of each trial that is not over
        self._started: list[set[str]] = []  # keys that are not over, of each call of `start`
        self._over: dict[str, bool] = {}  # by key of trials that the engine stopped
        self._verdicts: dict[str, Any] = {}
        self._troubled: set[Any] = set()  # hosts, and (worker, host), whose last trial met storage trouble
        self._run = f"{time.time_ns():x}"
        self._issued = 0
        try:
            with self._convert_lost_errors():
                ray.get(pool.broker.reset.remote())
        except ray.exceptions.RayError as error:
            raise BackendError(f"the broker can't run on the cluster's head: {reason(error)}") from error
        self._thread = threading.Thread(target=self._tune, name="tune", daemon=True)
        self._thread.start()

    def _tune(self) -> None:
        """Run one Tuner after another, until the backend is closing."""
        try:
            while not self._held.closing.is_set():
                trials = trials_per_tuner(self._pool.trials * self._pack)
                run_tuner(self._held, self._pool.broker_name, trials, self._pool.storage / "tune")
        except BaseException as error:  # noqa: BLE001  # raised again in the engine's thread
            self._held.news.put(error)

    @property
    def facts(self) -> Facts:
        shapes = self._pool.shapes
        provenance: dict[str, Any] = {
            "backend": "ray",
            "lanes": [asdict(replace(shape, avoids=())) for shape in shapes],
        }
        if self._pool.measured is not None:
            provenance["probe"] = asdict(self._pool.measured)
        return Facts(self._pool.trials, self._pack, accelerators(shapes), provenance)

    @property
    def free(self) -> int:
        return self._pool.trials + 1 - len(self._started)  # one more than are at work: no lane waits for the next

    @property
    def busy(self) -> int:
        return self._pool.busy

    def start(self, orders: Sequence[Order]) -> None:
        keys = []
        for order in orders:
            self._issued += 1
            key = f"{self._run}.{self._issued}"
            keys.append(key)
            self._keys[order.trial_id] = key
            self._held.ids[key] = order.trial_id
            if order.judged:
                self._held.judged.add(key)
        self._started.append(set(keys))
        for_workers = {key: order.for_worker() for key, order in zip(keys, orders, strict=True)}
        with self._convert_lost_errors():
            ray.get(self._pool.broker.submit.remote(for_workers, 1 if orders[0].judged else None))
        self._held.waiting.extend(keys)
        self._held.arrived.set()

    def events(self, timeout: float) -> list[Event]:
        for verdict in self._verdicts.values():
            verdict.set_result(False)
        self._verdicts.clear()
        with self._convert_lost_errors():
            if (lost := self._pool.lost) is not None:
                raise BackendLostError(lost)
            if (why := self._pool.down) is not None:
                raise BackendError(f"no lane could be kept up: {why}")
            self._pool.follow_nodes()
            events: list[Event] = []
            with contextlib.suppress(queue.Empty):
                self._take(self._held.news.get(timeout=timeout), events)
                while True:
                    self._take(self._held.news.get_nowait(), events)
            return events

    def wake(self) -> None:
        """Let a waiting call of `events` return now. May be called from any thread."""
        self._held.news.put(None)

    def withdraw_request(self) -> None:
        """Tell a cluster's autoscaler that the nodes that this backend asked for are no longer needed."""
        self._pool.withdraw_request()

    def _take(self, news: TuneReport | Ended | BaseException | None, events: list[Event]) -> None:
        if news is None:
            return
        if isinstance(news, BaseException):
            raise news
        if isinstance(news, Ended):
            trial_id = self._held.ids.get(news.key)
            if trial_id is not None:
                events.append(self._end(trial_id, news.key, news.error))
        elif news.key in self._held.ids:
            events.append(news.report)
            if news.verdict is not None:
                self._verdicts[news.key] = news.verdict
        elif news.verdict is not None:
            news.verdict.set_result(True)

    def stop(self, trial_id: str, *, over: bool) -> None:
        key = self._keys.get(trial_id)
        if key is None:  # it has ended, and the event that says so is on its way
            return
        self._over[key] = over
        verdict = self._verdicts.pop(key, None)
        if verdict is not None:
            verdict.set_result(True)
        else:
            with contextlib.suppress(ValueError):
                self._held.waiting.remove(key)
            self._held.news.put(Ended(key, False))

    def _end(self, trial_id: str, key: str, error: bool) -> Event:
        """Take the outcome of a trial that ended or was stopped from the broker, and return its last event."""
        stopped = key in self._over
        over = self._over.pop(key, False)
        del self._keys[trial_id], self._held.ids[key]
        self._held.judged.discard(key)
        self._started = [rest for keys in self._started if (rest := keys - {key})]
        outcome: Outcome = ray.get(self._pool.broker.take.remote(key, over)) or {}
        if outcome.get("storage") is not None:
            return self._troubled_by(trial_id, outcome)
        self._troubled -= {outcome.get("host"), outcome.get("worker")}
        if outcome.get("state") == "finished":
            return Finished(trial_id, {"status": "finished", **outcome})
        if outcome.get("state") == "failed":
            return Failed(trial_id, {"status": "failed", **outcome})
        if stopped:
            return Stopped(trial_id, outcome)
        if error:
            raise RuntimeError(f"Ray Tune gave trial {trial_id} up, and the broker knows no outcome")
        dead = ray.get(self._pool.broker.status.remote())["dead"]
        if dead is not None:
            raise BackendError(f"no lane could be kept up: {dead}")
        return Lost(trial_id, outcome)

    def _troubled_by(self, trial_id: str, outcome: Outcome) -> Lost:
        """Note the host on which storage failed under a trial. Return its event: whether other nodes can run it."""
        self._troubled |= {outcome["host"], outcome.get("worker")}  # the broker knows only the first node of a group
        workers = ray.get(self._pool.broker.status.remote())["workers"]
        everywhere = all(host in self._troubled or (name, host) in self._troubled for name, host in workers.items())
        fault = OSError(outcome["storage"], f"{outcome['reason']} (on host {outcome['host']})")
        return Lost(trial_id, outcome, fault, elsewhere=not everywhere)

    @contextlib.contextmanager
    def _convert_lost_errors(self) -> Iterator[None]:
        try:
            with self._pool.convert_lost_errors():
                yield
        except RayLostError as error:
            raise BackendLostError(self._pool.lost or str(error)) from error

    def close(self) -> None:
        self._held.closing.set()
        self._held.arrived.set()
        for verdict in self._verdicts.values():
            verdict.set_result(True)
        self._verdicts.clear()
        lost = self._pool.lost is not None
        if not lost:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._pool.broker.interrupt.remote(), timeout=_END_S)
            self._thread.join(_END_S)
        if self._thread.is_alive():  # it would call Ray after its session is gone, and Ray would end the process
            _interrupt(self._thread)
            self._thread.join(2.0)
            if self._thread.is_alive() and not lost:
                logging.getLogger("sweeps").warning("Ray Tune did not end within %g s", _END_S)


def _interrupt(thread: threading.Thread) -> None:
    """Raise SystemExit in another thread, at its next step of Python."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))


class _WithPool(RayBackend):
    """A backend that closes its pool when it is closed."""

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._pool.close()


def open_here(setup: Setup) -> RayBackend:
    """Start or join Ray in this process, start its lanes, and return the backend."""
    pool = Pool(
        setup.resources,
        setup.storage,
        address=setup.address,
        measure=setup.measure,
        note=setup.note,
        needs=setup.needs,
    )
    pool.__enter__()
    try:
        return _WithPool(pool, setup.resources)
    except BaseException:
        pool.close()
        raise


def using(pool: Pool) -> Callable[[Setup], Backend]:
    """Return a function that opens backends on a running pool.

    The pool stays up afterwards, so that its workers keep their cached models between sweeps.
    """

    def open_backend(setup: Setup) -> Backend:
        if pool.address is not None:  # the pool may have been opened for another sweep, with other needs
            check_nodes(setup.storage, setup.needs)
        return RayBackend(pool, setup.resources)

    return open_backend
