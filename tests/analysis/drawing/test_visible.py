"""Every method can be seen in every figure, also where there are many, few, far or failed ones; type can be read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib.text import Text

from analysis import open_store
from analysis.drawing.charts import COLUMN_INCHES, REACH, SMALL, Chart, Spot, clip_intervals, fit_range, spread_apart
from analysis.findings.all import pictures
from analysis.findings.comparisons.figure import draw_differences
from analysis.findings.comparisons.numbers import difference_curves
from analysis.findings.scaling.figure import draw_scaling
from analysis.findings.scaling.numbers import curve as scaling_curve
from analysis.styles import STYLES, spare_styles, style
from randlora import METHODS
from randlora.methods.bridge.installed import PREFIX
from randlora.methods.bridge.kinds import KINDS
from tests.analysis.odd import NOT_A_NUMBER, Cells, odd_results
from tests.support import ROOT

PAGE_INCHES = 6.8
MANY = [*METHODS, *(f"{PREFIX}{kind}" for kind in KINDS)][:37]


def dots(figure: Chart) -> Iterator[tuple[Any, str, float, float]]:
    """Of every marker its axes, its method and its place on the paper, in points."""
    figure.canvas.draw()
    scale = 72 / figure.dpi
    for axes in figure.axes:
        for line in axes.lines:
            gid = line.get_gid() or ""
            if gid.startswith(("point:", "tip:")) and len(line.get_xdata()) == 1:
                x, y = axes.transData.transform((line.get_xdata()[0], line.get_ydata()[0]))
                yield axes, figure.parts[gid], scale * x, scale * y


def covered(figure: Chart, least: float) -> list[tuple[str, str]]:
    """Pairs of markers of one panel that stand nearer than `least` points in both directions."""
    return [
        (one[1], other[1])
        for one, other in itertools.combinations(dots(figure), 2)
        if one[0] is other[0] and abs(one[2] - other[2]) < least and abs(one[3] - other[3]) < least
    ]


def texts(figure: Chart) -> list[Text]:
    """All that is written in a figure."""
    found = [t for t in figure.findobj(Text) if isinstance(t, Text)]
    return [t for t in found if t.get_visible() and t.get_text().strip()]


def many(path: Path, methods: Sequence[str], budgets: Sequence[str] = ("lora-1", "lora-4")) -> Path:
    cells: Cells = {
        (m, reference, "a"): {s: 0.7 + k % 7 / 500 + s / 300 for s in range(3)}
        for k, m in enumerate(methods)
        for reference in budgets
    }
    return odd_results(path, cells)


@pytest.mark.parametrize("name", ["quickstart", "images", "photos", "rank", "text-rank"])
def test_no_marker_of_a_study_covers_another(name: str) -> None:
    store = open_store(ROOT / "docs" / "results" / name)
    curve, compared = scaling_curve(store), difference_curves(store)
    for figure in (draw_scaling(curve, columns=2), draw_differences(compared, score="score", focus="randlora")):
        assert covered(figure, least=4.5) == []
        drawn = {method for _, method, _, _ in dots(figure)}
        assert drawn <= set(figure.keys.values()) and len(drawn) >= 1
    shown = {r["method"] for r in curve.to_pylist()}
    figure = draw_scaling(curve, columns=2)
    assert set(figure.keys.values()) | {m for gid, m in figure.parts.items() if gid.startswith("far:")} == shown


@pytest.mark.parametrize("name", ["quickstart", "league", pytest.param("shots", marks=pytest.mark.slow)])
def test_figures_fit_a_paper(name: str) -> None:
    """No type under seven points, no figure wider than a page, no name or number over another."""
    for p in pictures(open_store(ROOT / "docs" / "results" / name)):
        assert p.figure.get_figwidth() <= PAGE_INCHES, p.stem
        p.figure.canvas.draw()
        small = {t.get_text() for t in texts(p.figure) if t.get_fontsize() < SMALL}
        assert not small, (p.stem, small)
        boxes = [(t.get_text(), t.get_window_extent()) for t in p.figure.texts]
        boxes += [(axes.get_title(loc="left"), axes.title.get_window_extent()) for axes in p.figure.axes]
        boxes += [(axes.get_xlabel(), axes.xaxis.label.get_window_extent()) for axes in p.figure.axes]
        boxes += [("legend", one.get_window_extent()) for one in p.figure.legends]
        for (a, one), (b, other) in itertools.combinations([(t, box) for t, box in boxes if t], 2):
            assert not one.shrunk(0.95, 0.9).overlaps(other.shrunk(0.95, 0.9)), (p.stem, a, b)


def test_forty_methods_of_one_figure_differ_in_colour_or_marker() -> None:
    registered = {*METHODS, *STYLES, *(f"{PREFIX}{kind}" for kind in KINDS)}
    unknown = {f"mine-{k}" for k in range(40)}
    for names in (registered, unknown | set(STYLES), {*list(unknown)[:10], *registered}):
        styles = STYLES | spare_styles(dict.fromkeys(names))
        looks = [(styles[m].colour, styles[m].marker) for m in names]
        assert len(set(looks)) == len(names) >= 40


@pytest.mark.slow
def test_37_methods_at_two_budgets_are_all_seen(tmp_path: Path) -> None:
    store = open_store(many(tmp_path / "r", MANY))
    assert set(store.table("cells")["method"].to_pylist()) == set(MANY)
    looks = {(style(m).colour, style(m).marker) for m in MANY}
    assert len(looks) == len(MANY) == 37
    for p in pictures(store):
        if p.stem in ("scaling_curve", "differences"):
            assert covered(p.figure, least=1.6) == [], p.stem
            assert set(p.figure.keys.values()) == set(MANY)
            for axes, _, x, _ in dots(p.figure):
                box = axes.get_window_extent()
                assert box.x0 <= x * p.figure.dpi / 72 <= box.x1, p.stem


def test_far_baselines_are_arrows_and_near_ones_lines(tmp_path: Path) -> None:
    cells: Cells = {(m, f"lora-{r}", "a"): {s: 0.7 + r / 100 + k / 50 + s / 300 for s in range(3)}
                    for k, m in enumerate(("lora", "randlora")) for r in (1, 4)}  # fmt: skip
    cells |= {("zero-shot", None, "a"): {0: 0.1}, ("linear-probe", None, "a"): {0: 0.4, 1: 0.42}}
    cells |= {("full", None, "a"): {0: 0.95, 1: 0.96}, ("full-targets", None, "a"): {0: 0.77, 1: 0.76}}
    figure = draw_scaling(scaling_curve(open_store(odd_results(tmp_path / "r", cells))))
    [axes] = figure.axes
    far = [t.get_text() for t in axes.texts if (t.get_gid() or "").startswith("far:")]
    assert far == [
        "\N{DOWNWARDS ARROW} zero-shot 10.0",
        "\N{DOWNWARDS ARROW} linear probe 41.0",
        "\N{UPWARDS ARROW} full fine-tuning 95.5",
    ]
    low, high = axes.get_ylim()
    assert 60 < low < 70 and 77 < high < 85
    assert set(figure.keys.values()) == {"randlora", "lora", "full-targets"}
    figure.canvas.draw()
    boxes = [t.get_window_extent() for t in axes.texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_intervals_of_a_score_end_at_0_and_100(tmp_path: Path) -> None:
    cells: Cells = {(m, "lora-1", "a"): {0: 0.9 + k / 50, 1: 0.995} for k, m in enumerate(("lora", "randlora"))}
    cells |= {("vera", "lora-1", "a"): {0: 0.02, 1: 0.3}}
    store = open_store(odd_results(tmp_path / "r", cells))
    assert any(r["high"] > 1 for r in scaling_curve(store).to_pylist())
    [picture] = [p for p in pictures(store) if p.stem == "ranking"]
    left = picture.figure.axes[0]
    ends = [x for c in left.collections for path in c.get_paths() for x in path.vertices[:, 0]]
    assert min(ends) == 0 and max(ends) == 100
    assert not any("100.1" in tip or "[−" in tip for tip in picture.figure.tips.values() if "pairs" not in tip)
    negative = clip_intervals([{"mean": -0.1, "low": -1.4, "high": 1.3}, {"mean": 0.2, "low": None, "high": None}])
    assert [(r["low"], r["high"]) for r in negative] == [(-1.0, 1.0), (None, None)]


def test_wide_intervals_do_not_set_the_axis() -> None:
    assert fit_range([1.0, 2.0], [(0.0, 2.0), (1.0, 3.0)]) == (0.0, 3.0)
    ends = [(k / 10 - 1, k / 10 + 1) for k in range(10)] + [(-50.0, 50.0)]
    low, high = fit_range([k / 10 for k in range(10)] + [0.0], ends)
    assert -3.5 < low <= -1.0 and 1.9 <= high < 4.5
    assert fit_range([5.0], []) == (5.0, 5.0)
    assert fit_range([0.0, 1.0], [(-150.0, 150.0)] * 2) == (-REACH, 1.0 + REACH)
    assert fit_range([0.0, 20.0], [(-150.0, 150.0)] * 2) == (-50.0, 70.0)


def test_markers_stay_where_they_are_unless_one_would_cover_another() -> None:
    figure = Chart(COLUMN_INCHES, 2.5)
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    axes.set_xscale("log")
    axes.set(xlim=(1e3, 1e5), ylim=(0, 100))
    apart = [Spot(2e3, 10, 10, 10), Spot(2e3, 50, 50, 50), Spot(5e4, 10, 10, 10)]
    assert spread_apart(axes, apart) == pytest.approx([2e3, 2e3, 5e4])
    first, second = spread_apart(axes, [Spot(2e3, 10, 10, 10), Spot(2e3, 11, 11, 11)])
    assert first == pytest.approx(2e3) and second != pytest.approx(2e3, rel=0.01)
    bars = spread_apart(axes, [Spot(2e3, 10, 5, 60), Spot(2e3, 50, 40, 60)])
    assert bars[0] != pytest.approx(bars[1], rel=0.01)
    edge = spread_apart(axes, [Spot(1e3, 10, 10, 10)] * 5)
    assert axes.get_xlim()[0] < min(edge) and len(set(edge)) == 5
    assert spread_apart(axes, []) == []


@pytest.mark.parametrize(
    "cells",
    [
        {("lora", "lora-1", "a"): {0: 0.7, 1: 0.71, 2: 0.72}},
        {("lora", "lora-1", "a"): {0: 0.7}, ("lora", "lora-4", "a"): {0: 0.72}},
        {(m, r, "a"): {0: 0.7} for m in ("lora", "randlora") for r in ("lora-1", "lora-4")},
        {(m, r, "a"): {0: 0.7, 1: None, 2: NOT_A_NUMBER} for m in ("lora", "randlora") for r in ("lora-1", "lora-4")},
        {(m, r, "a"): dict.fromkeys(range(3), 0.7) for m in ("lora", "randlora") for r in ("lora-1", "lora-4")},
        {("zero-shot", None, "a"): {0: 0.1}, ("full", None, "a"): {0: 0.9}},
        {("lora", "lora-1", "a"): {0: None}, ("randlora", "lora-1", "a"): {0: 0.5, 1: 0.6}},
    ],
    ids=["one-method", "one-method-two-budgets", "one-seed", "failed", "equal", "no-budget", "failed-baseline"],
)
def test_odd_sweeps_can_be_drawn(tmp_path: Path, cells: Cells) -> None:
    store = open_store(odd_results(tmp_path / "r", cells))
    for p in pictures(store):
        p.figure.canvas.draw()
        if p.stem in ("scaling_curve", "ranking", "differences", "forest"):
            seen = {r["method"] for r in scaling_curve(store).to_pylist()} & set(p.figure.parts.values())
            assert seen, p.stem
            assert covered(p.figure, least=4.5) == [], p.stem
    assert mpl.rcParams["font.size"] != SMALL  # the figures' style stays theirs
