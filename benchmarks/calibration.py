"""Count how often the protocol calls a method different from itself, in simulated sweeps with separately tuned arms.

Each simulated table compares two arms at several budgets of several data sets. Both arms are the same method. They have
one response curve of score against learning rate, whose best rate lies anywhere in a grid step. Each arm is tuned as
the engine tunes: it tries a grid on one TUNE seed, runs the best rates again on further seeds, and chooses the rate
with the best mean. The chosen rates are then confirmed and compared by the functions that `analysis.comparisons` calls:

- `method_noise` estimates the noise from CONFIRM's validation scores.
- `chosen_variance` estimates the variance that the choice of rates adds, pooled over a method's budgets.
- Welch-Satterthwaite combines both into one standard error.
- Holm corrects the rows and their mean together. The mean has half of the level.

A planted advantage of one arm gives the power. Further methods with other noise may be simulated beside the two arms.
They are not compared, but the noise is estimated from all methods.

    python benchmarks/calibration.py                    # a table of docs/statistics.md, about half an hour of one core
    python benchmarks/calibration.py --regime steep     # one regime
    python -m benchmarks.calibration --between          # two best rates that lie anywhere between rates of the grid
    python -m benchmarks.calibration --between --steeper 20 60     # the same, with a cliff above the best rate
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.verdict.choice import chosen_variance
from analysis.verdict.correction import step_down
from analysis.verdict.inference import two_sided
from analysis.verdict.noise import Runs, method_noise, noise_share, rerun_noise
from sweeps.search.refining import next_log_rate

Real = NDArray[np.float64]
LEVEL = 0.05


def proportion_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the exact (Clopper-Pearson) interval of a proportion."""
    interval = stats.binomtest(successes, trials).proportion_ci(1 - LEVEL, method="exact")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Protocol:
    """The settings of a simulated sweep. Scores are fractions in [0, 1].

    Attributes:
        budgets, datasets: a table has a comparison at each budget of each data set. seeds: CONFIRM seeds of each.
        rates, decades: the grid of learning rates. refine: rates that the local fit tries after it.
        rerun_rates: number of the best rates that are run again. rerun_seeds: number of further seeds for each.
        luck_sd: standard deviation of the noise that all methods and rates share at one seed.
        own_sd: standard deviation of a run's own noise at the grid's centre.
        growth: powers of ten by which a run's own noise grows in a decade of rate.
        alike: share of a run's own variance that both arms have in common at one rate and seed.
        shared: share of a run's own variance that a method's budgets have in common at one seed.
        common: share of a run's own variance that its validation and its test score have in common.
        curvature: score lost at one decade from the best rate, growing with the square of the distance.
        cliff: how much steeper the response is above the best rate than below.
        between: each arm's best rate lies at most this many decades from the grid's centre, at a random place. None if
            both arms share one best rate.
        depth: largest loss of score that a wrong rate causes.
        advantage: planted lead of the first arm. fall: how much of it the arm loses from the first budget to the last.
        beside: `own_sd` of further methods at the same budgets.
    """

    budgets: int = 6
    datasets: int = 1
    seeds: int = 5
    rates: int = 8
    decades: float = 3.0
    refine: int = 0
    rerun_rates: int = 2
    rerun_seeds: int = 2
    luck_sd: float = 0.010
    own_sd: float = 0.006
    growth: float = 0.0
    alike: float = 0.0
    shared: float = 0.0
    common: float = 0.5
    curvature: float = 0.05
    cliff: float = 1.0
    between: float | None = None
    depth: float = np.inf
    advantage: float = 0.0
    fall: float = 0.0
    beside: tuple[float, ...] = ()


REGIMES = {
    "default": Protocol(),
    "flat": Protocol(curvature=0.01),
    "steep": Protocol(curvature=0.2),
    "cliff": Protocol(cliff=5.0),
    "real": Protocol(rates=5, decades=1.2, own_sd=0.028, growth=0.4, alike=0.4, luck_sd=0.0, curvature=0.2),
    "quickstart": Protocol(rates=5, decades=1.2, own_sd=0.012, curvature=0.4, rerun_seeds=1),
    "no re-runs": Protocol(rerun_rates=1, rerun_seeds=0),
    "chance beside": Protocol(beside=(0.006, 0.006, 0.15)),
    "noisy pair": Protocol(own_sd=0.018, beside=(0.006,) * 10),
}
SEEDS, BUDGETS, DATASETS = (3, 5, 10), (1, 4, 6), (1, 4, 8)


