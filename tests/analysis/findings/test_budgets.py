"""Fits, Pareto fronts and data-size curves of a results folder, and their part of the report."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from analysis import Store, StoreError, open_store
from analysis.drawing.picture import save_pictures
from analysis.findings.all import pictures
from analysis.findings.currencies import currency_table, pair_table
from analysis.findings.finding import View
from analysis.findings.fits.measured import AXES, measured_curves, size_curves, size_labels
from analysis.findings.fits.pareto import efficient, pareto_front
from analysis.findings.fits.readings import area_table, band_table, crossing_sentence, crossing_table, needed_table
from analysis.findings.published.figure import draw_overlay
from analysis.report.page import render
from analysis.styles import style
from tests.analysis.odd import Cells, odd_results
from tests.analysis.synthetic import make_results


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Store:
    place = tmp_path_factory.mktemp("results") / "shots"
    return open_store(make_results(place, sizes=("1.0", "16-shot", "4-shot"), seeds=2, seed=5))


def test_curves_need_three_budgets(store: Store) -> None:
    methods = {method for _, method in measured_curves(store)}
    assert methods == {"randlora", "lora"}  # NoLA has two budgets, VeRA one
    assert set(band_table(store)["method"].to_pylist()) == methods


def test_bands_hold_the_fit(store: Store) -> None:
    for row in band_table(store, points=12).to_pylist():
        assert row["low"] - 1e-9 <= row["score"] <= row["high"] + 1e-9


def test_crossings_needed_areas(store: Store) -> None:
    (row,) = crossing_table(store).to_pylist()
    assert (row["method"], row["baseline"], row["seeds"]) == ("randlora", "lora", 3)
    assert "RandLoRA" in crossing_sentence(row)
    goals = {(r["method"], r["goal"]) for r in needed_table(store).to_pylist()}
    assert ("randlora", "LoRA's best score") in goals
    assert ("lora", "99 % of full fine-tuning's score") in goals
    (target,) = {r["target"] for r in needed_table(store, target=0.8).to_pylist()}
    assert target == 0.8
    by_method = {r["method"]: r["value"] for r in area_table(store).to_pylist()}
    assert by_method["randlora"] > by_method["lora"]


def test_a_crossing_is_claimed_only_with_both_ends_in_range() -> None:
    row = {
        "method": "randlora",
        "baseline": "lora",
        "x": "adapter_params",
        "value": 27_700.0,
        "share": 0.78,
        "note": "",
    }
    assert "RandLoRA's curve may cross LoRA's at" in crossing_sentence(row | {"low": 22_100.0, "high": None})
    said = crossing_sentence(row | {"low": 22_100.0, "high": 31_000.0, "share": 1.0})
    assert said.startswith("RandLoRA's curve crosses LoRA's at 27,700 trainable") and "22,100 to 31,000" in said
    assert "one seed" in crossing_sentence(row | {"low": None, "high": None, "share": None})


def test_an_axis_that_does_not_move_has_no_fit(store: Store) -> None:
    assert band_table(store, "peak_memory_bytes").num_rows == 0
    with pytest.raises(StoreError, match="seconds_train"):
        band_table(store, "second_train")


def test_efficient_points() -> None:
    cost, score = np.array([1.0, 2.0, 2.0, 3.0, 4.0]), np.array([0.5, 0.6, 0.6, 0.55, 0.7])
    assert efficient(cost, score).tolist() == [True, True, True, False, True]


def test_device_hours_are_of_all_workers() -> None:
    columns = "seconds_total, workers, seconds_setup, seconds_train, seconds_eval"
    trials = f"(values (1800.0, 4, 1.0, 2.0, 3.0), (7200.0, null, null, null, null)) as trials ({columns})"
    assert duckdb.sql(f"select {AXES['device_hours'].sql} from {trials}").fetchall() == [(2.0,), (2.0,)]


def test_front(store: Store) -> None:
    rows = pareto_front(store).to_pylist()
    front = [r for r in rows if r["on_front"]]
    scores = [r["score"] for r in front]
    assert scores == sorted(scores)
    assert all((r["beaten_by"] is None) == r["on_front"] for r in rows)
    assert all(0.0 <= r["front_share"] <= 1.0 for r in rows)


def test_the_front_says_what_its_axis_has_no_place_for(tmp_path: Path) -> None:
    untrained, lora = ("zero-shot", None, "a"), [("lora", f"lora-{rank}", "a") for rank in (1, 4)]
    scores = zip((untrained, *lora), (0.8, 0.7, 0.9), strict=True)
    cells: Cells = {key: dict.fromkeys(range(3), score) for key, score in scores}
    named = f" Not on the logarithmic axis, but compared with: {style('zero-shot').name}, at a cost of 0."
    for given, said in ((cells, named), ({key: cells[key] for key in lora}, "")):
        drawn = open_store(odd_results(tmp_path / str(len(given)), given))
        (front,) = (p for p in pictures(drawn) if p.stem == "pareto")
        assert f"scores no less.{said}" in front.caption and ("Not on" in front.caption) == bool(said)


def test_data_size_curves_in_order_of_size(shots: Store, store: Store) -> None:
    table = size_curves(shots)
    assert size_labels(table) == ["4-shot", "16-shot", "all data"]
    assert size_curves(store).num_rows == 0


def test_the_report_has_the_sections(store: Store, shots: Store, empty: Store) -> None:
    page = render(store, View(overlay="fig1-clip"))
    for name in ("more", "pareto", "overlay"):
        assert f'<section id="{name}">' in page
    assert '<section id="sizes">' in render(shots)
    assert '<section id="more">' not in render(empty)


def test_figures_are_written(shots: Store, tmp_path: Path) -> None:
    drawn = [p for p in pictures(shots, View("device_hours")) if p.stem.startswith(("pareto", "data_size"))]
    paths = save_pictures(drawn, tmp_path)
    assert {"pareto.png", "data_size.svg", "data_size.pdf"} <= set(paths)
    assert all(p.stat().st_size > 1000 for p in paths.values())


def test_the_overlay_is_the_published_curve_on_ours(store: Store) -> None:
    """Both curves stand at their own numbers on one axis, ours solid, theirs dashed, in one colour per method."""
    from analysis.findings.published.publications import overlaid, publication

    ours, theirs, title = overlaid(store, "fig1-clip")
    figure = draw_overlay(ours, theirs, title)
    lines = {line.get_gid(): line for line in figure.axes[0].lines if ":" in (line.get_gid() or "")}
    for method in ("lora", "randlora"):
        mine, published = lines[f"ours:{method}"], lines[f"published:{method}"]
        points = [p for p in publication("fig1-clip").points if p["method"] == method and p["adapter_params"]]
        points.sort(key=lambda p: p["adapter_params"])
        assert published.get_xdata() == pytest.approx([p["adapter_params"] for p in points], rel=0.2)  # moved aside
        assert np.allclose(published.get_ydata(), [100 * p["score"] for p in points])
        rows = sorted((r for r in ours.to_pylist() if r["method"] == method), key=lambda r: r["adapter_params"])
        assert np.allclose(mine.get_ydata(), [100 * r["mean"] for r in rows])
        assert mine.get_color() == published.get_color() == style(method).colour
        assert mine.get_linestyle() == "-" != published.get_linestyle()
    assert figure.axes[0].get_xscale() == "log"
    [picture] = [p for p in pictures(store, View(overlay="fig1-clip")) if p.stem == "overlay"]
    assert "nothing is tested" in picture.says and title in picture.svg


def test_of_several_published_places_the_nearest_is_taken() -> None:
    from analysis.findings.published.publications import published_curve

    model = "open_clip:ViT-B-32/openai"
    table, title = published_curve("clip-per-dataset", model, "hub:cars", "16-shot")
    assert {(r["dataset"], r["train_size"]) for r in table.to_pylist()} == {("cars", "16-shot")}
    assert title.endswith("cars, 16-shot")
    table, _ = published_curve("shots", "hf:facebook/dinov2-base", None, "4-shot")
    assert {(r["model"], r["train_size"]) for r in table.to_pylist()} == {("hf:facebook/dinov2-base", "4-shot")}
    table, _ = published_curve("shots")
    assert len({(r["model"], r["dataset"], r["train_size"]) for r in table.to_pylist()}) == 1


def test_a_short_axis_has_ticks_that_differ() -> None:
    from analysis.drawing.charts import Chart, log_ticks

    for low, high in ((3_301_320, 3_317_760), (0.31, 0.36), (12_000, 13_000), (1e3, 1e6)):
        axes = Chart(3, 2).add_subplot()
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        log_ticks(axes.xaxis, low, high)
        axes.figure.canvas.draw()
        shown = [t.get_text() for t in axes.get_xticklabels() if t.get_text()]
        assert len(shown) >= 2 and len(set(shown)) == len(shown), (low, shown)


def test_who_is_ahead_in_which_currency(store: Store) -> None:
    rows = currency_table(store).to_pylist()
    assert {r["x"] for r in rows} >= {"adapter_params"}
    (first,) = [r for r in rows if r["x"] == "adapter_params"]
    areas = {r["method"]: r["value"] for r in area_table(store).to_pylist()}
    assert {first["method"], first["other"]} == {"randlora", "lora"}
    assert first["difference"] == pytest.approx(areas[first["method"]] - areas[first["other"]], abs=1e-6)


def test_an_order_turns_only_between_clear_differences(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    base = pair_table(store, "adapter_params").to_pylist()[0]

    def pairs(_: Store, x: str) -> pa.Table:
        ends = {"adapter_params": (0.01, 0.03), "step_flops": (-0.03, -0.01), "saved_bytes": (-0.03, 0.01)}
        low, high = ends.get(x, (None, None))
        if low is None or high is None:
            return pa.table({})
        row = base | {"x": x, "difference": (low + high) / 2, "difference_low": low, "difference_high": high}
        return pa.Table.from_pylist([row])

    monkeypatch.setattr("analysis.findings.currencies.pair_table", pairs)
    assert [r["turns"] for r in currency_table(store).to_pylist()] == [True] * 3
    two = dict.fromkeys(("adapter_params", "saved_bytes"), "")
    monkeypatch.setattr("analysis.findings.currencies.CURRENCIES", two)
    assert [r["turns"] for r in currency_table(store).to_pylist()] == [False] * 2
