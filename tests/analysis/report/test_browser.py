"""The report in a real browser: every figure is drawn, nothing leaves the page, dark, phone, print, hover."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import open_store
from analysis.findings.all import show
from analysis.findings.diagnostics.figure import Drawing, draw_cka, write_drawings
from analysis.findings.finding import View
from analysis.report.page import render
from analysis.store.tables import to_table, write_part
from analysis.styles import style
from tests.analysis.report.browser import CHROMIUM, Browser
from tests.analysis.synthetic import make_results
from tests.support import ROOT

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

PLAN = {"randlora": ("lora-1", "lora-2", "lora-4"), "lora": ("lora-1", "lora-2", "lora-4"), "full": (None,)}
PLAN |= {"zero-shot": (None,)}
OPEN = "for (const one of document.querySelectorAll('details')) one.open = true"
FIGURES = """
[...document.querySelectorAll("figure")].map(f => {
  const svg = f.querySelector("svg"), r = svg.getBoundingClientRect();
  const drawn = [...svg.querySelectorAll("path, use")].filter(e => {
    const b = e.getBoundingClientRect(); return b.width + b.height > 0; }).length;
  return {id: f.id, x: r.left + scrollX, y: r.top + scrollY, width: r.width, height: r.height, drawn,
          says: f.querySelector("figcaption").innerText};
})
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A page with every kind of figure, and how many it has."""
    folder = make_results(tmp_path_factory.mktemp("page") / "made", plan=PLAN, sizes=("4-shot", "16-shot", "1.0"))
    place = {"sweep": "made", "model": "embedded:tiny-clip", "dataset": "embedded:fashion", "train_size": "1.0"}
    rows = [
        {**place, "unit": m, "method": m, "reference": "lora-4", "trial_id": m, "layer": str(d), "depth": d}
        | {"cka": 1 - d / k, "adapter_params": 9, "computed_at": "2025-03-01T10:00:00+00:00"}
        for k, m in ((9, "lora"), (12, "randlora"))
        for d in range(4)
    ]
    write_part(folder, "cka", rows)
    figure = draw_cka(to_table("cka", rows))
    write_drawings([Drawing("cka", figure, "Made-up numbers of a test.")], folder, "cka")
    store = open_store(folder)
    shown = show(store, View(overlay="fig1-clip"))
    page = folder / "report.html"
    page.write_text(render(store, shown=shown), encoding="utf-8")
    drawn = {picture.stem for finding in shown for picture in finding.pictures}
    one_of_each = {"scaling_curve", "differences", "overlay", "fits", "pareto", "data_size", "learning_rates"}
    assert one_of_each | {"expected_best", "tuning_effort", "sharpness", "rate_ratio"} <= drawn
    return page, len(drawn) + 1


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


def near(pixels: np.ndarray[Any, Any], colour: str) -> int:
    """Pixels of a colour."""
    wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return int((abs(pixels - wanted).max(axis=-1) < 0.02).sum())


def test_every_figure_is_drawn_and_nothing_leaves_the_page(
    browser: Browser, report: tuple[Path, int], tmp_path: Path
) -> None:
    page, count = report
    browser.open(page)
    browser.evaluate(OPEN)
    found = browser.evaluate(FIGURES)
    assert len(found) == count and len({f["id"] for f in found}) == count
    for f in found:
        assert f["width"] > 250 and f["height"] > 150 and f["drawn"] > 10 and len(f["says"]) > 20, f
        pixels = browser.screenshot(tmp_path / f"{f['id']}.png", {k: f[k] for k in ("x", "y", "width", "height")})
        for method in ("randlora", "lora"):
            assert near(pixels, style(method).colour) > 25, (f["id"], method)
        assert pixels.std() > 0.02, f["id"]
    assert browser.requests == [page.as_uri()]
    assert browser.evaluate("performance.getEntriesByType('resource').length") == 0
    assert browser.complaints == []


def test_the_policy_refuses_requests(browser: Browser, report: tuple[Path, int]) -> None:
    """What the page would be refused, were it to ask: a request, another script, a picture."""
    browser.open(report[0])
    refused = browser.evaluate("""new Promise(done => {
      const seen = [];
      addEventListener("securitypolicyviolation", e => {
        seen.push(e.effectiveDirective); if (seen.length == 3) done(seen.sort()); });
      fetch("https://example.org/").catch(() => {});
      const s = document.createElement("script"); s.textContent = "window.ran = 1"; document.body.append(s);
      const i = new Image(); i.src = "https://example.org/x.png";
      setTimeout(() => done(seen.sort()), 5000);
    })""")
    assert refused == ["connect-src", "img-src", "script-src-elem"]
    assert browser.evaluate("window.ran") is None


def test_a_marker_shows_its_numbers(browser: Browser, report: tuple[Path, int]) -> None:
    browser.open(report[0])
    browser.evaluate(OPEN)
    for kind, words in (
        ("scaling_curve", "seeds"),
        ("fits", "trainable adapter parameters"),
        ("data_size", "4-shot"),
        ("learning_rates", "validation"),
    ):
        at = browser.evaluate(f"""(() => {{
          const mark = document.querySelector("#figure-{kind} .tip"); mark.scrollIntoView({{block: "center"}});
          const r = mark.getBoundingClientRect();
          return {{x: r.left + r.width / 2, y: r.top + r.height / 2, said: mark.dataset.tip}};
        }})()""")
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=at["x"] + 3, y=at["y"])
        shown = browser.evaluate("""(() => {
          const t = document.getElementById("tip"), r = t.getBoundingClientRect();
          return [t.hidden, t.textContent, r.left >= 0 && r.right <= innerWidth];
        })()""")
        assert shown[0] is False and words in at["said"] and shown[2], (kind, shown, at)
        assert "%" in shown[1] and words in shown[1]
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
        assert browser.evaluate("document.getElementById('tip').hidden") is True


CONTRAST = """
(() => {
  const linear = x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4;
  const light = c => {
    const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => linear(x / 255));
    return .2126 * v[0] + .7152 * v[1] + .0722 * v[2];
  };
  const back = light(getComputedStyle(document.body).backgroundColor);
  const ratio = c => (Math.max(light(c), back) + .05) / (Math.min(light(c), back) + .05);
  const text = [...document.querySelectorAll("p, td, th, h2, svg text")].filter(e => e.textContent.trim());
  const inks = text.map(e => e.closest("svg") ? getComputedStyle(e).fill : getComputedStyle(e).color);
  return [back, Math.min(...inks.filter(c => c.startsWith("rgb(")).map(ratio))];
})()
"""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_are_readable(browser: Browser, report: tuple[Path, int], dark: bool, tmp_path: Path) -> None:
    browser.open(report[0], dark=dark)
    back, least = browser.evaluate(CONTRAST)
    assert (back < 0.05) == dark and (back > 0.9) != dark
    assert least >= 2.5, least  # methods' names in their colours; running text is far above
    pixels = browser.screenshot(tmp_path / "page.png")
    look = style("randlora")
    assert near(pixels, look.dark if dark else look.colour) > 100
    assert abs(np.median(pixels) - (0.09 if dark else 1.0)) < 0.05


@pytest.mark.slow
def test_a_phone_scrolls_one_way_only(browser: Browser, report: tuple[Path, int]) -> None:
    browser.open(report[0], width=390, height=844, mobile=True)
    browser.evaluate(OPEN)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    panels = browser.evaluate("[...document.querySelectorAll('figure.panels')].map(f => f.id)")
    for f in browser.evaluate(FIGURES):  # figures of several panels scroll by themselves
        assert f["width"] > 390 if f["id"] in panels else 200 < f["width"] <= 390, f
    sizes = "[...document.querySelectorAll('p, td')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    small = browser.evaluate(f"Math.min(...{sizes})")
    assert small >= 11


SLOW_STUDIES = [pytest.param(name, marks=pytest.mark.slow) for name in ("images", "league")]
SIDEWAYS = """
[...document.querySelectorAll(".scroll")].filter(s => s.querySelector("table") && s.scrollWidth > s.clientWidth + 1)
  .map(s => `${s.querySelector("table").id}: ${s.scrollWidth} > ${s.clientWidth}`)
