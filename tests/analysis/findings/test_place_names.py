"""Data sets have short names in what people read, and sizes are counted if the trials say how many there were."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from analysis import open_store, print_results_table
from analysis.store.tables import write_part
from analysis.styles import budget_text, example_counts, place_text, short_names
from tests.analysis.odd import Cells, odd_results


def test_a_name_is_short_if_no_other_is_alike() -> None:
    assert short_names(["parquet:data/wide/digits", "embedded:fashion", "hf:a/b", "json:x/b"]) == {
        "parquet:data/wide/digits": "digits",
        "embedded:fashion": "fashion",
        "hf:a/b": "hf:a/b",
        "json:x/b": "json:x/b",
    }


@pytest.mark.parametrize(
    ("counts", "unit", "said"),
    [
        ((480, 480), "images", "480 images"),
        ((1, 1), "texts", "1 text"),
        ((2700, None), None, "2,700 examples"),
        ((480, 479), "images", None),
    ],
)
def test_training_examples_are_counted_if_all_trials_agree(
    counts: tuple[int | None, ...], unit: str | None, said: str | None
) -> None:
    rows = [{"dataset": "d", "train_size": "0.5", "unit": unit, "train_examples": n} for n in counts]
    assert example_counts(rows) == ({} if said is None else {("d", "0.5"): said})


def test_a_store_names_its_data_and_prints_the_ids_once(tmp_path: Path) -> None:
    scores = {0: 0.5, 1: 0.51, 2: 0.53}
    cells: Cells = {("lora", "lora-1", "parquet:a/digits"): scores, ("lora", "lora-1", "parquet:a/coats"): scores}
    folder = odd_results(tmp_path / "named", cells)
    trials = open_store(folder).table("trials").to_pylist()
    planned = open_store(folder).table("cells").to_pylist()
    write_part(folder, "cells", [r | {"train_size": "0.5"} for r in planned])
    write_part(folder, "trials", [r | {"train_size": "0.5", "unit": "images", "train_examples": 480} for r in trials])
    store = open_store(folder)
    store.table("cells")
    assert place_text("parquet:a/digits", "0.5") == "digits, 480 images"
    assert place_text("parquet:a/digits", "0.25") == "digits, 25 % of the data"
    assert place_text("parquet:b/other", "1.0") == "parquet:b/other"
    print_results_table(store, Console(file=(said := io.StringIO()), width=400))
    assert said.getvalue().count("parquet:a/digits") == 1 and "digits = parquet:a/digits" in said.getvalue()


def test_only_loras_own_budgets_are_renamed() -> None:
    assert [budget_text(name) for name in ("lora-8", "dof-lora-8", "params-9", "lora-xs-2")] == [
        "LoRA-8",
        "dof-lora-8",
        "params-9",
        "lora-xs-2",
    ]
