"""The numbers of the curve, the comparisons and the sentence they allow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats as scipy_stats

from analysis import Store, open_store
from analysis.errors import StoreError
from analysis.findings.answer.words import conclude
from analysis.findings.comparisons.sheet import comparisons_sheet
from analysis.findings.full_fine_tuning import conclude_gap
from analysis.findings.parity.words import looks_says
from analysis.findings.scaling.numbers import curve as scaling_curve
from analysis.findings.tuning.numbers import best_of_n, expected_best
from analysis.findings.tuning.numbers import rates as tuning_rates
from analysis.verdict.comparisons import COMPARISONS, comparisons
from analysis.verdict.correction import holm_steps
from analysis.verdict.inference import OVER_DATASETS, OVER_SEEDS, T_TEST
from analysis.verdict.looks import looks
from analysis.verdict.question import Question, question
from analysis.verdict.verdicts import TESTED_VERDICTS
from tests.analysis.odd import Cells, odd_results
from tests.analysis.synthetic import PLAN, make_results

ONE = {"randlora": ("lora-4",), "lora": ("lora-4",)}


def rows_of(table: pa.Table, **wanted: Any) -> list[dict[str, Any]]:
    return [r for r in table.to_pylist() if all(r[k] == v for k, v in wanted.items())]


def fake(*differences: tuple[float, str], n: int = 3, ratio: float = 1.0, **more: Any) -> pa.Table:
    """RandLoRA against LoRA as given: (difference, verdict) at lora-1, lora-2, ..."""
    base = {"sweep": "s", "model": "m", "dataset": "d", "train_size": "1.0", "method": "randlora", "baseline": "lora"}
    rows = [
        {**base, "reference": f"lora-{2**i}", "budget": 2**i, "n": n, "difference": d, "low": d - 0.01,
         "high": d + 0.01, "params_ratio": ratio, "verdict": v, "verdict_given_rates": v, "power": 0.3, **more}
        for i, (d, v) in enumerate(differences)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=COMPARISONS)


def test_curve_is_the_view_scaling(store: Store) -> None:
    curve = scaling_curve(store)
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
    curve = scaling_curve(wide)
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
    comparisons_sheet = comparisons(store)
    assert not rows_of(comparisons_sheet, method="lora")
    assert len(rows_of(comparisons_sheet, method="randlora")) == 6  # five budgets and their mean
    row = rows_of(comparisons_sheet, method="randlora", reference="lora-8")[0]
    scores = {
        m: store.sql(
            f"select test_score from confirmed where method = '{m}' and reference = 'lora-8' order by data_seed"
        )
        .column(0)
        .to_pylist()
        for m in ("randlora", "lora")
    }
    wanted = scipy_stats.ttest_rel(scores["randlora"], scores["lora"]).pvalue
    assert row["p_given_rates"] == pytest.approx(wanted) and row["p"] >= row["p_given_rates"]
    assert row["params_ratio"] == pytest.approx((98_304 + 776) / 98_304)
    mine = rows_of(comparisons_sheet, method="randlora")
    (overall,) = (r for r in mine if r["reference"] is None)
    wanted_steps = holm_steps([r["p"] for r in mine], [1.0] * 5 + [5.0])
    assert mine[-1] is overall and overall["alpha"] == pytest.approx(0.05 / 2)  # half of the level
    assert [r["p_holm"] for r in mine] == pytest.approx([s.adjusted for s in wanted_steps])
    others = [r for r in comparisons_sheet.to_pylist() if r["method"] != "randlora"]
    assert [r["p_holm"] for r in others] == pytest.approx([s.adjusted for s in holm_steps([r["p"] for r in others])])
    assert all(r["alpha"] == pytest.approx(0.05 / 10) for r in mine if r["reference"])
    assert 0 < row["power"] <= 1


def test_budgets_that_differ_in_sign_are_called_though_their_mean_is_not(tmp_path: Path) -> None:
    """A gate of the mean kept them silent, beside curves that crossed in every draw."""
    seeds = range(5)
    cells: Cells = {("lora", f"lora-{r}", "a"): {s: 0.5 + 0.001 * s for s in seeds} for r in (1, 4)}
    gains = {1: 0.05, 4: -0.05}
    for r, gain in gains.items():
        cells["randlora", f"lora-{r}", "a"] = {s: 0.5 + gain + 0.001 * (s % 2) + 0.001 * s for s in seeds}
    table = comparisons(open_store(odd_results(tmp_path / "crossing", cells, tune=()))).to_pylist()
    assert [r["verdict"] for r in table] == ["higher", "lower", "not distinguishable"]
    said = said_of(pa.Table.from_pylist(table, schema=COMPARISONS))
    assert "higher at LoRA-1" in said and "lower at LoRA-4" in said


def test_the_pair_in_question_has_one_verdict_whichever_is_the_baseline(tmp_path: Path) -> None:
    """Turned round it keeps its family: the same p, the other sign, also of the mean over budgets."""
    plan = dict.fromkeys(("randlora", "lora", "nola"), ("lora-1", "lora-4"))
    store = open_store(make_results(tmp_path / "turned", plan=plan, advantage=0.01))
    there = rows_of(comparisons(store), method="randlora")
    back = rows_of(comparisons(store, "randlora"), method="lora")
    assert [r["reference"] for r in back] == [r["reference"] for r in there] == ["lora-1", "lora-4", None]
    for key, sign in (("p_holm", 1), ("alpha", 1), ("difference", -1)):
        assert [r[key] for r in back] == pytest.approx([sign * r[key] for r in there])
    turned = {"higher": "lower", "lower": "higher"}
    assert [turned.get(r["verdict"], r["verdict"]) for r in back] == [r["verdict"] for r in there]


def test_every_method_in_question_has_its_mean_and_all_rows_share_one_level(tmp_path: Path) -> None:
    plan = dict.fromkeys(("lora", "randlora", "vera", "nola"), ("lora-1", "lora-4"))
    folder = make_results(tmp_path / "every", plan=plan, seeds=5, advantage=0.05)
    said = {"ev": "declare", "name": "every", "seeds": [*range(5)], "max_seeds": 5, "margin": 0.5, "scored": 0}
    with (folder / "journal.jsonl").open("a") as journal:
        journal.write(json.dumps(said | {"question": "all"}) + "\n")
    store = open_store(folder)
    assert question(store) == Question(None, "lora", every=True)
    table = comparisons(store)
    tested = [r for r in table.to_pylist() if r["p"] is not None]
    means = [r for r in tested if r["reference"] is None and r["test"] != OVER_DATASETS]
    assert {r["method"] for r in means} == {"randlora", "vera", "nola"}
    others = [r for r in tested if r not in means]
    assert [r["alpha"] for r in means] == pytest.approx([0.05 / 2 / 3] * 3)
    assert [r["alpha"] for r in others] == pytest.approx([0.05 / 2 / len(others)] * len(others))
    answer = str(conclude(table, asked=question(store)))
    assert "on average over the 2 budgets" in answer and "The single budgets:" in answer
    assert "averages over budgets" in answer


def test_looks_share_the_level(tmp_path: Path) -> None:
    """What the report says of looks holds of the verdicts: the first without a maximum has four fifths of 5 %."""
    cells: Cells = {("lora", "lora-1", "a"): {0: 0.5, 1: 0.51}, ("randlora", "lora-1", "a"): {0: 0.52, 1: 0.534}}
    folder = odd_results(tmp_path / "looks", cells, tune=())
    (before,) = comparisons(open_store(folder)).to_pylist()
    said = {"ev": "declare", "name": "looks", "seeds": [0, 1], "max_seeds": None, "margin": None, "scored": 0}
    with (folder / "journal.jsonl").open("a") as journal:
        journal.write(json.dumps(said) + "\n")
    (after,) = comparisons(open_store(folder)).to_pylist()
    assert (after["p"], after["p_holm"]) == pytest.approx((before["p"], 1.25 * before["p_holm"]))
    assert after["alpha"] == pytest.approx(0.8 * before["alpha"])


def test_the_question_is_the_declared_one(tmp_path: Path) -> None:
    cells: Cells = {(m, "lora-1", "a"): {0: 0.5, 1: 0.51, 2: 0.52} for m in ("lora", "randlora", "vera", "nola")}
    folder = odd_results(tmp_path / "asked", cells, tune=())
    assert question(open_store(folder)) == Question("randlora", "lora")
    said = {"ev": "declare", "name": "asked", "seeds": [0, 1, 2], "max_seeds": 3, "margin": None, "scored": 0}
    for asked, scored in (("vera", 0), ("lora", 9)):  # the second one comes after scores
        with (folder / "journal.jsonl").open("a") as journal:
            journal.write(json.dumps(said | {"question": asked, "scored": scored}) + "\n")
        store = open_store(folder)
        assert question(store) == Question("vera", "lora")
    assert looks(store)["asked"].questions == 1
    assert any("in question was changed 1 time after" in line for line in looks_says(looks(store).values()))


def test_places_are_families_side_by_side(tmp_path: Path) -> None:
    store = open_store(make_results(tmp_path / "sizes", sizes=("4-shot", "1.0"), plan={**ONE, "randlora": ("lora-4",)}))
    assert all(r["alpha"] == pytest.approx(0.025) for r in comparisons(store).to_pylist())  # two rows, no mean
    both = dict.fromkeys(("randlora", "lora"), ("lora-1", "lora-4"))
    store = open_store(make_results(tmp_path / "more", sizes=("4-shot", "1.0"), plan=both))
    for r in comparisons(store).to_pylist():  # two places with a mean and two budgets each
        assert r["alpha"] == pytest.approx(0.0125 if r["reference"] is None else 0.00625)
        assert r["p_holm"] >= r["p"]


def test_equivalence_is_claimed_within_a_margin_named_beforehand(tmp_path: Path) -> None:
    seeds = range(5)
    cells: Cells = {("lora", f"lora-{r}", "a"): {s: 0.5 + 0.01 * s for s in seeds} for r in (1, 4)}
    for r, spread in ((1, 0.001), (4, 0.05)):
        cells["randlora", f"lora-{r}", "a"] = {s: 0.5 + 0.01 * s + spread * (s % 3 - 0.8) for s in seeds}
    folder = odd_results(tmp_path / "margin", cells, tune=())
    silent = comparisons(open_store(folder)).to_pylist()
    assert {r["verdict"] for r in silent} == {"not distinguishable"} and {r["p_equivalent"] for r in silent} == {None}

    def named(margin: object) -> Store:
        (folder / "sweep.json").write_text(json.dumps({"name": "margin", "confirm": {"margin": margin}}))
        return open_store(folder)

    store = named(0.03)
    rows = {r["reference"]: r for r in comparisons(store).to_pylist()}
    assert {k: r["verdict"] for k, r in rows.items()} == {
        "lora-1": "equivalent",
        "lora-4": "not distinguishable",
        None: "not distinguishable",
    }
    given = rows["lora-1"]
    inner = given["error"] * scipy_stats.t.isf(0.05, given["freedom"])
    assert abs(given["difference"]) + inner < 0.03 and given["margin"] == 0.03
    said = said_of(comparisons(store))
    assert "It is equivalent within 3.0 points at LoRA-1 (" in said and "There is no conclusion at LoRA-4 (" in said
    assert "exclude a difference of more than 3.0 points" in comparisons_sheet(store).legend
    for wrong in (0, -0.01, 1, 1.5, "much", True):
        with pytest.raises(StoreError, match=r"confirm.margin is .*; it must be a fraction above 0 and below 1"):
            comparisons(named(wrong))


def test_overall_row_is_the_mean_of_the_budgets(store: Store, wide: Store) -> None:
    comparisons_sheet = comparisons(store)
    cells = [r for r in rows_of(comparisons_sheet, method="randlora") if r["reference"]]
    overall = rows_of(comparisons_sheet, method="randlora", reference=None)[0]
    assert overall["difference"] == pytest.approx(np.mean([r["difference"] for r in cells]))
    assert overall["dataset"] == "embedded:fashion"
    several = rows_of(comparisons(wide), method="randlora", reference=None)
    assert [(r["dataset"], r["test"]) for r in several] == [(None, OVER_SEEDS), (None, OVER_DATASETS)]


def test_gap_to_full_fine_tuning(store: Store) -> None:
    gaps = comparisons(store, baseline="full")
    assert {r["method"] for r in gaps.to_pylist()} == {"lora", "randlora", "vera", "nola"}
    one_family = [s.adjusted for s in holm_steps(gaps["p"].to_pylist())]
    assert gaps["p_holm"].to_pylist() == pytest.approx(one_family)
    assert all(r["params_ratio"] is None and r["reference"] for r in gaps.to_pylist())
    said = conclude_gap(gaps)
    assert said is not None
    assert "LoRA (lora-16)" in said
    assert conclude_gap(comparisons(store, baseline="absent")) is None


def test_sentences_of_two_models_tell_them_apart() -> None:
    rows = fake((0.02, "higher")).to_pylist() + [
        r | {"model": "n"} for r in fake((0.01, TESTED_VERDICTS[-1])).to_pylist()
    ]
    table = pa.Table.from_pylist(rows, schema=COMPARISONS)
    assert "in 1 of 2 comparisons: LoRA-1 with m (1 parameter, +2.0 points" in said_of(table)
    gaps = [r | {"baseline": "full"} for r in rows]
    assert conclude_gap(pa.Table.from_pylist(gaps[:1], schema=COMPARISONS)) is not None
    assert conclude_gap(pa.Table.from_pylist(gaps, schema=COMPARISONS)) is None


def test_sentence_of_a_win(store: Store, wide: Store) -> None:
    said = said_of(comparisons(store))
    assert said.startswith("At equal trainable parameters RandLoRA scores higher than LoRA: +")
    assert "on average over the 5 budgets" in said and "It is higher at all 5 budgets" in said
    assert "higher in all 10 comparisons" in said_of(comparisons(wide))


def said_of(table: pa.Table) -> str:
    return str(conclude(table))


def test_sentences_are_no_stronger_than_the_verdicts() -> None:
    same, low = "not distinguishable", {"detectable": 0.04, "alpha": 0.05}
    some = said_of(fake((0.02, "higher"), (0.001, same), (0.0, same), **low))
    assert "RandLoRA is higher than LoRA at LoRA-1 (1 parameter, +2.0 points [+1.0, +3.0])" in some
    assert "no conclusion at LoRA-2 (2 parameters, +0.1 points" in some and "below 4.0 points" in some
    none = said_of(fake((0.02, same), (-0.01, same), **low))
    assert none.startswith("No conclusion") and "higher" not in none and "3 seeds cannot detect" in none
    mixed = said_of(fake((0.02, "higher"), (-0.03, "lower"), (0.0, same), **low))
    assert mixed.startswith("There is no single answer")
    assert "higher than LoRA at LoRA-1 (1 parameter, +2.0" in mixed and "lower than LoRA at LoRA-2" in mixed
    table = fake((0.02, same), (0.03, same), **low).to_pylist()
    whole = [r | {"reference": None, "verdict": "higher", "test": T_TEST} for r in table]
    one = said_of(pa.Table.from_pylist([*table, whole[0]], schema=COMPARISONS))
    assert "scores higher than LoRA: +2.0 points [+1.0, +3.0] on average over the 2 budgets" in one
    assert "There is no conclusion at LoRA-1" in one and "5 %, half of it for the average over budgets" in one
    two = said_of(pa.Table.from_pylist([*table, *whole], schema=COMPARISONS))
    assert "on average over the 2 budgets, for 2 sizes, models or sweeps: higher at 2 (+2.0 to +3.0 points)" in two
    like = [r | {"test": OVER_DATASETS, "verdict": same} for r in whole]
    sets = [r | {"dataset": None, "n_datasets": 3, "n_budgets": 2, "margin": 0.01} for r in (*whole, *like)]
    sets[0]["verdict"] = "equivalent"
    many = said_of(pa.Table.from_pylist([*table, *sets], schema=COMPARISONS))
    assert "on average over the 2 budgets and 3 data sets" in many
    assert "higher at 1, equivalent (within 1.0 points) at 1" in many
    assert "other data sets of this kind: no conclusion at 2" in many
    small = said_of(fake((0.02, "higher"), (0.001, "equivalent"), (0.0, same), margin=0.01, **low))
    assert "equivalent to LoRA within 1.0 points at LoRA-2 (" in small and "no conclusion at LoRA-4 (" in small
    part = said_of(fake((0.02, "higher"), (0.0, same), (0.0, "not testable"), **low))
    assert "no conclusion at LoRA-2 (" in part and "Nothing could be tested at LoRA-4 (" in part
    sizes = [r | {"train_size": s} for s in ("4-shot", "1.0") for r in fake((0.02, "higher"), **low).to_pylist()]
    sizes[0]["verdict"] = same
    at = said_of(pa.Table.from_pylist(sizes, schema=COMPARISONS))
    assert "higher than LoRA in 1 of 2 comparisons: LoRA-1 on d (" in at and "LoRA-1 on d, 4-shot (" in at
    worse = said_of(fake((-0.02, "lower"), (-0.03, "lower")))
    assert "lower than LoRA at LoRA-1 (" in worse and "higher" not in worse
    for text in (some, none, mixed, worse, one):
        assert "corrected" in text
        assert text.endswith(".")
        assert "\n" not in text


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ({"seeds_for_seen": 8, "seeds_for_seen_given_rates": 6}, "8 seeds."),
        ({"seeds_for_seen": 214}, "214 seeds"),
        ({"seeds_for_seen_given_rates": 6}, "choice of learning rates"),
        ({}, "Not even 1,000 seeds"),
    ],
)
def test_without_power_there_is_no_conclusion_and_what_would_bring_one(seeds: dict[str, int], said: str) -> None:
    silent = (0.069, "not distinguishable")
    text = conclude(fake(silent, n=2, detectable=0.3, alpha=0.05, **seeds)).answer
    start = "No conclusion: RandLoRA is 6.9 points above LoRA at LoRA-1 (1 parameter), but 2 seeds cannot detect "
    assert text.startswith(start + "differences below 30 points.") and said in text
    sure = conclude(fake((0.001, silent[1]), detectable=0.015, alpha=0.05, **seeds)).answer
    assert "are not distinguishable: +0.1 points" in sure and "1.5 points would be detected" in sure


def test_sentence_when_nothing_can_be_said(empty: Store) -> None:
    assert said_of(comparisons(empty)).startswith("No conclusion")
    single = said_of(fake((0.02, "not testable"), n=1))
    assert "only one seed" in single
    assert "no spread" in said_of(fake((0.02, "not testable"), n=3))


def test_sentence_points_out_unequal_counts() -> None:
    assert "counts differ by up to 24.9 %" in said_of(fake((0.02, "higher"), ratio=0.751))
    assert "counts differ" not in said_of(fake((0.02, "higher"), ratio=1.01))


def test_comparisons_say_whose_rate_is_at_the_edge(store: Store) -> None:
    assert [r["edge"] for r in rows_of(comparisons(store), reference="lora-4")] == ["baseline", "baseline"]


def test_one_seed_gives_means_without_intervals(tmp_path: Path) -> None:
    store = open_store(make_results(tmp_path / "one", seeds=1, plan=ONE))
    assert all(r["low"] is None for r in scaling_curve(store).to_pylist())
    row = comparisons(store).to_pylist()[0]
    assert (row["p"], row["verdict"], row["power"]) == (None, "not testable", None)


def test_a_method_against_itself_in_whole_stores(tmp_path: Path) -> None:
    """One method under two names, each tuned for itself: of five tables at most one says that they differ."""
    plan = dict.fromkeys(("left", "right"), ("lora-1", "lora-4", "lora-8"))
    false = 0
    for seed in range(5):
        folder = make_results(tmp_path / str(seed), plan=plan, seeds=4, seed=seed)
        table = comparisons(open_store(folder))
        assert table.num_rows == 4  # three budgets and their mean
        false += any(r["verdict"] != "not distinguishable" for r in table.to_pylist())
    assert false <= 1


def test_rates_and_best_of_n(store: Store) -> None:
    rates = rows_of(tuning_rates(store), method="lora", reference="lora-8")
    assert [r["n"] for r in rates] == [1, 2, 2, 1]
    assert [r["chosen"] for r in rates] == [False, False, True, False]
    best = rows_of(best_of_n(store), method="lora", reference="lora-8")
    assert [r["expected"] for r in best] == pytest.approx(expected_best([r["mean_val"] for r in rates]))
    failed = [r for r in tuning_rates(store).to_pylist() if r["failed"]]
    assert len(failed) == 1
    assert failed[0]["mean_val"] is None


def test_plan_of_the_fixture_covers_what_a_sweep_has() -> None:
    assert set(PLAN) == {"randlora", "lora", "vera", "nola", "full", "zero-shot"}