@dataclass(frozen=True)
class Outcome:
    """The verdicts in simulated tables. A difference "is found" if its verdict is not 'not distinguishable'.

    Attributes:
        tables: number of simulated tables. any_found: number of tables in which a difference is found.
        given_rates: number of tables in which the tests that take the chosen rates as given find a difference.
        overall: share of tables whose mean over all rows has a difference. cells: share of all rows that have one.
        change: share of tables in which the test says that the mean changes from the first budget to the last.
    """

    tables: int
    any_found: int
    given_rates: int
    overall: float
    cells: float
    change: float

    @property
    def share(self) -> float:
        """The share of tables in which a difference is found."""
        return self.any_found / self.tables

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95 % interval of that share."""
        return proportion_interval(self.any_found, self.tables)


def simulate(protocol: Protocol, tables: int = 1000, seed: int = 0) -> Outcome:
    """Simulate tables and count verdicts at 5 %.

    Raises:
        ValueError: fewer than two seeds or rates, or no table.
    """
    if protocol.seeds < 2 or protocol.rates < 2 or tables < 1:
        raise ValueError(f"a simulation needs two seeds, two rates and a table, got {protocol} and {tables} tables")
    differences, variances, share = draw(protocol, tables, np.random.default_rng(seed))
    differences_found = [verdicts(differences, v, share) for v in (variances, np.zeros_like(variances))]
    false, given_rates = (int(f.any(axis=-1).sum()) for f in differences_found)
    overall, cells = float(differences_found[0][:, 0].mean()), float(differences_found[0][:, 1:].mean())
    return Outcome(tables, false, given_rates, overall, cells, change=float(changed(differences, variances).mean()))


def draw(protocol: Protocol, tables: int, rng: np.random.Generator) -> tuple[Real, Real, Real]:
    """Draw the paired differences of simulated tables, and estimate the variance that the choice of rates adds.

    Returns:
        The paired differences (tables, data sets, budgets, seeds); the added variance of each arm (tables, data sets,
        2); and the share of that variance that the mean over budgets has (tables, data sets).
    """
    shape = (tables * protocol.datasets, 2 + len(protocol.beside), protocol.budgets)
    grid = np.linspace(-protocol.decades / 2, protocol.decades / 2, protocol.rates)
    step = grid[1] - grid[0]
    best = rng.uniform(-step / 2, step / 2, (shape[0], 1, shape[2], 1))  # all methods share it
    if protocol.between is not None:
        best = rng.uniform(-protocol.between, protocol.between, (*shape, 1))
    again_seeds = protocol.rerun_seeds if protocol.rerun_rates else 0
    runs = 1 + again_seeds
    luck = rng.normal(0, protocol.luck_sd, (shape[0], 1, shape[2], 1, runs))  # a TUNE seed is shared by all rates
    rates = np.broadcast_to(grid, (*shape, protocol.rates))
    quality = _quality(protocol, rates - best)
    tried = quality[..., None] + luck + _own(protocol, rates, (*shape, runs), rng)
    for _ in range(protocol.refine):
        new = next_log_rate(rates, tried[..., 0], tried[..., 0].argmax(axis=-1))[..., None]
        new_quality = _quality(protocol, new - best)
        scores = new_quality[..., None] + luck + _own(protocol, new, (*shape, runs), rng)
        rates, quality = np.concatenate([rates, new], axis=-1), np.concatenate([quality, new_quality], axis=-1)
        tried, order = np.concatenate([tried, scores], axis=-2), np.argsort(rates, axis=-1)
        rates, quality = (np.take_along_axis(each, order, axis=-1) for each in (rates, quality))
        tried = np.take_along_axis(tried, order[..., None], axis=-2)
    first = tried[..., 0]
    at = np.argsort(-first, axis=-1)[..., : max(1, protocol.rerun_rates)]
    again = np.take_along_axis(tried, at[..., None], axis=-2)
    chosen = np.take_along_axis(at, again.mean(axis=-1).argmax(axis=-1)[..., None], axis=-1)
    picked = np.array(np.take_along_axis(quality, chosen, axis=-1))
    luck = rng.normal(0, protocol.luck_sd, (2, shape[0], 1, shape[2], protocol.seeds))
    own = [
        np.take_along_axis(_own(protocol, rates, (*shape, protocol.seeds), rng), chosen[..., None], axis=-2)[..., 0, :]
        for _ in range(3)
    ]
    test, val = (
        picked + luck[k] + np.sqrt(protocol.common) * own[0] + np.sqrt(1 - protocol.common) * own[1 + k] for k in (0, 1)
    )
    test[:, 0] += protocol.advantage - protocol.fall * np.linspace(0, 1, protocol.budgets)[:, None]
    scores = np.swapaxes(val, 1, 2)  # (tables x data sets, budgets, methods, seeds)
    if (noises := method_noise(scores)) is None:
        raise ValueError(f"{protocol.seeds} seeds are too few to estimate a run's noise")
    noise, alike = noises
    squares, freedom = rerun_noise(again)
    if freedom:
        each = squares.mean(axis=-1) / freedom
        pooled = (each * alike).sum(axis=-1, keepdims=True) / alike.sum(axis=-1, keepdims=True)
        noise = np.maximum(noise, np.where(alike, pooled, each))
    share = noise_share(scores[:, :, :2])
    reruns = (protocol.rerun_rates, again_seeds)
    runs_of_pair, picks = Runs(first[:, :2], again[:, :2], at[:, :2]), chosen[:, :2, :, 0]
    added = chosen_variance(rates[:, :2], runs_of_pair, picks, noise[:, :2, None], reruns, rng, draws=100)
    pairs = (test[:, 0] - test[:, 1]).reshape(tables, protocol.datasets, protocol.budgets, protocol.seeds)
    return pairs, added.mean(axis=-1).reshape(tables, protocol.datasets, 2), share.reshape(tables, protocol.datasets)


def _quality(protocol: Protocol, apart: Real) -> Real:
    """Return the expected score `apart` decades above the best rate, relative to the best one."""
    loss = protocol.curvature * apart**2 * np.where(apart > 0, protocol.cliff, 1.0)
    if np.isfinite(protocol.depth):
        loss = protocol.depth * (1 - np.exp(-loss / protocol.depth))
    return np.asarray(-loss)


def _own(protocol: Protocol, rates: Real, shape: tuple[int, ...], rng: np.random.Generator) -> Real:
    """Draw a run's own noise at every rate: (tables, methods, budgets, rates, runs) for `shape` without the rates."""
    of_rates = (*shape[:3], rates.shape[-1], shape[3])
    shares = (1 - protocol.shared - protocol.alike, protocol.shared, protocol.alike)
    lone, budgets, arms = (np.sqrt(x) for x in shares)
    draws = lone * rng.normal(size=of_rates)
    if budgets:
        draws = draws + budgets * rng.normal(size=(*of_rates[:2], 1, *of_rates[3:]))
    if arms:
        draws = draws + arms * rng.normal(size=(of_rates[0], 1, *of_rates[2:]))
    sd = np.array([protocol.own_sd, protocol.own_sd, *protocol.beside])[:, None, None, None]
    return np.asarray(sd * 10 ** (protocol.growth * rates)[..., None] * draws)


