"""Expected bests: numbers, sentences, figures, and the page; a legend of many methods; long names."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from analysis import Store, open_store
from analysis.drawing.charts import TITLE_WIDTH, place_title
from analysis.findings.fits.pareto import FRONT
from analysis.findings.forest.figure import _name
from analysis.findings.front.figure import draw_front
from analysis.findings.rate_ratio.figure import draw_rate_ratios
from analysis.findings.rate_ratio.finding import conclude_rate_ratios, rate_ratio_pictures
from analysis.findings.rate_ratio.numbers import RATIOS
from analysis.findings.tuning.figure import draw_expected
from analysis.findings.tuning.finding import (
    MOST_EXPECTED,
    conclude_expected,
    effort_pictures,
    expected_pictures,
    sharpness_pictures,
)
from analysis.findings.tuning.numbers import best_of_n, sharpness
from analysis.report.page import render
from tests.analysis.synthetic import make_results

FEW = {"randlora": ("lora-1", "lora-4", "lora-16"), "nola": ("lora-1", "lora-4"), "vera": ("lora-1",), "full": (None,)}
FEW |= {"lora": FEW["randlora"]}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Five data sets, three budgets, at two of which there are three methods or more."""
    names = [f"set-{i}" for i in range(5)]
    return open_store(make_results(tmp_path_factory.mktemp("ranks") / "many", datasets=names, plan=FEW))


@pytest.mark.parametrize("count", [3, 7, 30])
def test_every_method_stands_in_the_legend_over_the_panel(count: int) -> None:
    named = {"sweep": "s", "model": "m", "dataset": "d", "train_size": "1.0", "x": "adapter_params", "n": 3}
    rows = [
        named | {"method": f"peft:method-{k}", "reference": reference, "cost": cost, "score": 0.5 + k / 100}
        for reference, cost in (("lora-1", 100.0), ("lora-4", 400.0))
        for k in range(count)
    ]
    figure = draw_front(pa.Table.from_pylist(rows, schema=FRONT))
    figure.canvas.draw()
    (legend,) = figure.legends
    box, (axes,) = legend.get_window_extent(), figure.axes
    assert len(legend.get_texts()) == count
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
    assert box.y0 > axes.get_tightbbox().y1  # its title included
    assert axes.bbox.height / figure.dpi == pytest.approx(
        2.4 + 0.35 - 0.45 - 0.52
    )  # the same panel height as in a figure with few methods


def test_names_of_data_sets_are_cut_and_never_lost() -> None:
    long = "parquet:data/commonsense_reasoning_of_170_thousand_questions"
    places = [("s", "m", name, "1.0") for name in (long, long + "-b", "folder:data/pets/", "hf:a/arc")]
    titles = [place_title(place) for place in places]
    assert titles[0].startswith("commonsense_reasoning_of_170_thousand") and titles[0].endswith("\u2026")
    assert max(map(len, titles)) <= TITLE_WIDTH
    assert titles[2:] == ["pets", "arc"]
    assert _name({"test": "t", "dataset": long}, "lora-1") == "commonsense_reasoni\u2026, lora-1"


def test_the_figure_of_expected_bests(many: Store, store: Store) -> None:
    assert len(expected_pictures(many)) == MOST_EXPECTED
    (picture,), (in_test,), (sharp,) = (
        draw(store) for draw in (expected_pictures, effort_pictures, sharpness_pictures)
    )
    assert len(rate_ratio_pictures(store)) == 1
    rows = best_of_n(store).to_pylist()
    seen = [a for a in picture.figure.axes if a.get_visible()]
    assert [a.get_title("left") for a in seen] == ["lora-1", "lora-2", "lora-4", "lora-8", "lora-16"]
    curve = [100 * r["expected"] for r in rows if (r["method"], r["reference"]) == ("lora", "lora-8")]
    assert any(list(line.get_ydata()) == curve for line in seen[3].lines) and len(curve) == 4
    whole = [100 * r["expected"] for r in rows if r["method"] == "full"]
    assert all(any(list(line.get_ydata()) == whole for line in a.lines) for a in seen)  # no budget: in every panel
    tested = [100 * r["test"] for r in rows if (r["method"], r["reference"]) == ("lora", "lora-8")]
    assert any(list(line.get_ydata()) == tested for line in in_test.figure.axes[3].lines)
    assert len(in_test.figure.axes[3].collections) == 3  # the bands of LoRA, RandLoRA and full fine-tuning
    decades = [r["decades"] for r in sharpness(store).to_pylist() if r["method"] == "lora"]
    assert any(list(line.get_ydata()) == decades for line in sharp.figure.axes[0].lines)
    with pytest.raises(ValueError, match="exactly one"):
        draw_expected(best_of_n(many))


