"""Count how often the intervals of curves and differences contain the truth, in simulated scores.

The intervals are computed by the product's own functions. A curve has four budgets. Their true means are 0, 2, 3 and 3
standard deviations of a run above the first, so the curve rises and then is flat. Half of the variance is noise of the
seed, which all cells share. `python benchmarks/coverage.py` prints a row for each kind of interval at 3, 5 and 10
seeds, with the exact 95 % interval of the share. `--tables N` simulates N tables for each number.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.findings.fits.isotonic import Curve, Estimate, seed_areas
from analysis.findings.fits.isotonic import area as isotonic_area
from analysis.findings.fits.isotonic import band as isotonic_band
from analysis.findings.fits.isotonic import crossing as isotonic_crossing
from analysis.findings.fits.isotonic import needed as isotonic_needed
from analysis.findings.fits.pareto import front_share
from analysis.findings.results.examples import crossed_interval
from analysis.verdict.inference import LEVEL, critical, mean_interval, paired_difference
from benchmarks.calibration import proportion_interval

Real = NDArray[np.float64]
Simulated = Callable[[np.random.Generator, int], bool | None]
"""Takes a generator and a number of seeds. Returns whether the interval of a simulated table contains the truth, or
None if the table has no interval.
"""
X = np.array([1e3, 4e3, 1.6e4, 6.4e4])
SD = 0.01
RISING, FLAT = 0.7 + SD * np.array([0.0, 2.0, 3.0, 3.0]), np.full(4, 0.7)
STEEP = 0.7 + SD * np.array([-2.0, -1.0, 1.0, 2.0])
"""True means of a curve that crosses FLAT half-way, in log x, between the second budget and the third."""
CROSSING = math.sqrt(X[1] * X[2])


def curves(rng: np.random.Generator, seeds: int, *means: Real) -> list[Curve]:
    """Draw curves with these true means. Half of the noise is common to all cells of a seed."""
    luck = rng.normal(0, SD * math.sqrt(0.5), seeds)
    return [Curve(X, mean[:, None] + luck + rng.normal(0, SD * math.sqrt(0.5), (4, seeds))) for mean in means]


def holds(interval: Estimate, truth: float) -> bool | None:
    """Return whether an interval contains the truth, or None if there is no interval.

    An end beyond the range contains everything that lies there.
    """
    if interval.value is None:
        return None
    return (interval.low or 0.0) <= truth <= (math.inf if interval.high is None else interval.high)


def t_interval(rng: np.random.Generator, seeds: int) -> bool:
    """Return whether the interval of a cell's mean holds the truth."""
    interval = mean_interval(curves(rng, seeds, FLAT)[0].scores[0].tolist())
    return interval.low is not None and interval.high is not None and interval.low <= FLAT[0] <= interval.high


def area(rng: np.random.Generator, seeds: int) -> bool | None:
    """Return whether the interval of a curve's area holds the truth."""
    truth = isotonic_area(Curve(X, RISING[:, None]), X[0], X[-1]).value or 0.0
    return holds(isotonic_area(curves(rng, seeds, RISING)[0], X[0], X[-1]), truth)


def area_difference(rng: np.random.Generator, seeds: int) -> bool:
    """Return whether the interval of the paired difference of two areas holds the truth."""
    both = curves(rng, seeds, RISING, FLAT)
    areas = [dict(enumerate(seed_areas(c, X[0], X[-1]) or [])) for c in both]
    truth = [isotonic_area(Curve(X, mean[:, None]), X[0], X[-1]).value or 0.0 for mean in (RISING, FLAT)]
    difference = paired_difference(*areas)
    return difference is not None and (difference.low or 0.0) <= truth[0] - truth[1] <= (difference.high or 0.0)


def crossing(rng: np.random.Generator, seeds: int) -> bool | None:
    """Return whether the interval of the crossing of two isotonic fits holds the truth."""
    return holds(isotonic_crossing(*curves(rng, seeds, STEEP, FLAT)), CROSSING)


def needed(rng: np.random.Generator, seeds: int) -> bool | None:
    """Return whether the interval of the budget that a score needs holds the truth."""
    return holds(isotonic_needed(curves(rng, seeds, STEEP)[0], FLAT[0]), CROSSING)


def band(truth: Real) -> Simulated:
    """Return a check of whether the isotonic fit's band covers the truth everywhere."""

    def covers(rng: np.random.Generator, seeds: int) -> bool | None:
        ends = isotonic_band(curves(rng, seeds, truth)[0], X)
        return None if ends is None else bool(((ends[0] <= truth + 1e-12) & (truth - 1e-12 <= ends[1])).all())

    return covers


def differences(rng: np.random.Generator, seeds: int) -> bool:
    """Return whether the bands of paired differences hold the truth at all budgets at once."""
    a, b = (c.scores for c in curves(rng, seeds, FLAT, FLAT))
    error = (a - b).std(axis=1, ddof=1) / math.sqrt(seeds)
    return bool((np.abs((a - b).mean(axis=1)) <= critical(4, seeds - 1) * error).all())


def front(rng: np.random.Generator, seeds: int) -> bool:
    """Return whether the front does not surely contain a cell that is as good as another but costs more."""
    a, b = (dict(enumerate(c.scores[0])) for c in curves(rng, seeds, FLAT, FLAT))
    share = front_share(X[:2], [a, b])
    return share is None or bool(share[1] < LEVEL)


def examples(rng: np.random.Generator, seeds: int) -> bool | None:
    """Return whether the interval of an accuracy over seeds and 200 test examples holds the truth."""
    latent = 0.5 + rng.normal(0, 0.1, (seeds, 1)) + rng.normal(0, 1.0, 200) + rng.normal(0, 0.5, (seeds, 200))
    interval = crossed_interval((latent > 0).astype(float))
    return (
        None if interval is None else bool(interval[0] <= norm.cdf(0.5 / math.sqrt(0.01 + 1.0 + 0.25)) <= interval[1])
    )


KINDS: Mapping[str, Simulated] = {
    "t interval of a mean": t_interval,
    "area": area,
    "paired difference of areas": area_difference,
    "crossing": crossing,
    "budget needed": needed,
    "isotonic band, simultaneous, rising": band(RISING),
    "isotonic band, simultaneous, flat": band(FLAT),
    "paired differences, simultaneous": differences,
    "not surely on the front": front,
    "accuracy over seeds and test examples": examples,
}
"""The kinds of intervals that are simulated, by name."""


def covered(kind: str, seeds: int, tables: int, seed: int = 0) -> tuple[int, int]:
    """Return the number of tables whose interval holds the truth, and of tables that have an interval."""
    rng = np.random.default_rng((seed, seeds))
    hits = [hit for _ in range(tables) if (hit := KINDS[kind](rng, seeds)) is not None]
    return int(sum(hits)), len(hits)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--tables", type=int, default=2000)
    tables = parser.parse_args().tables
    print(f"{'covered, %':38}" + "".join(f"{f'{seeds} seeds':>22}" for seeds in (3, 5, 10)))
    for kind in KINDS:
        cells = []
        for seeds in (3, 5, 10):
            hit, count = covered(kind, seeds, tables)
            low, high = proportion_interval(hit, count)
            cells.append(f"{100 * hit / count:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        print(f"{kind:38}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
