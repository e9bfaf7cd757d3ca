"""Several data sets: one standard error within them, by the rule that their seeds allow; and data sets like these."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis import Store, conclusion, open_store
from analysis.findings.comparisons.sheet import comparisons_sheet
from analysis.findings.full_fine_tuning import conclude_gap
from analysis.findings.scaling.numbers import curve
from analysis.findings.seeds import seeds_sheet
from analysis.verdict.comparisons import comparisons
from analysis.verdict.correction import holm_steps
from analysis.verdict.datasets import over_datasets
from analysis.verdict.inference import OVER_DATASETS, OVER_SEEDS, WELCH, stratified_difference, two_sided
from analysis.verdict.power import seeds_needed
from tests.analysis.odd import Cells, odd_results

Row = dict[str, Any]
DATASETS, SEEDS = 8, 3


def made(folder: Path, gain: Callable[[int, int], float], *, own_seeds: bool, sets: int = DATASETS) -> Store:
    """RandLoRA `gain(data set, seed)` above LoRA; seeds derived for each data set, or the same on all; no search."""
    cells: Cells = {}
    for d in range(sets):
        cells["lora", "lora-1", f"set-{d}"] = dict.fromkeys(range(SEEDS), 0.5)
        cells["randlora", "lora-1", f"set-{d}"] = {s: 0.5 + gain(d, s) for s in range(SEEDS)}
    return open_store(odd_results(folder, cells, tune=(), seed_rule="per-data-set" if own_seeds else None))


def over_all(store: Store) -> dict[str, Row]:
    return {r["test"]: r for r in comparisons(store).to_pylist() if r["reference"] is None}


def test_welch_satterthwaite_within_data_sets_by_hand() -> None:
    blocks = [[0.03, 0.01, 0.02], [0.02, -0.01], [0.05, 0.06, 0.055, 0.07]]
    found = stratified_difference(blocks)
    own = np.array([np.var(b, ddof=1) / len(b) / 9 for b in blocks])
    freedom = own.sum() ** 2 / (own**2 / np.array([2, 1, 3])).sum()
    assert found.mean == pytest.approx(np.mean([np.mean(b) for b in blocks]))
    assert (found.error, found.freedom) == pytest.approx((own.sum() ** 0.5, freedom))
    assert found.p == pytest.approx(2 * scipy_stats.t.sf(found.mean / own.sum() ** 0.5, freedom))
    half = scipy_stats.t.isf(0.025, freedom) * own.sum() ** 0.5
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half))
    assert (found.n, found.pairs, found.test) == (9, (3, 2, 4), WELCH)
    with pytest.raises(ValueError, match="got none"):
        stratified_difference([[], []])


def test_a_data_set_with_one_pair_has_the_others_spread() -> None:
    found = stratified_difference([[0.02], [0.03, 0.01], [0.02, 0.03, 0.01]])
    own, pooled = 0.0002 / 2 + 0.0001 / 3, (0.0002 + 0.0002) / 3
    assert sum(found.variances) == pytest.approx((own + pooled) / 9)
    assert found.freedoms == (1.0, 2.0) and found.freedom <= 3.0  # the spread is theirs: it is not counted twice
    alone = stratified_difference([[0.02], [0.03], [0.02]])
    assert (alone.p, alone.low, alone.high, alone.sd) == (None, None, None, None)


@pytest.mark.parametrize("pairs", [(2, 1), (2, 1, 1), (3, 1, 1, 1)])
def test_data_sets_with_one_pair_make_no_false_difference(pairs: tuple[int, ...]) -> None:
    """The pooled spread counted as a further estimate: false in 13, 18 and 14 of 100 tables."""
    rng, tables = np.random.default_rng(0), 1000
    found = [stratified_difference([rng.normal(size=n) for n in pairs]).p for _ in range(tables)]
    assert sum(p is not None and p <= 0.05 for p in found) <= scipy_stats.binom.ppf(0.999, tables, 0.05)


def test_the_seeds_needed_where_a_data_set_has_one_pair_are_those_of_the_pooled_spread() -> None:
    short = stratified_difference([[0.02], [0.03, 0.01, 0.02], [0.01, 0.0, -0.01]])
    whole = stratified_difference([[0.03, 0.01, 0.02]] * 3)
    assert short.sd == pytest.approx(whole.sd)
    assert seeds_needed(short, 0.02) == seeds_needed(whole, 0.02)


def drawn(effects: float, common: float, tables: int = 1500) -> np.ndarray:
    """Differences (tables, data sets, seeds): effects that differ between data sets, seeds' luck in common."""
    rng = np.random.default_rng(0)
    own, alike = rng.normal(size=(tables, DATASETS, SEEDS)), rng.normal(size=(tables, 1, SEEDS))
    spread = rng.normal(size=(tables, DATASETS, 1))
    spread -= spread.mean(axis=1, keepdims=True)  # of these data sets, whose mean is the question
    return np.asarray(np.sqrt(1 - common) * own + np.sqrt(common) * alike + effects * spread)


