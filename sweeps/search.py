"""Learning-rate proposals of one study, and the pruning rules that compare the trials of one cell.

Nothing here lives across restarts: a proposal is a function of the search seed, the cell, the slot and the trials of
the cell that are known, so a search rebuilt from the journal goes on as if it had never stopped, and never repeats a
rate.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sweeps.errors import Problem, SpecError

if TYPE_CHECKING:
    import optuna

FIXED_SAMPLERS = ("grid", "qmc", "random")
"""Samplers whose proposals do not depend on results: an interrupted search equals an undisturbed one."""

_STARTUP = 4  # rates drawn at random before an adaptive sampler models anything; Optuna's 10 would be most allowances
_RETRIES = 16
_REDUCTION = 3  # ASHA keeps one trial in three at each rung (Li et al. 2020, arXiv 1810.05934)
_MEDIAN_PEERS = 3


@dataclass(frozen=True)
class Tried:
    """One learning rate of a study.

    Attributes:
        slot: its position in the allowance, from 0.
        lr: the learning rate.
        score: validation score; None while it trains, and for a failed or pruned trial.
        state: where the trial stands.
    """

    slot: int
    lr: float
    score: float | None
    state: Literal["running", "finished", "failed", "pruned"]


def check_sampler(name: str) -> None:
    """Refuse a sampler that can't search one learning rate.

    Raises:
        SpecError: for "cmaes", which needs two or more dimensions.
    """
    if name == "cmaes":
        rule = "CMA-ES needs two or more hyperparameters, and the learning rate is the only one searched"
        raise SpecError([Problem("search.sampler", name, rule, "tpe")])


def ask_seed(search_seed: int, cell_id: str, slot: int, retry: int = 0) -> int:
    """Seed of one ask, 31 bits of SHA-256 over (search seed, cell, slot, retry)."""
    digest = hashlib.sha256(f"{search_seed}|{cell_id}|{slot}|{retry}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def propose(
    sampler: str, search_seed: int, cell_id: str, slot: int, rates: int, low: float, high: float, tried: Sequence[Tried]
) -> float:
    """The learning rate of a slot, never one that the cell has tried already.

    Args:
        sampler: "grid" (equal steps on the log range, ends included), "qmc" (scrambled Sobol points), "random"
            (log-uniform), "tpe" or "gp" (Optuna's samplers).
        search_seed: the sweep's `search.seed`.
        cell_id: the study.
        slot: position in the allowance, from 0.
        rates: number of rates that the study will try.
        low: lower end of the range.
        high: upper end of the range.
        tried: the cell's rates so far. Grid and random search read them to avoid repeats only; grid search whose
            allowance has grown since then halves the widest gap.

    Returns:
        A rate in [low, high], rounded to 6 significant digits (so that ids do not hang on a last bit).
    """
    taken = {t.lr for t in tried}
    if sampler == "grid":
        grid = grid_points(rates, low, high)
        earlier = {t.slot: t.lr for t in tried if t.slot < slot}
        if grid[slot] not in taken and all(grid[k] == lr for k, lr in earlier.items()):
            return grid[slot]
        return _widest_gap(low, high, taken)
    for retry in range(_RETRIES):
        seed = ask_seed(search_seed, cell_id, slot, retry)
        lr = (
            _sobol(search_seed, cell_id, slot, low, high) if sampler == "qmc" else _ask(sampler, seed, low, high, tried)
        )
        lr = min(max(_rounded(lr), low), high)
        if lr not in taken:
            return lr
        if sampler == "qmc":
            break
    return _widest_gap(low, high, taken)


def grid_points(rates: int, low: float, high: float) -> list[float]:
    """`rates` learning rates at equal steps of the logarithm, both ends included; the middle for a single one."""
    if rates == 1:
        return [_rounded(math.sqrt(low * high))]
    step = (math.log(high) - math.log(low)) / (rates - 1)
    inner = [_rounded(math.exp(math.log(low) + step * k)) for k in range(1, rates - 1)]
    return [_rounded(low), *inner, _rounded(high)]


def _rounded(lr: float) -> float:
    return float(f"{lr:.6g}")


def _widest_gap(low: float, high: float, taken: set[float]) -> float:
    """Middle, on the log scale, of the widest stretch of the range without a tried rate."""
    marks = sorted({low, high, *(lr for lr in taken if low <= lr <= high)})
    for left, right in sorted(itertools.pairwise(marks), key=lambda ends: ends[0] / ends[1]):
        middle = _rounded(math.sqrt(left * right))
        if middle not in taken:
            return middle
    return _rounded(low)  # low == high: the range holds one rate


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


def _sobol(search_seed: int, cell_id: str, slot: int, low: float, high: float) -> float:
    """Point `slot` of the cell's scrambled Sobol sequence, replayed from a fresh study.

    Optuna keeps the sequence's position in the study and draws the very first trial of an empty study at random, so
    one made-up finished trial comes before.
    """
    import optuna

    space = {"lr": optuna.distributions.FloatDistribution(low, high, log=True)}
    with _experimental():
        sampler = optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=ask_seed(search_seed, cell_id, 0))
    study = _study(sampler)
    study.add_trial(optuna.trial.create_trial(params={"lr": low}, distributions=space, value=0.0))
    for _ in range(slot):
        study.ask(space)
    return float(study.ask(space).params["lr"])


def _ask(sampler: str, seed: int, low: float, high: float, tried: Sequence[Tried]) -> float:
    """One ask of an Optuna sampler over a study rebuilt from the cell's trials, running ones included."""
    import optuna
    from optuna.trial import TrialState

    space = {"lr": optuna.distributions.FloatDistribution(low, high, log=True)}
    made: optuna.samplers.BaseSampler
    if sampler == "random":
        made = optuna.samplers.RandomSampler(seed=seed)
    elif sampler == "tpe":
        made = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP)
    elif sampler == "gp":
        with _experimental():
            made = optuna.samplers.GPSampler(seed=seed, n_startup_trials=_STARTUP)
    else:
        raise AssertionError(f"the spec admits no sampler {sampler!r}")
    study = _study(made)
    states = {
        "running": TrialState.RUNNING,
        "finished": TrialState.COMPLETE,
        "failed": TrialState.FAIL,
        "pruned": TrialState.PRUNED,
    }
    for trial in tried:
        inside = min(max(trial.lr, low), high)  # the range may have been widened or narrowed by hand
        study.add_trial(
            optuna.trial.create_trial(
                state=states[trial.state], params={"lr": inside}, distributions=space, value=trial.score
            )
        )
    return float(study.ask(space).params["lr"])


