"""One ask of one of Optuna's samplers, over a study rebuilt from what is known of a cell.

Nothing lives across asks: each is seeded by (search seed, cell, slot) and sees the cell's trials, so a search rebuilt
from the journal goes on as if it had never stopped.
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

STARTUP = 4  # points drawn at random before an adaptive sampler models anything; Optuna's 10 would be most allowances
_BLOCK = 16  # Sobol points made at once


@dataclass(frozen=True)
class Tried:
    """One point of a study.

    Attributes:
        slot: its position in the allowance, from 0.
        lr: the learning rate.
        score: validation score; None while it trains, and for a failed or pruned trial.
        state: where the trial stands.
        extra: the other searched hyperparameters.
        warm: it was not the sampler's: a warm start, or a point beyond the range.
    """

    slot: int
    lr: float
    score: float | None
    state: State
    extra: Extra = ()
    warm: bool = False

    @property
    def point(self) -> Point:
        """Its hyperparameters."""
        return Point(self.lr, self.extra)


def has_cmaes() -> bool:
    """Whether the package that CMA-ES needs is installed."""
    return importlib.util.find_spec("cmaes") is not None


def sobol(space: Space, seed: int, slot: int) -> Point:
    """Point `slot` of the scrambled Sobol sequence with this seed, replayed from a fresh study.

    Optuna keeps the sequence's position in the study and draws the very first trial of an empty study at random, so
    one made-up finished trial comes before. Lists are searched by position, so that they too are filled evenly.
    """
    return _sobol(space, seed, _BLOCK * (slot // _BLOCK + 1))[slot]


@functools.lru_cache(maxsize=1024)  # cells, which ask in turn; a proposal alone would replay all before it
def _sobol(space: Space, seed: int, points: int) -> tuple[Point, ...]:
    import optuna

    codec = _Codec(space, by_position=True)
    with _experimental():
        sampler = optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=seed)
    study = _study(sampler)
    study.add_trial(optuna.trial.create_trial(params=codec.first(), distributions=codec.distributions, value=0.0))
    return tuple(codec.decode(study.ask(codec.distributions).params) for _ in range(points))


def ask(sampler: str, space: Space, seed: int, tried: Sequence[Tried]) -> Point:
    """One ask of a sampler over a study that holds the cell's trials, running ones included.

    Args:
        sampler: "random", "tpe", "gp" or "cmaes".
        space: what is searched.
        seed: of this ask.
        tried: the cell's trials, by slot.
    """
    import optuna

    codec = _Codec(space, by_position=False)
    made: optuna.samplers.BaseSampler
    if sampler == "random":
        made = optuna.samplers.RandomSampler(seed=seed)
    elif sampler == "tpe":
        made = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
    elif sampler == "gp":
        with _experimental():
            made = optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP)
    elif sampler == "cmaes":
        return _ask_cmaes(codec, seed, tried)
    else:
        raise AssertionError(f"the spec admits no sampler {sampler!r}")
    study = _study(made)
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
    """CMA-ES keeps its state in the trials it was asked for, so the study is asked again for each, then told.

    The distribution's mean and covariance are then those that the results so far imply, in slot order.
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
        asked = study.ask(codec.distributions)
        if trial is None:
            return codec.decode(asked.params)
        _ = asked.relative_params  # with given parameters it samples, and gets its generation, when this is read
        if trial.state != "running":
            study.tell(asked, trial.score, state=_states()[trial.state])
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
    """Between our points and Optuna's parameters: a list of numbers is its position, so that samplers see its order."""

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
        return bool(d.values) and (self._by_position or d.ordered)

    def _distribution(self, d: Dimension) -> optuna.distributions.BaseDistribution:
        import optuna

        if self._position(d):
            return optuna.distributions.IntDistribution(0, len(d.values) - 1)
        if d.values:
            return optuna.distributions.CategoricalDistribution(d.values)
        low, high = map(float, d.ends)  # rounded as the values are, which may lie just past the ends as written
        if d.integer:
            return optuna.distributions.IntDistribution(int(low), int(high), log=d.log)
        return optuna.distributions.FloatDistribution(low, high, log=d.log)

    def first(self) -> dict[str, Value]:
        """Any valid parameters."""
        return self.encode(Point(self._space.low, extra_of({d.name: d.ends[0] for d in self._space.dimensions})))

    def encode(self, point: Point) -> dict[str, Value]:
        """Parameters of a point; one outside the space (which may have been widened by hand) moves to its border."""
        params: dict[str, Value] = {"lr": min(max(point.lr, self._space.low), self._space.high)}
        values = dict(point.extra)
        for d in self._space.dimensions:
            value = d.nearest(values.get(d.name, d.ends[0]))
            params[d.name] = d.values.index(value) if self._position(d) else value
        return params

    def decode(self, params: dict[str, Any]) -> Point:
        """The point of Optuna's parameters."""
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
    """Optuna warns that these samplers' signatures may change; the tests notice if they do."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
