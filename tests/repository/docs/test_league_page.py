"""docs/league.md of results that have less than the league's."""

from __future__ import annotations

from pathlib import Path

from analysis import open_store
from tests.analysis.odd import odd_results
from tools import league_page


def test_one_method_has_no_group_and_what_was_not_measured_is_empty(tmp_path: Path) -> None:
    scores = {0: 0.6, 1: 0.61, 2: 0.62}
    store = open_store(odd_results(tmp_path / "one", {("lora", "lora-1", "d"): scores}))
    (row,) = league_page.league(store, league_page._finished(store))
    shown = dict(zip(league_page.COLUMNS, row, strict=True))
    assert (shown["method"], shown["group"], shown["MiB"]) == ("`lora`", "", "")
    assert [r[league_page.PUBLISHED.index("GiB")] for r in league_page.published(store)] == [""] * 3
