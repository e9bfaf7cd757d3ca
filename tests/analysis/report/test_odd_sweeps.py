"""Sweeps in which things are missing, failed, equal or few: every verb answers, and says no more than a test."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from scipy import stats

from analysis import conclusion, open_store
from analysis.findings.fits.pareto import pareto_front
from analysis.findings.front.finding import conclude_front
from analysis.findings.groups import conclude_groups, groups_sheet
from analysis.findings.results.finding import results_sheet
from analysis.verdict.comparisons import comparisons
from analysis.verdict.groups import groups
from analysis.verdict.inference import WELCH, t_difference
from tests.analysis.odd import NOT_A_NUMBER, Cells, odd_results
from tests.support import sweeps

LORA, RAND = ("lora", "lora-1", "a"), ("randlora", "lora-1", "a")
FULL, ZERO = ("full", None, "a"), ("zero-shot", None, "a")
GOOD, LESS = {0: 0.81, 1: 0.83, 2: 0.8}, {0: 0.7, 1: 0.71, 2: 0.7}
SETS = [f"set-{i}" for i in range(8)]

SWEEPS: dict[str, Cells] = {
    "one-seed": {LORA: {0: 0.7}, RAND: {0: 0.8}, FULL: {0: 0.9}, ZERO: {0: 0.2}},
    "zero-shot-alone": {ZERO: {0: 0.2}},
    "one-method": {("lora", f"lora-{r}", "a"): LESS for r in (1, 4, 16)},
    "no-common-seed": {LORA: {0: 0.7, 1: 0.71}, RAND: {2: 0.8, 3: 0.82}},
    "unequal-seeds": {LORA: {**LESS, 3: 0.69}, RAND: {1: 0.8, 2: 0.81}, ("vera", "lora-1", "a"): {0: 0.7, 1: None}},
    "not-a-number": {LORA: {0: 0.7, 1: NOT_A_NUMBER, 2: 0.71}, RAND: dict.fromkeys(range(3), NOT_A_NUMBER)},
    "all-failed": {LORA: LESS, RAND: dict.fromkeys(range(3), None)},
    "the-same": {LORA: LESS, RAND: LESS},
    "no-spread": {LORA: dict.fromkeys(range(3), 0.7), RAND: dict.fromkeys(range(3), 0.8)},
    "all-equal": {(m, "lora-1", d): dict.fromkeys(range(3), 0.5) for m in ("lora", "randlora", "nola") for d in "abc"},
    "below-zero": {(m, f"lora-{r}", "a"): {0: -0.2, 1: -r / 160} for m in ("lora", "randlora") for r in (1, 4, 16)},
    "not-everywhere": {("lora", "lora-1", d): LESS for d in "abc"} | {("randlora", "lora-1", d): GOOD for d in "ab"},
    "no-lora": {RAND: GOOD, ("nola", "lora-1", "a"): LESS, FULL: GOOD},
    "nothing-run": {LORA: {}, RAND: {}},
}  # fmt: skip
ODDEST = ("unequal-seeds", "not-a-number", "all-failed", "no-lora", "nothing-run")
"""The sweeps of `make test`; `make test-all` has all of them."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ODDEST else pytest.mark.slow) for name in SWEEPS]
)
def test_every_verb_answers(name: str, tmp_path: Path) -> None:
    folder = odd_results(tmp_path / name, SWEEPS[name])
    for words in (("best", folder), ("query", folder, "best"), ("query", folder, "coverage")):
        done = sweeps(*words)
        assert done.exit_code == 0, (words, done.output, done.exception)
        assert "nan" not in done.output.lower().replace(name, ""), words
    for baseline in {method for method, _, _ in SWEEPS[name]}:
        done = sweeps("compare", folder, "--baseline", baseline)
        assert done.exit_code == 0, (baseline, done.output, done.exception)


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_has_a_report(name: str, tmp_path: Path) -> None:
    folder = odd_results(tmp_path / name, SWEEPS[name])
    for words in (("report", folder), ("status", folder), ("tables", folder)):
        done = sweeps(*words)
        assert done.exit_code == 0, (words, done.output, done.exception)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(?<![a-z])(nan|inf)(?![a-z])", re.sub(r"<script.*?</script>|<style.*?</style>", "", text))


