"""Mean ranks with critical differences, and expected bests: numbers, sentences, figures, and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats as scipy_stats

from analysis import Store, open_store
from analysis.figures import forest
from analysis.figures.drawing import TITLE_WIDTH, place_title
from analysis.figures.mean_ranks import draw_mean_ranks
from analysis.figures.pictures import MOST_EXPECTED, mean_ranks_picture, tuning_pictures
from analysis.figures.tuning import draw_expected
from analysis.report.page import render
from analysis.statistics import tuning
from analysis.statistics.groups import RANKS, critical_difference, mean_ranks
from analysis.words import figures as say
from tests.analysis.synthetic import make_results

FEW = {"randlora": ("lora-1", "lora-4", "lora-16"), "nola": ("lora-1", "lora-4"), "vera": ("lora-1",), "full": (None,)}
FEW |= {"lora": FEW["randlora"]}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Five data sets, three budgets, at two of which there are three methods or more."""
    names = [f"set-{i}" for i in range(5)]
    return open_store(make_results(tmp_path_factory.mktemp("ranks") / "many", datasets=names, plan=FEW))


def test_critical_differences_known_numbers() -> None:
    # Demsar 2006, table 5 (q at 0.05) and his example: four classifiers on 14 data sets, 1.25
    for methods, q in ((2, 1.960), (3, 2.343), (4, 2.569), (10, 3.164)):
        assert critical_difference(methods, 6) == pytest.approx(q * (methods * (methods + 1) / 36) ** 0.5, abs=2e-3)
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)


def test_methods_of_one_quality_are_told_apart_in_one_table_of_twenty() -> None:
    rng, false = np.random.default_rng(0), 0
    reach = critical_difference(4, 8)
    for _ in range(1000):
        ranks = scipy_stats.rankdata(rng.normal(size=(4, 8)), axis=0).mean(axis=1)
        false += ranks.max() - ranks.min() > reach
    assert 10 <= false <= 68


def test_ranks_have_a_critical_difference_where_friedman_has_a_test(many: Store, wide: Store) -> None:
    rows = mean_ranks(many).to_pylist()
    assert {r["reference"] for r in rows if r["critical_difference"] is not None} == {"lora-1", "lora-4"}
    for r in rows:
        if r["critical_difference"] is not None:  # two budgets are tested
            assert r["critical_difference"] == pytest.approx(critical_difference(r["methods"], 5, 0.025))
    assert all(r["critical_difference"] is None for r in mean_ranks(wide).to_pylist())
    said = say.conclude_ranks(rows, 0.05) or ""
    assert "At 2 of 2 budgets" in said and "RandLoRA before LoRA at" in said
    level = [r | {"mean_rank": 2.0, "p_friedman": 0.9} for r in rows if r["critical_difference"] is not None]
    assert "At 0 of 2 budgets" in (said := say.conclude_ranks(level, 0.05) or "") and "no two are further apart" in said


def test_equal_scores_share_a_rank_whatever_their_rounding(tmp_path: Path) -> None:
    from analysis.statistics import groups

    made = make_results(tmp_path / "two", datasets=("a", "b"), plan=dict.fromkeys(("lora", "randlora"), ("lora-1",)))
    store = open_store(made)
    scores = {"lora": 0.1 + 0.2, "randlora": 0.3}
    cells: Any = {
        (("two", "m", d, "1.0"), m, "lora-1"): [
            {"sweep": "two", "model": "m", "dataset": d, "train_size": "1.0", "method": m, "reference": "lora-1"}
            | {"cell_id": m, "budget": 1, "data_seed": 0, "init_seed": 0, "basis_seed": 0, "test_score": s}
        ]
        for d in "ab"
        for m, s in scores.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "confirmed", lambda _: cells)
        assert {r["mean_rank"] for r in mean_ranks(store).to_pylist()} == {1.5}


def test_the_figure_of_ranks(many: Store, wide: Store, store: Store) -> None:
    (picture,) = mean_ranks_picture(many)
    rows = mean_ranks(many).to_pylist()
    axes = picture.figure.axes[0]
    drawn = sorted(float(line.get_xdata()[0]) for line in axes.lines if line.get_gid())
    assert drawn == sorted(r["mean_rank"] for r in rows)
    assert sorted(p.get_width() for p in axes.patches) == pytest.approx(
        sorted({r["critical_difference"] for r in rows} - {None})
    )
    assert [t.get_text() for t in axes.get_yticklabels()] == ["lora-1", "lora-4", "lora-16"]
    assert len(picture.figure.tips) == len(rows) and picture.svg.count('class="tip"') == len(rows)
    (few,) = mean_ranks_picture(wide)  # two data sets: markers, nothing tested, no bar
    assert not few.figure.axes[0].patches and "can't be tested" in few.says
    assert mean_ranks_picture(store) == []  # one data set
    with pytest.raises(ValueError, match="no row"):
        draw_mean_ranks(mean_ranks(store))


