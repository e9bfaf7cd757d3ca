"""Groups that tests do not tell apart, mean ranks, effect sizes, and the seeds that a difference needs."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis import Store, open_store
from analysis.statistics import inference, power
from analysis.statistics.groups import groups, letter_groups, mean_ranks
from tests.analysis.synthetic import make_results


@pytest.mark.parametrize("seed", range(12))
def test_letters_are_shared_exactly_by_what_is_not_told_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 7))
    apart = {pair for pair in combinations(range(n), 2) if rng.random() < 0.4}
    letters = letter_groups(n, apart)
    assert all(letters)
    for i, j in combinations(range(n), 2):
        assert bool(set(letters[i]) & set(letters[j])) == ((i, j) not in apart)


def test_groups_of_a_sweep(tmp_path: Path) -> None:
    store = open_store(make_results(tmp_path / "clear", seeds=8, noise=0.003))
    table = groups(store).to_pylist()
    first = [r for r in table if r["reference"] == "lora-1"]
    assert [r["mean"] for r in first] == sorted((r["mean"] for r in first), reverse=True)
    assert {r["method"] for r in first} == {"randlora", "lora", "vera", "nola"} and all(r["n"] == 8 for r in first)
    by_method = {r["method"]: set(r["group"]) for r in first}
    assert not by_method["randlora"] & by_method["lora"]
    flat = open_store(make_results(tmp_path / "flat", seeds=2, noise=0.05))
    rows = [r for r in groups(flat).to_pylist() if r["reference"] == "lora-1"]
    assert {r["group"] for r in rows} == {"a"}


def test_mean_ranks_over_data_sets(wide: Store, store: Store) -> None:
    rows = mean_ranks(wide).to_pylist()
    first = {r["method"]: r for r in rows if r["reference"] == "lora-1"}
    scores = {
        (r["dataset"], r["method"]): r["mean"] for r in wide.table("scaling").to_pylist() if r["reference"] == "lora-1"
    }
    for method, row in first.items():
        ranks = []
        for dataset in ("embedded:fashion", "embedded:digits"):
            mine = sorted((s for (d, _), s in scores.items() if d == dataset), reverse=True)
            ranks.append(1 + mine.index(scores[dataset, method]))
        assert row["mean_rank"] == pytest.approx(np.mean(ranks))
        assert (row["methods"], row["datasets"], row["p_friedman"]) == (4, 2, None)
    assert sum(r["mean_rank"] for r in first.values()) == pytest.approx(10)
    assert mean_ranks(store).num_rows == 0


def test_effect_size_against_the_noncentral_t() -> None:
    values = [0.03, 0.01, 0.02, 0.025, 0.005]
    effect = power.effect_size(inference.t_difference(values))
    assert effect is not None and effect.low is not None and effect.high is not None
    d = np.mean(values) / np.std(values, ddof=1)
    assert effect.mean == pytest.approx(d * (1 - 3 / (4 * 4 - 1)), rel=0.01)  # Hedges' usual approximation
    correction = effect.mean / d
    t = d * 5**0.5
    assert scipy_stats.nct.cdf(t, 4, effect.low / correction * 5**0.5) == pytest.approx(0.975, abs=1e-6)
    assert scipy_stats.nct.cdf(t, 4, effect.high / correction * 5**0.5) == pytest.approx(0.025, abs=1e-6)
    assert power.effect_size(inference.t_difference([0.1, 0.1])) is None
    huge = power.effect_size(inference.t_difference([0.5, 0.5001, 0.4999]))
    assert huge is not None and huge.low is not None and huge.low > 100


def test_seeds_needed_with_a_part_that_seeds_do_not_lessen() -> None:
    plain, more = power.seeds_needed(0.01, 0.02), power.seeds_needed(0.01, 0.02, added=0.004)
    assert plain is not None and more is not None and more > plain
    sd = (0.01**2 + more * 0.004**2) ** 0.5
    assert (power.power_at(sd / more**0.5, more - 1, 0.02) or 0) >= 0.8
    assert power.seeds_needed(0.01, 0.02, added=0.02) is None
    assert power.seeds_needed(0.0, 0.02) is None


def test_comparisons_carry_effects_power_and_seeds_needed(store: Store) -> None:
    from analysis import comparisons

    rows = [r for r in comparisons(store).to_pylist() if r["power"] is not None]
    assert rows
    for r in rows:
        assert r["effect_low"] <= r["effect"] <= r["effect_high"]
        assert (r["effect_low"] > 0) == (r["low"] > 0)  # the same test, inverted
        assert (r["seeds_needed"] <= r["n"]) == (r["power"] >= 0.8)
