"""What choosing a rate adds: a run's noise from CONFIRM and re-runs, the variance of a choice, one verdict with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis import comparisons, conclusion, open_store
from analysis.findings.full_fine_tuning import conclude_gap
from analysis.findings.groups import conclude_groups
from analysis.findings.results.numbers import results_table
from analysis.store.tables import part_paths, write_part
from analysis.verdict.choice import choice_variance, choice_variances, drawn_variance, levels, smoothed
from analysis.verdict.groups import groups
from analysis.verdict.inference import two_sided
from analysis.verdict.noise import Runs, _of_points, method_noise, noise_share, rerun_noise, run_noise
from tests.analysis.odd import Cells, odd_results, without_validation
from tests.analysis.synthetic import make_results


def test_noise_of_a_run_without_what_a_seed_does_to_all_methods() -> None:
    rng = np.random.default_rng(0)
    runs = rng.normal(0, 0.05, (4000, 1, 3)) + rng.normal(0, 0.2, (4000, 2, 1)) + rng.normal(0, 0.01, (4000, 2, 3))
    squares, freedom = run_noise(runs)
    assert freedom == 2 and (squares / freedom).mean() == pytest.approx(0.01**2, rel=0.05)
    runs[:, 1, 2] = np.nan  # a run that failed, in every table
    squares, freedom = run_noise(runs)
    assert freedom == 1 and (squares / freedom).mean() == pytest.approx(0.01**2, rel=0.08)
    assert run_noise(runs[:, :1])[1] == 0


def told(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = method_noise(scores)
    assert found is not None
    return found


def test_methods_of_like_noise_share_it_and_one_that_falls_to_chance_has_its_own() -> None:
    rng = np.random.default_rng(0)
    sd = np.array([0.01, 0.01, 0.01, 0.01, 0.2])
    runs = rng.normal(0, 0.05, (600, 2, 1, 5)) + sd[:, None] * rng.normal(size=(600, 2, 5, 5))
    runs[:, 1, 3] = np.nan  # a method that has one of the two budgets
    runs[:, 0, 1, 4] = np.nan  # a run that failed
    noise, alike = told(runs)
    assert not alike[:, 4].any() and (~alike[:, :4]).any(axis=-1).mean() < 0.03
    assert noise[:, 4].mean() == pytest.approx(0.2**2, rel=0.05)
    squares, freedom = zip(*(run_noise(runs[:, budget, :4]) for budget in (0, 1)), strict=True)
    steady = alike[:, :4].all(axis=-1)
    assert noise[steady, 0] == pytest.approx((sum(squares) / sum(freedom))[steady])
    assert (noise[steady, 0] == noise[steady, 3]).all()


@pytest.mark.parametrize(("methods", "seeds", "budgets"), [(3, 10, 1), (3, 5, 6), (8, 5, 1)])
def test_equal_noise_sets_one_table_of_a_hundred_apart(methods: int, seeds: int, budgets: int) -> None:
    """Estimates of single variances did so in 7 to 16 of a hundred at 5 %: with few methods they hang together."""
    _, alike = told(np.random.default_rng(0).normal(0, 1.0, (4000, budgets, methods, seeds)))
    assert (~alike).any(axis=-1).mean() == pytest.approx(0.01, abs=0.007)


def test_of_two_methods_nobody_can_say_which_is_the_noisy_one() -> None:
    rng = np.random.default_rng(0)
    noise, alike = told(rng.normal(0, [[0.01], [0.2]], (50, 1, 2, 5)))
    assert noise[:, 0] == pytest.approx(noise[:, 1]) and alike.all()
    runs = 0.01 * rng.normal(size=(50, 2, 5, 5))
    runs[:, 0, 3:], runs[:, 1, :3] = np.nan, np.nan  # the last two share a budget that the others are not at
    runs[:, 1, 4] *= 20
    assert told(runs)[1].all()


def test_runs_that_tell_nothing_set_nothing_aside() -> None:
    rng = np.random.default_rng(0)
    runs = 0.006 * rng.normal(size=(200, 1, 5, 6))
    runs[:, 0, 4, :5] = np.nan  # one seed in common with the others: no freedom but rounding
    noise, alike = told(runs)
    assert alike[:, 4].all() and noise.min() > 0.002**2
    assert told(np.ones((1, 4, 3)))[0] == pytest.approx(0.0)
    assert method_noise(rng.normal(size=(2, 1, 5))) is None


def test_noise_has_no_selection_in_it() -> None:
    """Re-runs hold the run that made its rate one of the best: on a flat response their spread is too small."""
    rng = np.random.default_rng(0)
    tried = rng.normal(0, 1.0, (3000, 8, 3))
    best = np.argsort(-tried[..., 0], axis=-1)[:, :2]
    again = np.take_along_axis(tried, best[..., None], axis=1)
    squares, freedom = run_noise(again)
    assert (squares / freedom).mean() < 0.85
    for noise in (run_noise(rng.normal(0, 1.0, (3000, 2, 5))), rerun_noise(again)):
        assert (noise[0] / noise[1]).mean() == pytest.approx(1.0, rel=0.04)
    assert rerun_noise(again[:, :, :2])[1] == rerun_noise(again[:, :, :0])[1] == rerun_noise(again[:, :0])[1] == 0


def test_how_far_noise_is_common_to_budgets() -> None:
    rng = np.random.default_rng(0)
    alone, alike = rng.normal(size=(2000, 4, 2, 6)), rng.normal(size=(2000, 1, 2, 6))
    assert noise_share(alone).mean() == pytest.approx(0.28, abs=0.03)  # a quarter, and what cutting off there adds
    assert noise_share(alone + alike).mean() == pytest.approx(0.625, abs=0.05)
    assert noise_share(np.broadcast_to(alike, alone.shape)) == pytest.approx(1.0)
    assert noise_share(alone[..., :1]) == pytest.approx(1.0) and noise_share(np.zeros((3, 2, 4))) == pytest.approx(
        1 / 3
    )


def test_the_first_seed_of_tune_is_the_one_most_points_ran_on() -> None:
    """Derived seeds have no order: a re-run's may be the smaller."""
    first, again = (9, 9, 9), (1, 1, 1)
    points = {(10.0**-k, None): {first: 0.5 + 0.1 * k} for k in range(4)}
    points[1e-2, None] = {again: 0.9, first: 0.7}
    _, runs = _of_points(points)
    assert runs.first == pytest.approx([0.5, 0.6, 0.7, 0.8]) and runs.again == pytest.approx(np.array([[0.7, 0.9]]))


