"""The figure of one budget: a row per method, in the order of its scores, and nothing that the tables do not have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis import open_store
from analysis.findings.all import pictures
from analysis.findings.comparisons.figure import MARGIN
from analysis.findings.comparisons.numbers import DIFFERENCES, difference_curves
from analysis.findings.ranking.figure import draw_ranking
from analysis.findings.scaling.numbers import curve
from analysis.styles import style
from tests.analysis.odd import odd_results

MEANS = {"lora": 0.7, "randlora": 0.74, "vera": 0.68, "nola": 0.71}


def folder_of(path: Path, datasets: str = "a", margin: float | None = None) -> Path:
    cells = {(m, "lora-8", d): {s: mean + s * k % 3 / 500 for s in range(3)} for d in datasets
             for k, (m, mean) in enumerate(MEANS.items(), 1)}  # fmt: skip
    cells |= {("zero-shot", None, d): {0: 0.1} for d in datasets} | {("full", None, d): {0: 0.76} for d in datasets}
    folder = odd_results(path, cells)
    if margin is not None:
        (folder / "sweep.json").write_text(json.dumps({"name": "r", "confirm": {"margin": margin}}), encoding="utf-8")
    return folder


def test_methods_stand_in_the_order_of_their_scores(tmp_path: Path) -> None:
    store = open_store(folder_of(tmp_path / "r", margin=0.01))
    shown = {p.stem: p for p in pictures(store)}
    assert not {"scaling_curve", "differences"} & set(shown)
    left, right = shown["ranking"].figure.axes
    order = ["full", "randlora", "nola", "lora", "vera", "zero-shot"]
    assert [t.get_text() for t in left.get_yticklabels()] == [style(m).name for m in order]
    [first, last] = left.get_ylim()
    assert first > len(order) - 1 and last < 0  # the best on top

    def marks(axes: object) -> dict[float, float]:
        return {line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines if line.get_gid()}  # type: ignore[attr-defined]

    scores = {r["method"]: 100 * r["mean"] for r in curve(store).to_pylist()}
    assert marks(left) == pytest.approx({order.index(m): scores[m] for m in order[:-1]})
    assert [t.get_text() for t in left.texts] == ["\N{LEFTWARDS ARROW} 10.0"]  # zero-shot is far below
    gaps = difference_curves(store).to_pylist()
    assert marks(right) == pytest.approx({order.index(r["method"]): 100 * r["difference"] for r in gaps})
    [strip] = [p for p in right.patches if p.get_gid() == f"0:{MARGIN}"]
    assert (strip.get_x(), strip.get_width()) == pytest.approx((-1.0, 2.0))
    assert shown["ranking"].says == "Corrected verdicts against LoRA: 1 higher, 1 lower, 1 not testable."
    assert any("RandLoRA at lora-8: +4.0" in tip for tip in shown["ranking"].figure.tips.values())


def test_one_far_behind_does_not_flatten_the_others(tmp_path: Path) -> None:
    cells = {(f"v{i}", "lora-8", "a"): {s: 0.7 + 0.004 * i + s * (i % 3) / 300 for s in range(3)} for i in range(9)}
    cells |= {
        ("lora", "lora-8", "a"): {s: 0.7 + s / 300 for s in range(3)},
        ("far", "lora-8", "a"): {0: 0.1, 1: 0.2, 2: 0.3},
    }
    [picture] = [p for p in pictures(open_store(odd_results(tmp_path / "r", cells))) if p.stem == "ranking"]
    left, right = picture.figure.axes
    assert left.get_xlim()[0] > 60 and right.get_xlim()[0] > -30
    assert [t.get_text() for t in left.texts] == ["\N{LEFTWARDS ARROW} 20.0"]
    assert [t.get_text() for t in right.texts] == ["\N{LEFTWARDS ARROW} -50.3"]


def test_every_data_set_has_its_panels(tmp_path: Path) -> None:
    store = open_store(folder_of(tmp_path / "r", datasets="ab"))
    [picture] = [p for p in pictures(store) if p.stem == "ranking"]
    titles = [axes.get_title(loc="left") for axes in picture.figure.axes[::2]]
    assert titles == ["mean over data sets", "a", "b"] and len(picture.figure.axes) == 6 and picture.across == 2
    assert ", 6 comparisons in 2 places: 2 higher" in picture.says


def test_a_method_that_one_data_set_lacks_is_not_in_the_mean(tmp_path: Path) -> None:
    cells = {("lora", "lora-8", d): {s: 0.7 + s / 99 for s in range(3)} for d in "abc"}
    cells |= {("randlora", "lora-8", d): {s: 0.7 + s * s / 99 for s in range(3)} for d in "ab"}
    [picture] = [p for p in pictures(open_store(odd_results(tmp_path / "r", cells))) if p.stem == "ranking"]
    mean, beside = picture.figure.axes[:2]
    assert [t.get_text() for t in mean.get_yticklabels()] == ["LoRA"] and not beside.axison


def test_the_mean_is_among_the_first_panels(tmp_path: Path) -> None:
    [picture] = [p for p in pictures(open_store(folder_of(tmp_path / "r", datasets="abcdefgh"))) if p.stem == "ranking"]
    titles = [axes.get_title(loc="left") for axes in picture.figure.axes[::2]]
    assert titles == ["mean over data sets", *"abcdefg"]


def test_without_a_baseline_there_are_scores_alone(tmp_path: Path) -> None:
    store = open_store(folder_of(tmp_path / "r"))
    [axes] = draw_ranking(curve(store), DIFFERENCES.empty_table()).axes
    assert axes.get_xlabel() == "test accuracy (%)"
    with pytest.raises(ValueError, match="no row"):
        draw_ranking(curve(store).slice(0, 0), DIFFERENCES.empty_table())
