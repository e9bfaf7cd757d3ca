"""The study of how many bits an adapter holds, and its page."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import ROOT
from tools import bits
from tools.bits import Cell, Run, Study

FILE = ROOT / "docs" / "results" / "bits.jsonl"


def row(run: Run, held: float) -> dict[str, Any]:
    """A row of the file with these bits."""
    cell = {"method": run.cell.method, "option": run.cell.option, "budget": run.cell.budget}
    return cell | {"lr": run.key()[1], "seed": run.seed, "images": run.images, "epochs": run.epochs, "bits": held}


def made(folder: Path, rows: list[dict[str, Any]]) -> Study:
    """A study with these rows in its file."""
    file = folder / "bits.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return Study(file)


def test_a_rate_at_an_edge_asks_for_the_next_one(tmp_path: Path) -> None:
    cell = Cell("lora", None, 1)
    centre = bits.CENTRES["lora"]
    held = {-1: 5.0, 0: 10.0, 1: 20.0, 2: 30.0, 3: 40.0}
    rows = [row(Run(cell, centre * bits.STEP**power, 0), held[power]) for power in (-1, 0, 1)]
    _, missing = made(tmp_path, rows).best_rate(cell)
    assert [run.lr for run in missing] == pytest.approx([centre * bits.STEP**2])
    rows += [row(Run(cell, centre * bits.STEP**power, 0), held[power]) for power in (2, 3)]
    rate, missing = made(tmp_path, rows).best_rate(cell)  # two more are the most, though the best one is at the edge
    assert missing == [] and rate == pytest.approx(centre * bits.STEP**3)


def test_bits_that_follow_freedom_are_predicted_by_it() -> None:
    draw = np.random.default_rng(0)
    found = [
        {"method": f"method {k}", "parameters": 2 ** draw.uniform(8, 14), "rank": 2 ** draw.uniform(0, 8)}
        | {"freedom": (freedom := 2 ** draw.uniform(8, 14)), "bits": 0.3 * freedom**0.5}
        for k in range(12)
    ]
    mean = {candidate: bits.errors(found, candidate).mean() for candidate in bits.CANDIDATES}
    assert mean["freedom"] == pytest.approx(0, abs=1e-12) and mean["parameters"] > 0.1 and mean["rank"] > 0.1
    slopes = bits.slopes(found, ("freedom", "rank"))
    assert slopes["freedom"][0] == pytest.approx(0.5) and slopes["rank"][0] == pytest.approx(0, abs=1e-9)


def test_a_run_counts_the_bits_that_training_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    monkeypatch.setattr(bits, "tokens", lambda: torch.randn(64, 5, 192, generator=draw))
    found = bits.train(Run(Cell("randlora", None, 1), 2e-3, 1, images=16, epochs=60))
    assert (found["parameters"], found["rank"]) == (768, 192)
    assert 0 < found["bits"] <= 16 * math.log2(bits.CLASSES)


def test_the_file_has_every_declared_run() -> None:
    assert Study(FILE).missing() == []


def test_the_page_has_what_the_file_says() -> None:
    page = (
        (ROOT / "docs" / "results.md")
        .read_text(encoding="utf-8")
        .partition("## How much an adapter learns by heart")[2]
    )
    section = page.partition("\n## ")[0]
    lines = list(bits.report(Study(FILE)))
    assert [line for line in lines if line not in section.splitlines()] == []
