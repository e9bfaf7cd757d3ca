"""The numbers of the curve, the comparisons and the sentence they allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats as scipy_stats

from analysis import Store, open_store
from analysis.statistics import scaling, tuning
from analysis.statistics.inference import expected_best
from analysis.words import conclusions
from tests.analysis.synthetic import PLAN, make_results

ONE = {"randlora": ("lora-4",), "lora": ("lora-4",)}


def rows_of(table: pa.Table, **wanted: Any) -> list[dict[str, Any]]:
    return [r for r in table.to_pylist() if all(r[k] == v for k, v in wanted.items())]


def fake(*differences: tuple[float, str], n: int = 3, ratio: float = 1.0, **more: Any) -> pa.Table:
    """RandLoRA against LoRA as given: (difference, verdict) at lora-1, lora-2, ..."""
    base = {"sweep": "s", "model": "m", "dataset": "d", "train_size": "1.0", "method": "randlora", "baseline": "lora"}
    rows = [
        {**base, "reference": f"lora-{2**i}", "budget": 2**i, "n": n, "difference": d, "low": d - 0.01,
         "high": d + 0.01, "params_ratio": ratio, "verdict": v, "power": 0.3, **more}
        for i, (d, v) in enumerate(differences)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=scaling.COMPARISONS)


def test_curve_is_the_view_scaling(store: Store) -> None:
    curve = scaling.curve(store)
    view = {(r["method"], r["reference"]): r for r in store.table("scaling").to_pylist()}
    assert curve.num_rows == len(view) == 15
    for r in curve.to_pylist():
        want = view[r["method"], r["reference"]]
        assert (r["mean"], r["n"], r["adapter_params"]) == (
            pytest.approx(want["mean"]),
            want["n"],
            want["adapter_params"],
        )
        assert r["low"] == (None if want["low"] is None else pytest.approx(want["low"]))
        assert r["kind"] == ("line" if r["budget"] is None else "curve")
    assert {r["method"] for r in rows_of(curve, kind="line")} == {"full", "zero-shot"}


def test_mean_over_data_sets_is_over_seeds(wide: Store) -> None:
    curve = scaling.curve(wide)
    mean = rows_of(curve, dataset=None, method="lora", reference="lora-4")[0]
    query = """select data_seed, avg(test_score) as s from confirmed
               where method = 'lora' and reference = 'lora-4' group by all order by data_seed"""
    per_seed = wide.sql(query).column("s").to_pylist()
    assert mean["n_datasets"] == 2
    assert mean["n"] == 3
    assert mean["mean"] == pytest.approx(np.mean(per_seed))
    low, _ = scipy_stats.t.interval(0.95, 2, loc=np.mean(per_seed), scale=scipy_stats.sem(per_seed))
    assert mean["low"] == pytest.approx(low)


def test_comparisons_are_paired_by_seed_and_one_family(store: Store) -> None:
    compared = scaling.comparisons(store)
    assert not rows_of(compared, method="lora")
    assert len(rows_of(compared, method="randlora")) == 6  # five budgets and their mean
    row = rows_of(compared, method="randlora", reference="lora-8")[0]
    scores = {
        m: store.sql(
            f"select test_score from confirmed where method = '{m}' and reference = 'lora-8' order by data_seed"
        )
        .column(0)
        .to_pylist()
        for m in ("randlora", "lora")
    }
    assert row["p"] == pytest.approx(scipy_stats.ttest_rel(scores["randlora"], scores["lora"]).pvalue)
    assert row["params_ratio"] == pytest.approx((98_304 + 776) / 98_304)
    p = sorted(r["p"] for r in compared.to_pylist())
    smallest = min(compared.to_pylist(), key=lambda r: r["p"])
    assert smallest["p_holm"] == pytest.approx(p[0] * len(p))
    assert 0 < row["power"] <= 1


def test_overall_row_is_the_mean_of_the_budgets(store: Store, wide: Store) -> None:
    compared = scaling.comparisons(store)
    cells = [r for r in rows_of(compared, method="randlora") if r["reference"]]
    overall = rows_of(compared, method="randlora", reference=None)[0]
    assert overall["difference"] == pytest.approx(np.mean([r["difference"] for r in cells]))
    assert overall["dataset"] == "embedded:fashion"
    several = rows_of(scaling.comparisons(wide), method="randlora", reference=None)
    assert len(several) == 1
    assert several[0]["dataset"] is None
    assert several[0]["test"] == "paired t"  # six sign flips cannot reach 5 % in this family


def test_many_blocks_are_permuted(tmp_path: Path) -> None:
    names = [f"set-{i}" for i in range(5)]
    store = open_store(make_results(tmp_path / "many", datasets=names, plan={**ONE, "randlora": ("lora-4",)}))
    overall = rows_of(scaling.comparisons(store), reference=None)[0]
    assert overall["test"] == "sign-flip permutation"
    assert overall["n"] == 15
    assert 0 < overall["power"] <= 1
    assert overall["low"] < overall["difference"] < overall["high"]


def test_gap_to_full_fine_tuning(store: Store) -> None:
    gaps = scaling.comparisons(store, baseline="full")
    assert {r["method"] for r in gaps.to_pylist()} == {"lora", "randlora", "vera", "nola"}
    assert all(r["params_ratio"] is None and r["reference"] for r in gaps.to_pylist())
    said = conclusions.conclude_gap(gaps)
    assert said is not None
    assert "LoRA (lora-16)" in said
    assert conclusions.conclude_gap(scaling.comparisons(store, baseline="absent")) is None


def test_sentence_of_a_win(store: Store, wide: Store) -> None:
    said = conclusions.conclude(scaling.comparisons(store))
    assert said.startswith("At equal trainable parameters RandLoRA scores higher than LoRA at all 5 budgets")
    assert "averaged over budgets" in said
    assert "all 10 budgets and data sets" in conclusions.conclude(scaling.comparisons(wide))


def test_sentences_are_no_stronger_than_the_verdicts() -> None:
    same = "not distinguishable"
    some = conclusions.conclude(fake((0.02, "higher"), (0.001, same), (0.0, same)))
    assert "higher than LoRA at 1 of 3 budgets (lora-1: +2.0 points [+1.0, +3.0])" in some
    assert "not distinguishable from it at the other 2" in some
    none = conclusions.conclude(fake((0.02, same), (-0.01, same)))
    assert none.startswith("RandLoRA does not win here")
    assert "at any of the 2 budgets (differences −1.0 to +2.0 points" in none
    assert "would be found 30 % of the time" in none
    mixed = conclusions.conclude(fake((0.02, "higher"), (-0.03, "lower"), (0.0, same)))
    assert mixed.startswith(
        "There is no one answer here: at equal trainable parameters RandLoRA scores higher than LoRA at 1"
    )
    assert "lower at 1 (lora-2: −3.0" in mixed
    assert "(lora-1: +2.0" in mixed and "not distinguishable at the other 1 (paired" in mixed
    table = fake((0.02, same), (0.03, same)).to_pylist()
    whole = [r | {"reference": None, "verdict": "higher"} for r in table]
    one = conclusions.conclude(pa.Table.from_pylist([*table, whole[0]], schema=scaling.COMPARISONS))
    assert one.startswith("No single comparison decides") and "does not win" not in one and ": higher (paired" in one
    two = conclusions.conclude(pa.Table.from_pylist([*table, *whole], schema=scaling.COMPARISONS))
    assert "averaged over budgets, at 2 sizes, models or sweeps: higher at 2 (+2.0 to +3.0 points)" in two
    worse = conclusions.conclude(fake((-0.02, "lower"), (-0.03, "lower")))
    assert "lower than LoRA at all 2 budgets" in worse
    one = conclusions.conclude(fake((0.02, same)))
    assert "at the one budget compared" in one
    for text in (some, none, mixed, worse, one):
        assert "Holm-corrected" in text
        assert text.endswith(".")
        assert "\n" not in text


def test_sentence_when_nothing_can_be_said(empty: Store) -> None:
    assert conclusions.conclude(scaling.comparisons(empty)).startswith("No conclusion")
    single = conclusions.conclude(fake((0.02, "not testable"), n=1))
    assert "only one seed" in single
    assert "no spread" in conclusions.conclude(fake((0.02, "not testable"), n=3))


def test_sentence_points_out_unequal_counts() -> None:
    assert "counts differ by up to 24.9 %" in conclusions.conclude(fake((0.02, "higher"), ratio=0.751))
    assert "counts differ" not in conclusions.conclude(fake((0.02, "higher"), ratio=1.01))


def test_sentence_points_out_rates_at_the_edge(store: Store) -> None:
    said = conclusions.conclude(fake((-0.1, "lower"), (0.0, "not distinguishable"), edge="method"))
    assert "perhaps under-tuned, its rate being the end of the range: RandLoRA at 2 of 2)." in said
    assert "LoRA at 1 of 5" in conclusions.conclude(scaling.comparisons(store))  # lora-4, planted in the fixture
    assert [r["edge"] for r in rows_of(scaling.comparisons(store), reference="lora-4")] == ["baseline", "baseline"]


def test_one_seed_gives_means_without_intervals(tmp_path: Path) -> None:
    store = open_store(make_results(tmp_path / "one", seeds=1, plan=ONE))
    assert all(r["low"] is None for r in scaling.curve(store).to_pylist())
    row = scaling.comparisons(store).to_pylist()[0]
    assert (row["p"], row["verdict"], row["power"]) == (None, "not testable", None)


def test_a_method_against_itself_in_whole_stores(tmp_path: Path) -> None:
    """One method under two names, each tuned for itself: of five tables at most one says that they differ."""
    plan = dict.fromkeys(("left", "right"), ("lora-1", "lora-4", "lora-8"))
    false = 0
    for seed in range(5):
        folder = make_results(tmp_path / str(seed), plan=plan, seeds=4, seed=seed)
        table = scaling.comparisons(open_store(folder), baseline="left", focus="right")
        assert table.num_rows == 4  # three budgets and their mean
        false += any(r["verdict"] != "not distinguishable" for r in table.to_pylist())
    assert false <= 1


def test_rates_and_best_of_n(store: Store) -> None:
    rates = rows_of(tuning.rates(store), method="lora", reference="lora-8")
    assert [r["n"] for r in rates] == [1, 2, 2, 1]
    assert [r["chosen"] for r in rates] == [False, False, True, False]
    best = rows_of(tuning.best_of_n(store), method="lora", reference="lora-8")
    assert [r["expected"] for r in best] == pytest.approx(expected_best([r["mean_val"] for r in rates]))
    failed = [r for r in tuning.rates(store).to_pylist() if r["failed"]]
    assert len(failed) == 1
    assert failed[0]["mean_val"] is None


def test_plan_of_the_fixture_covers_what_a_sweep_has() -> None:
    assert set(PLAN) == {"randlora", "lora", "vera", "nola", "full", "zero-shot"}
