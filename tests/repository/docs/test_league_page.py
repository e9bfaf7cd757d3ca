"""docs/league.md of results that have less than the league's."""

from __future__ import annotations

from pathlib import Path

from analysis import open_store
from tests.analysis.odd import odd_results
from tools import league_page

SCORES = {"lora": 0.6, "randlora": 0.61, "vera": 0.605, "nola": 0.2}


def test_what_was_not_measured_is_empty(tmp_path: Path) -> None:
    scores = {0: 0.6, 1: 0.61, 2: 0.62}
    store = open_store(odd_results(tmp_path / "one", {("lora", "lora-1", "d"): scores}))
    (row,) = league_page.league(store, league_page._finished(store))
    shown = dict(zip(league_page.COLUMNS, row, strict=True))
    assert (shown["method"], shown["minus LoRA"], shown["MiB"]) == ("`lora`", "", "")
    assert [r[league_page.PUBLISHED.index("GiB")] for r in league_page.published(store)] == [""] * 3


def test_what_can_be_distinguished_and_which_methods_lack_seeds(tmp_path: Path) -> None:
    runs = {m: {s: score + s * k / 500 for s in range(3)} for k, (m, score) in enumerate(SCORES.items(), 1)}
    tables = {(m, "lora-1", "d"): s for m, s in runs.items()}
    store = open_store(odd_results(tmp_path / "r", tables, tune=(0.5, 0.6, 0.59)))
    finished = league_page._finished(store)
    assert league_page.state(store, finished) == ""
    assert "2 of 4 methods" in league_page.state(store, finished[:2])
    said = league_page.ranking(store, finished)
    assert "Of 6 pairs of methods 3 " in said and "For 4 of 4 methods a better learning rate" in said
    assert "smallest difference from LoRA that it finds four times in five" in said
    answer = league_page.answer(store)
    assert answer.startswith("- **RandLoRA minus LoRA is +") and "detects" in answer


def test_a_league_without_randlora_has_no_answer(tmp_path: Path) -> None:
    runs = {("lora", "lora-1", "d"): {0: 0.6, 1: 0.61, 2: 0.62}}
    one = open_store(odd_results(tmp_path / "one", runs))
    assert league_page.answer(one) == "" and "detects" not in league_page.ranking(one, league_page._finished(one))
    runs["vera", "lora-1", "d"] = {0: 0.6, 1: 0.62, 2: 0.63}
    two = open_store(odd_results(tmp_path / "two", runs))
    assert league_page.answer(two).startswith("- **VeRA minus LoRA is ")


def test_the_two_loras_are_compared_with_every_seed(tmp_path: Path) -> None:
    runs = {("lora", "lora-1", "d"): {0: 0.6, 1: 0.61, 2: 0.62}}
    one = open_store(odd_results(tmp_path / "one", runs))
    assert league_page.twins(one, league_page._finished(one)) == ""
    runs["peft:lora", "lora-1", "d"] = {0: 0.1, 1: 0.62, 2: 0.63}
    two = open_store(odd_results(tmp_path / "two", runs))
    said = league_page.twins(two, league_page._finished(two))
    assert "61.0 and 45.0 %" in said and "`peft:lora` 10.0, 62.0, 63.0" in said
