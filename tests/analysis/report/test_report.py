"""The page and the printed table: complete, self-contained, and clear when there is nothing yet."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from rich.console import Console

from analysis import Store, open_store, print_results_table, results_table, write_report
from analysis.findings.all import sheets, show
from analysis.findings.answer.answer import conclusion_of
from analysis.findings.finding import View
from analysis.findings.results.finding import results_sheet
from analysis.report.page import render
from analysis.sheets import forms
from analysis.sheets.data import sheet_csv
from analysis.sheets.latex import latex
from analysis.sheets.markdown import markdown
from analysis.sheets.sheet import Column, Sheet
from analysis.store.tables import write_part
from analysis.styles import style
from sweeps.cli.watching.page import Page as WatchPage
from tests.analysis.odd import Cells, odd_results
from tests.analysis.synthetic import make_results

LOADS = {"src", "href", "srcset", "xlink:href", "action", "data", "poster"}


class Page(HTMLParser):
    """Checks that tags nest, collects ids, links and text."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.stack, self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in LOADS and value:
                self.links.append(value)
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] not in {"style", "script"}:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page(store: Store) -> str:
    return render(store)


def test_the_page_loads_nothing(page: str, wide: Store) -> None:
    for text in (page, render(wide)):
        parsed = Page(text)
        assert all(link.startswith(("#", "data:")) for link in parsed.links), parsed.links
        assert text.count("<script>") == 1 and text.count("<script") == 1  # inline, and the policy names its hash
        script = text.partition("<script>")[2].partition("</script>")[0]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'" in text
        assert not re.search(r"fetch|XMLHttp|import\(|WebSocket|sendBeacon|EventSource", script)
        assert "@import" not in text
        assert all(u.startswith("#") for u in re.findall(r"url\(([^)]*)\)", text))
        outside = set(re.findall(r"https?://[^\s\"'<>]+", text))
        assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # XML names, never fetched
        assert len(set(parsed.ids)) == len(parsed.ids)
        assert {link[1:] for link in parsed.links if link.startswith("#")} <= set(parsed.ids)


def test_every_method_has_a_swatch_that_a_browser_can_read(tmp_path: Path) -> None:
    """A colon ends a variable's name."""
    methods = ("lora", "peft:adamss", "prompt:a b")
    cells: Cells = {(m, "lora-1", "d"): {0: 0.5 + k / 9, 1: 0.6 + k / 9} for k, m in enumerate(methods)}
    page = render(open_store(odd_results(tmp_path / "made", cells)))
    looks = set(re.findall(r'class="swatch" style="background: ([^"]*)"', page))
    assert f"var(--m-lora, {style('lora').colour})" in looks and len(looks - {"transparent"}) == len(methods)
    assert all(re.fullmatch(r"transparent|(var\(--m-[\w-]+, )?#[0-9A-F]{6}\)?", look) for look in looks), looks


def test_the_page_has_question_answer_and_evidence(page: str, store: Store) -> None:
    text = Page(page).text
    assert "is it the number of trainable parameters or the rank" in text
    concluded = conclusion_of(store)
    assert all(part in text for part in (concluded.answer, concluded.budgets, concluded.reasons, concluded.basis))
    for said in (
        "Each method against LoRA at the same budget",
        "Each method against full fine-tuning",
        "Of 5 budgets and data sets",
        "Seeds needed to detect a difference from LoRA",
        "every tuned cell was given 6 trials",
        "3 decades wide for every method",
        "largest distance of a count from its budget is 2.45 %",
        "the built module has exactly that many",
        "1 of these was at a rate",
        "perhaps under-tuned",
        "loss became nan at step 12",
        "finished on a later attempt",
        "not recovered",
        "vera reaches at most 13,440 parameters",
        "0123abc",
        "torch 2.9.0",
        "CONFIRM seeds 0, 1, 2",
        f"sweeps run {store.path}/sweep.json",
        f"sweeps query {store.path}",
        "1 run failed at every attempt",
    ):
        assert said in text, said
    # scaling, differences, fits, front, rates, expected bests, effort, sharpness, ratios
    assert page.count("<svg") == 9
    assert 'class="tip"><title>RandLoRA at lora-1: 12,385 parameters' in page