def test_each_panel_shows_its_own_scores(store: Store) -> None:
    """The panels have one y axis, and their budgets may score far apart."""
    table = best_of_n(store)
    low = [r | {"expected": 0.1 + r["expected"] / 9} if r["reference"] == "lora-1" else r for r in table.to_pylist()]
    drawn = draw_expected(pa.Table.from_pylist([r for r in low if r["reference"]], schema=table.schema))
    for axes in (a for a in drawn.axes if a.get_visible()):
        heights = [y for line in axes.lines for y in line.get_ydata()]
        assert heights and axes.get_ylim()[0] <= min(heights) <= max(heights) <= axes.get_ylim()[1]


def ratio_row(method: str, reference: str | None, *ends: float | None, at_edge: bool = False) -> dict[str, Any]:
    """Return a row of `rate_ratio.rate_ratios` with a ratio and the ends of its interval."""
    ratio, low, high = ends
    named = {"sweep": "s", "model": "m", "dataset": "d", "train_size": "1.0", "method": method, "reference": reference}
    measured = {"baseline": "full", "ratio": ratio, "ratio_low": low, "ratio_high": high, "at_edge": at_edge}
    return named | {"budget": 100 if reference else None} | measured


def test_ratios_of_rates_have_a_row_each_and_arrows_at_open_ends() -> None:
    rows = [
        ratio_row("lora", "lora-1", 10.0, 5.0, 20.0),
        ratio_row("randlora", "lora-1", 3.0, None, 9.0),
        ratio_row("linear-probe", None, 40.0, 2.0, None, at_edge=True),
    ]
    figure = draw_rate_ratios(pa.Table.from_pylist(rows, schema=RATIOS))
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["RandLoRA lora-1", "LoRA lora-1", "linear probe"]
    left, right = axes.get_xlim()
    bars = [bar.get_segments()[0][:, 0].tolist() for bar in axes.collections]
    assert bars == [[left, 9.0], [5.0, 20.0], [2.0, right]]
    heads = [(line.get_marker(), line.get_xdata()[0]) for line in axes.lines if line.get_marker() in ("<", ">")]
    assert heads == [("<", left), (">", right)]
    assert "LoRA at lora-1: 10 times full fine-tuning's best rate, 95 % interval 5 to 20" in figure.tips.values()
    assert any("interval 2 to open; one of the two lies at an end" in tip for tip in figure.tips.values())
    said = conclude_rate_ratios(rows)
    assert said.startswith(
        "Best learning rate divided by that of full fine-tuning: RandLoRA 3, LoRA 10, linear probe 40*."
    )
    assert said.endswith("* One of the two best rates lies at an end of the rates that were tried.")
    methods = [ratio_row(f"peft:{k}", "lora-1", float(k), None, None) for k in range(1, 11)]
    assert "peft:1 1, peft:10 10 (the lowest and the highest of 10 methods)" in conclude_rate_ratios(methods)


def test_long_names_of_rows_stay_in_the_figure() -> None:
    rows = [ratio_row("a-method-with-a-name-of-its-own", "percent-0.125", 2.0, None, None)]
    figure = draw_rate_ratios(pa.Table.from_pylist(rows, schema=RATIOS))
    figure.canvas.draw()
    (label,) = figure.axes[0].get_yticklabels()
    assert label.get_text().startswith("a-method-with-a-name") and label.get_window_extent().x0 >= 0


def test_what_another_allowance_would_have_said() -> None:
    def cell(method: str, reference: str | None, *curve: float) -> list[dict[str, Any]]:
        named = {"method": method, "reference": reference}
        return [named | {"n": n, "expected": v} for n, v in enumerate(curve, 1)]

    rows = [*cell("randlora", "lora-1", 0.5, 0.7), *cell("lora", "lora-1", 0.6, 0.604, 0.606), *cell("full", None, 0.9)]
    said = conclude_expected(rows)
    assert "above LoRA's at 0 of 1 budgets, with 2 learning rates at 1" in said
    assert "in 1 of 2 cells (RandLoRA in 1)" in said
    assert conclude_expected(rows[2:]).startswith("The last learning rate still brought")


def test_the_page_has_it(store: Store) -> None:
    assert 'id="figure-expected_best"' in render(store)