def verdicts(differences: Real, variances: Real, share: Real) -> NDArray[np.bool_]:
    """Return in which rows of each table a difference is found (tables, 1 + rows). The mean of all rows comes first.

    Args:
        differences, variances, share: as `draw` returns them.
    """
    tables, datasets, budgets, seeds = differences.shape
    added = variances.sum(axis=-1)
    rows = differences.mean(axis=-1).reshape(tables, -1)
    spread = (differences.var(axis=-1, ddof=1) / seeds).reshape(tables, -1, 1)
    each = two_sided(rows, spread, np.array([seeds - 1.0]), np.repeat(added, budgets, axis=-1))
    if rows.shape[-1] == 1:
        return np.hstack([each, each]) <= LEVEL
    by_seed = differences.mean(axis=2)
    own = by_seed.var(axis=-1, ddof=1) / seeds / datasets**2
    extra = (added * share).sum(axis=-1) / datasets**2
    mean = two_sided(by_seed.mean(axis=(1, 2)), own, np.full(datasets, seeds - 1.0), extra)[:, None]
    weights = np.array([each.shape[-1], *np.ones(each.shape[-1])])
    return step_down(np.hstack([mean, each]), weights) <= LEVEL


def changed(differences: Real, variances: Real) -> NDArray[np.bool_]:
    """Return whether the test says that the mean differs between the first budget and the last (tables,).

    Args:
        differences, variances: as `draw` returns them.
    """
    by_seed = differences[:, :, -1] - differences[:, :, 0]
    datasets, seeds = by_seed.shape[1:]
    own = by_seed.var(axis=-1, ddof=1) / seeds / datasets**2 + np.finfo(float).tiny  # one budget: no change, no spread
    extra = 2 * variances.sum(axis=(1, 2)) / datasets**2
    return np.asarray(two_sided(by_seed.mean(axis=(1, 2)), own, np.full(datasets, seeds - 1.0), extra) <= LEVEL)