def test_levels_average_the_runs_of_a_point_on_the_first_seeds_scale() -> None:
    runs = Runs(np.array([0.5, 0.7, 0.6]), np.array([[0.7, 0.9], [0.6, 0.9]]), np.array([1, 2]))
    level, weight = levels(runs)
    assert level == pytest.approx([0.5, 0.675, 0.625])  # the second seed is 0.25 higher for all
    assert weight.tolist() == [1, 2, 2]
    alone = Runs(np.array([0.5, 0.7]), np.zeros((0, 0)), np.zeros(0, dtype=np.int64))
    assert levels(alone)[0].tolist() == [0.5, 0.7]


def test_smoothing_keeps_a_quadratic_and_takes_noise_out() -> None:
    rates = np.linspace(-4, -1, 8)
    curve = 0.7 - 0.05 * (rates + 2.4) ** 2
    chosen = np.array(4)
    assert smoothed(rates, curve, np.ones(8), chosen) == pytest.approx(curve)
    noisy = curve + np.random.default_rng(1).normal(0, 0.01, (500, 8))
    fitted = smoothed(rates, noisy, np.ones((500, 8)), np.full(500, 4))
    assert ((fitted - curve)[:, 3:6] ** 2).mean() < 0.5 * 0.01**2
    two = smoothed(rates[:2], curve[:2], np.ones(2), np.array(0))  # too few for a curve: the points themselves
    assert two == pytest.approx(curve[:2])


def test_variance_of_a_choice_known_cases() -> None:
    # two points 1 apart, noise that confuses them half the time: p (1 - p) times the square of the gap
    wrong = scipy_stats.norm.cdf(-1 / np.sqrt(2))
    assert float(choice_variance(np.array([0.0, 1.0]), 1.0, (0, 0))) == pytest.approx(wrong * (1 - wrong), rel=1e-6)
    wrong = scipy_stats.norm.cdf(-1 / np.sqrt(2) * 2)  # four runs each: half the noise
    assert float(choice_variance(np.array([0.0, 1.0]), 1.0, (2, 3))) == pytest.approx(wrong * (1 - wrong), rel=1e-6)
    assert float(choice_variance(np.array([0.0, 1.0]), 1e-6, (0, 0))) < 1e-9  # no noise, no doubt
    assert float(choice_variance(np.zeros(5), 1.0, (2, 2))) == 0.0  # equal rates: it does not matter which