def p_within(x: np.ndarray) -> np.ndarray:
    variances = x.var(axis=-1, ddof=1) / SEEDS / DATASETS**2
    return two_sided(x.mean(axis=(1, 2)), variances, np.full(DATASETS, SEEDS - 1.0))


@pytest.mark.parametrize("effects", [0.0, 2.0])
def test_effects_that_differ_between_data_sets_hide_nothing(effects: float) -> None:
    """A sign flip of the raw differences found 0.6 sd in 5 of 100 tables where effects vary by 2 sd."""
    same = drawn(effects, 0.0)
    assert (p_within(same) <= 0.05).mean() <= 0.055
    assert (p_within(same + 0.6) <= 0.05).mean() > 0.7


def test_shared_seeds_are_averaged_first() -> None:
    """Within data sets the test would be too sure of luck that a seed brings to all of them."""
    shared = drawn(0.0, 0.2)
    assert (p_within(shared) <= 0.05).mean() > 0.1
    by_seed = shared.mean(axis=1)
    p = two_sided(by_seed.mean(axis=-1), by_seed.var(axis=-1, ddof=1)[:, None] / SEEDS, [SEEDS - 1.0])
    assert 0.03 < (p <= 0.05).mean() < 0.07
    blocks = [{s: float(shared[0, d, s]) for s in range(SEEDS)} for d in range(DATASETS)]
    found = over_datasets(blocks, shared=True)
    assert found is not None and found.test == OVER_SEEDS and found.p == pytest.approx(p[0])


def test_p_and_interval_of_a_row_agree(tmp_path: Path) -> None:
    """They were of two questions: the interval excluded zero where p said 1."""
    rng = np.random.default_rng(3)
    store = made(tmp_path / "a", lambda d, s: 0.003 + 0.02 * (d - 3.5) + rng.normal(0, 0.002), own_seeds=True)
    rows = over_all(store)
    assert set(rows) == {WELCH, OVER_DATASETS}
    these, like = rows[WELCH], rows[OVER_DATASETS]
    assert these["verdict"] == "higher" and these["low"] > 0 and these["p"] < 0.01
    assert like["verdict"] == "not distinguishable" and like["low"] < 0 < like["high"]  # data sets differ by 5 points
    assert like["difference"] == pytest.approx(these["difference"]) and (like["n"], like["datasets"]) == (8, 1)
    said = conclusion(store)
    assert ": +0.3 points [" in said and "on average over 8 data sets" in said  # there is one budget
    assert "Other data sets of this kind were not tested. For these the mean difference is +0.3 points [" in said
    assert WELCH in comparisons_sheet(store).note
    named = [{cell for row in sheet(store).cells for cell in row} for sheet in (comparisons_sheet, seeds_sheet)]
    assert "mean of 1 budget, for other data sets" in named[0] and all("mean of 1 budget" in cells for cells in named)
    table = comparisons_sheet(store)
    column = [c.head for c in table.columns].index("seeds")
    assert [row[column] for row in table.cells][-2:] == ["3", "8 data sets"]


def test_shared_seeds_say_nothing_of_data_sets_like_these(tmp_path: Path) -> None:
    store = made(tmp_path / "old", lambda d, s: 0.02 + 0.002 * s + 0.001 * d, own_seeds=False)
    rows = over_all(store)
    assert set(rows) == {OVER_SEEDS, OVER_DATASETS}
    assert rows[OVER_SEEDS]["verdict"] == "higher" and rows[OVER_SEEDS]["n"] == SEEDS
    assert rows[OVER_DATASETS]["verdict"] == "not testable" and rows[OVER_DATASETS]["low"] is None
    assert "like these" not in conclusion(store)
    mean = next(r for r in curve(store).to_pylist() if r["dataset"] is None and r["method"] == "randlora")
    own = next(
        r
        for r in curve(made(tmp_path / "new", lambda d, s: 0.02 + 0.002 * s, own_seeds=True)).to_pylist()
        if r["dataset"] is None and r["method"] == "randlora"
    )
    assert (mean["n"], own["n"], mean["n_datasets"]) == (3, 3, 8)
    assert own["high"] - own["low"] < (mean["high"] - mean["low"]) / 2  # 24 draws of luck, not 3


