"""Where the best learning rate of each cell lies, with an interval, and how it compares with the baseline's.

The best rate is the top of a quadratic in log rate. It is fitted to stage TUNE's scores near the best one, with the
weights of `choice.smoothed`. Its interval is Fieller's: the rates at which the fit's slope does not differ from zero.
An end of the interval is open if the scores do not bend enough, or if the end lies beyond the rates that were tried.
The interval of the ratio of two best rates is that of Zou and Donner (2008, MOVER), made of the ends of both intervals.

The noise of a score is that of one run (`noise.run_noises`), or the fit's own residual if that is larger. So scores
that do not follow a quadratic give a wider interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy import special

from analysis.findings.tuning.numbers import sharpness
from analysis.format import Row
from analysis.store.columns import FLAG, INT, PLACE, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import style
from analysis.verdict.choice import WIDTH, levels
from analysis.verdict.inference import LEVEL, Array
from analysis.verdict.noise import Runs, run_noises, tuned_runs
from analysis.verdict.runs import group_by

FEWEST = 4
"""Number of rates from which on a quadratic is fitted: its three coefficients, and one degree of freedom for noise."""
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
    """The top of a local fit and its interval, in log10 of the rate.

    Attributes:
        at: the top, or the end of the tried rates at which the fit is highest.
        low, high: the ends of the interval; infinite if open.
        outside: 'below' or 'above' if the fit still rises at that end of the tried rates, else None.
    """

    at: float
    low: float
    high: float
    outside: str | None


def top_of(log_rates: Array, runs: Runs, noise: float | None) -> Top | None:
    """Return the best rate of one cell by a local quadratic, or None for fewer than `FEWEST` rates.

    Args:
        log_rates: (K,) log10 of the rates, rising.
        runs: scores of stage TUNE.
        noise: variance of one run's score. If it is None, only the fit's residual gives the width of the interval.
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
    coefficients = solve @ level
    freedom = float(kernel.sum()) - 3.0
    residual = float(weight * kernel @ (level - powers @ coefficients) ** 2)
    variance = max(noise or 0.0, residual / freedom if freedom > 0 else 0.0)
    covariance = solve @ np.diag(variance / weight) @ solve.T
    at = _vertex(coefficients, float(u[0]), float(u[-1]))
    low, high = _fieller(coefficients, covariance)
    low, high = min(low, at), max(high, at)
    low = low if u[0] < low < u[-1] else -math.inf  # nothing was tried beyond u[0] and u[-1]
    high = high if u[0] < high < u[-1] else math.inf
    outside = "below" if at <= u[0] else "above" if at >= u[-1] else None
    middle, low, high = (float(log_rates[best] + step * value) for value in (at, low, high))
    return Top(middle, low, high, outside)


def _vertex(coefficients: Array, low: float, high: float) -> float:
    """Return the x from `low` to `high` at which the quadratic is highest."""
    _, slope, bend = coefficients
    if bend < 0 and low < -slope / (2 * bend) < high:
        return float(-slope / (2 * bend))
    return max((low, high), key=lambda x: slope * x + bend * x**2)


def _fieller(coefficients: Array, covariance: Array) -> tuple[float, float]:
    """Return the ends of the top's interval: all x at which slope + 2 bend x does not differ from 0; infinite if open.

    These x solve square x^2 + linear x + constant <= 0.
    """
    z2 = float(special.ndtri((1 - LEVEL) / 2)) ** 2
    _, slope, bend = coefficients
    square = 4 * (bend**2 - z2 * covariance[2, 2])
    linear = 4 * (slope * bend - z2 * covariance[1, 2])
    constant = slope**2 - z2 * covariance[1, 1]
    discriminant = linear**2 - 4 * square * constant
    if square == 0 or (square > 0 and bend > 0) or (square < 0 and discriminant <= 0):
        return -math.inf, math.inf
    root = math.sqrt(max(discriminant, 0.0))  # with a clear bend it is below 0 by rounding only
    roots = sorted(((-linear - root) / (2 * square), (-linear + root) / (2 * square)))
    if square > 0:
        return roots[0], roots[1]
    # The bend may be zero, but between the roots the slope is not: the top lies on the side to which the scores rise.
    middle = slope + bend * (roots[0] + roots[1])
    return (roots[1], math.inf) if middle > 0 else (-math.inf, roots[0])


