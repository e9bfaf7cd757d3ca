"""Ray Tune's side of a sweep: it holds the trials that the engine has started, and passes their reports on.

The search has chosen these trials already. So the searcher here only hands out trials that the engine has started, and
the scheduler only passes the engine's verdict on a report to Tune.
"""

from __future__ import annotations

import functools
import shutil
import threading
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar, cast

from ray import tune  # Ray's, not this module
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sweeps.backends.backend import Reported
from sweeps.backends.ray.cluster.nodes import HEAD
from sweeps.backends.ray.proxy import Proxy

WAVE = 1000
"""The number of trials of one Tuner, which keeps each in memory; more if many run at once (`trials_per_tuner`)."""
ROUNDS = 20
"""The least number of trials of a Tuner for each trial that runs at once: each Tuner takes a moment to start."""
_LOOK_S = 0.5
_NEXT_TO_NOTHING = {HEAD: 0.0001}
"""Resources of a Tune trial. It has no process, but Tune reserves something for each: 9,990 fit."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Ended:
    """A message: Tune has ended the trial of the lease `key`. `error`: whether Tune gave it up."""

    key: str
    error: bool


@dataclass(frozen=True)
class TuneReport:
    """A message: a trial's report.

    Attributes:
        key: the lease of the trial.
        report: the report.
        verdict: where Tune waits for the answer whether the trial stops; None if the engine does not judge it.
    """

    key: str
    report: Reported
    verdict: Future[bool] | None


@dataclass
class SharedTrials:
    """The trials in Tune, by the keys of their leases. The engine's thread and Tune's thread share this object.

    Attributes:
        waiting: keys of trials that were started and that Tune has not asked for.
        judged: keys of trials that wait after each report for the engine.
        ids: the trial id of each key.
        news: `TuneReport`, `Ended` and errors, in the order in which they came. None ends a wait.
        arrived: set when a trial was added to `waiting`, and at the end.
        closing: set at the end. Then no further trial is handed out, and Tune does not wait for verdicts.
    """

    waiting: deque[str] = field(default_factory=deque)
    judged: set[str] = field(default_factory=set)
    ids: dict[str, str] = field(default_factory=dict)
    news: SimpleQueue[TuneReport | Ended | BaseException | None] = field(default_factory=SimpleQueue)
    arrived: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)


def _guarded(otherwise: Any) -> Callable[[F], F]:
    """Return a decorator that sends a method's error to the engine, ends the Tuner, and returns `otherwise`.

    Tune itself hides some errors and changes the message of others.
    """

    def decorate(method: F) -> F:
        @functools.wraps(method)
        def guarded(self: StartedTrials, *args: Any, **kwargs: Any) -> Any:
            try:
                return method(self, *args, **kwargs)
            except Exception as error:  # noqa: BLE001  # raised again in the engine's thread
                self.held.news.put(error)
                self.held.closing.set()
                return otherwise

        return cast(F, guarded)

    return decorate


class StartedTrials(Searcher):  # type: ignore[misc]  # Ray's classes carry no types for us
    """A searcher that gives Tune the trials that the engine has started.

    Their leases are already queued at the broker, so lanes never wait for Tune.

    Args:
        held: the trials in Tune, shared with the engine's thread.
        broker: name of the broker actor.
        left: number of trials to hand out before `FINISHED`. Tune keeps every trial in memory, so a long sweep has
            several Tuners.
    """

    def __init__(self, held: SharedTrials, broker: str, left: int) -> None:
        super().__init__(metric="score", mode="max")
        self.held, self.broker, self.left = held, broker, left
        self._keys: dict[str, str] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        return True

    @_guarded(otherwise=str(Searcher.FINISHED))
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next started trial as a Tune configuration, None if there is none now, or FINISHED.

        As long as Tune has no trial, it waits here for the next one. Otherwise Tune would ask only once a second.
        """
        while self.left > 0 and not (self._keys or self.held.waiting or self.held.closing.is_set()):
            self.held.arrived.wait(_LOOK_S)
            self.held.arrived.clear()
        if self.held.closing.is_set() or self.left <= 0:
            return str(Searcher.FINISHED)
        try:
            key = self._keys[trial_id] = self.held.waiting.popleft()
        except IndexError:
            return None
        self.left -= 1
        return {"broker": self.broker, "key": key}

    @_guarded(otherwise=False)
    def judge(self, key: str, result: dict[str, Any]) -> bool:
        """Pass a report to the engine, and return whether the trial is to stop."""
        trial_id = self.held.ids.get(key)
        if trial_id is None or result["status"] == "stopped":
            return False
        verdict: Future[bool] | None = Future() if key in self.held.judged and not result["done"] else None
        score, seconds = result["score"], result["seconds"]
        report = Reported(trial_id, int(result["epoch"]), result["train_loss"], score, seconds)
        self.held.news.put(TuneReport(key, report, verdict))
        while verdict is not None and not self.held.closing.is_set():
            try:
                return verdict.result(timeout=_LOOK_S)
            except TimeoutError:
                continue
        return False

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        return None  # the scheduler sees every result; Tune hides the one that stops a trial from searchers

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        key = self._keys.pop(trial_id, None)
        if key is not None:
            self.held.news.put(Ended(key, error))

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()  # Tune's snapshot is never read

    def restore(self, checkpoint_path: str) -> None:
        raise RuntimeError("a sweep is resumed from its journal, not from Tune's state")

    def __getstate__(self) -> dict[str, Any]:
        return {"_metric": self._metric, "_mode": self._mode}


class PassOn(FIFOScheduler):  # type: ignore[misc]
    """A scheduler that asks the engine about every report. Reports of other cells never stop a trial."""

    def __init__(self, trials: StartedTrials) -> None:
        super().__init__()
        self._trials = trials
        self._metric, self._mode = "score", "max"

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        stop = self._trials.judge(trial.config["key"], result)
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._trials.judge(trial.config["key"], result)  # a result that ends its trial comes here only

    def __getstate__(self) -> dict[str, Any]:
        return {}


def trials_per_tuner(at_once: int) -> int:
    """Return the number of trials of one Tuner if `at_once` of them run at once."""
    return max(WAVE, ROUNDS * at_once)


def run_tuner(held: SharedTrials, broker: str, trials: int, storage: Path) -> None:
    """Run one Tuner until `trials` trials were handed out and have ended, or until `held` is closing."""
    name = uuid.uuid4().hex[:8]
    started = StartedTrials(held, broker, trials)
    tuner = tune.Tuner(
        tune.with_resources(Proxy, _NEXT_TO_NOTHING),
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=-1,
            search_alg=started,
            scheduler=PassOn(started),
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
