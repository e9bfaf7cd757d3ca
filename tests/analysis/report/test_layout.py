"""How the page is laid out, as far as its text can say: contents, widths, phones, legends, the box of facts.

`test_browser` looks at the rest, where there is a browser.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from analysis import Store, open_store
from analysis.findings.all import pictures, sheets
from analysis.findings.answer.answer import conclusion_of
from analysis.findings.results.finding import results_sheet
from analysis.findings.scaling.figure import draw_scaling
from analysis.findings.scaling.numbers import curve
from analysis.report.box import facts_box
from analysis.report.page import render
from analysis.store.tables import write_part
from tests.analysis.synthetic import make_results

TWO = {"randlora": ("lora-1", "lora-2", "lora-4"), "lora": ("lora-1", "lora-2", "lora-4")}


@pytest.fixture(scope="module")
def pages(store: Store, wide: Store) -> tuple[str, str]:
    return render(store), render(wide)


def test_the_contents_are_the_sections(pages: tuple[str, str]) -> None:
    for page in pages:
        listed = re.findall(r'<li><a href="#(\w+)">', page.partition("</nav>")[0])
        assert listed == re.findall(r'<section id="(\w+)">', page) and len(listed) >= 7
        assert "nav { position: sticky; top: 0;" in page


def test_figures_stand_beside_their_tables_or_take_the_whole_width(store: Store, wide: Store) -> None:
    for one in (store, wide):
        page, across = render(one), {p.stem: p.across for p in pictures(one)}
        for block in re.findall(r'<div class="beside[^"]*">(.*?)\n</div>\n', page, re.S):
            assert "<figure" in block
        for stem, count in across.items():
            tag = re.search(rf'<figure id="figure-{stem}"([^>]*)>', page)
            assert tag is not None and (f"--across: {count}" in tag[1]) == (count > 1), stem
        assert "max-width" not in "".join(re.findall(r"<figure[^>]*>", page))  # one system of widths: the style sheet
    assert max(across.values()) > 1


def test_a_phone_shows_method_score_difference_and_verdict(pages: tuple[str, str], store: Store, wide: Store) -> None:
    for page, one in zip(pages, (store, wide), strict=True):
        main = results_sheet(one).main
        kept = [c.head for c in main.columns if c not in main.beneath]
        assert [head.split()[0] for head in kept] == ["method", "test", "difference", "verdict"] and main.narrow
        table = page.partition('<table id="table-results">')[2].partition("</table>")[0]
        assert len(re.findall(r'<th[^>]* apart"', table)) == len(main.beneath)
        assert re.search(r'<td class="m" data-also="[^"]*lora-1, [\d,]+ parameters"><span', table)
    small = pages[0].partition("@media (max-width: 40rem)")[2]
    assert ".apart { display: none; } td[data-also]::after { content: attr(data-also);" in small
    panels = re.findall(r"\.panels[^{]*{([^}]*)}", small.partition("@media print")[0])
    assert panels and not any("min-width" in rule for rule in panels)  # as wide as the phone, and none is cut
    assert "background-attachment: local, local, scroll, scroll" in pages[0]


def test_the_page_shows_all_columns_in_one_table_or_another(wide: Store) -> None:
    for sheet in sheets(wide).values():
        shown = [c.head for part in (sheet.main, *sheet.further) for c in part.columns]
        filled = {c.head for c in sheet.columns if any(c.text(row) for row in sheet.rows)}
        assert filled <= set(shown)
        assert all(shown.count(c.head) == 1 for c in sheet.columns if c.head in filled and not c.label), sheet.name


def test_colour_stands_for_the_method_of_the_row_alone(wide: Store) -> None:
    """A slope or a change is no method, and what no test distinguishes has no colour."""
    for sheet in sheets(wide).values():
        coloured = [c for c in sheet.columns if c.kind == "verdict"]
        assert not coloured or any(c.kind == "method" for c in sheet.columns), sheet.name
        assert sheet.name not in ("changes", "rank_effects") or not coloured
    page = render(wide)
    rules = page.partition("<style>")[2].partition("</style>")[0]
    assert ".higher {" in rules and ".lower {" in rules and ".not-distinguishable" not in rules


def test_the_answer_comes_first_and_what_limits_it_later(pages: tuple[str, str]) -> None:
    for page in pages:
        order = re.findall(r'<section id="(\w+)">', page)
        assert order[:3] == ["answer", "results", "sure"] and order[-1] == "again"
        answer = page.partition('<section id="answer">')[2].partition("</section>")[0]
        assert answer.index('class="said"') < answer.index('id="figure-scaling_curve"')
        assert answer.index('id="figure-scaling_curve"') < answer.index('id="table-decisions"')
        assert 'class="warning"' not in answer


def test_a_legend_names_every_method_and_what_is_its(pages: tuple[str, str]) -> None:
    """What the script needs to hide a method: its name in the legend, and the marks that are its."""
    for page in pages:
        found = [svg for svg in re.findall(r"<svg.*?</svg>", page, re.S) if "legend_1" in svg]
        assert found
        for svg in found:
            names, parts = (re.findall(f' data-{kind}="([^"]*)"', svg) for kind in ("key", "method"))
            assert len(names) == len(set(names)) >= 2 and set(names) <= set(parts)


def test_nothing_is_said_twice(store: Store, pages: tuple[str, str]) -> None:
    answer = conclusion_of(store).answer
    shown = re.sub(r"<svg.*?</svg>", "", pages[0], flags=re.S)  # a screen reader is told it with the curve
    assert shown.count(answer.replace("'", "&#39;")) == 1
    notes = re.findall(r'<p class="note">([^<]{80,})</p>', pages[0])
    assert len(set(notes)) == len(notes)


def test_two_seeds_do_not_fill_the_plot(tmp_path: Path) -> None:
    few, more = (open_store(make_results(tmp_path / str(n), plan=TWO, seeds=n)) for n in (2, 4))
    for one, shaded in ((few, 0), (more, 2)):
        (axes,) = [a for a in draw_scaling(curve(one)).axes if a.lines]
        kinds = [type(c).__name__ for c in axes.collections]
        assert kinds.count("FillBetweenPolyCollection") + kinds.count("PolyCollection") == shaded
        low, high = axes.get_ylim()
        means = [100 * r["mean"] for r in curve(one).to_pylist() if r["kind"] == "curve"]
        assert shaded or high - low < 1.5 * (max(means) - min(means))


def test_the_box_has_what_the_tables_know(store: Store, pages: tuple[str, str]) -> None:
    box = dict(facts_box(store))
    assert list(box) == ["data", "classes", "training", "model", "budgets", "runs"] and box["classes"] == "10"
    assert box["training"] == "5 epochs of 16 steps, batches of 128"
    assert box["model"] == "embedded:tiny-clip: 2,000,000 parameters, 1,500,000 of them in the adapted weights"
    assert "lora-1 is 12,288 (0.61 % of the model), lora-2 is 24,576 (1.2 % of the model)" in box["budgets"]
    assert '<dl class="box">' in pages[0] and box["training"] in pages[0]


def test_the_box_has_the_batch_sizes_that_cells_searched(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "made", plan=TWO)
    cells = open_store(folder).table("cells").to_pylist()
    space = json.dumps({"global_batch_size": {"values": [256, 64]}})
    shutil.rmtree(folder / "tables" / "cells")
    write_part(folder, "cells", [cells[0] | {"space": None}, *(cell | {"space": space} for cell in cells[1:])])
    assert dict(facts_box(open_store(folder)))["training"] == "5 epochs of 8 to 32 steps, batches of 64 or 256"


def test_the_box_names_every_model(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "made", plan=TWO, trials=False)
    one, *rest = open_store(folder).table("cells").to_pylist()
    write_part(folder, "cells", [one | {"model": "another", "model_params": 10, "target_params": None}, *rest])
    said = dict(facts_box(open_store(folder)))["model"]
    assert said.startswith("another: 10 parameters; embedded:tiny-clip: 2,000,000 parameters, ")
