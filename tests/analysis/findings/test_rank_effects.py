"""Rank against parameters: planted slopes are found, and only cells at equal parameters are asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from analysis import Store, open_store
from analysis.findings.all import pictures, sheets
from analysis.findings.rank.figure import draw_ranks
from analysis.findings.rank.finding import conclude_rank_effects
from analysis.findings.rank.numbers import CONTRAST, EFFECTS, _Slope, effects, scores_by_rank
from analysis.report import page as report
from analysis.store.tables import write_part
from analysis.verdict.inference import mean_interval

Row = dict[str, Any]
BUDGETS = {"lora-4": 9216, "lora-16": 36_864}
# method in the file -> (method, rank by budget)
FAMILY = {f"a-{r}": ("randlora-a", dict.fromkeys(BUDGETS, r)) for r in (4, 16, 64)}
METHODS: Mapping[str, tuple[str, Mapping[str, float | None]]] = {
    "lora": ("lora", {"lora-4": 4, "lora-16": 16}),
    "randlora": ("randlora", dict.fromkeys(BUDGETS, 64)),
}
PER_RANK, PER_COUNT = 0.02, 0.01


def level(rank: float, count: int, seed: int, dataset: str) -> float:
    """The score's formula: seeds shift it, and their slopes differ."""
    return 0.4 + 0.03 * seed + (PER_RANK + 0.001 * seed) * math.log2(rank) + PER_COUNT * math.log2(count / 1000)


def made(
    folder: Path,
    methods: Mapping[str, tuple[str, Mapping[str, float | None]]],
    *,
    seeds: Sequence[int] = (-1, 0, 1),
    datasets: Sequence[str] = ("some",),
    score: Callable[[float, int, int, str], float] = level,
    off: Mapping[str, float] | None = None,
) -> Store:
    """A results folder of confirmed cells. `off`: how far methods' counts are from the budget, as a fraction."""
    cells, trials = [], []
    for dataset in datasets:
        for method, (base, ranks) in methods.items():
            for reference, budget in BUDGETS.items():
                rank, far = ranks[reference], (off or {}).get(method, 0.0)
                count = round(budget * (1 + far))
                cell = {
                    "sweep": "s", "cell_id": f"{method}_{reference}_{dataset}", "model": "m", "dataset": dataset,
                    "train_size": "1.0", "method": method, "reference": reference, "budget": budget,
                }  # fmt: skip
                more = {"base": base, "count": count, "update_rank": rank, "residual_fraction": far, "feasible": True}
                more |= {"tune_trials": 0, "confirm_seeds": len(seeds), "label": method, "adapt": "vision"}
                cells.append(cell | more)
                for seed in seeds:
                    trial = {"trial_id": f"{cell['cell_id']}_{seed}", "attempt": 1, "stage": "CONFIRM"}
                    drawn = {"data_seed": seed, "init_seed": seed, "basis_seed": seed, "adapter_params": count}
                    value = score(rank or 1.0, count, seed, dataset)
                    trials.append({**cell, **trial, **drawn, "status": "finished", "test_score": value})
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    write_part(folder, "cells", cells)
    write_part(folder, "trials", trials)
    return open_store(folder)


def found(store: Store) -> dict[tuple[str | None, str | None, str], Row]:
    return {(r["dataset"], r["scope"], r["effect"]): r for r in effects(store).to_pylist()}


def test_planted_slopes_are_found(tmp_path: Path) -> None:
    rows = found(made(tmp_path, {**METHODS, **FAMILY}))
    effects_ = ("rank", "parameters", CONTRAST)
    assert set(rows) == {("some", scope, effect) for scope in (None, "randlora-a") for effect in effects_}
    expected = mean_interval([PER_RANK + 0.001 * seed for seed in (-1, 0, 1)])
    for scope, cells in ((None, 10), ("randlora-a", 6)):
        row = rows["some", scope, "rank"]
        assert row["slope"] == pytest.approx(expected.mean)
        assert (row["low_pointwise"], row["high_pointwise"]) == pytest.approx((expected.low, expected.high))
        assert (row["least"], row["most"], row["cells"], row["n"]) == (4, 64, cells, 3)
        assert row["verdict"] == "higher"
        row = rows["some", scope, "parameters"]  # LoRA's rank grows along, so it is not among these
        assert row["slope"] == pytest.approx(PER_COUNT)
        assert (row["least"], row["most"], row["cells"]) == (9216, 36_864, cells - 2 * (scope is None))