def test_what_was_not_tested_is_not_called_indistinguishable(tmp_path: Path) -> None:
    for name, why in (
        ("no-common-seed", "Without common seeds"),
        ("no-spread", "Without common seeds"),
        ("one-seed", "one seed"),
    ):
        store = open_store(odd_results(tmp_path / name, SWEEPS[name]))
        said = conclude_groups(groups(store).to_pylist())
        assert why in said and "not distinguishable" not in said
        assert {row[-1] for row in groups_sheet(store).cells} == {"a (not tested)"}
        assert "not distinguishable" not in conclusion(store) and "No conclusion" in conclusion(store)
    some: Cells = {
        (m, "lora-1", d): s for d in "ab" for m, s in (("lora", LESS), ("randlora", {0: 0.705, 1: 0.7, 2: 0.71}))
    }
    some |= {("lora", "lora-1", "c"): {0: 0.7}, ("randlora", "lora-1", "c"): {0: 0.9}}
    said = conclusion(open_store(odd_results(tmp_path / "some", some)))
    assert "No conclusion about RandLoRA and LoRA" in said and "not distinguishable" not in said
    said = conclude_groups(groups(open_store(tmp_path / "some")).to_pylist())
    assert "no single method is above all others at 2" in said and "nothing can be tested at 1" in said


def test_a_cell_without_a_score_says_why(tmp_path: Path) -> None:
    for name, why in (("not-a-number", "no score: it was not a number"), ("all-failed", "every confirming run failed")):
        store = open_store(odd_results(tmp_path / name, SWEEPS[name]))
        table = results_sheet(store)
        at = table.header.index("verdict")
        notes = {row[0]: row[at] for row in table.cells}
        assert notes["RandLoRA"] == why and notes["LoRA"] != why


def test_single_seeds_beside_more_are_tested_together(tmp_path: Path) -> None:
    """Failures left one seed on most data sets: these have the others' spread."""
    cells: Cells = {}
    for i, d in enumerate(SETS):
        seeds = range(1 if i < 6 else 3)
        cells["lora", "lora-1", d] = dict.fromkeys(seeds, 0.7 + 0.01 * i)
        cells["randlora", "lora-1", d] = {s: 0.72 + 0.01 * i + 0.002 * s for s in seeds}
    store = open_store(odd_results(tmp_path / "some", cells, tune=(), seed_rule="per-data-set"))
    row = next(r for r in comparisons(store).to_pylist() if r["test"] == WELCH)
    assert (row["n"], row["n_datasets"], row["verdict"]) == (12, 8, "higher")
    assert row["low"] < row["difference"] < row["high"]
    assert "RandLoRA scores higher than LoRA: +2.1 points [" in conclusion(store)


def test_a_data_set_without_the_method_leaves_no_mean_over_data_sets(tmp_path: Path) -> None:
    done = sweeps("compare", odd_results(tmp_path / "not-everywhere", SWEEPS["not-everywhere"]), "--json")
    assert [(r["reference"], r["dataset"]) for r in json.loads(done.stdout)["comparisons"]] == [
        ("lora-1", "a"),
        ("lora-1", "b"),
    ]


def test_what_trains_nothing_is_compared_with_every_seed(tmp_path: Path) -> None:
    folder = odd_results(tmp_path / "zero", {LORA: LESS, ZERO: {0: 0.69}})
    row = json.loads(sweeps("compare", folder, "--baseline", "zero-shot", "--json").stdout)["comparisons"][0]
    wanted = t_difference([v - 0.69 for v in LESS.values()])
    found = (row["n"], row["difference"], row["p_given_rates"])
    assert found == (3, pytest.approx(wanted.mean), pytest.approx(wanted.p))
    assert row["choice_sd"] > 0 and row["verdict"] == "not distinguishable"  # of LoRA's rate; zero-shot chose nothing


def test_one_seed_is_never_sure_of_its_place_on_the_front(tmp_path: Path) -> None:
    cells = {LORA: LESS, RAND: {0: 0.9}, ZERO: {0: 0.2}}
    rows = {r["method"]: r for r in pareto_front(open_store(odd_results(tmp_path / "front", cells))).to_pylist()}
    assert rows["randlora"]["on_front"] and rows["randlora"]["front_share"] is None
    assert rows["zero-shot"]["front_share"] == 1.0  # it trains nothing, so no seed could change it
    assert "with one seed, so it is not known how sure that is: RandLoRA at lora-1" in conclude_front(
        list(rows.values())
    )


def test_shares_of_the_front_are_spread_as_wide_as_the_seeds(tmp_path: Path) -> None:
    """Two cells of unlike cost and equal expectation: the dearer is ahead by half a standard error, about 69 %."""
    low, high = {0: 0.69, 1: 0.7, 2: 0.71}, {0: 0.7, 1: 0.7, 2: 0.7}
    lead = 0.5 * 0.01 / 3**0.5
    cells = {LORA: low, ("randlora", "lora-4", "a"): {s: v + lead for s, v in high.items()}}
    rows = {r["method"]: r for r in pareto_front(open_store(odd_results(tmp_path / "wide", cells))).to_pylist()}
    assert rows["randlora"]["front_share"] == pytest.approx(stats.norm.cdf(0.5), abs=0.1)
