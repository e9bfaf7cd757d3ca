"""Best learning rates from local fits, their intervals, and their ratio to the baseline's."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from analysis import open_store
from analysis.findings.all import pick
from analysis.findings.rate_ratio.numbers import _fieller, _ratio, best_rates, rate_ratios, top_of
from analysis.verdict.noise import Runs
from tests.analysis.synthetic import make_results

GRID = np.linspace(-5, -2, 7)
NONE = np.zeros((0, 0))


def runs(scores: np.ndarray) -> Runs:
    return Runs(scores, NONE, np.zeros(0, dtype=np.int64))


def test_the_top_of_a_parabola_is_found_to_rounding() -> None:
    top = top_of(GRID, runs(0.8 - 0.1 * (GRID + 3.3) ** 2), noise=None)
    assert top is not None and top.outside is None
    assert (top.at, top.low, top.high) == pytest.approx((-3.3, -3.3, -3.3), abs=1e-6)


@pytest.mark.parametrize(("slope", "outside"), [(0.1, "above"), (-0.1, "below")])
def test_a_best_rate_beyond_the_rates_has_an_open_end(slope: float, outside: str) -> None:
    top = top_of(GRID, runs(0.5 + slope * GRID - 1e-3 * slope**2 * GRID**2), noise=1e-4)
    assert top is not None and top.outside == outside
    assert top.at == (GRID[-1] if slope > 0 else GRID[0])
    assert math.isinf(top.high if slope > 0 else top.low)


def test_scores_without_a_bend_have_no_interval_and_few_rates_no_top() -> None:
    flat = 0.5 + 0.01 * np.random.default_rng(0).normal(size=7)
    top = top_of(GRID, runs(flat), noise=1e-4)
    assert top is not None and math.isinf(top.low) and math.isinf(top.high)
    assert top_of(GRID[:3], runs(flat[:3]), noise=1e-4) is None


def test_a_curve_that_is_no_parabola_has_a_wider_interval() -> None:
    """A score that falls to chance at high rates."""
    smooth = 0.8 - 0.1 * (GRID + 3.5) ** 2
    broken = np.where(GRID > -2.7, 0.1, smooth)
    narrow, wide = (top_of(GRID, runs(scores), noise=1e-5) for scores in (smooth, broken))
    assert narrow is not None and wide is not None
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_fiellers_ends_are_where_the_slope_is_two_standard_errors() -> None:
    found, covariance = np.array([0.0, 0.3, -0.5]), np.diag([0.0, 0.01, 0.004])
    low, high = _fieller(found, covariance)
    for x in (low, high):
        slope, error = 0.3 - x, math.sqrt(0.01 + 4 * x**2 * 0.004)
        assert abs(slope) == pytest.approx(1.959964 * error, rel=1e-5)
    assert low < 0.3 < high
    assert _fieller(found, 100 * covariance) == (-math.inf, math.inf)
    low, high = _fieller(np.array([0.0, 3.0, -0.05]), covariance)  # it rises, and whether it bends is not clear
    assert low > 0 and high == math.inf


@pytest.mark.parametrize(("noise", "least_bounded"), [(0.004, 301), (0.012, 0)])
def test_intervals_cover_the_true_rate(noise: float, least_bounded: int) -> None:
    rng, hits, bounded = np.random.default_rng(1), 0, 0
    for _ in range(400):
        truth = rng.uniform(-4.2, -2.8)
        scores = 0.8 - 0.06 * (GRID - truth) ** 2 + noise * rng.normal(size=7)
        top = top_of(GRID, runs(scores), noise=noise**2)
        assert top is not None
        hits += top.low <= truth <= top.high
        bounded += math.isfinite(top.low) and math.isfinite(top.high)
    assert hits >= 0.93 * 400
    assert bounded >= least_bounded


def test_the_interval_of_a_ratio_is_made_of_the_ends_of_both() -> None:
    place = dict.fromkeys(("sweep", "model", "dataset", "train_size"), "x")
    ours = place | {"method": "lora", "reference": "lora-1", "budget": 8, "best": 1e-2, "low": 1e-3, "high": 1e-1}
    theirs = place | {"method": "full", "reference": None, "best": 1e-3, "low": 1e-4, "high": None}
    row = _ratio(ours | {"outside": None}, theirs | {"outside": "above"})
    assert row["ratio"] == pytest.approx(10) and row["at_edge"]
    assert row["ratio_low"] is None  # the baseline's upper end is open
    assert math.log10(row["ratio_high"]) == pytest.approx(1 + math.sqrt(2))


def test_ratios_of_a_store_whose_rates_are_known(tmp_path: Path) -> None:
    """Every method's scores are highest at 10^0.2 times the centre of its rates: 1e-3 of LoRA, 1e-4 of full."""
    store = open_store(make_results(tmp_path / "made", noise=0.002))
    rows = best_rates(store).to_pylist()
    lora = [r for r in rows if r["method"] == "lora"]
    assert lora and all(r["chosen"] is not None and r["lowest"] <= r["best"] <= r["highest"] for r in rows)
    inside = [r for r in lora if (r["low"] or 0) <= 10**-2.8 <= (r["high"] or math.inf)]
    assert len(inside) >= 0.8 * len(lora)
    found = rate_ratios(store).to_pylist()
    assert {r["baseline"] for r in found} == {"full"} and "full" not in {r["method"] for r in found}
    ratios = [r["ratio"] for r in found if r["method"] == "lora"]
    assert float(np.median(np.log10(ratios))) == pytest.approx(1.0, abs=0.15)
    (sheet,) = pick(store, ["rate_ratio"])
    assert len(sheet.rows) == len(found) and "ratio [95 %]" in sheet.header
    assert all("[" in cells[sheet.header.index("ratio [95 %]")] for cells in sheet.cells)