def test_a_mean_over_data_sets_is_of_the_budgets_and_seeds_that_all_have(tmp_path: Path) -> None:
    """Another budget of one of them moves it by what the budget does; so does leaving one of them out."""
    cells: Cells = {("lora", f"lora-{r}", d): dict.fromkeys(range(SEEDS), 0.5) for r in (1, 4) for d in "ab"}
    cells |= {("randlora", "lora-1", d): {s: 0.51 + 0.001 * s for s in range(SEEDS)} for d in "ab"}
    cells["randlora", "lora-4", "a"] = {s: 0.7 + 0.001 * s for s in range(SEEDS)}
    rows = over_all(open_store(odd_results(tmp_path / "budget", cells, tune=(), seed_rule="per-data-set")))
    assert [r["difference"] for r in rows.values()] == pytest.approx([0.011, 0.011])
    cells["randlora", "lora-1", "b"] = {SEEDS: 0.51}
    store = open_store(odd_results(tmp_path / "seeds", cells, tune=(), seed_rule="per-data-set"))
    assert over_all(store) == {} and "averaged" not in conclusion(store)


def test_the_mean_over_data_sets_against_full_fine_tuning_is_in_its_family(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    scores = {name: rng.normal(0.7, 0.01, size=5) for name in ("lora a", "lora b", "vera a", "full a", "full b")}
    scores["full a"] += 0.05
    scores["full b"] += 0.05
    cells: Cells = {
        (name[:4], None if name[:4] == "full" else "lora-1", name[-1]): dict(enumerate(values))
        for name, values in scores.items()
    }
    store = open_store(odd_results(tmp_path / "r", cells, tune=(), seeds=5, seed_rule="per-data-set"))
    table = comparisons(store, baseline="full")
    rows = {(r["dataset"], r["method"]): r for r in table.to_pylist()}
    assert rows.keys() == {("a", "lora"), ("b", "lora"), ("a", "vera"), (None, "lora")}  # VeRA has none on b
    by_hand = stratified_difference([scores[f"lora {d}"] - scores[f"full {d}"] for d in "ab"])
    mean = rows[None, "lora"]
    seen = (mean["difference"], mean["p"], mean["low_pointwise"])
    assert seen == pytest.approx((by_hand.mean, by_hand.p, by_hand.low))
    assert (mean["test"], mean["n_datasets"], mean["reference"], mean["verdict"]) == (WELCH, 2, "lora-1", "lower")
    assert table["p_holm"].to_pylist() == pytest.approx([s.adjusted for s in holm_steps(table["p"].to_pylist())])
    said = conclude_gap(table)
    assert said is not None and said.startswith("Against full fine-tuning, in the mean over 2 data sets, each at its")
    assert ["mean of 2 data sets", "LoRA", "lora-1"] in [row[:3] for row in comparisons_sheet(store, "full").cells]


@pytest.mark.parametrize("blocks", [[{}, {}], [{}, {(0, 0, 0): 0.1, (1, 0, 0): 0.2}]])
def test_a_data_set_without_a_common_seed_leaves_no_mean(blocks: list[dict[tuple[int, int, int], float]]) -> None:
    assert over_datasets(blocks, shared=False) is None


@pytest.mark.parametrize("rule", [None, "per-data-set"])
def test_one_seed_on_many_data_sets_is_no_test(tmp_path: Path, rule: str | None) -> None:
    """What that one seed does to a method everywhere (its bases, say) would pass for a difference."""
    names = [f"set-{i}" for i in range(8)]
    cells: Cells = {("lora", "lora-1", d): {0: 0.7 + 0.01 * i} for i, d in enumerate(names)}
    cells |= {("randlora", "lora-1", d): {0: 0.72 + 0.011 * i} for i, d in enumerate(names)}
    store = open_store(odd_results(tmp_path / "many", cells, tune=(), seeds=1, seed_rule=rule))
    assert over_all(store).keys() == {WELCH if rule else OVER_SEEDS, OVER_DATASETS}
    assert {(r["p"], r["verdict"]) for r in over_all(store).values()} == {(None, "not testable")}
    assert "only one seed" in conclusion(store) and "like these" not in conclusion(store)