@pytest.mark.parametrize("count", [3, 7, 30])
def test_every_method_stands_in_the_legend_over_the_panel_and_in_its_own_row(count: int) -> None:
    named = {"sweep": "s", "model": "m", "train_size": "1.0", "methods": count, "datasets": 9}
    rows = [
        named | {"method": f"peft:method-{k}", "reference": reference, "mean_rank": float(k + 1)}
        for reference in ("lora-1", "lora-4")
        for k in range(count)
    ]
    figure = draw_mean_ranks(pa.Table.from_pylist(rows, schema=RANKS))
    figure.canvas.draw()
    (legend,) = figure.legends
    box, (axes,) = legend.get_window_extent(), figure.axes
    assert len(legend.get_texts()) == count
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
    assert box.y0 > axes.get_tightbbox().y1  # its title included
    assert axes.bbox.height / figure.dpi == pytest.approx(0.42 * 2 + 0.95 + 0.25 - 0.42 - 0.55)  # as of few
    at = [float(line.get_ydata()[0]) for line in axes.lines if line.get_gid()]
    assert sorted(round(y) for y in at) == [0] * count + [1] * count


def test_names_of_data_sets_are_cut_and_never_lost() -> None:
    long = "parquet:data/commonsense_reasoning_of_170_thousand_questions"
    places = [("s", "m", name, "1.0") for name in (long, long + "-b", "folder:data/pets/", "hf:a/arc")]
    titles = [place_title(place) for place in places]
    assert titles[0].startswith("commonsense_reasoning_of_170_thousand") and titles[0].endswith("\u2026")
    assert max(map(len, titles)) <= TITLE_WIDTH
    assert titles[2:] == ["pets", "arc"]
    assert forest._name({"test": "t", "dataset": long}, "lora-1") == "commonsense_reasoni\u2026, lora-1"


def test_the_figure_of_expected_bests(many: Store, store: Store) -> None:
    assert [p.kind for p in tuning_pictures(many)].count("expected") == MOST_EXPECTED
    picture, in_test, sharp = tuning_pictures(store)
    assert (picture.kind, in_test.kind, sharp.kind) == ("expected", "effort", "sharpness")
    rows = tuning.best_of_n(store).to_pylist()
    seen = [a for a in picture.figure.axes if a.get_visible()]
    assert [a.get_title("left") for a in seen] == ["lora-1", "lora-2", "lora-4", "lora-8", "lora-16"]
    curve = [100 * r["expected"] for r in rows if (r["method"], r["reference"]) == ("lora", "lora-8")]
    assert any(list(line.get_ydata()) == curve for line in seen[3].lines) and len(curve) == 4
    whole = [100 * r["expected"] for r in rows if r["method"] == "full"]
    assert all(any(list(line.get_ydata()) == whole for line in a.lines) for a in seen)  # no budget: in every panel
    tested = [100 * r["test"] for r in rows if (r["method"], r["reference"]) == ("lora", "lora-8")]
    assert any(list(line.get_ydata()) == tested for line in in_test.figure.axes[3].lines)
    assert len(in_test.figure.axes[3].collections) == 3  # the bands of LoRA, RandLoRA and full fine-tuning
    decades = [r["decades"] for r in tuning.sharpness(store).to_pylist() if r["method"] == "lora"]
    assert any(list(line.get_ydata()) == decades for line in sharp.figure.axes[0].lines)
    with pytest.raises(ValueError, match="exactly one"):
        draw_expected(tuning.best_of_n(many))


def test_what_another_allowance_would_have_said() -> None:
    def cell(method: str, reference: str | None, *curve: float) -> list[dict[str, Any]]:
        named = {"method": method, "reference": reference}
        return [named | {"n": n, "expected": v} for n, v in enumerate(curve, 1)]

    rows = [*cell("randlora", "lora-1", 0.5, 0.7), *cell("lora", "lora-1", 0.6, 0.604, 0.606), *cell("full", None, 0.9)]
    said = say.conclude_expected(rows)
    assert "above LoRA's at 0 of 1 budgets; with 2, at 1" in said and "in 1 of 2 cells (RandLoRA in 1)" in said
    assert say.conclude_expected(rows[2:]).startswith("The last learning rate still brought")


def test_the_page_has_both(store: Store, tmp_path: Path) -> None:
    plan = dict.fromkeys(("lora", "randlora", "nola"), ("lora-1",))
    page = render(open_store(make_results(tmp_path / "three", datasets=("a", "b", "c"), plan=plan)))
    assert 'id="figure-mean_ranks"' in page and 'id="figure-expected_best"' in page
    assert page.count("further apart than Nemenyi") == 2  # under the figure, and for a screen reader
    assert "ranks" not in {p.kind for p in mean_ranks_picture(store)}