def test_the_page_follows_light_and_dark_and_prints(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert 'name="viewport"' in page
    assert "var(--m-randlora, #d55e00)" in page.lower()


def test_a_method_without_a_style_of_its_own_has_its_figures_colour_in_tables(tmp_path: Path) -> None:
    plan = {"mine": ("lora-1", "lora-2"), "lora": ("lora-1", "lora-2")}
    page = render(open_store(make_results(tmp_path / "mine", plan=plan)))
    assert re.search(rf'background: var\(--m-spare-\d, {style("mine").colour}\)"', page)
    assert page.count(style("mine").colour.lower()) > 0  # the figure's


def test_nothing_yet_is_said_clearly(empty: Store) -> None:
    text = Page(render(empty)).text
    assert "Nothing to report yet. 127 runs are planned and none has finished." in text
    assert "No conclusion" in text


def test_a_journal_alone_makes_a_page(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"ev":"sweep","name":"bare"}\n', encoding="utf-8")
    paths = write_report(tmp_path)
    assert list(paths) == ["report"]
    assert "The store has no cells and no trials." in Page(paths["report"].read_text(encoding="utf-8")).text


def test_half_a_sweep_is_marked_preliminary(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "half")
    lines = (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "journal.jsonl").write_text("".join(lines[: len(lines) // 2]), encoding="utf-8")
    shutil.rmtree(folder / "tables" / "trials")
    text = Page(render(open_store(folder))).text
    assert "Preliminary:" in text
    assert "not confirmed yet" in text


def test_hostile_text_is_text(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "x", sweep="<b onload=alert(1)>", plan={"lora": ("lora-1",), "full": (None,)})
    page = render(open_store(folder))
    assert "<b onload" not in page
    assert "&lt;b onload" in page


def test_write_report_leaves_figures_and_page(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "made")
    old = [folder / "figures" / f"overlay.{form}" for form in ("png", "svg", "pdf")]
    old += [folder / "report_tables" / f"overlay.{form}" for form in ("md", "tex", "csv")]
    mine = [folder / "figures" / f"mine.{form}" for form in ("png", "svg", "pdf")]
    for path in (*old, *mine):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    kept = folder / "victim"
    (folder / ".report.json").write_text(json.dumps([*(str(p.relative_to(folder)) for p in old), "figures/../victim"]))
    kept.touch()
    paths = write_report(folder)
    assert kept.exists() and all(path.exists() for path in mine)
    assert not any(path.exists() for path in old)  # what an earlier report left
    stems = ("scaling_curve", "differences", "fits", "pareto", "learning_rates", "expected_best")
    stems += ("tuning_effort", "sharpness", "rate_ratio")
    drawn = [f"{stem}.{kind}" for stem in stems for kind in ("png", "svg", "pdf")]
    tables = [f"{name}.{kind}" for name in sheets(open_store(folder)) for kind in ("md", "tex", "csv")]
    assert list(paths) == [*drawn, *tables, "report"]
    assert all(p.is_file() and p.stat().st_size > 100 for p in paths.values())
    assert paths["scaling_curve.png"] == folder / "figures" / "scaling_curve.png"
    assert paths["results.tex"] == folder / "report_tables" / "results.tex"
    assert not list(folder.glob("*.tmp"))


def test_damaged_parts_are_named_in_the_page(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "made")
    part = next((folder / "tables" / "metrics").iterdir())
    part.write_bytes(b"PAR1")
    assert part.name in render(open_store(folder))


def test_results_table_has_every_cell(store: Store, empty: Store) -> None:
    rows = results_table(store).to_pylist()
    assert len(rows) == store.table("cells").num_rows == 16
    by = {(r["method"], r["reference"]): r for r in rows}
    assert by["vera", "lora-16"]["note"].startswith("infeasible: vera reaches")
    assert by["lora", "lora-1"]["difference"] is None
    assert by["randlora", "lora-1"]["verdict"] == "higher"
    assert by["lora", "lora-4"]["edge"] == "high"
    assert by["full", None]["adapter_params"] == 1_900_000
    assert [r["n"] for r in rows if r["note"] is None] == [3] * 14 + [1]
    assert {r["note"] for r in results_table(empty).to_pylist()} == {"not confirmed yet", by["vera", "lora-16"]["note"]}


def test_markdown_and_latex_forms(store: Store, wide: Store) -> None:
    text = markdown(results_sheet(store))
    lines = text.splitlines()
    assert len(lines) == 2 + 15  # the infeasible cell is left out
    assert len({line.count("|") for line in lines}) == 1
    assert "| RandLoRA | lora-1 | 81.5 [80.0, 83.0] | +4.3 [+2.0, +6.7] | higher | 12,385 | 0.0316 | 3 |" in text
    assert markdown(results_sheet(wide)).startswith("| data |")
    tex = latex(results_sheet(store))
    assert tex.count(r"\\") == 16
    assert r"\begin{tabular}{llrrlrrrlrr}" in tex
    assert "LoRA & lora-4 & 81.1 [79.9, 82.2] &  & baseline & 49,152 & 0.00316* & 3 & " in tex
    assert latex(results_sheet(wide)).count(" & ") % 11 == 0
    odd = Sheet("odd", "", [Column("100 %", lambda r: r["text"])], [{"text": "50%_a&b|c"}, {"text": "[0, 1]"}])
    assert r"50\%\_a\&b|c" in latex(odd) and "{[0, 1]}" in latex(odd)  # a bare bracket would belong to the line break
    assert "50%_a&b\\|c" in markdown(odd)


def test_a_spreadsheet_takes_no_text_for_a_formula() -> None:
    columns = [Column("=method", lambda r: r["a"]), Column("points", lambda r: r["b"], "number")]
    sheet = Sheet("odd", "", columns, [{"a": "=1+1", "b": "+1,204.5"}, {"a": "lora, two", "b": "\N{MINUS SIGN}0.4"}])
    assert sheet_csv(sheet) == "'=method,points\n'=1+1,+1204.5\n\"lora, two\",-0.4\n"


def test_every_table_of_the_page_has_its_files(wide: Store, tmp_path: Path) -> None:
    """Markdown, LaTeX and CSV hold what the page shows, cell by cell."""
    shown = show(wide, View(overlay="fig1-clip"))
    found = {sheet.name: sheet for finding in shown for sheet in finding.sheets}
    paths = forms.save(found.values(), tmp_path)
    assert set(paths) == {f"{name}.{kind}" for name in found for kind in ("md", "tex", "csv")}
    page = render(wide, shown=shown)
    assert set(re.findall(r'<table id="table-([^"]+?)(?:-\d+)?"', page)) == set(found)
    for name, sheet in found.items():
        assert all(len(row) == len(sheet.header) for row in sheet.cells)
        for part in (sheet.main, *sheet.further):
            body = page[page.index(f'<table id="{part.id}"') :].partition("</table>")[0]
            shown = [unescape(re.sub(r"<[^>]+>", "", c)) for c in re.findall(r"<td[^>]*>(.*?)</td>", body, re.S)]
            assert shown == [column.text(row) for row in sheet.rows for column in part.columns], part.id
        text = paths[f"{name}.md"].read_text(encoding="utf-8").splitlines()
        assert len(text) == 2 + len(sheet.rows)
        tex = paths[f"{name}.tex"].read_text(encoding="utf-8")
        assert tex.count(" \\\\\n") == 1 + len(sheet.rows) and tex.startswith(f"% {sheet.title}")
        comma = paths[f"{name}.csv"].read_text(encoding="utf-8")
        (link,) = re.findall(rf'download="{name}.csv" href="data:text/csv;charset=utf-8,([^"]*)"', page)
        assert unquote(link) == comma and len(list(csv.reader(io.StringIO(comma)))) == 1 + len(sheet.rows)
    wanted = {
        "results",
        "averages",
        "rate_ratio",
        "comparisons",
        "changes",
        "full_fine_tuning",
        "groups",
        "seeds",
        "overlay",
        "crossings",
    }
    wanted |= {"budget_needed", "areas", "front", "parity", "learning_rates", "expected_best", "cost"}
    wanted |= {"tuning_effort", "sharpness", "decisions"}
    assert set(found) == wanted | {"failures", "infeasible"}


def test_printed_table(store: Store, wide: Store, empty: Store) -> None:
    for one, blocks in ((store, 1), (wide, 2), (empty, 1)):
        buffer = io.StringIO()
        print_results_table(one, Console(file=buffer, width=130))
        text = buffer.getvalue()
        assert text.count("test accuracy on") == blocks
        assert "Left out: VeRA at lora-16" in text
        assert max(len(line.rstrip()) for line in text.splitlines() if not line.startswith("  ")) <= 130
    buffer = io.StringIO()
    print_results_table(store, Console(file=buffer, width=130))
    assert "81.5 ±  1.5" in buffer.getvalue()
    assert "0.0032*" in buffer.getvalue()


def test_a_report_drawn_meanwhile_does_not_end_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `sweeps report` by hand while a run draws its own at its end."""
    folder, mine = make_results(tmp_path / "r", trials=False), os.getpid()
    real, begun = Path.replace, list[Path]()

    def replace(self: Path, target: Path) -> Path:
        begun.append(self)
        if len(begun) == 1:
            monkeypatch.setattr(os, "getpid", lambda: mine + 1)
            write_report(folder)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    assert write_report(folder)["report"].is_file()
    assert len(set(begun)) == 2 and not list(folder.glob("*.tmp"))


@pytest.mark.filterwarnings("ignore:Glyph")  # the fonts of figures lack these
def test_no_text_from_outside_acts_on_the_reader(tmp_path: Path) -> None:
    """Neither on a terminal nor on the order of what is read: names, failures and errors are shown as characters."""
    acts = "\x1b[2J\x9b1A\x00\u202eab\u2066c"
    cells: Cells = {(m, "lora-1", f"d{acts}"): {0: 0.5, 1: 0.6, 2: None} for m in ("lora", f"m{acts}")}
    folder = odd_results(tmp_path / "made", cells)
    rows = open_store(folder).table("trials").to_pylist()
    changed = {"reason": f"ValueError: {acts}", "host": acts, "device": acts}
    write_part(folder, "trials", [r | changed for r in rows if r["status"] == "failed"])
    cell = open_store(folder).table("cells").to_pylist()[0]
    lacks = {"cell_id": f"c{acts}", "reference": acts, "reason": acts, "test_lacks": json.dumps([acts])}
    write_part(folder, "cells", [cell | lacks])
    spec = {"name": acts, "description": acts}
    (folder / "sweep.json").write_text(json.dumps({**(open_store(folder).spec() or {}), **spec}))
    written = write_report(folder)
    texts = {
        name: path.read_text() for name, path in written.items() if path.suffix in (".html", ".md", ".tex", ".svg")
    }
    texts["watch"] = "".join(WatchPage(folder).text_sections().values())
    assert "\u241b" in texts["report"] and "\u241b" in texts["watch"]
    found = {name: sorted({*acts} & set(text) & {*"\x1b\x9b\x00\u202e\u2066"}) for name, text in texts.items()}
    assert not any(found.values()), found