"""


@pytest.mark.parametrize("name", ["quickstart", *SLOW_STUDIES])
def test_no_table_scrolls_sideways(browser: Browser, name: str, tmp_path: Path) -> None:
    store, page = open_store(ROOT / "docs" / "results" / name), tmp_path / "report.html"
    page.write_text(render(store), encoding="utf-8")
    for width in (1280, 390):
        browser.open(page, width=width, mobile=width < 1000)
        browser.evaluate(OPEN)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate(SIDEWAYS) == []


@pytest.mark.slow
def test_it_prints_with_every_table_open(browser: Browser, report: tuple[Path, int]) -> None:
    browser.open(report[0])
    browser.evaluate("addEventListener('beforeprint', () => { window.open_then = "
                     "document.querySelectorAll('details.table:not([open])').length; })")  # fmt: skip
    printed = browser.pdf()
    assert printed.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", printed)) >= 4
    assert browser.evaluate("window.open_then") == 0
    assert browser.evaluate("document.querySelectorAll('details.table[open]').length") == 0  # closed again


def test_a_legend_hides_and_shows_a_method(browser: Browser, report: tuple[Path, int]) -> None:
    browser.open(report[0])
    press = """(() => {
      const name = document.querySelector("#figure-scaling_curve .key");
      name.dispatchEvent(new MouseEvent("click"));
      const off = [...document.querySelectorAll("#figure-scaling_curve .off")].map((part) => part.dataset.method);
      return [name.getAttribute("aria-pressed"), off.length, off.every((method) => method === name.dataset.key)];
    })()"""
    pressed, hidden, alone = browser.evaluate(press)
    assert pressed == "false" and hidden > 3 and alone
    assert browser.evaluate(press) == ["true", 0, True]
