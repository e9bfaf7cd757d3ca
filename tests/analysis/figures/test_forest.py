"""The question's differences on one axis: every one that the table has, with its verdict, and the means apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis import open_store
from analysis.figures.differences import MARGIN
from analysis.figures.forest import draw_forest
from analysis.figures.pictures import MOST_ROWS, pictures
from analysis.statistics import scaling
from tests.analysis.odd import odd_results


def folder_of(path: Path, datasets: str, budgets: int = 2) -> Path:
    cells = {
        (method, f"lora-{2**b}", d): {s: mean + 0.02 * k + s * (k + b) % 3 / 300 for s in range(4)}
        for k, d in enumerate(datasets)
        for b in range(budgets)
        for method, mean in (("lora", 0.70), ("randlora", 0.73), ("vera", 0.71))
    }
    folder = odd_results(path, cells)
    declared = {"name": "f", "confirm": {"margin": 0.01}}
    (folder / "sweep.json").write_text(json.dumps(declared), encoding="utf-8")
    return folder


def test_a_row_for_every_difference_and_mean(tmp_path: Path) -> None:
    store = open_store(folder_of(tmp_path / "r", "ab"))
    [picture] = [p for p in pictures(store) if p.stem == "forest"]
    rows = [r for r in scaling.comparisons(store).to_pylist() if r["method"] == "randlora"]
    [axes] = picture.figure.axes
    names = ["a, lora-1", "a, lora-2", "b, lora-1", "b, lora-2", "mean, all budgets", "mean of sets like these"]
    assert [t.get_text() for t in axes.get_yticklabels()] == names
    assert [t.get_text().replace("\n", " ") for t in axes.texts] == [r["verdict"] for r in rows]
    dots = {line.get_ydata()[0]: (line.get_xdata()[0], line.get_marker()) for line in axes.lines if line.get_gid()}
    assert [dots[level][0] for level in range(6)] == pytest.approx([100 * r["difference"] for r in rows])
    assert [dots[level][1] for level in range(6)] == ["o"] * 4 + ["D"] * 2
    ends = {path.vertices[0, 1]: path.vertices[:, 0] for c in axes.collections for path in c.get_paths()}
    for level, r in enumerate(rows):
        if r["low"] is not None:
            assert tuple(ends[level]) == pytest.approx((100 * r["low"], 100 * r["high"]))
    [strip] = [p for p in axes.patches if p.get_gid() == f"0:{MARGIN}"]
    assert (strip.get_x(), strip.get_width()) == pytest.approx((-1.0, 2.0))
    assert any(tip.startswith("RandLoRA at all budgets on 2 data sets: +3.0") for tip in picture.figure.tips.values())


def test_it_is_for_several_data_sets_and_as_many_rows_as_can_be_read(tmp_path: Path) -> None:
    for name, datasets, budgets in (("one", "a", 3), ("many", "abcdefghij", MOST_ROWS // 10)):
        store = open_store(folder_of(tmp_path / name, datasets, budgets))
        assert "forest" not in {p.stem for p in pictures(store)}, name
    with pytest.raises(ValueError, match="no difference to draw"):
        draw_forest(scaling.comparisons(store).slice(0, 0), score="test accuracy")
