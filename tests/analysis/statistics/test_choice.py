"""What choosing a rate adds: the noise from re-runs, the variance of what is chosen, and the widened test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis import Store, comparisons, open_store
from analysis.statistics.choice import Runs, choice_variance, choice_variances, levels, own_noise, smoothed
from analysis.statistics.inference import Difference, blocked_difference, t_difference, widened_p
from tests.analysis.synthetic import make_results


def test_noise_of_a_run_without_what_a_seed_does_to_all_rates() -> None:
    rng = np.random.default_rng(0)
    runs = rng.normal(0, 0.05, (4000, 1, 3)) + rng.normal(0, 0.2, (4000, 2, 1)) + rng.normal(0, 0.01, (4000, 2, 3))
    assert own_noise(runs).mean() == pytest.approx(0.01**2, rel=0.05)
    with pytest.raises(ValueError, match="two rates on two seeds"):
        own_noise(runs[:, :1])


def test_levels_average_the_runs_of_a_point_on_the_first_seeds_scale() -> None:
    runs = Runs(np.array([0.5, 0.7, 0.6]), np.array([[0.7, 0.9], [0.6, 0.9]]), np.array([1, 2]))
    level, weight = levels(runs)
    assert level == pytest.approx([0.5, 0.675, 0.625])  # the second seed is 0.25 higher for all
    assert weight.tolist() == [1, 2, 2]
    alone = Runs(np.array([0.5, 0.7]), np.zeros((0, 0)), np.zeros(0, dtype=np.int64))
    assert levels(alone)[0].tolist() == [0.5, 0.7] and alone.freedom == 0


def test_smoothing_keeps_a_quadratic_and_takes_noise_out() -> None:
    rates = np.linspace(-4, -1, 8)
    curve = 0.7 - 0.05 * (rates + 2.4) ** 2
    chosen = np.array(4)
    assert smoothed(rates, curve, np.ones(8), chosen) == pytest.approx(curve)
    noisy = curve + np.random.default_rng(1).normal(0, 0.01, (500, 8))
    fitted = smoothed(rates, noisy, np.ones((500, 8)), np.full(500, 4))
    assert ((fitted - curve)[:, 3:6] ** 2).mean() < 0.5 * 0.01**2
    two = smoothed(rates[:2], curve[:2], np.ones(2), np.array(0))  # too few for a curve: the points themselves
    assert two == pytest.approx(curve[:2])


def test_variance_of_a_choice_known_cases() -> None:
    rng = np.random.default_rng(0)
    # two points 1 apart, noise that confuses them half the time: p (1 - p) times the square of the gap
    found = choice_variance(np.array([0.0, 1.0]), 1.0, (0, 0), rng, draws=20_000)
    wrong = scipy_stats.norm.cdf(-1 / np.sqrt(2))
    assert float(found) == pytest.approx(wrong * (1 - wrong), rel=0.05)
    again = choice_variance(np.array([0.0, 1.0]), 1.0, (2, 3), rng, draws=20_000)  # four runs each: half the noise
    wrong = scipy_stats.norm.cdf(-1 / np.sqrt(2) * 2)
    assert float(again) == pytest.approx(wrong * (1 - wrong), rel=0.07)
    assert float(choice_variance(np.array([0.0, 1.0]), 1e-6, (0, 0), rng)) == 0.0  # no noise, no doubt
    assert float(choice_variance(np.zeros(5), 1.0, (2, 2), rng)) == 0.0  # equal rates: it does not matter which


def test_widening_a_test() -> None:
    one = t_difference([0.01, 0.02, 0.03, 0.015])
    assert widened_p(one, 0.0) == one.p
    assert one.p is not None and one.sd is not None
    little, much = widened_p(one, 1e-8), widened_p(one, 1e-3)
    assert little == pytest.approx(one.p, rel=1e-2)
    assert much is not None and much > 0.5
    seeds = one.sd**2 / 4
    wanted = 2 * scipy_stats.t.sf(one.mean / np.sqrt(2 * seeds), 4 / (1 / 3 + 1 / 2))  # equal parts
    assert widened_p(one, seeds) == pytest.approx(max(wanted, one.p))
    assert widened_p(Difference(0.1, None, None, None, None, 1, "paired t"), 1e-4) is None
    blocks = blocked_difference({"a": [0.01, 0.02, 0.03, 0.02], "b": [0.02, 0.01, 0.02, 0.01]})
    assert blocks.p is not None
    wide = widened_p(blocks, 1e-4)
    assert wide is not None and blocks.p < wide < 1.0


def test_a_sweep_with_re_runs_has_its_choice_in_the_verdicts(tmp_path: Path) -> None:
    noisy = open_store(make_results(tmp_path / "noisy", noise=0.03, seeds=5))
    added = choice_variances(noisy)
    assert len(added) == noisy.table("cells").num_rows and all(v >= 0 for v in added.values())
    assert added["noisy", "zero-shot_embedded-fashion_1.0"] == 0.0  # nothing was chosen
    rows = [r for r in comparisons(noisy).to_pylist() if r["test"] == "paired t"]
    assert any(r["choice_sd"] > 0.001 for r in rows)
    for r in rows:
        assert r["p_choice"] >= r["p"] and r["p_choice_holm"] >= r["p_choice"]
        if r["verdict_choice"] in ("higher", "lower"):  # never more than what holds given the rates
            assert r["verdict"] == r["verdict_choice"]
    assert any(r["p_choice"] > 1.01 * r["p"] for r in rows)


def test_without_re_runs_the_choice_is_not_known(store: Store, tmp_path: Path) -> None:
    folder = make_results(tmp_path / "bare", seal=0.0)
    journal = folder / "journal.jsonl"
    kept = [line for line in journal.read_text().splitlines() if '"data_seed":1000001' not in line]
    journal.write_text("\n".join(kept) + "\n")
    bare = open_store(folder)
    table = comparisons(bare)
    assert table.column("choice_sd").null_count == table.num_rows > 0
    assert set(table.column("verdict_choice").to_pylist()) == {"not testable"}
    assert comparisons(store).column("choice_sd").null_count == 0
