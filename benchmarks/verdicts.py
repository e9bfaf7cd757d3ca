"""Compare three rules that correct the tests of single budgets and of their mean for multiple comparisons.

`calibration.draw` simulates the tables: two arms that are tuned separately. True differences are planted by budget.
Three rules decide which differences are found:

    gate      first the mean is tested at 5 %; only if it is rejected, Holm's steps test the budgets
    holm      Holm's steps test the mean and the budgets together
    weighted  as holm, but the mean has half of the level at the first step; `analysis.comparisons` uses this rule

    python benchmarks/verdicts.py      # two tables of docs/statistics.md, half a minute of one core
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.verdict.correction import step_down
from analysis.verdict.inference import two_sided
from benchmarks.calibration import LEVEL, REGIMES, Protocol, Real, draw, proportion_interval

SEEDS = (3, 5, 10)
BUDGETS = 6
EFFECTS: dict[str, tuple[float, ...]] = {
    "2 points at all six": (0.02,) * BUDGETS,
    "+2 at three, -2 at three": (0.02, 0.02, 0.02, -0.02, -0.02, -0.02),
    "2 points at one": (0.02, *(0.0,) * (BUDGETS - 1)),
    "falls from 4 points to 0": (0.04, 0.032, 0.024, 0.016, 0.008, 0.0),
}
RULES = ("gate", "holm", "weighted")


def p_values(differences: Real, variances: Real, share: Real) -> Real:
    """Return p values of the mean over budgets and of each budget, on one data set: (tables, 1 + budgets).

    With one budget the shape is (tables, 1).

    Args:
        differences, variances, share: as `calibration.draw` returns them.
    """
    pairs, added = differences[:, 0], variances.sum(axis=-1)
    freedom = np.array([pairs.shape[-1] - 1.0])

    def p(values: Real, extra: Real) -> Real:
        spread = values.var(axis=-1, ddof=1) / values.shape[-1]
        return two_sided(values.mean(axis=-1), spread[..., None], freedom, extra)

    budgets = p(pairs, np.broadcast_to(added, pairs.shape[:-1]))
    if pairs.shape[1] == 1:
        return budgets
    return np.hstack([p(pairs.mean(axis=1), (added * share)[:, 0])[:, None], budgets])


def decided(p: Real, rule: str) -> NDArray[np.bool_]:
    """Return which differences a rule calls different from zero, at 5 %.

    Args:
        p: (tables, 1 + budgets) p values of the mean over budgets and of each budget, or (tables, 1) of one budget.

    Returns:
        Booleans of the same shape.
    """
    if p.shape[-1] == 1:
        return p <= LEVEL
    if rule == "gate":
        return np.hstack([p[:, :1], np.maximum(p[:, :1], step_down(p[:, 1:]))]) <= LEVEL
    weights = np.ones(p.shape[-1])
    weights[0] = p.shape[-1] - 1.0 if rule == "weighted" else 1.0
    return step_down(p, weights) <= LEVEL


def planted(drawn: tuple[Real, Real, Real], effects: tuple[float, ...]) -> Real:
    """Return the p values of tables with true differences by budget."""
    differences, variances, share = drawn
    return p_values(differences + np.array(effects)[:, None], variances, share)


def errors(protocol: Protocol, tables: int, rng: np.random.Generator) -> dict[str, float]:
    """Return for each rule the share of tables of equal methods in which it says that something differs."""
    p = p_values(*draw(protocol, tables, rng))
    return {rule: float(decided(p, rule).any(axis=-1).mean()) for rule in RULES}


def table(tables: int) -> Iterator[str]:
    """Yield the lines of both tables."""
    yield "| false words, % of tables | seeds | 1 budget | 3 budgets | 6 budgets |"
    yield "|---|---:|---:|---:|---:|"
    for name in ("default", "steep", "quickstart"):
        for seeds in SEEDS:
            cells_text = []
            for budgets in (1, 3, BUDGETS):
                protocol = replace(REGIMES[name], seeds=seeds, budgets=budgets)
                shares = errors(protocol, tables, np.random.default_rng(budgets))
                cells_text.append(" / ".join(f"{100 * shares[rule]:.1f}" for rule in RULES))
            yield f"| {name} | {seeds} | {' | '.join(cells_text)} |"
    low, high = proportion_interval(round(LEVEL * tables), tables)
    yield f"({' / '.join(RULES)}; a true 5 % shows as {100 * low:.1f} to {100 * high:.1f} %)"
    yield "| found at 6 budgets, % | seeds | any word | the mean | each budget that differs | all that differ |"
    yield "|---|---:|---:|---:|---:|---:|"
    for seeds in SEEDS:
        drawn = draw(replace(REGIMES["default"], seeds=seeds, budgets=BUDGETS), tables, np.random.default_rng(seeds))
        for name, effects in EFFECTS.items():
            p, differs = planted(drawn, effects), np.array(effects) != 0
            cells = []
            for rule in RULES:
                decisions = decided(p, rule)
                right = decisions[:, 1:][:, differs]
                cells.append(
                    (decisions.any(axis=-1).mean(), decisions[:, 0].mean(), right.mean(), right.all(axis=-1).mean())
                )
            columns = (" / ".join(f"{100 * cell[k]:.0f}" for cell in cells) for k in range(4))
            yield f"| {name} | {seeds} | {' | '.join(columns)} |"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=400, help="number of tables to simulate for each number")
    for line in table(parser.parse_args().tables):
        print(line, flush=True)


if __name__ == "__main__":
    main()
