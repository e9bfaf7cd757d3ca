"""Five data sets or more: known numbers, coverage, and nothing below five."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from analysis import Store, open_store
from analysis.figures.pictures import pictures
from analysis.report.tables import pick
from analysis.statistics.units.many import interquartile_means, iqm_interval, profiles, wilcoxon
from tests.analysis.odd import Cells, odd_results
from tests.analysis.synthetic import make_results

PLAN = {"randlora": ("lora-1",), "lora": ("lora-1",), "nola": ("lora-1",)}


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Store:
    names = [f"set-{i}" for i in range(8)]
    return open_store(make_results(tmp_path_factory.mktemp("many") / "eight", datasets=names, plan=PLAN, noise=0.003))


def test_interquartile_means_are_of_the_middle_half_of_the_runs(eight: Store) -> None:
    runs = eight.sql("select method, test_score from confirmed").to_pylist()
    for r in interquartile_means(eight).to_pylist():
        mine = np.sort([x["test_score"] for x in runs if x["method"] == r["method"]])
        assert (r["datasets"], r["n"]) == (8, 24) and r["iqm"] == pytest.approx(mine[6:18].mean())
        assert r["low"] < r["iqm"] < r["high"]


def test_the_interval_of_an_interquartile_mean_covers() -> None:
    rng, hit, tables = np.random.default_rng(0), 0, 120
    levels = np.linspace(0.6, 0.9, 8)
    truth = float(stats.trim_mean(rng.normal(levels, 0.01, (20_000, 8)).ravel(), 0.25))
    for _ in range(tables):
        low, high = iqm_interval([rng.normal(level, 0.01, 5) for level in levels])
        hit += low is not None and high is not None and low <= truth <= high
    assert hit >= stats.binom.ppf(0.001, tables, 0.94)
    assert iqm_interval([np.array([0.5])] * 5) == (None, None)


def test_wilcoxon_and_holm(eight: Store, wide: Store) -> None:
    rows = {(r["method"], r["other"]): r for r in wilcoxon(eight).to_pylist()}
    assert len(rows) == 3
    first = rows["randlora", "lora"]
    assert first["p"] == pytest.approx(2 / 2**8) and first["p_holm"] == pytest.approx(3 * 2 / 2**8)
    assert first["verdict"] == "higher" and first["difference"] > 0.02
    assert wilcoxon(wide).num_rows == interquartile_means(wide).num_rows == profiles(wide).num_rows == 0


def test_a_lead_whose_median_is_zero_has_its_own_sign(tmp_path: Path) -> None:
    """Seven ties and six leads: all signed ranks are of one sign, and the verdict said "lower"."""
    cells: Cells = {
        (m, "lora-1", f"set-{i:02}"): {0: 0.7 + max(0, i - 6) * 0.01 * (m == "randlora")}
        for i in range(13)
        for m in ("lora", "randlora")
    }
    (row,) = wilcoxon(open_store(odd_results(tmp_path / "ties", cells))).to_pylist()
    assert row["p_holm"] < 0.05 and row["difference"] == 0.0
    assert (row["method"], row["verdict"]) in {("randlora", "higher"), ("lora", "lower")}


def test_no_method_is_confirmed_on_all(tmp_path: Path) -> None:
    cells: Cells = {(m, "lora-1", f"set-{i}"): {0: 0.7} for i in range(6) for m in ("lora", "nola")[i > 2 :]}
    del cells["nola", "lora-1", "set-0"]
    store = open_store(odd_results(tmp_path / "holes", cells))
    assert wilcoxon(store).num_rows == interquartile_means(store).num_rows == profiles(store).num_rows == 0


def test_profiles_fall_from_all_runs_to_none(eight: Store) -> None:
    for method in PLAN:
        mine = [r for r in profiles(eight).to_pylist() if r["method"] == method]
        shares = [r["share"] for r in mine]
        assert len(mine) == 41 and shares == sorted(shares, reverse=True) and shares[-1] == 0.0 and shares[0] > 0.95
    [picture] = [p for p in pictures(eight) if p.kind == "profiles"]
    assert len(picture.figure.axes) == 1 and len(picture.figure.axes[0].lines) > 3
    assert [s.name for s in pick(eight, ["iqm", "wilcoxon"])] == ["iqm", "wilcoxon"]
