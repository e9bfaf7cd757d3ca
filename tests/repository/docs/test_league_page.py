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
    assert (shown["method"], shown["vs LoRA"], shown["MiB"]) == ("`lora`", "", "")
    assert [r[league_page.PUBLISHED.index("GiB")] for r in league_page.published(store)] == [""] * 3


def test_what_a_test_would_have_found_and_who_waits(tmp_path: Path) -> None:
    runs = {m: {s: score + s * k / 500 for s in range(3)} for k, (m, score) in enumerate(SCORES.items(), 1)}
    store = open_store(odd_results(tmp_path / "r", {(m, "lora-1", "d"): s for m, s in runs.items()}))
    finished = league_page._finished(store)
    assert league_page.state(store, finished) == ""
    assert league_page.state(store, finished[:2]).startswith(
        "**Unfinished: 2 of 4 methods have their seeds**, all but `"
    )
    said = league_page.power(store, finished)
    assert "a test tells 4 of 6 apart" in said and "of 4 methods are perhaps under-tuned" in said
    assert " points for RandLoRA, and of " in said and "for nine in ten of the others" in said


def test_what_a_test_would_have_found_without_randlora(tmp_path: Path) -> None:
    runs = {("lora", "lora-1", "d"): {0: 0.6, 1: 0.61, 2: 0.62}}
    one = open_store(odd_results(tmp_path / "one", runs))
    assert "Four times in five" not in league_page.power(one, league_page._finished(one))
    runs["vera", "lora-1", "d"] = {0: 0.6, 1: 0.62, 2: 0.63}
    two = open_store(odd_results(tmp_path / "two", runs))
    assert "difference from LoRA of " in league_page.power(two, league_page._finished(two))
