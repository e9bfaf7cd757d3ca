"""`sweeps watch` in a real browser, while a sweep runs: points arrive, SQL is refused, nothing leaves the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.store.journal import journal_line
from tests.analysis.report.browser import CHROMIUM, Browser
from tests.fakes import FakeConfirm, fake_plan
from tests.support import wait_for
from tests.sweeps.cli.support import served
from tests.sweeps.inline import go_inline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]

HOSTILE = '<img src="x" onerror="window.ran = 1">'
ASK = "(document.getElementById('sql').value = {query}, document.querySelector('#ask button').click())"
DARK = "getComputedStyle(document.body).backgroundColor"


def fails(folder: Path) -> None:
    """A trial fails for a reason that would run, were it markup."""
    journal = folder / "journal.jsonl"
    ask = next(e for e in map(json.loads, journal.read_text(encoding="utf-8").splitlines()) if e["ev"] == "ask")
    row = {"sweep": "fake", "trial_id": "f" * 16, "cell_id": ask["cell_id"], "stage": "TUNE", "status": "failed"}
    event = {
        "ev": "finish",
        "trial_id": "f" * 16,
        "attempt": 1,
        "row": {**row, "reason": HOSTILE},
        "traceback": HOSTILE,
    }
    with journal.open("ab") as file:
        file.write(journal_line(event))


def test_a_sweep_is_seen_as_it_happens(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    with Browser(tmp_path / "profile") as browser, served(folder) as page:

        def text(part: str) -> str:
            return str(browser.evaluate(f"document.getElementById({part!r}).textContent"))

        def points() -> int:
            return int(browser.evaluate("document.querySelectorAll('#figure-scaling_curve .tip').length"))

        browser.open(page.address)
        wait_for(lambda: "the sweep begins" in text("headline") and text("state") == "live", "the first section")

        def before(ended: int) -> None:
            if ended in (7, 14):  # a cell has six trials of TUNE and one of CONFIRM
                wait_for(lambda: points() == ended // 7, f"{ended // 7} point(s)")
                assert f"{ended} of " in text("headline") and "; running" in text("headline")

        go_inline(fake_plan(folder, confirm=FakeConfirm((0,))), before)
        wait_for(lambda: points() == 4 and "not running" in text("headline"), "the end of the sweep")

        fails(folder)
        wait_for(lambda: HOSTILE in text("failures"), "the failure")
        browser.evaluate("document.querySelector('#failures details').open = true")
        assert browser.evaluate("[window.ran === undefined, document.images.length]") == [True, 0]

        for query, said in (("delete from trials", "a query is one SELECT"), ("select 7 as seven", "1 row")):
            browser.evaluate(ASK.format(query=json.dumps(query)))
            wait_for(lambda said=said: said in text("said"), said)
        assert text("answer") == "seven7"

        assert {url.split("?")[0] for url in browser.requests} == {
            f"http://127.0.0.1:{page.port}/{path}" for path in ("", "events", "sql")
        }
        assert browser.complaints == []

        browser.open(page.address, width=390, height=844, dark=True, mobile=True)
        wait_for(lambda: points() == 4, "the page on a phone")
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        assert browser.evaluate(DARK) == "rgb(19, 23, 28)"
        browser.screenshot(tmp_path / "phone.png")
