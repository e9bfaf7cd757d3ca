"""No sentence or row of what `best` prints contradicts another one, whatever the table."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from analysis.findings.answer.answer import conclusion_of
from analysis.findings.decisions.numbers import decisions
from analysis.findings.decisions.terminal import print_decisions
from analysis.findings.results.terminal import print_results_table
from analysis.store.store import Store, open_store
from analysis.verdict.comparisons import comparisons
from tests.analysis.odd import Cells, odd_results

BUDGETS = ("lora-1", "lora-4", "lora-16")
METHODS = ("lora", "randlora", "vera")
INTERVAL = re.compile(r"([+−]?\d+\.\d)(?: points?)? \[([+−]?\d+\.\d), ([+−]?\d+\.\d)\]")
SEEDS = range(6)
WORDS = ("higher", "lower", "equivalent", "not distinguishable")


def drawn(folder: Path, seed: int) -> Store:
    """A folder with random effects, noise, seeds, failed runs and numbers of budgets."""
    rng = np.random.default_rng(seed)
    seeds, budgets = int(rng.integers(2, 6)), BUDGETS[: int(rng.integers(1, 4))]
    cells: Cells = {}
    for budget in budgets:
        luck = rng.normal(0, 0.01, seeds)
        for method in METHODS[: int(rng.integers(2, 4))]:
            values = 0.6 + rng.choice([-0.05, 0.0, 0.0, 0.05]) + luck + rng.normal(0, rng.choice([0.002, 0.02]), seeds)
            kept: dict[int, Any] = dict(enumerate(values.tolist()))
            if rng.random() < 0.2:
                kept[int(rng.integers(seeds))] = None
            cells[method, budget, "d"] = kept
    tune = tuple(float(v) for v in 0.6 + rng.normal(0, 0.02, 3))
    return open_store(odd_results(folder, cells, seeds=seeds, tune=tune, seed_rule="per-data-set"))


def side(low: str, high: str) -> str | None:
    """'higher' or 'lower' if an interval as printed leaves out zero; a zero that keeps its sign lies on that side."""
    if low.startswith("+") and high.startswith("+"):
        return "higher"
    return "lower" if low.startswith("−") and high.startswith("−") else None


def printed(store: Store) -> str:
    out = StringIO()
    console = Console(file=out, width=400, no_color=True, highlight=False)
    print_results_table(store, console)
    print_decisions(decisions(store).to_pylist(), console)
    return out.getvalue()


def sentences(store: Store) -> list[str]:
    found = conclusion_of(store)
    return re.split(r"(?<=\.) (?=[A-Z])", f"{found.answer} {found.budgets}")


def test_sentences_have_intervals(tmp_path: Path) -> None:
    """Otherwise the next test would check none."""
    said = [one for seed in SEEDS for one in sentences(drawn(tmp_path / str(seed), seed)) if INTERVAL.search(one)]
    assert any(" higher" in one or " lower" in one for one in said)
    assert any("no conclusion" in one.lower() or "not distinguishable" in one for one in said)


@pytest.mark.parametrize("seed", SEEDS)
def test_words_and_intervals_agree_on_the_whole_page(tmp_path: Path, seed: int) -> None:
    store = drawn(tmp_path / "r", seed)
    rows = comparisons(store).to_pylist()
    for line in printed(store).splitlines():
        words = [word for word in WORDS if re.search(rf"\b{word}$", line.strip())]
        found = INTERVAL.search(line)
        if words and found:  # a row of the table of results
            assert side(found[2], found[3]) == (words[0] if words[0] in WORDS[:2] else None), line
    for sentence in sentences(store):
        for word in WORDS[:2]:
            if re.search(rf"\b(scores|is) {word}\b", sentence):
                assert all(side(low, high) == word for _, low, high in INTERVAL.findall(sentence)), sentence
        if "no conclusion" in sentence.lower() or "not distinguishable" in sentence:
            assert all(side(low, high) is None for _, low, high in INTERVAL.findall(sentence)), sentence
    lost = {(r["reference"], r["method"]) for r in rows if r["verdict"] == "lower"}
    won = {(r["reference"], r["method"]) for r in rows if r["verdict"] == "higher"}
    for decision in decisions(store).to_pylist():
        taken = {(decision["reference"], method) for method in decision["best"]}
        assert not taken & lost  # nothing that a test puts below LoRA is among the best
        if any(reference == decision["reference"] for reference, _ in won):
            assert (decision["reference"], "lora") not in taken
    for r in rows:
        if r["verdict"] in WORDS[:2] and r["failed"]:
            assert r["difference_as_untrained"] is None or (r["difference_as_untrained"] > 0) == (
                r["verdict"] == "higher"
            )