def test_whether_rank_is_worth_more_than_parameters_is_tested(tmp_path: Path) -> None:
    """The one slope less the other, seed by seed: both may differ from zero and not from each other."""

    def score(rank: float, count: int, seed: int, _: str) -> float:
        return 0.4 + (0.02 + 0.006 * seed) * math.log2(rank) + (0.015 - 0.001 * seed) * math.log2(count / 1000)

    row = found(made(tmp_path / "a", FAMILY, score=score))["some", None, CONTRAST]
    expected = mean_interval([0.005 + 0.007 * seed for seed in (-1, 0, 1)])
    assert row["slope"] == pytest.approx(expected.mean)
    assert (row["low_pointwise"], row["high_pointwise"]) == pytest.approx((expected.low, expected.high))
    assert (row["verdict"], row["cells"], row["least"]) == ("not distinguishable", 6, None)
    clear = made(tmp_path / "b", {**METHODS, **FAMILY})
    assert found(clear)["some", None, CONTRAST]["verdict"] == "higher"
    assert "The rank adds more than the parameters do by +1.0 [" in conclude_rank_effects(effects(clear).to_pylist())


def test_a_slope_has_the_choice_of_rates_in_it(tmp_path: Path) -> None:
    store = made(tmp_path, FAMILY, score=lambda rank, count, seed, _: (0.02 + 0.001 * seed) * math.log2(rank * count))
    cells = store.table("cells").to_pylist()
    tuned = [c | {"tune_trials": 3} for c in cells]  # whose TUNE is not there, so what it adds is not known
    write_part(tmp_path, "cells", tuned)
    rows = found(open_store(tmp_path)).values()
    assert {r["verdict"] for r in rows if r["effect"] != CONTRAST} == {"not testable with the choice of rates"}
    assert {(r["low"], r["choice_sd"]) for r in rows} == {(None, None)}
    assert {r["verdict_given_rates"] for r in rows if r["effect"] != CONTRAST} == {"higher"}
    assert "what the choice of rates adds is not known" in conclude_rank_effects(list(rows))


def test_choices_of_one_method_may_go_wrong_alike() -> None:
    def weights(*parts: tuple[str, float]) -> dict[tuple[str, str], tuple[float, list[Row]]]:
        run = {"data_seed": 0, "init_seed": 0, "basis_seed": 0, "test_score": 0.5}
        return {("s", str(k)): (w, [run | {"method": m}]) for k, (m, w) in enumerate(parts)}

    def added(*parts: tuple[str, float]) -> float | None:
        return _Slope.of((weights(*parts), []), {("s", str(k)): 0.04 for k in range(len(parts))}).added

    assert added(("a", 0.5), ("b", -0.5)) == pytest.approx(0.02)  # two methods: each for itself
    assert added(("a", 0.5), ("a", 0.5)) == pytest.approx(0.04)  # two budgets of one: alike at worst
    assert added(("a", 0.5), ("a", -0.5)) == pytest.approx(0.02)  # where alike would cancel, each for itself


def test_a_method_at_a_level_of_its_own_moves_the_slope_over_all_but_not_over_variants(tmp_path: Path) -> None:
    def luck(rank: float, count: int, seed: int, dataset: str) -> float:
        own = {4: 0.0, 16: 0.0}.get(int(rank), 0.0)
        return level(rank, count, seed, dataset) + own + (0.1 if rank == 63 else 0.0)

    methods = {"randlora": ("randlora", dict.fromkeys(BUDGETS, 63.0)), **FAMILY}
    rows = found(made(tmp_path, methods, score=luck))
    assert rows["some", None, "rank"]["slope"] > PER_RANK + 0.005
    assert rows["some", "randlora-a", "rank"]["slope"] == pytest.approx(PER_RANK)
    assert rows["some", None, "parameters"]["slope"] == pytest.approx(PER_COUNT)


def test_counts_off_the_budget_and_unknown_ranks_are_left_out(tmp_path: Path) -> None:
    hydra = {"hydralora": ("hydralora", dict.fromkeys(BUDGETS, None))}
    store = made(tmp_path, {**METHODS, **FAMILY, **hydra}, off={"a-64": 0.2})
    assert {r["method"] for r in scores_by_rank(store).to_pylist()} == {"lora", "randlora", "a-4", "a-16"}
    assert found(store)["some", "randlora-a", "rank"]["most"] == 16


def test_seeds_are_those_that_all_cells_have(tmp_path: Path) -> None:
    store = made(tmp_path / "whole", FAMILY)
    fewer = tmp_path / "fewer"
    (fewer / "tables").mkdir(parents=True)
    kept = [r for r in store.table("trials").to_pylist() if (r["method"], r["data_seed"]) != ("a-4", 1)]
    write_part(fewer, "cells", store.table("cells").to_pylist())
    write_part(fewer, "trials", kept)
    assert found(open_store(fewer))["some", None, "rank"]["n"] == 2


def test_one_seed_is_not_tested(tmp_path: Path) -> None:
    store = made(tmp_path, {**METHODS, **FAMILY}, seeds=(0,))
    assert {(r["low"], r["p"], r["verdict"]) for r in found(store).values()} == {(None, None, "not testable")}
    assert conclude_rank_effects(effects(store).to_pylist()).endswith(
        "that takes two seeds or more, and a spread between them."
    )


