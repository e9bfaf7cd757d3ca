"""Groups that tests do not tell apart, effect sizes, and the seeds that a difference needs."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from analysis import Store, conclusion, open_store
from analysis.findings.decisions.numbers import decisions
from analysis.findings.groups import conclude_groups, groups_say
from analysis.verdict.comparisons import comparisons
from analysis.verdict.groups import groups, letter_groups
from tests.analysis.odd import Cells, odd_results
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


@pytest.mark.parametrize("n", [27, 37, 60])
def test_more_groups_than_letters_share_none_by_their_names(n: int) -> None:
    """Beyond z the 27th was 'aa', glued to others' names: it shared an 'a' with the best, from which it is apart."""
    apart = {(i, j) for i, j in combinations(range(n), 2) if j - i > 1}
    letters = letter_groups(n, apart)
    assert letters[0] == "a" and letters[1] == "ab"
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


def test_groups_say_what_the_comparisons_say(tmp_path: Path) -> None:
    """One page, one answer: two methods share no letter exactly where the table calls one higher."""
    apart = same = 0
    for seed in range(4):
        store = open_store(make_results(tmp_path / str(seed), seeds=4, noise=0.02, seed=seed))
        letters = {(r["reference"], r["method"]): set(r["group"]) for r in groups(store).to_pylist()}
        for r in comparisons(store).to_pylist():
            if r["reference"] is not None:
                shared = letters[r["reference"], r["method"]] & letters[r["reference"], "lora"]
                assert bool(shared) == (r["verdict"] not in ("higher", "lower"))
                apart, same = apart + (not shared), same + bool(shared)
    assert apart and same


def test_comparisons_carry_effects_power_and_seeds_needed(store: Store) -> None:
    from analysis import comparisons

    rows = [r for r in comparisons(store).to_pylist() if r["power"] is not None]
    assert rows
    for r in rows:
        assert r["effect_low"] <= r["effect"] <= r["effect_high"]
        assert (r["effect_low"] > 0) == (r["p_given_rates"] < 0.05)  # the same test, inverted
        assert (r["seeds_needed"] is not None and r["seeds_needed"] <= r["n"]) == (r["power"] >= 0.8)


def test_an_unlucky_seed_that_one_method_lacks_puts_it_on_no_top(tmp_path: Path) -> None:
    """LoRA's worst seed failed: its own mean is ahead, and it is behind on the seeds that both have."""
    lora = {0: 0.70, 1: 0.71, 2: 0.69, 3: 0.70}
    rand = {s: v + 0.01 + 0.0001 * s for s, v in lora.items()}
    cells: Cells = {("lora", "lora-1", "d"): {**lora, 4: None}, ("randlora", "lora-1", "d"): {**rand, 4: 0.60}}
    store = open_store(odd_results(tmp_path / "lucky", cells, seeds=5, tune=(0.6,)))
    first, second = groups(store).to_pylist()
    assert (first["method"], first["group"], second["group"]) == ("randlora", "a", "b")
    assert first["mean"] < second["mean"]
    (row,) = decisions(store).to_pylist()
    assert (row["best"], row["verdict"]) == (["randlora"], "higher") and "RandLoRA scores higher" in conclusion(store)
    others: Cells = {("vera", "lora-1", "d"): {9: 0.5}}  # no seed in common with it, so own means order all
    store = open_store(odd_results(tmp_path / "apart", cells | others, seeds=5, tune=(0.6,)))
    assert {r["method"]: r["group"] for r in groups(store).to_pylist()} == {"lora": "b", "randlora": "a", "vera": "ab"}
    (row,) = decisions(store).to_pylist()  # what a test puts behind is no best
    assert (row["method"], row["best"]) == ("randlora", ["randlora", "vera"])


LUCK = (0.0, 0.004, -0.004, 0.002, 0.03, 0.034, 0.026, 0.03)
"""Of eight seeds; the first four are the unlucky ones."""


def test_a_method_of_half_the_seeds_is_judged_by_those(tmp_path: Path) -> None:
    """RandLoRA is a point above LoRA on each of its four seeds, and below it in means over all that each has."""
    rng, cells = np.random.default_rng(1), Cells()
    for dataset in "abcdef":
        for method, lead, n in (("lora", 0.0, 8), ("vera", -0.002, 8), ("randlora", 0.01, 4)):
            scores = {s: 0.6 + lead + LUCK[s] + 0.0005 * float(rng.choice([-1, 1])) for s in range(n)}
            cells[method, "lora-1", dataset] = dict(scores)
    store = open_store(odd_results(tmp_path / "half", cells, seeds=8, tune=(), seed_rule="per-data-set"))
    against = [r for r in comparisons(store).to_pylist() if r["dataset"] and r["method"] == "randlora"]
    assert [r["verdict"] for r in against] == ["higher"] * 6
    table = groups(store).to_pylist()
    assert all(r["group"] == "a" for r in table if r["method"] == "randlora")
    assert not any("a" in r["group"] for r in table if r["method"] == "lora")
    assert "LoRA is above" not in conclude_groups(table).replace("RandLoRA is above", "")
    chosen = decisions(store).to_pylist()
    assert {r["method"] for r in chosen} == {"randlora"} and len(chosen) == 6
    counts = {c["cell_id"]: c["count"] for c in store.table("cells").to_pylist() if c["method"] == "randlora"}
    assert {r["adapter_params"] for r in chosen} == set(counts.values())
    assert groups_say(store)[0].startswith("Preliminary, 4 of 8 seeds: ")