def should_stop(rule: str, epoch: int, curve: Mapping[int, float], peers: Sequence[Mapping[int, float]]) -> bool:
    """Whether a TUNE trial is stopped after an epoch, judged against the other trials of its cell alone.

    Args:
        rule: "none", "asha" (rungs at epochs 1, 3, 9, ...; the best third so far goes on) or "median" (the best score
        so
            far must reach the median of the peers' running means; from epoch 2 and three peers on).
        epoch: epochs trained, from 1.
        curve: validation score by epoch of this trial.
        peers: the same of the cell's other trials, finished, stopped or running.
    """
    if rule == "asha":
        rung = 1
        while rung < epoch:
            rung *= _REDUCTION
        others = [peer[epoch] for peer in peers if epoch in peer]
        if rung != epoch or not others:
            return False
        ranked = sorted([*others, curve[epoch]], reverse=True)
        return curve[epoch] < ranked[math.ceil(len(ranked) / _REDUCTION) - 1]
    if rule == "median":
        means = [statistics.fmean(v for e, v in peer.items() if e <= epoch) for peer in peers if epoch in peer]
        if epoch < 2 or len(means) < _MEDIAN_PEERS:
            return False
        return max(v for e, v in curve.items() if e <= epoch) < statistics.median(means)
    return False