def test_data_sets_are_averaged_seed_by_seed(tmp_path: Path) -> None:
    def two(rank: float, count: int, seed: int, dataset: str) -> float:
        return level(rank, count, seed, dataset) + (0.01 * math.log2(rank) if dataset == "other" else 0.0)

    rows = found(made(tmp_path, FAMILY, datasets=("some", "other"), score=two))
    mean = rows[None, None, "rank"]
    assert (mean["n_datasets"], mean["n"], mean["cells"]) == (2, 3, 12)
    assert mean["slope"] == pytest.approx(PER_RANK + 0.005)
    assert rows["other", None, "rank"]["slope"] == pytest.approx(PER_RANK + 0.01)


def test_the_sentence_says_what_was_tested(tmp_path: Path) -> None:
    says = conclude_rank_effects(effects(made(tmp_path, {**METHODS, **FAMILY})).to_pylist())
    assert says.startswith(
        "On some: Doubling the rank at equal parameters adds +2.0 [+1.6, +2.4] points over all methods and +2.0 "
        "[+1.5, +2.5] points over variants of RandLoRA-a. Doubling the parameters at equal rank adds +1.0"
    )
    flat = made(tmp_path / "flat", FAMILY, score=lambda rank, count, seed, _: 0.5 + 0.01 * seed * math.log2(rank))
    says = conclude_rank_effects(effects(flat).to_pylist())
    assert "adds 0.0 [−3.6, +3.6] points over all methods (not distinguishable from zero)" in says
    assert "adds 0.0 points over all methods (not tested: no spread between seeds)" in says
    rows = effects(made(tmp_path / "sizes", FAMILY)).to_pylist()
    several = conclude_rank_effects([r | {"train_size": size} for size in ("4-shot", "1.0") for r in rows])
    assert several.startswith("On some, 4-shot (the first of 2 in the table): Doubling")


def test_the_figure_and_the_table_are_in_the_report(tmp_path: Path) -> None:
    store = made(tmp_path, {**METHODS, **FAMILY})
    picture = next(p for p in pictures(store) if p.stem == "rank")
    said = list(picture.figure.tips.values())
    assert len(said) == 10
    middle = level(16, 9216, 0, "")
    text = f"a-16 at lora-4: rank 16, 9,216 parameters, {100 * middle:.1f} ["
    assert [tip.endswith(", 3 seeds") for tip in said if tip.startswith(text)] == [True]
    markers = [line for line in picture.figure.axes[0].lines if line.get_gid()]
    ranks = [float(line.get_xdata()[0]) for line in markers]  # a marker that would cover another stands aside
    assert {min((4, 16, 64), key=lambda rank: abs(rank - x)) for x in ranks} == {4, 16, 64}
    page = report.render(store)
    assert "Rank or parameters" in page and picture.says.partition(";")[0] in page
    sheet = sheets(store)["rank_effects"]
    assert [row[:2] for row in sheet.cells][:2] == [
        ["rank, parameters equal", "all methods"],
        ["parameters, rank equal", "all methods"],
    ]


def test_cells_whose_parameters_do_not_act_are_left_out_by_name(tmp_path: Path) -> None:
    """At a low rank RandLoRA-a has more gammas than its update has degrees of freedom."""
    store = made(tmp_path, {**METHODS, **FAMILY, "a-8": ("randlora-a", dict.fromkeys(BUDGETS, 8))})
    cells = store.table("cells").to_pylist()
    write_part(
        tmp_path, "cells", [c | {"dof": 2000 if c["update_rank"] == 4 else round(0.95 * c["count"])} for c in cells]
    )
    store = open_store(tmp_path)
    rows = found(store)
    assert (rows["some", "randlora-a", "rank"]["least"], rows["some", "randlora-a", "rank"]["cells"]) == (8, 6)
    assert scores_by_rank(store).num_rows == 9  # of twelve, without a-4 at both budgets and LoRA at the smaller
    said = "than a tenth of their parameters can't act: a-4 at lora-4 (2,000 of 9,216), "
    assert said in sheets(store)["rank_effects"].note
    assert said in next(p for p in pictures(store) if p.stem == "rank").caption


def test_two_ranks_are_a_table_and_no_figure(tmp_path: Path) -> None:
    store = made(tmp_path, METHODS)
    assert "rank_effects" in sheets(store)
    assert [p for p in pictures(store) if p.stem == "rank"] == []


def test_older_results_have_neither(store: Store) -> None:
    """Their cells do not know their rank."""
    assert scores_by_rank(store).num_rows == 0
    assert effects(store).schema.equals(EFFECTS) and effects(store).num_rows == 0
    assert "rank_effects" not in sheets(store)
    assert "Rank or parameters" not in report.render(store)
    with pytest.raises(ValueError, match="no row"):
        draw_ranks(scores_by_rank(store))
