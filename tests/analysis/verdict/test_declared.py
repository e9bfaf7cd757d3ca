"""What was declared first keeps its verdict, whoever joins later; failed runs count against the method that failed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from analysis.findings.answer.answer import conclusion, conclusion_of
from analysis.findings.decisions.numbers import decisions
from analysis.findings.decisions.words import would_change
from analysis.findings.results.numbers import results_table
from analysis.store.store import Store, open_store
from analysis.store.tables import write_part
from analysis.verdict.comparisons import comparisons
from analysis.verdict.groups import groups
from analysis.verdict.looks import added_later, margin_of, restrict_to_declared
from analysis.verdict.question import question
from analysis.verdict.runs import failed
from tests.analysis.odd import Cells, odd_results

SEEDS = 6


def scores(mean: float, seed: int, spread: float = 0.01) -> dict[int, float | str | None]:
    values = mean + spread * np.random.default_rng(seed).normal(size=SEEDS)
    return dict(enumerate(values.tolist()))


FIRST: Cells = {
    ("lora", "lora-1", "a"): scores(0.60, 0),
    ("randlora", "lora-1", "a"): scores(0.66, 1),
    ("lora", "lora-4", "a"): scores(0.70, 2),
    ("randlora", "lora-4", "a"): scores(0.71, 3),
}
LATER: Cells = {
    ("vera", "lora-1", "a"): scores(0.65, 4, spread=0.1),
    ("lora", "lora-16", "a"): scores(0.80, 5),
    ("randlora", "lora-16", "a"): scores(0.74, 6),
    ("lora", "lora-1", "b"): scores(0.60, 7),
    ("randlora", "lora-1", "b"): scores(0.50, 8),
}


def swept(folder: Path, cells: Cells, declared: Cells) -> Store:
    """A folder with `cells`, of which `declared` stood in its first declaration."""
    odd_results(folder, cells, seeds=SEEDS, seed_rule="per-data-set")
    rows = open_store(folder).table("cells").to_pylist()
    first = [r["cell_id"] for r in rows if (r["method"], r["reference"], r["dataset"]) in declared]
    event = {"name": folder.name, "seeds": list(range(SEEDS)), "max_seeds": SEEDS, "margin": 0.02, "question": None}
    known = [event | {"cells": first, "scored": 0}]
    if cells.keys() != declared.keys():
        known.append(event | {"cells": [r["cell_id"] for r in rows], "scored": len(declared) * SEEDS})
    lines = [{"ev": "sweep", "name": folder.name}, *({"ev": "declare"} | each for each in known)]
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return open_store(folder)


def test_who_joins_later_changes_no_declared_number(tmp_path: Path) -> None:
    before = swept(tmp_path / "first" / "s", FIRST, FIRST)
    after = swept(tmp_path / "later" / "s", FIRST | LATER, FIRST)
    assert not added_later(before) and restrict_to_declared(before) is before
    assert len(added_later(after)) == len(LATER)
    declared = [r for r in comparisons(after).to_pylist() if not r["added"]]
    assert declared == comparisons(before).to_pylist()
    assert question(after) == question(before)
    now, then = conclusion_of(after), conclusion_of(before)
    assert (now.answer, now.budgets, now.reasons) == (then.answer, then.budgets, then.reasons)
    assert not then.later and "added after the first declaration" in now.later
    both = {("a", "lora-1"), ("a", "lora-4")}
    letters = [
        {
            (r["method"], r["reference"]): r["group"]
            for r in groups(s).to_pylist()
            if (r["dataset"], r["reference"]) in both
        }
        for s in (before, after)
    ]
    assert (letters[0]["randlora", "lora-1"] == letters[0]["lora", "lora-1"]) is False
    assert not set(letters[1]["randlora", "lora-1"]) & set(letters[1]["lora", "lora-1"])


def test_methods_that_joined_are_summed_up_one_by_one(tmp_path: Path) -> None:
    """In a sweep without a method in question."""
    first: Cells = {("lora", "lora-1", "a"): scores(0.60, 0), ("vera", "lora-1", "a"): scores(0.66, 1)}
    first |= {("dora", "lora-1", "a"): scores(0.61, 2)}
    joined: Cells = {(m, "lora-4", "a"): scores(v, 3 + k) for k, (m, v) in enumerate((("lora", 0.6), ("vera", 0.7)))}
    joined |= {("dora", "lora-4", "a"): scores(0.5, 9)}
    later = conclusion_of(swept(tmp_path / "s", first | joined, first)).later
    assert "each other method" not in later
    assert "VeRA is higher than LoRA" in later and "DoRA is lower than LoRA" in later


def test_what_joined_is_tested_by_itself(tmp_path: Path) -> None:
    after = swept(tmp_path / "s", FIRST | LATER, FIRST)
    rows = [r for r in comparisons(after).to_pylist() if r["added"]]
    single = {(r["method"], r["reference"], r["dataset"]) for r in rows if r["reference"]}
    assert single == {("randlora", "lora-16", "a"), ("randlora", "lora-1", "b"), ("vera", "lora-1", "a")}
    found = {(r["method"], r["reference"], r["dataset"]): r["verdict"] for r in rows}
    assert found["randlora", "lora-16", "a"] == found["randlora", "lora-1", "b"] == "lower"
    first = min(rows, key=lambda r: r["p"] if r["p"] is not None else 1.0)
    assert first["p_holm"] >= first["p"] * len(
        [r for r in rows if r["p"] is not None]
    )  # one family, with 5 % of its own
    marked = {(r["method"], r["reference"], r["dataset"]): r["added"] for r in results_table(after).to_pylist()}
    assert marked["randlora", "lora-1", "a"] is False and marked["randlora", "lora-1", "b"] is True


def test_an_older_folder_has_one_analysis(tmp_path: Path) -> None:
    store = swept(tmp_path / "s", FIRST | LATER, FIRST | LATER)
    assert not added_later(store) and not any(comparisons(store)["added"].to_pylist())


def half_failed(zero_shot: bool) -> Cells:
    """RandLoRA leads by 6 points in the runs that finish; half of them do not."""
    good = scores(0.66, 1)
    cells: Cells = {
        ("lora", "lora-1", "a"): scores(0.60, 0),
        ("randlora", "lora-1", "a"): {seed: score if seed % 2 else None for seed, score in good.items()},
    }
    return cells | ({("zero-shot", None, "a"): {0: 0.35}} if zero_shot else {})


@pytest.mark.parametrize("zero_shot", [True, False])
def test_a_method_whose_runs_fail_is_not_called_higher(tmp_path: Path, *, zero_shot: bool) -> None:
    cells = half_failed(zero_shot)
    whole = cells | {("randlora", "lora-1", "a"): scores(0.66, 1)}
    sound = comparisons(swept(tmp_path / "whole", whole, whole)).to_pylist()
    assert [r["verdict"] for r in sound] == ["higher"] and sound[0]["failed"] == 0
    store = swept(tmp_path / "half", cells, cells)
    untrained = 0.35 if zero_shot else 0.1  # of ten classes one is guessed
    assert {run["test_score"] for runs in failed(store).values() for run in runs} == {untrained}
    (row,) = comparisons(store).to_pylist()
    assert row["difference"] > 0.03 and row["difference_as_untrained"] < 0  # both are shown
    lead, lora = sum(v or untrained for v in cells["randlora", "lora-1", "a"].values()), cells["lora", "lora-1", "a"]
    assert row["difference_as_untrained"] == pytest.approx((lead - sum(v or 0 for v in lora.values())) / SEEDS)
    assert row["verdict"] == "not distinguishable" and row["p"] == 1.0 and row["low"] < 0 < row["high"]
    assert (row["failed"], row["baseline_failed"], row["n"]) == (SEEDS // 2, 0, SEEDS // 2)
    (taken,) = decisions(store).to_pylist()
    assert taken["method"] == "lora"  # a failed run is a cost of choosing the method
    assert f"{SEEDS // 2} runs of theirs failed" in would_change(taken) and "same seeds." not in would_change(taken)
    (shown,) = [r for r in results_table(store).to_pylist() if r["method"] == "randlora"]
    assert (shown["n"], shown["failed"]) == (SEEDS // 2, SEEDS // 2)
    assert f"{SEEDS // 2} of {SEEDS} of RandLoRA" in conclusion(store)


@pytest.mark.parametrize("loser", ["lora", "randlora"])
def test_methods_of_which_a_run_failed_are_never_equivalent(tmp_path: Path, loser: str) -> None:
    """The scores of the finished runs lie far within the margin."""
    near = {seed: 0.6 + 0.001 * seed + 0.0005 * (seed % 2) for seed in range(SEEDS)}
    cells: Cells = {("lora", "lora-1", "a"): {seed: 0.6 + 0.001 * seed for seed in range(SEEDS)}}
    cells["randlora", "lora-1", "a"] = dict(near)
    (row,) = comparisons(swept(tmp_path / "whole", cells, cells)).to_pylist()
    assert row["verdict"] == "equivalent"
    lost = cells | {(loser, "lora-1", "a"): dict(cells[loser, "lora-1", "a"]) | {0: None}}
    (row,) = comparisons(swept(tmp_path / "lost", lost, lost)).to_pylist()
    assert row["verdict"] == "not distinguishable" and row["p_equivalent"] == 1.0


def test_failures_of_the_baseline_alone_leave_a_lead_standing(tmp_path: Path) -> None:
    cells = half_failed(zero_shot=True)
    cells |= {("randlora", "lora-1", "a"): scores(0.80, 1), ("lora", "lora-1", "a"): scores(0.60, 0)}
    cells["lora", "lora-1", "a"] = dict(cells["lora", "lora-1", "a"]) | {0: None}
    (row,) = comparisons(swept(tmp_path / "s", cells, cells)).to_pylist()
    assert row["verdict"] == "higher" and row["low"] > 0 and row["difference_as_untrained"] is None
    assert (row["failed"], row["baseline_failed"]) == (0, 1)


def test_nan_and_chance_are_treated_alike(tmp_path: Path) -> None:
    fell = {seed: score if seed % 2 else 0.10 for seed, score in scores(0.66, 1).items()}
    cells = half_failed(zero_shot=True)
    chance = cells | {("randlora", "lora-1", "a"): fell}
    words = {
        comparisons(swept(tmp_path / name, each, each)).to_pylist()[0]["verdict"]
        for name, each in (("nan", cells), ("chance", chance))
    }
    assert words == {"not distinguishable"}


def test_a_budget_at_which_all_fail_stays(tmp_path: Path) -> None:
    cells = half_failed(zero_shot=True)
    cells[("randlora", "lora-4", "a")] = dict.fromkeys(range(SEEDS))
    cells[("lora", "lora-4", "a")] = dict.fromkeys(range(SEEDS))
    store = swept(tmp_path / "s", cells, cells)
    notes = {(r["method"], r["reference"]): r["note"] for r in results_table(store).to_pylist()}
    assert notes["randlora", "lora-4"] == notes["lora", "lora-4"] == "every confirming run failed"
    assert f"{SEEDS} of {SEEDS} of RandLoRA at lora-4" in conclusion(store)


def test_a_mean_is_not_higher_by_leaving_out_the_budget_at_which_all_fail(tmp_path: Path) -> None:
    cells: Cells = {("zero-shot", None, "a"): {0: 0.10}}
    for k, reference in enumerate(("lora-1", "lora-4", "lora-16")):
        cells["lora", reference, "a"], cells["randlora", reference, "a"] = scores(0.60, k), scores(0.66, k + 9)
    means = {}
    for name, last in (("whole", cells["randlora", "lora-16", "a"]), ("failed", dict.fromkeys(range(SEEDS)))):
        changed = cells | {("randlora", "lora-16", "a"): last}
        store = swept(tmp_path / name, changed, changed)
        (means[name],) = [r for r in comparisons(store).to_pylist() if r["reference"] is None]
    assert means["whole"]["verdict"] == "higher" and means["failed"]["n_budgets"] == 2
    assert means["failed"]["difference"] > 0.03 and means["failed"]["difference_as_untrained"] < 0
    assert means["failed"]["verdict"] == "not distinguishable" and means["failed"]["detectable"] is None
    said = conclusion(store)
    assert "No run finished of RandLoRA at lora-16 on a" in said and "Run a new sweep" not in said
    decided = {r["reference"]: would_change(r) for r in decisions(store).to_pylist()}
    assert "can be detected" not in decided["lora-16"]


@pytest.mark.parametrize("shift", [-0.002, 0.002])
def test_a_mean_is_not_equivalent_by_leaving_out_the_budget_at_which_all_fail(shift: float, tmp_path: Path) -> None:
    """Whichever method is ahead at the other budgets."""
    cells: Cells = {}
    for k, reference in enumerate(("lora-1", "lora-4", "lora-16")):
        cells["lora", reference, "a"] = scores(0.6 + 0.1 * k, k, spread=0.001)
        cells["randlora", reference, "a"] = scores(0.6 + 0.1 * k + shift, k + 9, spread=0.001)
    verdicts = {}
    for name, last in (("whole", cells["randlora", "lora-16", "a"]), ("failed", dict.fromkeys(range(SEEDS)))):
        changed = cells | {("randlora", "lora-16", "a"): last}
        store = swept(tmp_path / name, changed, changed)
        (mean,) = [r for r in comparisons(store).to_pylist() if r["reference"] is None]
        verdicts[name] = mean["verdict"]
    assert verdicts == {"whole": "equivalent", "failed": "not distinguishable"}


def test_a_failed_run_is_not_scored_by_chance_on_other_metrics(tmp_path: Path) -> None:
    """A failed run has no metric. The metric of the finished runs on its data set counts instead."""
    cells = half_failed(zero_shot=False)
    for metric, expected in (("accuracy", 0.1), ("matthews", 0.0)):
        folder = tmp_path / metric
        store = swept(folder, cells, cells)
        rows = [r | {"metric": metric} for r in store.table("trials").to_pylist() if r["status"] == "finished"]
        write_part(folder, "trials", [r | {"attempt": r["attempt"] + 1} for r in rows])
        named = [r | {"classes": 10} for r in store.table("cells").to_pylist()]
        write_part(folder, "cells", named)
        (lost,) = failed(open_store(folder)).values()
        assert {r["test_score"] for r in lost} == {expected}


def test_the_question_and_the_margin_of_before_the_first_score_count(tmp_path: Path) -> None:
    store = swept(tmp_path / "s", FIRST | LATER, FIRST | LATER)
    assert (question(store).focus, margin_of(store)) == ("randlora", 0.02)
    lines = [json.loads(line) for line in (tmp_path / "s" / "journal.jsonl").read_text().splitlines()]
    asked = lines[-1] | {"question": "vera", "margin": 0.2}
    for seen, expected in ((0, ("vera", 0.2)), (12, ("randlora", 0.02))):
        said = "".join(json.dumps(line) + "\n" for line in [*lines, asked | {"scored": seen}])
        (tmp_path / "s" / "journal.jsonl").write_text(said)
        changed = open_store(tmp_path / "s")
        assert (question(changed).focus, margin_of(changed)) == expected