@pytest.mark.parametrize(("rates", "reruns"), [(5, (3, 4)), (9, (2, 2)), (9, (1, 0)), (4, (4, 2)), (9, (3, 1))])
@pytest.mark.parametrize("curvature", [0.0, 1.0, 20.0])
def test_the_variance_of_a_choice_is_that_of_many_draws(rates: int, reruns: tuple[int, int], curvature: float) -> None:
    rng = np.random.default_rng(rates)
    expected = -curvature * np.linspace(-1, 1, rates) ** 2 + rng.normal(0, 0.5, rates)
    exact = float(choice_variance(expected, 1.0, reruns))
    drawn = float(drawn_variance(expected, 1.0, reruns, rng, draws=200_000))
    assert exact == pytest.approx(drawn, rel=0.03, abs=1e-4)


@pytest.mark.parametrize("points", [5, 9])
def test_a_finer_quadrature_moves_no_p_value_by_a_thousandth(points: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for curvature in (0.3, 3.0, 30.0):
        expected = -curvature * np.linspace(-1, 1, points) ** 2 + rng.normal(0, 0.3, points)
        p = []
        for step in (1.0, 0.5):
            monkeypatch.setattr("analysis.verdict.choice.STEP_MEAN", step * 0.4)
            monkeypatch.setattr("analysis.verdict.choice.STEP_FIRST", step * 0.5)
            added = float(choice_variance(expected, 1.0, (3, 2)))
            p.append(two_sided(np.linspace(0, 3, 40), np.array([0.1]), np.array([4.0]), added))
        assert np.abs(p[0] - p[1]).max() < 2e-4


def test_the_same_data_have_the_same_verdict_whatever_the_sweep_is_called(tmp_path: Path) -> None:
    """The variance was drawn with a generator that the sweep's name seeded."""
    tables = [
        [{k: v for k, v in r.items() if k != "sweep"} for r in comparisons(store).to_pylist()]
        for name in ("one", "two")
        for store in [open_store(make_results(tmp_path / name, noise=0.03))]
    ]
    for one, two in zip(*tables, strict=True):
        for name, value in one.items():  # the last digit of numpy's sums depends on where in memory their terms lie
            assert two[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), name
    assert any(r["choice_sd"] for r in tables[0])


def test_a_sweep_has_its_choice_in_the_verdicts(tmp_path: Path) -> None:
    noisy = open_store(make_results(tmp_path / "noisy", noise=0.03, seeds=5))
    added = choice_variances(noisy)
    assert len(added) == 15 and all(v >= 0 for v in added.values())
    assert added["noisy", "zero-shot_embedded-fashion_1.0"] == 0.0  # nothing was chosen
    pooled = {v for (_, cell), v in added.items() if cell.startswith("randlora")}
    assert len(pooled) == 1 and pooled.pop() > 0  # over the method's budgets
    rows = comparisons(noisy).to_pylist()
    assert any(r["choice_sd"] > 0.001 for r in rows)
    for r in rows:
        assert r["p"] >= r["p_given_rates"] and r["p_holm"] >= r["p"]
        assert (r["low_pointwise"] > 0 or r["high_pointwise"] < 0) == (r["p"] < 0.05)  # one standard error
        assert (r["low"] > 0 or r["high"] < 0) == (r["p_holm"] <= 0.05)
        if r["verdict"] in ("higher", "lower"):  # never more than what holds given the rates
            assert r["verdict"] == r["verdict_given_rates"]
    assert any(r["p"] > 1.01 * r["p_given_rates"] for r in rows)


def test_a_method_that_falls_to_chance_widens_no_other_methods_interval(tmp_path: Path) -> None:
    plan = {name: ["lora-1", "lora-4"] for name in ("lora", "randlora", "vera", "nola")}
    folder = make_results(tmp_path / "steady", noise=0.02, seeds=5, plan=plan)
    steady = choice_variances(open_store(folder))
    rows = [r for r in open_store(folder).table("trials").to_pylist() if r["stage"] == "CONFIRM" and r["val_score"]]
    fallen = [r for r in rows if r["method"] == "nola"][::3]
    write_part(folder, "trials", [r | {"attempt": r["attempt"] + 1, "val_score": 0.1} for r in fallen])
    found = choice_variances(open_store(folder))
    for key, variance in found.items():
        assert variance > 2 * steady[key] if "nola" in key[1] else variance < 2 * steady[key]


@pytest.mark.parametrize("status", ["failed", "pruned"])
def test_a_rate_that_failed_beside_the_best_one_adds_what_a_bad_rate_adds(tmp_path: Path, status: str) -> None:
    """The best rate is no end of the range, since a higher one was tried."""
    plan = {name: ["lora-1"] for name in ("lora", "randlora")}
    folder = make_results(tmp_path / "made", noise=0.004, seeds=5, plan=plan)
    rows = [r for r in open_store(folder).table("trials").to_pylist() if r["stage"] == "TUNE"]
    tried = choice_variances(open_store(folder))
    highest = [r for r in rows if r["lr"] == max(x["lr"] for x in rows if x["cell_id"] == r["cell_id"])]
    ended = {"status": status, "val_score": None if status == "failed" else 0.1}
    write_part(folder, "trials", [r | {"attempt": r["attempt"] + 1, **ended} for r in highest])
    found = choice_variances(open_store(folder))
    assert set(found) == set(tried)
    for key, variance in found.items():
        assert variance > 0.5 * tried[key] > 0


def test_rates_that_share_less_luck_than_methods_do_add_more(tmp_path: Path) -> None:
    """CONFIRM's runs at one rate have their images' luck in common; on real tables V was too small by it."""
    rng = np.random.default_rng(0)
    found = []
    for noise in (0.0, 0.1):
        folder = make_results(tmp_path / str(noise), noise=0.02, seeds=5)
        rows = open_store(folder).table("trials").to_pylist()
        first = min(r["data_seed"] for r in rows if r["stage"] == "TUNE")
        again = [r for r in rows if r["stage"] == "TUNE" and r["data_seed"] > first]
        more = [r | {"trial_id": f"{r['trial_id']}-more", "data_seed": r["data_seed"] + 1} for r in again]
        write_part(folder, "trials", [r | {"val_score": r["val_score"] + rng.normal(0, noise)} for r in more])
        found.append(sum(choice_variances(open_store(folder)).values()))
    assert found[1] > 2 * found[0] > 0


CLEAR: Cells = {
    ("randlora", "lora-1", "a"): {0: 0.81, 1: 0.83, 2: 0.8},
    ("lora", "lora-1", "a"): {0: 0.7, 1: 0.71, 2: 0.7},
    ("full", None, "a"): {0: 0.9, 1: 0.92, 2: 0.905},
}


def test_without_re_runs_the_choice_is_known_all_the_same(tmp_path: Path) -> None:
    rows = comparisons(open_store(odd_results(tmp_path / "bare", CLEAR, tune=(0.5, 0.6, 0.59)))).to_pylist()
    assert all(r["choice_sd"] > 0 for r in rows) and rows[0]["verdict_given_rates"] == "higher"


def test_an_unknown_choice_is_said_everywhere(tmp_path: Path) -> None:
    """Groups took it as nothing, and claimed what the table called not testable."""
    store = without_validation(tmp_path / "bare", CLEAR)
    (row,) = comparisons(store).to_pylist()
    assert (row["choice_sd"], row["p"], row["low"], row["power"]) == (None, None, None, None)
    assert (row["verdict"], row["verdict_given_rates"]) == ("not testable with the choice of rates", "higher")
    assert {(r["group"], r["tested"]) for r in groups(store).to_pylist()} == {("a", 0)}
    said = conclusion(store)
    assert said.startswith("No conclusion") and "what the choice of learning rates adds is not known" in said
    assert "of 1 budgets: higher at 1" in said
    assert "knowing what the choice of rates adds" in conclude_groups(groups(store).to_pylist())
    gap = conclude_gap(comparisons(store, "full"))
    assert gap is not None and gap.count("not testable with the choice of rates") == 2


@pytest.mark.parametrize(("tune", "known"), [((), True), ((0.6,), True), ((None, 0.6, None), False)])
def test_what_was_never_chosen_adds_nothing(tmp_path: Path, tune: tuple[float | None, ...], known: bool) -> None:
    """No search, or one point, is no choice; one point left of three is one whose noise is not known."""
    (row,) = comparisons(open_store(odd_results(tmp_path / "fixed", CLEAR, tune=tune))).to_pylist()
    assert (row["choice_sd"], row["verdict"]) == (
        (0.0, "higher") if known else (None, "not testable with the choice of rates")
    )


def test_runs_whose_cell_is_lost_leave_the_rest_to_be_read(tmp_path: Path) -> None:
    folder = odd_results(tmp_path / "lost", CLEAR)
    [part] = part_paths(folder, "cells")
    left = [r for r in open_store(folder).table("cells").to_pylist() if r["method"] != "randlora"]
    part.unlink()
    for cells in ([], left):
        if cells:
            write_part(folder, "cells", cells)
        store = open_store(folder)
        assert {cell for _, cell in choice_variances(store)} == {r["cell_id"] for r in cells}
        (row,) = comparisons(store).to_pylist()
        assert (row["choice_sd"], row["verdict"]) == (None, "not testable with the choice of rates")
        assert {r["method"] for r in results_table(store).to_pylist()} == {r["method"] for r in cells}
