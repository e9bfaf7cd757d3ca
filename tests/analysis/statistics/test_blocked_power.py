"""Effect size, power and smallest detectable difference, of t tests and of permutation tests over many data sets."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis import open_store
from analysis.statistics import inference, power, scaling
from analysis.tables.results import compared
from tests.analysis.synthetic import make_results


def test_smallest_detectable_difference_known_numbers() -> None:
    # R: power.t.test(n = 20, sd = 1, power = 0.8, type = "paired")$delta, and n = 5 with sig.level = 0.01
    assert power.detectable(20**-0.5, 19) == pytest.approx(0.6604, abs=1e-4)
    for n, sd, alpha in ((2, 0.01, 0.05), (5, 0.02, 0.01), (30, 0.005, 1e-4)):
        least = power.detectable(sd / n**0.5, n - 1, alpha)
        assert least is not None and power.power_at(sd / n**0.5, n - 1, least, alpha) == pytest.approx(0.8)
    assert power.detectable(0.0, 4) is None and power.detectable(0.1, 0) is None


def test_blocks_have_the_pooled_deviation_within_data_sets() -> None:
    """A data set's own mean difference is not noise: 10 points between data sets change nothing."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, size=(6, 3))
    blocks = {str(d): list(noise[d] + 0.02 * d) for d in range(6)}
    found = inference.blocked_difference(blocks)
    pooled = float(np.sqrt(noise.var(axis=1, ddof=1).mean()))
    assert found.sd == pytest.approx(pooled) and (found.datasets, found.freedom) == (6, 12)
    assert found.error == pytest.approx(pooled / 18**0.5)
    effect = power.effect_size(found)
    assert effect is not None and effect.low is not None and effect.high is not None
    assert effect.mean == pytest.approx(found.mean / pooled * (1 - 3 / (4 * 12 - 1)), rel=0.01)
    correction, t = effect.mean / (found.mean / pooled), found.mean / (pooled / 18**0.5)
    for end, share in ((effect.low, 0.975), (effect.high, 0.025)):
        assert scipy_stats.nct.cdf(t, 12, end / correction * 18**0.5) == pytest.approx(share, abs=1e-6)
    uneven = inference.blocked_difference({"a": [0.01, 0.03], "b": [0.0, 0.02, 0.04, 0.02]})
    assert uneven.error == pytest.approx((uneven.sd or 0) / 2 * (1 / 2 + 1 / 4) ** 0.5)


def found_by_sign_flips(sd: np.ndarray, n: int, difference: float, alpha: float, draws: int = 1500) -> float:
    """Share of made-up tables in which the sign-flip test over data sets finds a difference."""
    rng = np.random.default_rng(1)
    pairs = len(sd) * n
    signs = np.array(list(product((1, -1), repeat=pairs))) if pairs <= 12 else rng.choice((1, -1), size=(4999, pairs))
    values = difference + np.repeat(sd, n) * rng.normal(size=(draws, pairs))
    flipped, seen = np.abs(values @ signs.T), np.abs(values.sum(axis=1))
    extra = 0 if pairs <= 12 else 1
    p = ((flipped >= seen[:, None] - 1e-12).sum(axis=1) + extra) / (len(signs) + extra)
    return float((p <= alpha).mean())


@pytest.mark.parametrize(
    ("datasets", "n", "family", "unlike"),
    [(3, 3, 6, False), (4, 3, 20, False), (8, 3, 50, False), (4, 5, 30, True), (21, 3, 20, True)],
)
def test_power_of_a_permutation_test_agrees_with_simulation(datasets: int, n: int, family: int, unlike: bool) -> None:
    """Data sets unlike in noise by a factor of six among them."""
    sd = np.geomspace(0.004, 0.025, datasets) if unlike else np.full(datasets, 0.01)
    pooled = float(np.sqrt((sd**2).mean()))
    error, freedom, alpha = pooled / (datasets * n) ** 0.5, datasets * (n - 1), 0.05 / family
    least = power.detectable(error, freedom, alpha)
    assert least is not None
    assert found_by_sign_flips(sd, n, least, alpha) == pytest.approx(0.8, abs=0.07)
    half = power.detectable(error, freedom, alpha, wanted=0.5)
    assert half is not None
    assert found_by_sign_flips(sd, n, half, alpha) == pytest.approx(0.5, abs=0.12)


def test_seeds_of_each_data_set() -> None:
    needed = power.seeds_needed(0.02, 0.01, 0.005, datasets=8)
    assert needed is not None and needed < (power.seeds_needed(0.02, 0.01, 0.005) or 0)

    def found(n: int) -> float:
        return power.power_at(0.02 / (8 * n) ** 0.5, 8 * (n - 1), 0.01, 0.005) or 0.0

    assert found(needed - 1) < 0.8 <= found(needed)


def test_many_data_sets_say_effect_power_and_what_could_be_seen(tmp_path: Path) -> None:
    names = [f"set-{i}" for i in range(5)]
    plan = {"lora": ("lora-4",), "randlora": ("lora-4",)}
    store = open_store(make_results(tmp_path / "many", datasets=names, plan=plan))
    row = next(r for r in scaling.comparisons(store).to_pylist() if r["dataset"] is None)
    assert (row["test"], row["datasets"], row["n"], row["freedom"]) == (inference.SIGN_FLIP, 5, 15, 10)
    assert row["effect_low"] < row["effect"] < row["effect_high"]
    assert row["power"] == power.power_at(row["error"], 10, scaling.PLANTED, 0.05 / 6)
    assert power.power_at(row["error"], 10, row["detectable"], 0.05 / 6) == pytest.approx(0.8)
    sheet = compared(store)
    cells = dict(zip(sheet.header, sheet.cells[-1], strict=True))
    assert cells["data"] == "mean of 5 data sets" and cells["seeds"] == "3" and "[" in cells["effect [95 %]"]
    assert cells["power"].endswith("%") and float(cells["detectable, points"]) > 0
    assert "sign-flip permutation" in sheet.note


def test_a_large_family_does_not_hide_a_clear_difference() -> None:
    """9999 random flips can't show a p below 0.0002, which 300 comparisons would turn into 0.06."""
    blocks = {str(d): {(s, s, s): 0.05 + 0.001 * s for s in range(3)} for d in range(8)}
    found = scaling._over_datasets(blocks, 300)
    assert found.test == inference.SIGN_FLIP and found.p is not None and 300 * found.p <= 0.05
