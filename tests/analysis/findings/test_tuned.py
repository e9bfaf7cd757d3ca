"""The flag of cells that may be under-tuned, each of its three reasons alone and none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from analysis import Store, open_store, results_table
from analysis.findings.tuning.figure import draw_rates
from analysis.findings.tuning.finding import learning_rates_sheet
from analysis.findings.tuning.numbers import best_of_n, best_weights, expected_best, rates, sharpness
from analysis.report.page import render
from analysis.store.schemas import SCHEMAS
from analysis.store.slot_kinds import SlotKind
from analysis.store.sql.queries import run_sql
from analysis.store.tables import to_table, write_part
from tests.analysis.odd import odd_results
from tests.analysis.synthetic import make_results


def tables(
    scores: Sequence[float | None], edge: str | None = None, status: str = "failed", reruns: Sequence[float] = ()
) -> Mapping[str, pa.Table]:
    """One cell whose TUNE points have these validation scores; the first rate has re-runs too."""
    names = {"sweep": "s", "cell_id": "c", "stage": "TUNE", "attempt": 1, "method": "lora"}
    trials: list[dict[str, Any]] = [
        {**names, "trial_id": f"t{i}", "lr": 10.0**-i, "val_score": v, "status": status if v is None else "finished"}
        for i, v in enumerate(scores)
    ]
    trials += [
        {**names, "trial_id": f"r{i}", "lr": 1.0, "val_score": v, "status": "finished"} for i, v in enumerate(reruns)
    ]
    found = {name: to_table(name, []) for name in SCHEMAS}
    cell = {"sweep": "s", "cell_id": "c", "feasible": True, "tune_trials": len(trials), "method": "lora"}
    chosen = {"sweep": "s", "cell_id": "c", "lr": 1.0, "edge": edge, "n_trials": len(trials)}
    return {
        **found,
        "trials": to_table("trials", trials),
        "cells": to_table("cells", [cell]),
        "choices": to_table("choices", [chosen]),
    }


@pytest.mark.parametrize(
    ("scores", "edge", "says"),
    [
        ((0.70, 0.69, 0.65, 0.5), None, None),
        ((0.70, 0.69, 0.65, 0.5), "high", "edge high"),
        ((0.70, 0.695), None, "few finished"),
        ((0.70, 0.69, 0.65, None, None), None, "few finished"),
        ((0.70, 0.69, 0.65, 0.64, None), None, None),
        ((0.60, 0.70, 0.695, 0.5), None, "between rates"),
        ((0.60, 0.70, 0.60, 0.5), None, None),  # it is at a rate that was tried
        ((0.60, 0.70, 0.695, None, None), "low", "edge low; few finished; between rates"),
        ((None, None, None), None, "few finished"),
    ],
)
def test_why_a_cell_may_be_under_tuned(scores: Sequence[float | None], edge: str | None, says: str | None) -> None:
    for view in ("tuned", "parity"):
        rows = run_sql(tables(scores, edge), f"select * from {view}").to_pylist()
        assert [r["under_tuned"] for r in rows] == [says], view
    row = run_sql(tables(scores, edge), "select * from tuned").to_pylist()[0]
    assert row["points_tried"] == len(scores)
    known = [s for s in scores if s is not None]
    assert row["points_finished"] == len(known)
    if len(known) > 1:
        curve = expected_best(known)
        assert row["last_gain"] == pytest.approx(curve[-1] - curve[-2])


def test_rates_past_a_lowered_allowance_do_not_count() -> None:
    """Of six planned rates and two of the local fit, four and one count now. The widened one still counts."""
    slots = [0, 1, 2, 3, 4, 5, SlotKind.REFINED.slot(0), SlotKind.REFINED.slot(1), SlotKind.WIDENED.slot(0)]
    given = tables([0.6, 0.61, 0.62, 0.63, 0.9, 0.64, 0.65, 0.91, 0.66])
    first = [row | {"slot": slot, "data_seed": 0} for row, slot in zip(given["trials"].to_pylist(), slots, strict=True)]
    reruns = [row | {"trial_id": f"again{row['slot']}", "data_seed": 1} for row in (first[3], first[4])]
    reruns = [row | {"slot": 6 + i} for i, row in enumerate(reruns)]  # they were run under the larger allowance
    (cell,) = given["cells"].to_pylist()
    lowered = {
        **given,
        "trials": to_table("trials", first + reruns),
        "cells": to_table("cells", [cell | {"tune_points": 5, "tune_refined": 1}]),
    }
    counted = run_sql(lowered, "select slot from searched order by slot").to_pylist()
    rerun_of_slot_3 = 6
    assert {row["slot"] for row in counted} == SlotKind.within(5, 1) | {rerun_of_slot_3, SlotKind.WIDENED.slot(0)}
    (row,) = run_sql(lowered, "select * from tuned").to_pylist()
    assert (row["points_tried"], row["best_val"]) == (6, pytest.approx(0.66))


def test_the_expected_gain_is_that_of_a_parabola() -> None:
    def gain(scores: Sequence[float | None]) -> float | None:
        (row,) = run_sql(tables(scores), "select expected_gain from tuned").to_pylist()
        return row["expected_gain"]

    curve = [0.7 - 0.04 * (1.3 - i) ** 2 for i in range(4)]
    assert gain(curve) == pytest.approx(0.04 * 0.3**2)
    assert gain([curve[0], curve[1], None, curve[3]]) == pytest.approx(0.04 * 0.3**2)  # over unequal steps
    assert gain([0.5, 0.5, 0.5]) is None or gain([0.5, 0.5, 0.5]) == 0.0
    assert gain([0.7, 0.6, 0.5]) is None  # the best is at the edge


def test_reruns_of_a_rate_are_one_point_and_pruned_trials_have_no_full_score() -> None:
    row = run_sql(tables((0.70, 0.69, 0.65), reruns=(0.66, 0.71)), "select * from tuned").to_pylist()[0]
    assert row["points_tried"] == 3
    assert row["best_val"] == pytest.approx(0.69)
    assert row["last_gain"] == pytest.approx(0.0, abs=1e-12)  # the second rate is as good
    pruned = run_sql(tables((0.70, None, None), status="pruned"), "select * from tuned").to_pylist()[0]
    assert pruned["under_tuned"] == "few finished"


def test_the_flag_stands_in_the_results_the_report_and_agrees_with_the_curve(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    make_results(folder)
    store = open_store(folder)
    flagged = {r["cell_id"]: r for r in store.table("tuned").to_pylist()}
    curves: dict[str, list[float]] = {}
    for row in best_of_n(store).to_pylist():
        curves.setdefault(row["cell_id"], []).append(row["expected"])
    for cell_id, curve in curves.items():
        assert flagged[cell_id]["last_gain"] == pytest.approx(curve[-1] - curve[-2])
    said = {(r["method"], r["reference"]): r["under_tuned"] for r in results_table(store).to_pylist()}
    assert "edge high" in said["lora", "lora-4"]
    page = render(store)
    assert "the highest rate tried is the best" in page
    assert "perhaps under-tuned" in page


def test_the_curve_in_test_terms_ends_at_the_confirmed_score(store: Store) -> None:
    rows = best_of_n(store).to_pylist()
    scored = {(r["method"], r["reference"]): r for r in results_table(store).to_pylist()}
    ends = {r["cell_id"]: r for r in rows}  # the last n
    met = 0
    for last in ends.values():
        mine, score = [r for r in rows if r["cell_id"] == last["cell_id"]], scored[last["method"], last["reference"]]
        assert all(r["test_low"] < r["test"] < r["test_high"] for r in mine)
        assert [r["test"] - mine[0]["test"] for r in mine] == pytest.approx(
            [r["expected"] - mine[0]["expected"] for r in mine]
        )
        if last["test"] == pytest.approx(score["mean"]):  # the choice is the best by its mean over re-runs
            met += 1
            assert (last["test_low"], last["test_high"]) == pytest.approx((score["low"], score["high"]))
    assert met > len(ends) / 2


def test_weights_are_those_of_the_expected_best() -> None:
    scores = [0.3, 0.7, 0.5, 0.6]
    for n, expected in enumerate(expected_best(scores), start=1):
        weights = best_weights(scores, n)
        assert weights.sum() == pytest.approx(1.0) and weights @ scores == pytest.approx(expected)
    assert best_weights(scores, 4).tolist() == [0, 1, 0, 0]


def test_sharpness_of_a_known_response(tmp_path: Path) -> None:
    plan = {"lora": ("lora-1",), "randlora": ("lora-1",)}
    made = open_store(make_results(tmp_path / "sharp", plan=plan, noise=0.0))
    for r in sharpness(made).to_pylist():  # the response falls by 0.05 per squared decade
        assert r["decades"] == pytest.approx(0.625) and r["searched"] >= 2.0 and not r["open"]


@pytest.mark.parametrize(
    ("scores", "decades", "is_open"),
    [((0.5, 0.6, 0.55), 0.1 + 0.2, False), ((0.55, 0.6, 0.595), 0.2 + 1.0, True), ((0.4, 0.5, 0.6), 0.1, True)],
)
def test_sharpness_of_three_rates(tmp_path: Path, scores: tuple[float, ...], decades: float, is_open: bool) -> None:
    """A point is lost after a tenth of a step that loses ten points, and after a fifth of one that loses five."""
    store = open_store(odd_results(tmp_path / "r", {("lora", "lora-1", "a"): {0: 0.7}}, tune=scores))
    (row,) = sharpness(store).to_pylist()
    step = row["searched"] / 2
    assert (row["decades"] / step, row["open"]) == (pytest.approx(decades), is_open)


def test_what_is_searched_beside_the_rate_tells_points_apart(tmp_path: Path) -> None:
    """Three rates without a decay and two of them with one, which was chosen."""
    folder = odd_results(tmp_path / "grid", {("lora", "lora-1", "a"): {0: 0.7}}, tune=(0.5, 0.6, 0.55, 0.7, 0.65))
    made, decay = open_store(folder), {"hyperparameters": '{"decay": 0.1}'}
    trials = made.table("trials").to_pylist()
    write_part(folder, "trials", [r | decay | {"lr": r["lr"] / 100} for r in trials if r["lr"] > 5e-2])
    write_part(folder, "choices", [r | decay | {"sequence": 1} for r in made.table("choices").to_pylist()])
    store = open_store(folder)
    found = [(r["lr"], r["mean_val"], r["chosen"]) for r in rates(store).to_pylist()]
    without = [(1e-4, 0.5, False), (1e-3, 0.6, False), (1e-2, 0.55, False)]
    assert found == [pytest.approx(point) for point in [*without, (1e-3, 0.7, True), (1e-2, 0.65, False)]]
    assert [r["expected"] for r in best_of_n(store).to_pylist()][-1] == 0.7
    assert sharpness(store).num_rows == 0  # two rates with the decay are too few
    assert {line.get_gid() for axes in draw_rates(rates(store)).axes for line in axes.lines} >= {
        "rates:lora_lora-1_a_1.0",
        "rates:lora_lora-1_a_1.0:1",
    }
    assert [r[3] for r in learning_rates_sheet(store).cells] == [*[""] * 3, *['{"decay": 0.1}'] * 2]
