"""The figure of paired differences: what is drawn is what was computed, and no band says more than its verdict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from analysis import Store, open_store
from analysis.findings.all import pictures
from analysis.findings.comparisons.figure import MARGIN, draw_differences
from analysis.findings.comparisons.numbers import DIFFERENCES, GIVEN_RATES, WITH_CHOICE, difference_curves
from analysis.format import Row
from analysis.styles import style
from analysis.verdict.comparisons import comparisons
from analysis.verdict.inference import half_width, sidak
from tests.analysis.odd import odd_results, without_validation
from tests.analysis.synthetic import make_results


def test_lines_and_bands_are_the_tables(store: Store) -> None:
    rows = difference_curves(store).to_pylist()
    [axes] = draw_differences(difference_curves(store), score="test accuracy", focus="randlora").axes
    drawn = {line.get_gid(): np.asarray(line.get_ydata()) for line in axes.lines if line.get_gid()}
    for method in {r["method"] for r in rows}:
        mine = [r for r in rows if r["method"] == method]
        assert drawn[f"0:{method}"] == pytest.approx([100 * r["difference"] for r in mine])
    assert (drawn["0:zero"] == 0).all() and len([k for k in drawn if k.startswith("tip")]) == len(rows)
    focus = [r for r in rows if r["method"] == "randlora"]
    [band] = [c for c in axes.collections if len(c.get_facecolor()) and c.get_alpha() == 0.16]
    assert to_hex(band.get_facecolor()[0]) == style("randlora").colour.lower()
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(100 * min(r["low"] for r in focus))
    assert heights.max() == pytest.approx(100 * max(r["high"] for r in focus))


def test_a_band_that_leaves_out_zero_has_a_verdict(store: Store, wide: Store) -> None:
    apart = 0
    for one in (store, wide):
        compared = {tuple(r[k] for k in DIFFERENCES.names[:7]): r for r in comparisons(one).to_pylist()}
        for r in (r for r in difference_curves(one).to_pylist() if r["dataset"]):
            mine = compared[tuple(r[k] for k in DIFFERENCES.names[:7])]
            assert r["low"] < mine["low"] < mine["difference"] == r["difference"] < mine["high"] < r["high"]
            if r["low"] > 0 or r["high"] < 0:
                apart += 1
                assert r["verdict"] == ("higher" if r["low"] > 0 else "lower")
    assert apart > 1


@pytest.mark.parametrize("rule", ["per-data-set", None])
def test_the_mean_over_data_sets_has_a_panel_of_its_own(tmp_path: Path, rule: str | None) -> None:
    methods, rng = {"lora": (1, 4), "randlora": (1, 4), "vera": (1,)}, np.random.default_rng(0)
    cells = {(m, f"lora-{r}", d): dict(enumerate(rng.normal(0.7 + 0.02 * k, 0.01, 4)))
             for d in "abc" for k, m in enumerate(methods) for r in methods[m]}  # fmt: skip
    one = open_store(odd_results(tmp_path / "one", cells, tune=(), seed_rule=rule))
    rows, compared = difference_curves(one).to_pylist(), comparisons(one).to_pylist()
    means = [r for r in rows if r["dataset"] is None]
    assert [key(r) for r in means] == [(m, f"lora-{r}") for m in ("randlora", "vera") for r in methods[m]]
    assert {r["family"] for r in rows} == {sum(r["error"] is not None for r in compared) + len(means)}
    for r in means:
        mine = [c for c in compared if c["dataset"] in ("a", "b", "c") and key(c) == key(r)]
        gaps = np.array(
            [[cells[(*key(r), d)][s] - cells["lora", r["reference"], d][s] for s in range(4)] for d in "abc"]
        )
        assert r["difference"] == pytest.approx(gaps.mean()) and r["verdict"] is None and r["n_datasets"] == 3
        # seeds of their own: a mean's variance is a ninth of the sets' sum; shared ones are averaged first
        parts = ([c["error"] ** 2 / 9 for c in mine], [c["freedom"] for c in mine])
        parts = parts if rule else ([gaps.mean(axis=0).var(ddof=1) / 4], [3])
        half = half_width(*parts, sum(c["choice_sd"] ** 2 for c in mine) / 9, sidak(r["family"]))
        assert r["high"] - r["low"] == pytest.approx(2 * float(half))
    [picture] = [p for p in pictures(one) if p.stem == "differences"]
    assert picture.figure.axes[0].get_title(loc="left").startswith("mean over data sets")
    assert "that of the mean over data sets at" in picture.says and "over 6 budgets" in picture.says


def test_a_method_that_one_data_set_lacks_has_no_mean_over_them(tmp_path: Path) -> None:
    cells = {(m, "lora-1", d): {s: 0.7 + k / 50 + (m == "vera") * s / 99 for s in range(3)}
             for k, m in enumerate(("lora", "vera", "nola")) for d in "ab" if (m, d) != ("nola", "b")}  # fmt: skip
    rows = difference_curves(open_store(odd_results(tmp_path / "one", cells))).to_pylist()
    assert [(r["method"], r["dataset"]) for r in rows if r["method"] == "nola"] == [("nola", "a")]
    assert {r["dataset"] for r in rows if r["method"] == "vera"} == {"a", "b", None}


def key(row: Row) -> tuple[str, str]:
    """Method and budget."""
    return row["method"], row["reference"]


@pytest.mark.parametrize("many", [3, 9])
def test_a_legend_takes_the_rows_it_needs(tmp_path: Path, many: int) -> None:
    names = ["lora", "randlora", *(f"randlora-a-{16 * k}" for k in range(many - 2))]
    cells = {(m, r, "a"): {s: 0.7 + k / 50 + s / 99 for s in range(3)}
             for k, m in enumerate(names) for r in ("lora-1", "lora-4")}  # fmt: skip
    drawn = [
        p.figure
        for p in pictures(open_store(odd_results(tmp_path / "r", cells)))
        if p.stem in ("scaling_curve", "ranking", "differences", "forest")
    ]
    assert len(drawn) == 2
    for figure in drawn:
        FigureCanvasAgg(figure).draw()
        [legend] = figure.legends
        box, panel = legend.get_window_extent(), figure.axes[0].get_tightbbox()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and panel.y1 < box.y0 and len(legend.get_texts()) == many


def test_a_band_says_whether_the_choice_of_rates_is_in_it(store: Store, tmp_path: Path) -> None:
    assert set(difference_curves(store)["band"].to_pylist()) == {WITH_CHOICE}
    cells = {(m, f"lora-{r}", "a"): {s: 0.7 + r / 50 + (m == "randlora") * s / 99 for s in range(3)}
             for m in ("lora", "randlora") for r in (1, 4)}  # fmt: skip
    fixed = without_validation(tmp_path / "fixed", cells)
    assert set(difference_curves(fixed)["band"].to_pylist()) == {GIVEN_RATES}


def test_one_seed_and_no_spread_have_no_band_and_say_so(tmp_path: Path) -> None:
    plan = {"randlora": ("lora-1", "lora-4"), "lora": ("lora-1", "lora-4")}
    one = open_store(make_results(tmp_path / "one", seeds=1, plan=plan))
    assert {r["band"] for r in difference_curves(one).to_pylist()} == {None}
    [picture] = [p for p in pictures(one) if p.stem == "differences"]
    assert "There is no band" in picture.says and "(none: one seed, or no spread)" in picture.caption
    same = open_store(odd_results(tmp_path / "same", {(m, "lora-1", "a"): dict.fromkeys(range(3), 0.7 + k)
                                                      for k, m in enumerate(("lora", "randlora"))}))  # fmt: skip
    assert [r["low"] for r in difference_curves(same).to_pylist()] == [None]
    with pytest.raises(ValueError, match="no row"):
        draw_differences(DIFFERENCES.empty_table(), score="test accuracy")


def test_a_margin_is_a_strip(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "margin", plan={"randlora": ("lora-1", "lora-2"), "lora": ("lora-1", "lora-2")})
    (folder / "sweep.json").write_text(json.dumps({"name": "margin", "confirm": {"margin": 0.01}}), encoding="utf-8")
    [picture] = [p for p in pictures(open_store(folder)) if p.stem == "differences"]
    [strip] = [p for p in picture.figure.axes[0].patches if p.get_gid() == f"0:{MARGIN}"]
    assert (strip.get_y(), strip.get_height()) == pytest.approx((-1.0, 2.0))
    assert "margin of 1 points" in picture.caption


def test_figures_say_which_kind_their_bands_are(store: Store) -> None:
    given = ", given the chosen rates"
    kinds = {"differences": "simultaneous", "fits": f"simultaneous{given}", "scaling_curve": f"pointwise{given}"}
    kinds |= {"tuning_effort": "pointwise"}
    for p in pictures(store):
        said = [t.get_text() for t in p.figure.texts if t.get_text().startswith("bands")]
        assert said == ([f"bands: 95 %, {kinds[p.stem]}"] if p.stem in kinds else []), p.stem
        assert p.stem not in kinds or kinds[p.stem].removesuffix(given) in p.caption
