"""Where the best learning rate of each cell lies, with an interval, and how it compares with the baseline's.

The best rate is the top of a quadratic in log rate, fitted to stage TUNE's scores near the best one by the weights of
`choice.smoothed`. Its interval is Fieller's: the rates at which the fit's slope does not differ from zero. It is open
if the scores do not bend enough, and ends are not read off beyond the rates that were tried. The ratio of two best
rates has the interval of Zou and Donner (2008, MOVER), made of both cells' ends.

The noise of a score is that of one run (`choice.run_noises`), or the fit's own residual if that is larger: scores that
follow no quadratic give a wider interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import stats

from analysis.format import Row
from analysis.statistics.choice import WIDTH, Runs, levels, run_noises, tuned_runs
from analysis.statistics.inference import LEVEL
from analysis.statistics.runs import by
from analysis.statistics.tuning import sharpness
from analysis.store.columns import FLAG, INT, PLACE, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import style

Array = NDArray[np.float64]
FEWEST = 4
"""Rates that a quadratic with something left over needs."""
BASELINES = ("full", "full-targets", "lora")
"""The baseline of ratios is the first of these that a place has."""

BEST_RATES = pa.schema(
    [
        *typed(TEXT, *PLACE, "method", "reference"),
        ("budget", INT),
        ("cell_id", TEXT),
        ("rates", INT),  # tried
        *typed(REAL, "lowest", "highest"),  # rates tried
        ("chosen", REAL),  # by TUNE
        *typed(REAL, "best", "low", "high"),  # fitted, and its interval; an end is null if it lies beyond the rates
        ("outside", TEXT),  # 'below' or 'above': the fit still rises at that end of the rates, where `best` then is
        ("decades", REAL),  # width of the range that is within a point of the best score
        ("open", FLAG),  # the rates end before the score has fallen by a point
    ]
)
RATIOS = pa.schema(
    [
        *typed(TEXT, *PLACE, "method", "reference"),
        ("budget", INT),
        *typed(REAL, "best", "low", "high"),
        ("baseline", TEXT),
        ("baseline_reference", TEXT),
        *typed(REAL, "baseline_best", "baseline_low", "baseline_high"),
        *typed(REAL, "ratio", "ratio_low", "ratio_high"),  # an end is null if it is open
        ("at_edge", FLAG),  # one of the two best rates lies at an end of the rates that were tried
    ]
)


@dataclass(frozen=True)
class Top:
    """The top of a local fit, in log10 of the rate; an end of the interval is infinite if it is open."""

    at: float
    low: float
    high: float
    outside: str | None


def top_of(log_rates: Array, runs: Runs, noise: float | None) -> Top | None:
    """Return the best rate of one cell by a local quadratic, or None for fewer than `FEWEST` rates.

    Args:
        log_rates: (K,) rising.
        runs: scores of stage TUNE.
        noise: variance of one run; None if unknown: the fit's residual alone then says how exact it is.
    """
    level, weight = levels(runs)
    if len(log_rates) < FEWEST:
        return None
    step = (log_rates[-1] - log_rates[0]) / (len(log_rates) - 1)
    best = int(level.argmax())
    u = (log_rates - log_rates[best]) / step
    kernel = np.exp(-0.5 * (u / WIDTH) ** 2)
    powers = np.stack([np.ones_like(u), u, u**2], axis=-1)
    root = np.sqrt(weight * kernel)
    solve = np.linalg.pinv(root[:, None] * powers) * root
    found = solve @ level
    freedom = float(kernel.sum()) - 3.0
    rest = float(weight * kernel @ (level - powers @ found) ** 2)
    own = max(noise or 0.0, rest / freedom if freedom > 0 else 0.0)
    covariance = solve @ np.diag(own / weight) @ solve.T
    at = _vertex(found, float(u[0]), float(u[-1]))
    low, high = _fieller(found, covariance)
    outside = "below" if at <= u[0] else "above" if at >= u[-1] else None
    ends = (min(low, at), max(high, at))
    bounded = [
        end if u[0] < end < u[-1] else math.copysign(math.inf, side) for end, side in zip(ends, (-1, 1), strict=True)
    ]
    middle, low, high = (float(log_rates[best] + step * value) for value in (at, *bounded))
    return Top(middle, low, high, outside)


def _vertex(found: Array, low: float, high: float) -> float:
    """Where the quadratic is highest between two ends."""
    _, slope, bend = found
    inside = [float(-slope / (2 * bend))] if bend < 0 and low < -slope / (2 * bend) < high else []
    return max((low, high, *inside), key=lambda x: slope * x + bend * x**2)


def _fieller(found: Array, covariance: Array) -> tuple[float, float]:
    """Ends of the interval of the top: where slope + 2 bend x differs from 0, it is not. Infinite ends are open."""
    z2 = float(stats.norm.isf((1 - LEVEL) / 2)) ** 2
    _, slope, bend = found
    square = 4 * (bend**2 - z2 * covariance[2, 2])
    linear = 4 * (slope * bend - z2 * covariance[1, 2])
    constant = slope**2 - z2 * covariance[1, 1]
    under = linear**2 - 4 * square * constant
    if square == 0 or (square > 0 and bend > 0) or (square < 0 and under <= 0):
        return -math.inf, math.inf
    root = math.sqrt(max(under, 0.0))  # a clear bend has a top, so what is below 0 is rounding
    roots = sorted(((-linear - root) / (2 * square), (-linear + root) / (2 * square)))
    if square > 0:
        return roots[0], roots[1]
    # the bend is not clear, the slope is, between the roots: the top lies on the side to which it rises
    middle = slope + bend * (roots[0] + roots[1])
    return (roots[1], math.inf) if middle > 0 else (-math.inf, roots[0])


@remembered
def best_rates(store: Store) -> pa.Table:
    """The best rate of every cell whose learning rate alone was searched, over `FEWEST` rates or more; `BEST_RATES`."""
    tuned, noise = tuned_runs(store), run_noises(store)
    took = {(r["sweep"], r["cell_id"]): r["lr"] for r in store.table("chosen").to_pylist()}
    flat = {(r["sweep"], r["cell_id"]): r for r in sharpness(store).to_pylist()}
    rows: list[Row] = []
    for cell in store.table("cells").to_pylist():
        key = cell["sweep"], cell["cell_id"]
        log_rates, runs = tuned.get(key, (None, None))
        if log_rates is None or runs is None or (top := top_of(log_rates, runs, noise.get(key))) is None:
            continue
        wide = flat.get(key, {})
        rows.append(
            {k: cell[k] for k in (*PLACE, "method", "reference", "budget", "cell_id")}
            | {"rates": len(log_rates), "lowest": 10 ** log_rates[0], "highest": 10 ** log_rates[-1]}
            | {"chosen": took.get(key), "best": 10**top.at, "low": _end(top.low), "high": _end(top.high)}
            | {"outside": top.outside, "decades": wide.get("decades"), "open": wide.get("open")}
        )
    rows.sort(key=lambda r: (*(r[k] for k in PLACE), style(r["method"]).order, r["method"], r["budget"] or 0))
    return pa.Table.from_pylist(rows, schema=BEST_RATES)


def _end(log_rate: float) -> float | None:
    return float(10**log_rate) if math.isfinite(log_rate) else None


def rate_ratios(store: Store) -> pa.Table:
    """Each cell's best rate divided by the baseline's in the same place; `RATIOS`.

    The baseline is full fine-tuning, else full fine-tuning of the target weights, else LoRA. It is the baseline's cell
    at the same budget if it has one, else its only cell; a baseline with several budgets is compared at equal ones.
    """
    return pa.Table.from_pylist(ratios_of(best_rates(store).to_pylist()), schema=RATIOS)


def ratios_of(best: Sequence[Row]) -> list[Row]:
    """The rows of `rate_ratios`, from rows of `best_rates`."""
    rows: list[Row] = []
    for mine in by(best, *PLACE).values():
        methods = {r["method"] for r in mine}
        name = next((method for method in BASELINES if method in methods), None)
        against = [r for r in mine if r["method"] == name]
        for r in mine:
            if r["method"] != name and (beside := _beside(r, against)) is not None:
                rows.append(_ratio(r, beside))
    return rows


def _beside(row: Row, against: Sequence[Row]) -> Row | None:
    """The baseline's cell to compare with."""
    same = [r for r in against if r["reference"] == row["reference"]]
    return same[0] if same else against[0] if len(against) == 1 and against[0]["reference"] is None else None


def _ratio(row: Row, baseline: Row) -> Row:
    ours, theirs = _logs(row), _logs(baseline)
    difference = ours[0] - theirs[0]
    low = difference - math.hypot(ours[0] - ours[1], theirs[2] - theirs[0])
    high = difference + math.hypot(ours[2] - ours[0], theirs[0] - theirs[1])
    kept = {k: row[k] for k in (*PLACE, "method", "reference", "budget", "best", "low", "high")}
    beside = {f"baseline_{k}": baseline[k] for k in ("reference", "best", "low", "high")} | {
        "baseline": baseline["method"]
    }
    edge = row["outside"] is not None or baseline["outside"] is not None
    return kept | beside | {"ratio": 10**difference, "ratio_low": _end(low), "ratio_high": _end(high), "at_edge": edge}


def _logs(row: Row) -> tuple[float, float, float]:
    """log10 of the best rate and of the ends of its interval, infinite if open."""
    low, high = (s * math.inf if row[k] is None else math.log10(row[k]) for k, s in (("low", -1), ("high", 1)))
    return math.log10(row["best"]), low, high
