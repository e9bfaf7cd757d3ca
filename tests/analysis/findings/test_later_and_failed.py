"""Sentences and tables where data was added later, runs failed, or tests are too weak."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from analysis import open_store
from analysis.findings.all import pictures
from analysis.findings.answer.answer import conclusion
from analysis.findings.diagnostics.sheets import diagnostic_sheets
from analysis.findings.full_fine_tuning import conclude_gap
from analysis.findings.seeds import seeds_table
from analysis.store.store import Store
from analysis.store.tables import write_part
from analysis.verdict.comparisons import comparisons
from analysis.verdict.question import question
from tests.analysis.odd import Cells, odd_results

SEEDS = 6


def noisy(mean: float, spread: float = 0.003, seed: int = 0) -> dict[int, float | str | None]:
    return {s: float(mean + v) for s, v in enumerate(np.random.default_rng(seed).normal(0, spread, SEEDS))}


def store_of(folder: Path, cells: Cells, *later: str, margin: float | None = None) -> Store:
    """A sweep with these cells, of which those on the data sets `later` were declared after test scores were seen."""
    odd_results(folder, cells, seeds=SEEDS, seed_rule="per-data-set", tune=())
    rows = open_store(folder).table("cells").to_pylist()
    with (folder / "journal.jsonl").open("a") as journal:
        for scored, left_out in ((0, later), (30, ())) if later else ((0, ()),):
            cell_ids = [r["cell_id"] for r in rows if r["dataset"] not in left_out]
            event = {"ev": "declare", "name": folder.name, "seeds": list(range(SEEDS)), "max_seeds": SEEDS}
            journal.write(json.dumps(event | {"margin": margin, "scored": scored, "cells": cell_ids}) + "\n")
    return open_store(folder)


def beside_full(spread: float, datasets: str) -> Cells:
    """Full fine-tuning, LoRA and RandLoRA on these data sets, equal but for noise."""
    cells: Cells = {}
    for i, name in enumerate(datasets):
        cells["full", None, name] = noisy(0.8, spread, i)
        cells["lora", "lora-1", name] = noisy(0.8, spread, 10 + i)
        cells["randlora", "lora-1", name] = noisy(0.8, spread, 20 + i)
    return cells


def test_with_failed_runs_no_mean_against_full_fine_tuning_is_equivalent(tmp_path: Path) -> None:
    cells = beside_full(0.002, "abc")
    whole = store_of(tmp_path / "whole", cells, margin=0.02)
    cells["randlora", "lora-1", "a"] = dict(cells["randlora", "lora-1", "a"]) | dict.fromkeys(range(3))
    failed = store_of(tmp_path / "failed", cells, margin=0.02)
    verdicts = [
        {r["method"]: r["verdict"] for r in comparisons(store, "full").to_pylist() if r["dataset"] is None}
        for store in (whole, failed)
    ]
    assert verdicts[0] == {"lora": "equivalent", "randlora": "equivalent"}
    assert verdicts[1] == {"lora": "equivalent", "randlora": "not distinguishable"}


def test_a_test_that_is_too_weak_has_no_conclusion_in_sentences_either(tmp_path: Path) -> None:
    store = store_of(tmp_path / "r", beside_full(0.05, "ab"))
    text = conclude_gap(comparisons(store, "full"), question(store))
    assert text is not None and text.count("no conclusion") == 2 and "not distinguishable" not in text


def test_what_was_added_later_says_where_it_holds(tmp_path: Path) -> None:
    cells: Cells = {}
    for i, name in enumerate("abc"):
        for rank in (1, 4):
            cells["lora", f"lora-{rank}", name] = noisy(0.6, seed=10 * i + rank)
            cells["randlora", f"lora-{rank}", name] = noisy(0.65 if name == "c" else 0.6, seed=100 + 10 * i + rank)
    store = store_of(tmp_path / "r", cells, "c")
    later = conclusion(store).partition("were added after the first declaration")[2]
    assert "RandLoRA is higher than LoRA in 2 of 2 comparisons: LoRA-1 on c" in later
    (forest,) = [picture for picture in pictures(store) if picture.stem == "forest"]
    (axes,) = forest.figure.axes
    rows = comparisons(store).to_pylist()
    shown = [" ".join(text.get_text().split()) for text in axes.texts]
    assert sum(text.endswith("(later)") for text in shown) == sum(r["added"] for r in rows) > 0
    assert "(later): " in forest.caption
    assert not any("95 %" in text.get_text() for text in forest.figure.texts)  # a corrected row has another level


def test_more_seeds_do_not_help_where_runs_of_the_method_ahead_failed(tmp_path: Path) -> None:
    cells: Cells = {("lora", "lora-1", "a"): noisy(0.6), ("randlora", "lora-1", "a"): noisy(0.62, seed=1)}
    whole = store_of(tmp_path / "whole", cells)
    cells["randlora", "lora-1", "a"] = dict(cells["randlora", "lora-1", "a"]) | {5: None}
    failed = store_of(tmp_path / "failed", cells)
    numbers = [
        {(r["power"], r["seeds_needed"], r["seeds_needed_given_rates"]) for r in seeds_table(store).to_pylist()}
        for store in (whole, failed)
    ]
    assert all(None not in row for row in numbers[0])
    assert numbers[1] == {(None, None, None)}


@pytest.mark.parametrize("superseded", [False, True])
def test_a_diagnostic_counts_the_trials_that_count(tmp_path: Path, superseded: bool) -> None:
    store = store_of(tmp_path / "r", {("lora", "lora-1", "a"): noisy(0.6)})
    confirmed = store.table("confirmed").to_pylist()

    def measured(trial_id: str, change: float) -> dict[str, object]:
        shared = ("sweep", "model", "dataset", "train_size", "method", "reference", "adapter_params")
        row = {name: confirmed[0][name] for name in shared}
        row |= {"trial_id": trial_id, "unit": trial_id, "data": "cifar100", "images": 1000, "score": 0.9}
        row |= {"before": 0.5, "after": 0.5 + change, "change": change, "computed_at": confirmed[0]["started_at"]}
        return row | dict.fromkeys(("data_seed", "init_seed", "basis_seed"), 0)

    rows = [measured(r["trial_id"], -0.02) for r in confirmed]
    if superseded:  # of a rate that is no longer chosen
        rows += [measured(f"old{i}", -0.3) for i in range(SEEDS)]
    write_part(tmp_path / "r", "image_retention", rows)
    (sheet,) = diagnostic_sheets(open_store(tmp_path / "r"))
    (row,) = sheet.rows
    assert (row["seeds"], round(row["mean_change"], 6)) == (SEEDS, -0.02)