@remembered
def best_rates(store: Store) -> pa.Table:
    """Return the best rate of each cell; columns `BEST_RATES`.

    Cells with fewer than `FEWEST` rates, and cells that searched other hyperparameters too, are left out.
    """
    tuned, noise = tuned_runs(store), run_noises(store)
    chosen = {(r["sweep"], r["cell_id"]): r["lr"] for r in store.table("chosen").to_pylist()}
    sharp = {(r["sweep"], r["cell_id"]): r for r in sharpness(store).to_pylist()}
    rows: list[Row] = []
    for cell in store.table("cells").to_pylist():
        key = cell["sweep"], cell["cell_id"]
        log_rates, runs = tuned.get(key, (None, None))
        if log_rates is None or runs is None or (top := top_of(log_rates, runs, noise.get(key))) is None:
            continue
        range_near_best = sharp.get(key, {})
        rows.append(
            {k: cell[k] for k in (*PLACE, "method", "reference", "budget", "cell_id")}
            | {"rates": len(log_rates), "lowest": 10 ** log_rates[0], "highest": 10 ** log_rates[-1]}
            | {"chosen": chosen.get(key), "best": 10**top.at, "low": _end(top.low), "high": _end(top.high)}
            | {"outside": top.outside}
            | {"decades": range_near_best.get("decades"), "open": range_near_best.get("open")}
        )
    rows.sort(key=lambda r: (*(r[k] for k in PLACE), style(r["method"]).order, r["method"], r["budget"] or 0))
    return pa.Table.from_pylist(rows, schema=BEST_RATES)


def _end(log_rate: float) -> float | None:
    return float(10**log_rate) if math.isfinite(log_rate) else None


def rate_ratios(store: Store) -> pa.Table:
    """Return each cell's best rate, divided by the baseline's in the same place; columns `RATIOS`.

    The baseline is full fine-tuning, else full fine-tuning of the target weights, else LoRA. A cell is compared with
    the baseline at the same budget. If there is none, it is compared with the baseline's only cell if that has no
    budget, and otherwise left out.
    """
    rows: list[Row] = []
    for cells in group_by(best_rates(store).to_pylist(), *PLACE).values():
        methods = {r["method"] for r in cells}
        name = next((method for method in BASELINES if method in methods), None)
        of_baseline = [r for r in cells if r["method"] == name]
        for r in cells:
            if r["method"] != name and (baseline := _baseline_for(r, of_baseline)) is not None:
                rows.append(_ratio(r, baseline))
    return pa.Table.from_pylist(rows, schema=RATIOS)


def _baseline_for(row: Row, of_baseline: Sequence[Row]) -> Row | None:
    """Return the baseline's cell to compare with, or None if it has none at this budget."""
    for r in of_baseline:
        if r["reference"] == row["reference"]:
            return r
    without_budget = len(of_baseline) == 1 and of_baseline[0]["reference"] is None
    return of_baseline[0] if without_budget else None


def _ratio(row: Row, baseline: Row) -> Row:
    best, best_low, best_high = _logs(row)
    base, base_low, base_high = _logs(baseline)
    difference = best - base
    low = difference - math.hypot(best - best_low, base_high - base)
    high = difference + math.hypot(best_high - best, base - base_low)
    own_columns = {k: row[k] for k in (*PLACE, "method", "reference", "budget", "best", "low", "high")}
    baseline_columns = {f"baseline_{k}": baseline[k] for k in ("reference", "best", "low", "high")}
    baseline_columns["baseline"] = baseline["method"]
    edge = row["outside"] is not None or baseline["outside"] is not None
    return (
        own_columns
        | baseline_columns
        | {"ratio": 10**difference, "ratio_low": _end(low), "ratio_high": _end(high), "at_edge": edge}
    )


def _logs(row: Row) -> tuple[float, float, float]:
    """Return log10 of the best rate and of the ends of its interval; an open end is infinite."""
    low = -math.inf if row["low"] is None else math.log10(row["low"])
    high = math.inf if row["high"] is None else math.log10(row["high"])
    return math.log10(row["best"]), low, high
