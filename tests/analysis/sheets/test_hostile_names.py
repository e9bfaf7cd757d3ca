"""Names and failure texts from outside: a terminal, a Markdown page and LaTeX show them and do nothing they say."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.text import Text

from analysis import open_store
from analysis.findings.all import pictures
from analysis.sheets.latex import latex
from analysis.sheets.markdown import markdown
from analysis.sheets.sheet import Sheet, text
from analysis.sheets.terminal import print_sheet, safe_console
from sweeps.watch.displays import make_progress
from tests.analysis.synthetic import make_results

HOSTILE = "\x1b]0;title\x07\x1b[2J\x1b[31mred\x9b1A\rlora\x00\u202ereversed [bold]x[/bold] [/]"


def sheet(value: str) -> Sheet:
    return Sheet("t", f"T {value}", [text("name", "name"), text("other", "other")], [{"name": value, "other": "b"}])


def test_a_terminal_gets_no_escapes_of_names() -> None:
    file = io.StringIO()
    console = safe_console(soft_wrap=True, file=file)
    print_sheet(sheet(HOSTILE), console)
    console.print(Text(HOSTILE), style="red")
    shown = file.getvalue()
    assert shown.count("\u241b[2J\u241b[31mred\ufffd1A") == 3  # title, cell and text
    assert "[bold]x[/bold] [/]" in shown
    assert not {"\x1b", "\x07", "\x9b", "\r", "\x00", "\u202e"} & set(shown)


def test_the_live_display_gets_no_escapes_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    make_progress(True).note(HOSTILE)
    assert "\u241b[2J" in file.getvalue()
    assert "\x1b[2J" not in file.getvalue()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("a|b\n| c | d |", "a\\|b \\| c \\| d \\|"),
        ("`rm`", "\\`rm\\`"),
        ("![x](http://a/b)", "![x]\\(http://a/b)"),
        ("a\\|b", "a\\\\\\|b"),
        ("&amp;", "&amp;amp;"),
        ("\x1b[31m\x00", "\u241b[31m\u2400"),
        ("61.4 [60.9, 61.9] <0.001", "61.4 [60.9, 61.9] &lt;0.001"),
        ("log_likelihood 50 %", "log_likelihood 50 %"),
    ],
)
def test_a_markdown_cell_is_text(value: str, shown: str) -> None:
    lines = markdown(sheet(value)).splitlines()
    assert lines == ["| name | other |", "| --- | --- |", f"| {shown} | b |"]


def test_figures_show_a_dollar_as_it_is(tmp_path: Path) -> None:
    """Two of them would be a formula to matplotlib, here one that it can't read."""
    name = "A$_{b$"
    plan = {name: ("lora-1", "lora-4"), "lora": ("lora-1", "lora-4"), "full": (None,)}
    store = open_store(make_results(tmp_path / "made", plan=plan, datasets=["data$_{x$", "other"]))
    found = {p.stem: p.svg for p in pictures(store)}
    assert len(found) > 8 and all(name in found[stem] for stem in ("scaling_curve", "learning_rates"))
    assert "data$_{x$" in found["scaling_curve"]
    assert not [stem for stem, svg in found.items() if "$" in svg.replace(name, "").replace("data$_{x$", "")]


def test_latex_knows_the_signs_of_our_numbers() -> None:
    made = latex(sheet("\N{ALMOST EQUAL TO}1 \N{LESS-THAN OR EQUAL TO}2 \N{GREATER-THAN OR EQUAL TO}3"))
    assert "$\\approx$1 $\\leq$2 $\\geq$3 & b" in made


def test_latex_has_no_control_characters_and_its_title_is_one_comment() -> None:
    made = latex(sheet("a\n\\input{/etc/passwd}\x1b[31m\x00\u202e"))
    assert made.splitlines()[0].startswith("% T a \\input")
    assert made.splitlines()[1].startswith("\\begin{tabular}")
    row = next(line for line in made.splitlines() if line.endswith("& b \\\\"))
    assert row == "a \\textbackslash{}input\\{/etc/passwd\\}?[31m??  & b \\\\".replace("  &", " &")


@pytest.mark.parametrize("columns", ["0", "1", "-5", "wide"])
def test_an_odd_number_of_columns_loses_no_text(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    """Rich prints nothing on a console of no columns, errors included."""
    monkeypatch.setenv("COLUMNS", columns)
    said = io.StringIO()
    safe_console(soft_wrap=True, file=said).print("error: no such folder")
    assert said.getvalue() == "error: no such folder\n"
