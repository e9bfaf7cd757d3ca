"""Does the protocol call a method different from itself? Simulated sweeps, both arms tuned separately.

Each simulated table compares two arms at several budgets. Both arms are the same method: one response curve of
score against learning rate, whose best rate lies anywhere in a grid step. Each arm is tuned as the engine tunes: a grid
on one TUNE seed, the best rates re-run on further seeds, the best mean chosen. The chosen rates are then confirmed on
common seeds and compared as `scaling.comparisons` does: paired t tests, widened by what `choice` says the choice of
rates adds, Holm over the table. A planted advantage gives the power instead.

`python benchmarks/calibration.py` prints the rates of the default protocol.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.statistics.choice import Runs, chosen_variance, own_noise
from analysis.statistics.inference import holm, proportion_interval, t_difference, widened_p

Real = NDArray[np.float64]


@dataclass(frozen=True)
class Protocol:
    """A simulated sweep; scores are fractions in [0, 1].

    Attributes:
        budgets: comparisons in a table. seeds: CONFIRM seeds.
        rates, decades: the grid of learning rates. rerun_rates, rerun_seeds: the best rates re-run on further seeds.
        luck_sd: spread that all methods share at one seed. own_sd: a run's own spread.
        curvature: score lost at one decade from the best rate, growing with the square of the distance.
        cliff: how much steeper the response is above the best rate than below.
        widened: test as `scaling.comparisons` does, the choice of rates included; else given the chosen rates.
        advantage: planted lead of the first arm.
    """

    budgets: int = 6
    seeds: int = 5
    rates: int = 8
    decades: float = 3.0
    rerun_rates: int = 2
    rerun_seeds: int = 2
    luck_sd: float = 0.010
    own_sd: float = 0.006
    curvature: float = 0.05
    cliff: float = 1.0
    widened: bool = True
    advantage: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """Of `tables` simulated tables `any_found` hold a verdict other than 'not distinguishable'.

    Attributes:
        low, high: exact 95 % interval of the share of such tables.
        cells_found: share of all comparisons with such a verdict: the power, where an advantage is planted.
    """

    tables: int
    any_found: int
    low: float
    high: float
    cells_found: float

    @property
    def share(self) -> float:
        """Share of tables with a verdict."""
        return self.any_found / self.tables


def simulate(protocol: Protocol, tables: int = 1000, seed: int = 0) -> Outcome:
    """Simulate tables and count verdicts at 5 % after Holm's correction.

    Raises:
        ValueError: fewer than two seeds or rates, or no table.
    """
    if protocol.seeds < 2 or protocol.rates < 2 or tables < 1:
        raise ValueError(f"a simulation needs two seeds, two rates and a table, got {protocol} and {tables} tables")
    rng = np.random.default_rng(seed)
    shape = (tables, 2, protocol.budgets)
    quality, variance = _tune(protocol, tables, rng)
    quality[:, 0] += protocol.advantage
    luck = rng.normal(0, protocol.luck_sd, (tables, 1, protocol.budgets, protocol.seeds))
    own = rng.normal(0, protocol.own_sd, (*shape, protocol.seeds))
    differences = np.subtract(*np.moveaxis(quality[..., None] + luck + own, 1, 0))
    added = variance.sum(axis=1) if protocol.widened else np.zeros((tables, protocol.budgets))
    found = np.zeros((tables, protocol.budgets), dtype=bool)
    for table in range(tables):
        tested = [
            widened_p(t_difference(list(d)), float(v)) for d, v in zip(differences[table], added[table], strict=True)
        ]
        found[table] = [p is not None and p <= 0.05 for p in holm(tested)]
    any_found = int(found.any(axis=1).sum())
    low, high = proportion_interval(any_found, tables)
    return Outcome(tables, any_found, low, high, float(found.mean()))


def _tune(protocol: Protocol, tables: int, rng: np.random.Generator) -> tuple[Real, Real]:
    """Expected score at the rate each arm chooses, relative to the best rate's, and what `choice` says of its variance.

    Both (tables, 2, budgets); the variance is 0 where nothing is run again, since the noise is unknown then.
    """
    shape = (tables, 2, protocol.budgets)
    grid = np.linspace(-protocol.decades / 2, protocol.decades / 2, protocol.rates)
    step = grid[1] - grid[0]
    best = rng.uniform(-step / 2, step / 2, (tables, 1, protocol.budgets, 1))  # the same method: the same best rate
    apart = grid - best
    quality = np.broadcast_to(
        -protocol.curvature * apart**2 * np.where(apart > 0, protocol.cliff, 1.0), (*shape, protocol.rates)
    )
    again_seeds = protocol.rerun_seeds if protocol.rerun_rates else 0
    runs = 1 + again_seeds
    luck = rng.normal(0, protocol.luck_sd, (tables, 1, protocol.budgets, 1, runs))  # a TUNE seed is shared by all rates
    tried = quality[..., None] + luck + rng.normal(0, protocol.own_sd, (*shape, protocol.rates, runs))
    first = tried[..., 0]
    at = np.argsort(-first, axis=-1)[..., : max(1, protocol.rerun_rates)]
    again = np.take_along_axis(tried, at[..., None], axis=-2)
    chosen = np.take_along_axis(at, again.mean(axis=-1).argmax(axis=-1)[..., None], axis=-1)
    picked = np.array(np.take_along_axis(quality, chosen, axis=-1)[..., 0])
    if not protocol.widened or min(again.shape[-2:]) < 2:
        return picked, np.zeros(shape)
    noise = own_noise(again).mean(axis=(1, 2))[:, None, None]  # pooled over a table's cells, as in a sweep
    reruns = (protocol.rerun_rates, again_seeds)
    return picked, chosen_variance(grid, Runs(first, again, at), chosen[..., 0], noise, reruns, rng, draws=100)


def main(tables: int = 2000) -> None:
    """Print the rates of a few protocols."""
    base = Protocol()
    settings = {
        "the default: 12 trials, 5 seeds": base,
        "3 seeds": replace(base, seeds=3),
        "10 seeds": replace(base, seeds=10),
        "6 trials: 4 rates, 2 run once more": replace(base, rates=4, decades=1.2, rerun_seeds=1),
        "3 rates run again on 4 seeds": replace(base, rerun_rates=3, rerun_seeds=4),
        "flatter response": replace(base, curvature=0.01),
        "steeper response": replace(base, curvature=0.2),
        "a cliff above the best rate": replace(base, cliff=5.0),
        "noisier runs": replace(base, own_sd=0.015),
        "one budget": replace(base, budgets=1),
        "given the chosen rates": replace(base, widened=False),
        "one seed picks the rate": replace(base, rerun_rates=1, rerun_seeds=0),
    }
    print(f"{'protocol':36s} {'A/A tables with a verdict':>30s} {'2 points found':>16s}")
    for name, protocol in settings.items():
        same, planted = simulate(protocol, tables), simulate(replace(protocol, advantage=0.02), tables // 2)
        rate = f"{100 * same.share:.1f} % [{100 * same.low:.1f}, {100 * same.high:.1f}]"
        print(f"{name:36s} {rate:>30s} {100 * planted.cells_found:>14.0f} %")


if __name__ == "__main__":
    main()