def table(regimes: dict[str, Protocol], rows: int) -> Iterator[str]:
    """Yield the lines of the table: errors by budgets x data sets, and power on one data set.

    Args:
        rows: number of comparisons to simulate for each number. Tables with fewer rows are simulated more often.
    """
    sizes = [(budgets, datasets) for budgets in BUDGETS for datasets in DATASETS]
    names = ["regime", "seeds", *(f"{b} x {d}" for b, d in sizes), "largest [95 %]", "given the rates", "change"]
    yield f"| {' | '.join([*names, '2 points: one budget', 'each of 6', 'their mean'])} |"
    yield f"|---|{'---:|' * (len(names) + 2)}"
    for name, base in regimes.items():
        for seeds in SEEDS:
            outcomes, planted = {}, {}
            for budgets, datasets in sizes:
                protocol = replace(base, seeds=seeds, budgets=budgets, datasets=datasets)
                tables = max(1, min(rows // 4, rows // (budgets * datasets)))
                outcomes[budgets, datasets] = simulate(protocol, tables)
                if datasets == 1 and budgets != 4:
                    planted[budgets] = simulate(replace(protocol, advantage=0.02), max(1, tables // 4), seed=1)
            largest = max(outcomes.values(), key=lambda f: f.share)
            low, high = largest.interval
            shares_given_rates = [100 * f.given_rates / f.tables for f in outcomes.values()]
            cells = [
                *(f"{100 * f.share:.1f}" for f in outcomes.values()),
                f"{100 * largest.share:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
                f"{min(shares_given_rates):.0f} to {max(shares_given_rates):.0f}",
                f"{100 * max(f.change for f in outcomes.values()):.1f}",
                *(f"{100 * p:.0f}" for p in (planted[1].cells, planted[6].cells, planted[6].overall)),
            ]
            yield f"| {name} | {seeds} | {' | '.join(cells)} |"


GRID = Protocol(rates=9, between=0.375, depth=0.6)
"""Nine rates over three decades, and four re-runs. The best rates lie within a step of the grid."""
FITTED = replace(GRID, rates=5, refine=4)
"""The same number of trials: five rates of a grid, and four where the local fit expects the best rate."""
CURVATURES = (5, 20, 40, 70, 120)
"""Points of score that are lost at one decade from the best rate."""
STEEPER = (1.0, 5.0)
"""How many times as steep the response is above the best rate as below it."""


def between_table(tables: int, steeper: Sequence[float] = STEEPER) -> Iterator[str]:
    """Yield the lines of the table of methods that are equal at their best rates, which may lie between grid rates.

    Args:
        tables: number of tables to simulate for each number. With six budgets or eight data sets it is a quarter.
        steeper: values of `Protocol.cliff`.
    """
    names = ["points a squared decade", "above the best rate"]
    for plan in ("grid", "grid and fit"):
        names += [f"{plan}: {n} seeds" for n in SEEDS] + [f"{plan}: 8 data sets", f"{plan}: 6 budgets"]
    found = [f"{plan}: found, {n} seeds" for plan in ("grid", "grid and fit") for n in (5, 10)]
    yield f"| {' | '.join([*names, 'largest', *found])} |"
    yield f"|---:|---|{'---:|' * 15}"
    for cliff in steeper:
        for points in CURVATURES:
            shares, power = [], []
            largest: Outcome | None = None
            for plan in (GRID, FITTED):
                base = replace(plan, curvature=points / 100, cliff=cliff, budgets=1)
                runs = [simulate(replace(base, seeds=seeds), tables) for seeds in SEEDS]
                runs += [simulate(replace(base, **size), tables // 4) for size in ({"datasets": 8}, {"budgets": 6})]
                shares += [f"{100 * run.share:.1f}" for run in runs]
                largest = max(runs, key=lambda run: run.share)
                for seeds in (5, 10):
                    planted = simulate(replace(base, seeds=seeds, advantage=0.012), tables, seed=1)
                    power.append(f"{100 * planted.cells:.0f}")
            if largest is None:
                raise AssertionError("no plan was simulated")
            low, high = largest.interval
            steeper = "as steep" if cliff == 1 else f"{cliff:g} times as steep"
            ends = [f"{100 * largest.share:.1f} [{100 * low:.1f}, {100 * high:.1f}]", *power]
            yield f"| {points} | {steeper} | {' | '.join([*shares, *ends])} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32_000, help="comparisons simulated for each line")
    parser.add_argument("--regime", choices=list(REGIMES), default=None)
    parser.add_argument("--between", action="store_true", help="the table of best rates between rates of the grid")
    parser.add_argument("--tables", type=int, default=2000, help="tables simulated for each number of --between")
    steeper = "of --between: how many times as steep the response is above the best rate"
    parser.add_argument("--steeper", type=float, nargs="+", default=STEEPER, help=steeper)
    arguments = parser.parse_args()
    if arguments.between:
        for line in between_table(arguments.tables, arguments.steeper):
            print(line, flush=True)
        return
    regimes = REGIMES if arguments.regime is None else {arguments.regime: REGIMES[arguments.regime]}
    for line in table(regimes, arguments.rows):
        print(line, flush=True)


if __name__ == "__main__":
    main()
