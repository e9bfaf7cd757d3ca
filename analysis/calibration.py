"""Does the protocol call a method different from itself? Simulated sweeps, both arms tuned separately.

Each simulated table compares two arms at several budgets. Both arms are the same method: one response curve of
score against learning rate, whose best rate lies anywhere in a grid step. Each arm is tuned as the engine tunes: a grid
on one TUNE seed, the best rates re-run on further seeds, the best mean chosen. The chosen rates are then confirmed on
common seeds and compared as `scaling.comparisons` does. A planted advantage gives the power instead.

`python -m analysis.calibration` prints the rates of the default protocol.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from analysis.stats import holm, proportion_interval

Real = NDArray[np.float64]


@dataclass(frozen=True)
class Protocol:
    """A simulated sweep; scores are fractions in [0, 1].

    Attributes:
        budgets: comparisons in a table. seeds: CONFIRM seeds.
        rates, decades: the grid of learning rates. rerun_rates, rerun_seeds: the best rates re-run on further seeds.
        luck_sd: spread that all methods share at one seed. own_sd: a run's own spread.
        curvature: score lost at one decade from the best rate, growing with the square of the distance.
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
    quality = _chosen_quality(protocol, tables, rng)
    quality[:, 0] += protocol.advantage
    luck = rng.normal(0, protocol.luck_sd, (tables, 1, protocol.budgets, protocol.seeds))
    own = rng.normal(0, protocol.own_sd, (*shape, protocol.seeds))
    scores = quality[..., None] + luck + own
    p = scipy_stats.ttest_rel(scores[:, 0], scores[:, 1], axis=-1).pvalue
    found = np.array([[q is not None and q <= 0.05 for q in holm(list(row))] for row in p])
    any_found = int(found.any(axis=1).sum())
    low, high = proportion_interval(any_found, tables)
    return Outcome(tables, any_found, low, high, float(found.mean()))


def _chosen_quality(protocol: Protocol, tables: int, rng: np.random.Generator) -> Real:
    """Expected score at the rate each arm chooses, relative to the best rate's: (tables, 2, budgets)."""
    shape = (tables, 2, protocol.budgets)
    grid = np.linspace(-protocol.decades / 2, protocol.decades / 2, protocol.rates)
    step = grid[1] - grid[0]
    best = rng.uniform(-step / 2, step / 2, (tables, 1, protocol.budgets, 1))  # the same method: the same best rate
    quality = np.broadcast_to(-protocol.curvature * (grid - best) ** 2, (*shape, protocol.rates))
    runs = 1 + protocol.rerun_seeds
    luck = rng.normal(0, protocol.luck_sd, (tables, 1, protocol.budgets, 1, runs))  # a TUNE seed is shared by all rates
    tried = quality[..., None] + luck + rng.normal(0, protocol.own_sd, (*shape, protocol.rates, runs))
    first, mean = tried[..., 0], tried.mean(axis=-1)
    again = np.argsort(-first, axis=-1)[..., : max(1, protocol.rerun_rates)]
    among = np.take_along_axis(mean if protocol.rerun_seeds else first, again, axis=-1)
    pick = np.take_along_axis(again, among.argmax(axis=-1)[..., None], axis=-1)
    return np.array(np.take_along_axis(quality, pick, axis=-1)[..., 0])


def main() -> None:
    """Print the rates of a few protocols."""
    base = Protocol()
    settings = {
        "the default: re-runs, 5 seeds": base,
        "3 seeds": replace(base, seeds=3),
        "one seed picks the rate": replace(base, rerun_rates=1, rerun_seeds=0),
        "12 rates, one seed picks the rate": replace(base, rates=12, rerun_rates=1, rerun_seeds=0),
        "flatter response": replace(base, curvature=0.01),
        "steeper response": replace(base, curvature=0.2),
    }
    print(f"{'protocol':36s} {'A/A tables with a verdict':>30s} {'2 points found':>16s}")
    for name, protocol in settings.items():
        same, planted = simulate(protocol, 2000), simulate(replace(protocol, advantage=0.02), 1000)
        rate = f"{100 * same.share:.1f} % [{100 * same.low:.1f}, {100 * same.high:.1f}]"
        print(f"{name:36s} {rate:>30s} {100 * planted.cells_found:>14.0f} %")


if __name__ == "__main__":
    main()
