"""Data-size curves: the numbers of the fits, crossings that were planted, means over data sets, and the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.collections import PolyCollection

from analysis import Store, open_store
from analysis.findings.all import pictures
from analysis.findings.all import sheets as all_sheets
from analysis.findings.data_sizes.figure import draw_sizes
from analysis.findings.fits.measured import EXAMPLES as IMAGES
from analysis.findings.fits.measured import SIZES as SIZE_TABLE
from analysis.findings.fits.measured import measured_curves, point_table, size_curves
from analysis.findings.fits.readings import area_table, band_table, crossing_sentence, crossing_table, needed_table
from analysis.findings.scaling.numbers import curve
from analysis.store.tables import write_part
from tests.analysis.synthetic import make_results

PLAN = {"randlora": ("lora-1", "lora-4"), "lora": ("lora-1", "lora-4"), "full": (None,), "zero-shot": (None,)}
SIZES = ("4-shot", "16-shot", "0.25", "1.0")
EXAMPLES = [40.0, 160.0, 500.0, 2000.0]


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """RandLoRA needs more data than LoRA, so that their curves cross."""
    place = tmp_path_factory.mktemp("sizes") / "shots"
    sets = ("embedded:fashion", "embedded:digits")
    hunger = {"randlora": 0.06, "lora": 0.01}
    return open_store(make_results(place, sizes=SIZES, datasets=sets, plan=PLAN, seeds=4, noise=0.002, hunger=hunger))


def test_curves_stand_at_their_examples(shots: Store) -> None:
    found = measured_curves(shots, IMAGES)
    lines = {line for line, _ in found}
    assert {line[2] for line in lines} == {None, "embedded:fashion", "embedded:digits"}
    assert {line[3] for line in lines} == {
        None,
        "lora-1",
        "lora-4",
    }  # None: full fine-tuning; zero-shot trains on nothing
    means = {(r["dataset"], r["method"], r["reference"], r["train_size"]): r["mean"] for r in curve(shots).to_pylist()}
    for (line, method), one in found.items():
        assert one.curve.x.tolist() == EXAMPLES and len(one.seeds) == 4
        wanted = [means[line[2], method, line[3], size] for size in SIZES]
        assert np.allclose(one.curve.mean, wanted)


def test_a_planted_crossing_is_found(shots: Store) -> None:
    rows = crossing_table(shots, IMAGES).to_pylist()
    assert {(r["method"], r["baseline"]) for r in rows} == {("randlora", "lora")} and len(rows) == 6
    at = {(r["method"], r["reference"], r["train_size"]): r["score"] for r in point_table(shots).to_pylist()
          if r["dataset"] is None}  # fmt: skip
    for r in (r for r in rows if r["dataset"] is None):
        gaps = [at["randlora", r["reference"], s] - at["lora", r["reference"], s] for s in SIZES]
        assert gaps[0] < 0 < gaps[-1]
        k = next(i for i, gap in enumerate(gaps) if gap > 0)
        assert EXAMPLES[k - 1] <= r["value"] <= EXAMPLES[k]
        assert r["low"] <= r["value"] <= r["high"] and r["share"] == 1.0
        assert "training examples, 95 % interval" in crossing_sentence(r)


def test_fits_needs_and_areas(shots: Store) -> None:
    bands = band_table(shots, IMAGES).to_pylist()
    assert {r["reference"] for r in bands} == {"lora-1", "lora-4", None}
    assert all(r["low"] <= r["high"] and 40.0 <= r["at"] <= 2000.0 for r in bands)
    for r in needed_table(shots, IMAGES).to_pylist():
        assert r["method"] == "randlora" and r["goal"] == "LoRA's best score"
        assert r["value"] is None or 40.0 < r["value"] < 2000.0
    [one] = [r for r in needed_table(shots, IMAGES, 0.5).to_pylist() if r["method"] == "full" and r["dataset"] is None]
    assert one["note"] == "reached at the smallest x already"
    for r in area_table(shots, IMAGES).to_pylist():
        assert r["low"] <= r["value"] <= r["high"] and (r["from_x"], r["to_x"]) == (40.0, 2000.0)


def test_two_sizes_are_not_fitted(store: Store, tmp_path: Path) -> None:
    assert measured_curves(store, IMAGES) == {}
    two = open_store(make_results(tmp_path / "two", sizes=("4-shot", "1.0"), plan=PLAN))
    assert band_table(two, IMAGES).num_rows == crossing_table(two, IMAGES).num_rows == 0
    assert size_curves(two).num_rows > 0
    assert [p.stem for p in pictures(two) if p.stem.startswith("data_size")] == ["data_size"]


def test_figures_and_tables_of_the_report(shots: Store) -> None:
    found = {p.stem: p for p in pictures(shots) if p.stem.startswith("data_size")}
    assert list(found) == ["data_size", "data_size_2", "data_size_3", "data_size_fits"]
    assert "4-shot: " in found["data_size"].says and "training examples" in found["data_size_fits"].says
    sheets = all_sheets(shots)
    assert {"data_sizes", "size_crossings", "size_needed", "size_areas", "averages"} <= set(sheets)
    assert sheets["data_sizes"].header[3:] == [
        f"{s}, % [95 %]" for s in ("4-shot", "16-shot", "25 % of the data", "all data")
    ]
    assert sheets["averages"].header[3:7] == sheets["data_sizes"].header[3:]


def test_the_axis_is_the_logarithm_of_the_examples_where_they_are_known(shots: Store) -> None:
    table = size_curves(shots)
    rows = [r for r in table.to_pylist() if r["dataset"] is None]
    mine = pa.Table.from_pylist(rows, schema=table.schema)
    axes = draw_sizes(mine).axes[0]
    assert axes.get_xscale() == "log" and [t.get_text().split("\n")[1] for t in axes.get_xticklabels()] == [
        "40", "160", "500", "2,000"
    ]  # fmt: skip
    unknown = pa.Table.from_pylist([r | {"images": None} for r in rows], schema=table.schema)
    assert draw_sizes(unknown).axes[0].get_xscale() == "linear"


def test_the_interval_of_few_seeds_is_a_bar_and_no_axis_follows_it() -> None:
    cell = {"sweep": "s", "model": "m", "dataset": "d", "method": "lora", "reference": "lora-1", "adapter_params": 100}
    rows = [
        cell | {"train_size": "1-shot", "position": 0, "images": 10.0, "n": 2, "mean": 0.50, "low": -0.4, "high": 1.4},
        cell | {"train_size": "2-shot", "position": 1, "images": 20.0, "n": 2, "mean": 0.55, "low": 0.5, "high": 0.6},
    ]
    axes = draw_sizes(pa.Table.from_pylist(rows, schema=SIZE_TABLE)).axes[0]
    low, high = axes.get_ylim()
    assert 30 < low < 50 and 55 < high < 70
    assert [type(drawn).__name__ for drawn in axes.collections] == ["LineCollection"]
    enough = [r | {"n": 5} for r in rows]
    axes = draw_sizes(pa.Table.from_pylist(enough, schema=SIZE_TABLE)).axes[0]
    (band,) = axes.collections
    assert isinstance(band, PolyCollection)


def test_an_epoch_that_repeats_its_images_counts_each_once(shots: Store, tmp_path: Path) -> None:
    """`min_batches_per_epoch` makes epochs of all small subsets equally long: sizes stood at one number."""
    cells, trials = (shots.table(name).to_pylist() for name in ("cells", "trials"))
    at = dict(zip(SIZES, EXAMPLES, strict=True))
    for r in trials:
        r |= {"train_examples": int(at[r["train_size"]]), "samples": max(1280, r["samples"] or 0) * (r["epochs"] or 0)}
    (tmp_path / "tables").mkdir()
    write_part(tmp_path, "cells", cells)
    write_part(tmp_path, "trials", trials)
    store = open_store(tmp_path)
    assert {tuple(one.curve.x) for one in measured_curves(store, IMAGES).values()} == {tuple(EXAMPLES)}
    assert {r["images"] for r in size_curves(store).to_pylist()} == set(EXAMPLES)


def test_two_budgets_of_one_count_are_two_lines() -> None:
    """A method off its budgets may have one size at several: its points were joined to and fro."""
    cell = {"sweep": "s", "model": "m", "dataset": "d", "method": "vera", "adapter_params": 100, "n": 5}
    rows = [
        cell | {"reference": b, "train_size": s, "position": i, "images": 10.0 * 2**i, "mean": 0.5 + 0.1 * i + up}
        for b, up in (("lora-4", 0.0), ("lora-16", 0.01))
        for i, s in enumerate(("1-shot", "2-shot"))
    ]
    axes = draw_sizes(pa.Table.from_pylist(rows, schema=SIZE_TABLE)).axes[0]
    lines = [line.get_xdata().tolist() for line in axes.lines if len(line.get_xdata()) > 1]
    assert len(lines) == 2 and all(line == pytest.approx([10.0, 20.0], rel=0.2) for line in lines)
