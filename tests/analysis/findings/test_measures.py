"""The score and the loss side by side, and which of the two tells methods apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from analysis.findings.results.measures import further_head, further_measure, further_text, measures_text, separations
from analysis.findings.results.numbers import results_table
from analysis.store.store import Store, open_store
from analysis.store.tables import write_part
from tests.analysis.odd import Cells, odd_results

SEEDS = 4
CELLS: Cells = {
    (method, "lora-1", "a"): {seed: 0.6 + 0.01 * seed for seed in range(SEEDS)}
    for method in ("lora", "randlora", "vera")
}
LEVEL = {"lora": 0.9, "randlora": 0.6, "vera": 0.75}
"""Losses that differ far more between methods than between runs."""


def measured(folder: Path, *, by_loss: bool = False, rerun: bool = True) -> Store:
    """Accuracies that are nothing but noise between methods, and losses that tell these apart."""
    store = open_store(odd_results(folder, CELLS, seeds=SEEDS))
    rng, rows = np.random.default_rng(0), store.table("trials").to_pylist()
    rates = {r["cell_id"]: r["lr"] for r in store.table("chosen").to_pylist()}
    again = [r for r in rows if r["stage"] == "TUNE" and r["lr"] == rates[r["cell_id"]]]
    for seed in range(1, SEEDS) if rerun else ():
        rows += [
            r
            | {
                "trial_id": f"{seed:08x}{k:08x}",
                "slot": 10**6 + seed,
                "data_seed": seed,
                "init_seed": seed,
                "basis_seed": seed,
            }
            for k, r in enumerate(again)
        ]
    for r in rows:
        accuracy, loss = 0.6 + 0.02 * rng.normal(), LEVEL[r["method"]] + 0.02 * rng.normal()
        r["val_score"], own = (float(np.exp(-loss)), {"bleu": accuracy}) if by_loss else (accuracy, {})
        values = {"loss": loss} | own
        r["metric"] = "likelihood (bleu)" if by_loss else "accuracy"
        r["further"] = json.dumps({"val": values} | ({"test": values} if r["stage"] == "CONFIRM" else {}))
    write_part(folder, "trials", rows)
    return open_store(folder)


def test_the_loss_stands_beside_the_score(tmp_path: Path) -> None:
    store = measured(tmp_path / "r")
    other = further_measure(store)
    assert other is not None and other.name == "loss"
    shown = {r["method"]: r["beside"] for r in results_table(store).to_pylist()}
    assert shown == pytest.approx(LEVEL, abs=0.05)
    assert (further_head("loss"), further_text(0.75, "loss"), further_text(None, "loss")) == ("loss", "0.750", "")


def test_the_loss_tells_more_where_methods_differ_by_it_alone(tmp_path: Path) -> None:
    found = separations(measured(tmp_path / "r"))
    assert found is not None
    score, loss = found
    assert (score.name, loss.name) == ("accuracy", "loss") and score.ratio < 2 < 4 < loss.ratio
    assert 'metric = "loss"' in measures_text(score, loss) and 'metric = "loss"' not in measures_text(loss, score)


def test_a_sweep_by_loss_has_the_tasks_own_metric_beside_it(tmp_path: Path) -> None:
    store = measured(tmp_path / "r", by_loss=True)
    other, found = further_measure(store), separations(store)
    assert other is not None and other.name == "bleu" and further_head(other.name) == "bleu %"
    assert found is not None and [each.name for each in found] == ["likelihood", "bleu"]
    assert found[0].ratio > found[1].ratio and "under [evaluate]" not in measures_text(*found)


def test_nothing_is_said_where_nothing_was_measured_or_run_again(tmp_path: Path) -> None:
    assert separations(measured(tmp_path / "one", rerun=False)) is None
    plain = open_store(odd_results(tmp_path / "plain", CELLS, seeds=SEEDS))
    assert further_measure(plain) is None and separations(plain) is None
