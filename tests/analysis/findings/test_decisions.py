"""What to take at each budget: the methods that no test tells apart, and what would change the answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis import Store, conclusion, open_store
from analysis.findings.decisions.numbers import decisions
from analysis.findings.decisions.words import best_text, would_change
from analysis.findings.results.numbers import results_table
from analysis.report.facts import facts
from analysis.report.page import render
from analysis.store.tables import write_part
from analysis.styles import style
from analysis.verdict.comparisons import comparisons
from analysis.verdict.groups import groups
from analysis.verdict.question import Question, question
from tests.analysis.odd import Cells, odd_results
from tests.support import sweeps

LOW = {s: 0.50 + d for s, d in enumerate((0.01, 0.03, 0.02, 0.0, 0.025))}
NEAR = {s: v + d for (s, v), d in zip(LOW.items(), (0.004, -0.002, 0.003, 0.001, -0.001), strict=True)}
HIGH = {s: v + d for (s, v), d in zip(LOW.items(), (0.2, 0.21, 0.2, 0.19, 0.2), strict=True)}


def made(folder: Path, cells: Cells) -> Store:
    return open_store(odd_results(folder, cells, seeds=5, tune=(0.6,)))


def test_a_winner_a_tie_and_a_method_alone(tmp_path: Path) -> None:
    store = made(
        tmp_path / "s",
        {("lora", "lora-1", "d"): LOW, ("vera", "lora-1", "d"): NEAR, ("dora", "lora-1", "d"): HIGH}
        | {("lora", "lora-4", "d"): LOW, ("vera", "lora-4", "d"): NEAR, ("lora", "lora-16", "d"): LOW},
    )
    first, second, third = decisions(store).to_pylist()
    assert (first["reference"], first["best"], first["next"], first["verdict"]) == (
        "lora-1",
        ["dora"],
        "vera",
        "higher",
    )
    assert (
        would_change(first)
        == "VeRA minus DoRA: \N{MINUS SIGN}19.9 [\N{MINUS SIGN}20.9, \N{MINUS SIGN}18.9] points, so DoRA is higher."
    )
    assert second["best"] == ["vera", "lora"] and second["verdict"] == "not distinguishable"
    assert second["detectable"] > second["ahead"] and second["seeds_needed"] > 5
    assert best_text(second) == "VeRA or LoRA (not distinguishable)"
    assert f"With 5 seeds a difference of about {100 * second['detectable']:.1f} points" in would_change(second)
    assert f"{second['seeds_needed']:,} seeds" in would_change(second)
    assert third["next"] is None and "No other method" in would_change(third)
    letters = {(r["reference"], r["method"]): r["group"] for r in groups(store).to_pylist()}
    assert letters == {
        **{("lora-1", "dora"): "a", ("lora-1", "vera"): "b", ("lora-1", "lora"): "b"},
        **{("lora-4", "vera"): "a", ("lora-4", "lora"): "a"},
    }


def test_of_methods_not_told_apart_the_next_is_that_with_the_second_mean(tmp_path: Path) -> None:
    """Not the baseline, whose pairs are tested first."""
    ahead = {s: v + d for (s, v), d in zip(NEAR.items(), (0.002, -0.001, 0.003, 0.0, 0.001), strict=True)}
    store = made(tmp_path / "s", {(m, "lora-1", "d"): s for m, s in (("lora", LOW), ("vera", NEAR), ("dora", ahead))})
    (row,) = decisions(store).to_pylist()
    assert (row["best"], row["next"]) == (["dora", "vera", "lora"], "vera")
    assert best_text(row) == "DoRA, VeRA or LoRA (no test found a difference from DoRA)"
    assert would_change(row).startswith("VeRA minus DoRA: \N{MINUS SIGN}0.1 points.")


def test_equal_scores_are_not_testable_and_never_indistinguishable(tmp_path: Path) -> None:
    same = dict.fromkeys(range(3), 0.5)
    store = made(tmp_path / "same", {("lora", "lora-1", "d"): same, ("vera", "lora-1", "d"): same})
    (row,) = decisions(store).to_pylist()
    assert best_text(row).endswith("(not tested)")
    assert "no seed in common, or no spread between seeds" in would_change(row)
    (compared,) = comparisons(store).to_pylist()
    assert [compared[k] for k in ("verdict", "p", "low", "high")] == ["not testable", None, None, None]
    assert "No conclusion about VeRA and LoRA: no spread between seeds" in conclusion(store)


@pytest.mark.parametrize(
    ("methods", "asked", "said"),
    [
        (("randlora", "lora", "vera"), Question("randlora", "lora"), "RandLoRA scores higher than LoRA: +"),
        (("dora", "lora"), Question("dora", "lora"), "DoRA scores higher than LoRA: +"),
        (("vera", "nola"), Question("nola", "vera"), "NoLA scores higher than VeRA: +"),
        (("nola", "randlora"), Question("randlora", "nola"), "No conclusion about RandLoRA and NoLA: no spread"),
        (("dora", "lora", "vera"), Question(None, "lora"), "DoRA (+20.0 points ["),
        (("lora",), Question(None, "lora"), "No conclusion about each other method and LoRA yet"),
    ],
)
def test_any_methods_are_compared(tmp_path: Path, methods: tuple[str, ...], asked: Question, said: str) -> None:
    scores = {"lora": LOW, "randlora": HIGH, "dora": HIGH, "vera": NEAR, "nola": HIGH}
    store = made(tmp_path / "any", {(m, "lora-1", "d"): scores[m] for m in methods})
    assert question(store) == asked
    assert said in conclusion(store)
    assert ("rank of the update" in facts(store)["question"]) == (methods[0] == "randlora")
    assert {r["baseline"] for r in results_table(store).to_pylist()} - {None} == {asked.baseline} & set(
        methods[1:] and methods
    )


def test_counts_further_apart_than_five_percent_are_not_called_equal(tmp_path: Path) -> None:
    folder = odd_results(tmp_path / "apart", {("lora", "lora-1", "d"): LOW, ("dora", "lora-1", "d"): HIGH}, seeds=5)
    trials = open_store(folder).table("trials").to_pylist()
    write_part(folder, "trials", [r | {"adapter_params": 5184 if r["method"] == "dora" else 4608} for r in trials])
    said = conclusion(open_store(folder))
    assert "At the same budgets, where counts differ by up to 12.5 %" in said.replace("at the", "At the")
    assert "equal trainable parameters" not in said


def test_a_method_of_ones_own_has_its_title(tmp_path: Path) -> None:
    folder = odd_results(tmp_path / "own", {("lora", "lora-1", "d"): LOW, ("my-own-method", "lora-1", "d"): HIGH})
    assert "my-own-method scores higher" in conclusion(open_store(folder))
    cells = open_store(folder).table("cells").to_pylist()
    write_part(folder, "cells", [r | {"title": "My Method" if r["method"] == "my-own-method" else None} for r in cells])
    assert "My Method scores higher" in conclusion(open_store(folder))
    assert style("lora").name == "LoRA"


def test_two_reports_in_one_process_do_not_see_each_others_titles(tmp_path: Path) -> None:
    """Of methods of one name; whichever was opened, and drawn, first."""
    stores: dict[str | None, Store] = {}
    for title in ("Mine", "Yours", None):
        cells = {("lora", "lora-1", "d"): LOW, ("own", "lora-1", "d"): HIGH}
        folder = odd_results(tmp_path / str(title), cells)
        rows = open_store(folder).table("cells").to_pylist()
        write_part(folder, "cells", [r | {"title": title if r["method"] == "own" else None} for r in rows])
        stores[title] = open_store(folder)
    for title in ("Mine", None, "Yours", "Mine"):
        page = render(stores[title])
        assert f"{title or 'own'} scores higher" in page
        assert {other for other in ("Mine", "Yours") if other in page} == {title} - {None}
        assert f"{title or 'own'} scores higher" in conclusion(stores[title])


def test_best_at_a_budget(tmp_path: Path) -> None:
    cells: Cells = {(m, f"lora-{r}", "d"): s for m, s in (("lora", LOW), ("dora", HIGH)) for r in (1, 4)}
    folder = odd_results(tmp_path / "at", cells, seeds=5, tune=(0.6,))
    four = open_store(folder).sql("select distinct budget from cells where reference = 'lora-4'")["budget"][0].as_py()
    for at in ("lora-4", str(four), f"{four + 100:,}"):
        answer = json.loads(sweeps("best", folder, "--at", at, "--json").stdout)
        assert answer["budgets"] == ["lora-4"]
        assert {r["reference"] for r in [*answer["cells"], *answer["decisions"]]} == {"lora-4"}
    shown = sweeps("best", folder, "--at", str(2 * four)).output
    assert f"no budget within 5% of {2 * four:,}; the nearest: lora-4" in shown
    assert "lora-4: DoRA, 71.7 % [" in shown and "lora-1" not in shown
    wrong = sweeps("best", folder, "--at", "lora-5")
    assert wrong.exit_code == 2 and "lora-4" in wrong.output
