"""Rows come in the order of their numbers, not of their letters."""

from __future__ import annotations

from pathlib import Path

from analysis import open_store
from analysis.findings.results.numbers import results_table
from analysis.format import quantity
from analysis.styles import budget_order
from analysis.verdict.comparisons import comparisons
from tests.analysis.synthetic import make_results


def test_budgets() -> None:
    labels = ["lora-1", "lora-16", "lora-128"]
    shares = ["percent-1e-05", "percent-0.25", "percent-0.5", "percent-1"]
    assert sorted(set(labels), key=budget_order) == labels and sorted(set(shares), key=budget_order) == shares


def test_training_sizes(tmp_path: Path) -> None:
    sizes = ("1-shot", "4-shot", "16-shot", "0.1", "1.0")
    plan = {"lora": ("lora-1",), "randlora": ("lora-1",)}
    store = open_store(make_results(tmp_path / "r", plan=plan, sizes=sizes))
    for table in (results_table(store), comparisons(store)):
        assert tuple(dict.fromkeys(table["train_size"].to_pylist())) == sizes


def test_numbers_about_a_thousand() -> None:
    assert [quantity(v) for v in (998.6, 999.6, 1000.0)] == ["999", "1,000", "1,000"]
