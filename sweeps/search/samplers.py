"""Asks one of Optuna's samplers for one point, with a study that is rebuilt from a cell's known trials.

Nothing is kept between two asks: each has its seed, from (search seed, cell, slot), and sees the cell's trials. So a
search that is rebuilt from the journal goes on as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sweeps.spec.space import Dimension, Extra, Point, Space, Value, extra_of

if TYPE_CHECKING:
    import optuna

State = Literal["running", "finished", "failed", "pruned"]

STARTUP = 4  # random points before an adaptive sampler fits a model; Optuna's 10 would use up most allowances
_BLOCK = 16  # number of Sobol points that are made at once


@dataclass(frozen=True)
class Tried:
    """One tried point of a cell.

    Attributes:
        slot: its position in the allowance, from 0.
        lr: the learning rate.
        score: validation score; None for a running, failed or pruned trial.
        state: the state of its trial.
        extra: the other searched hyperparameters.
        warm: whether it did not come from the sampler: a warm start, or a point beyond the range.
    """

    slot: int
    lr: float
    score: float | None
    state: State
    extra: Extra = ()
    warm: bool = False

    @property
    def point(self) -> Point:
        """Return its hyperparameters."""
        return Point(self.lr, self.extra)


def has_cmaes() -> bool:
    """Return whether the package that CMA-ES needs is installed."""
    return importlib.util.find_spec("cmaes") is not None


def sobol(space: Space, seed: int, slot: int) -> Point:
    """Return point number `slot` of the scrambled Sobol sequence with this seed.

    The sequence is replayed in a new study. Optuna draws the first trial of an empty study at random, so the study
    starts with one invented finished trial. Lists are searched by position, so that they are also filled evenly.
    """
    return _sobol(space, seed, _BLOCK * (slot // _BLOCK + 1))[slot]


@functools.lru_cache(maxsize=1024)  # cells ask in turn, and each proposal would replay all points before it
def _sobol(space: Space, seed: int, points: int) -> tuple[Point, ...]:
    """Return the first `points` points of the scrambled Sobol sequence with this seed."""
    import optuna

    codec = _Codec(space, by_position=True)
    with _experimental():
        sampler = optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=seed)
    study = _study(sampler)
    study.add_trial(optuna.trial.create_trial(params=codec.first(), distributions=codec.distributions, value=0.0))
    return tuple(codec.decode(study.ask(codec.distributions).params) for _ in range(points))


def ask(sampler: str, space: Space, seed: int, tried: Sequence[Tried]) -> Point:
    """Ask a sampler for a point, with a study that holds the cell's trials (also the running ones).

    Args:
        sampler: "random", "tpe", "gp" or "cmaes".
        space: the searched space.
        seed: the seed of this proposal.
        tried: the cell's trials, by slot.
    """
    import optuna

    codec = _Codec(space, by_position=False)
    chosen_sampler: optuna.samplers.BaseSampler
    if sampler == "random":
        chosen_sampler = optuna.samplers.RandomSampler(seed=seed)
    elif sampler == "tpe":
        chosen_sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
    elif sampler == "gp":
        with _experimental():
            chosen_sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP)
    elif sampler == "cmaes":
        return _ask_cmaes(codec, seed, tried)
    else:
        raise AssertionError(f"the spec admits no sampler {sampler!r}")
    study = _study(chosen_sampler)
    for trial in tried:
        study.add_trial(
            optuna.trial.create_trial(
                state=_states()[trial.state],
                params=codec.encode(trial.point),
                distributions=codec.distributions,
                value=trial.score,
            )
        )
    return codec.decode(study.ask(codec.distributions).params)


def _ask_cmaes(codec: _Codec, seed: int, tried: Sequence[Tried]) -> Point:
    """Ask CMA-ES for a point.

    CMA-ES keeps its state in the trials that it proposed. So the study is asked for each earlier trial again, in slot
    order, and told its score. The mean and covariance of the distribution then follow from the results so far.
    """
    import optuna

    study = _study(optuna.samplers.RandomSampler(seed=0))
    for number, trial in enumerate([*tried, None]):
        with _experimental():
            study.sampler = optuna.samplers.CmaEsSampler(
                seed=seed if trial is None else number, n_startup_trials=1, warn_independent_sampling=False
            )
        if trial is not None:
            study.enqueue_trial(codec.encode(trial.point))
        trial_of_study = study.ask(codec.distributions)
        if trial is None:
            return codec.decode(trial_of_study.params)
        _ = trial_of_study.relative_params  # reading this makes it sample and gives it its generation
        if trial.state != "running":
            study.tell(trial_of_study, trial.score, state=_states()[trial.state])
    raise AssertionError("the last ask returns")


def _states() -> dict[str, Any]:
    from optuna.trial import TrialState

    return {
        "running": TrialState.RUNNING,
        "finished": TrialState.COMPLETE,
        "failed": TrialState.FAIL,
        "pruned": TrialState.PRUNED,
    }


class _Codec:
    """Converts between our points and Optuna's parameters.

    A value of an ordered list becomes its position, so that samplers see the order.

    Args:
        space: the searched space.
        by_position: whether unordered lists also become positions.
    """

    def __init__(self, space: Space, *, by_position: bool) -> None:
        import optuna

        self._space = space
        self._by_position = by_position
        self.distributions: dict[str, optuna.distributions.BaseDistribution] = {
            "lr": optuna.distributions.FloatDistribution(space.low, space.high, log=True)
        }
        for d in space.dimensions:
            self.distributions[d.name] = self._distribution(d)

    def _position(self, d: Dimension) -> bool:
        """Return whether a dimension is given to Optuna as a position in its list."""
        return bool(d.values) and (self._by_position or d.ordered)

    def _distribution(self, d: Dimension) -> optuna.distributions.BaseDistribution:
        import optuna

        if self._position(d):
            return optuna.distributions.IntDistribution(0, len(d.values) - 1)
        if d.values:
            return optuna.distributions.CategoricalDistribution(d.values)
        low, high = map(float, d.ends)  # rounded like the values, which may be just outside the ends in the sweep file
        if d.integer:
            return optuna.distributions.IntDistribution(int(low), int(high), log=d.log)
        return optuna.distributions.FloatDistribution(low, high, log=d.log)

    def first(self) -> dict[str, Value]:
        """Return valid parameters."""
        return self.encode(Point(self._space.low, extra_of({d.name: d.ends[0] for d in self._space.dimensions})))

    def encode(self, point: Point) -> dict[str, Value]:
        """Return Optuna's parameters for a point. A point outside the space is moved to the edge of the space."""
        params: dict[str, Value] = {"lr": min(max(point.lr, self._space.low), self._space.high)}
        values = dict(point.extra)
        for d in self._space.dimensions:
            value = d.nearest(values.get(d.name, d.ends[0]))
            params[d.name] = d.values.index(value) if self._position(d) else value
        return params

    def decode(self, params: dict[str, Any]) -> Point:
        """Return the point for Optuna's parameters."""
        values = {}
        for d in self._space.dimensions:
            value = params[d.name]
            if d.values:
                values[d.name] = d.values[value] if self._position(d) else value
            else:
                values[d.name] = d.nearest(value)
        return Point(float(params["lr"]), extra_of(values))


def _study(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(direction="maximize", sampler=sampler)


@contextlib.contextmanager
def _experimental() -> Iterator[None]:
    """Ignore Optuna's warning in the block that signatures of samplers may change. The tests notice if they do."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
