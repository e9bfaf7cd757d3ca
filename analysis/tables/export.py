"""A table of the report as Markdown and LaTeX, for papers and README files, and as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from analysis.errors import StoreError, nearest
from analysis.format import visible
from analysis.tables.sheet import Sheet

_TEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}"}
_TEX |= {"^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "\N{MINUS SIGN}": "$-$", "<": "$<$", ">": "$>$"}
_TEX |= {"\N{ALMOST EQUAL TO}": r"$\approx$", "\N{LESS-THAN OR EQUAL TO}": r"$\leq$"}
_TEX |= {"\N{GREATER-THAN OR EQUAL TO}": r"$\geq$"}

_PICTURES = "[\u2400-\u2421\ufffd]"  # of `visible`, which LaTeX's fonts lack

FOLDER = "report_tables"
"""Where a results folder keeps them; `tables/` holds the Parquet parts."""


def markdown(sheet: Sheet) -> str:
    """Return a Markdown table."""
    rule = ["---:" if c.kind == "number" else "---" for c in sheet.columns]
    lines = [sheet.header, rule, *sheet.cells]
    table = "".join(f"| {' | '.join(map(shown_as_is, line))} |\n" for line in lines)
    return table + (f"\n{shown_as_is(sheet.mark)}\n" if sheet.mark else "")


def latex(sheet: Sheet) -> str:
    """Return a LaTeX tabular with booktabs rules, with its title and mark in comments."""
    spec = "".join("r" if c.kind == "number" else "l" for c in sheet.columns)
    comment_lines = filter(None, (sheet.title, sheet.mark))
    lines = [*(f"% {_one_line(line)}" for line in comment_lines), rf"\begin{{tabular}}{{{spec}}}", r"\toprule"]
    lines += [" & ".join(map(_tex, sheet.header)) + r" \\", r"\midrule"]
    # a row that begins with a bracket would be read as an option of the line break before it
    lines += [" & ".join(map(_tex, row)) + r" \\" for row in sheet.cells]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def comma_separated(sheet: Sheet) -> str:
    """Return CSV with plain numbers. A text that a spreadsheet would take for a formula gets a quote."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_plain, sheet.header))
    for row in sheet.cells:
        cells = zip(sheet.columns, row, strict=True)
        writer.writerow(_number(cell) if column.kind == "number" else _plain(cell) for column, cell in cells)
    return text.getvalue()


FORMS: dict[str, tuple[str, Callable[[Sheet], str]]] = {
    "markdown": (".md", markdown),
    "latex": (".tex", latex),
    "csv": (".csv", comma_separated),
}
"""Form -> (suffix, writer)."""


def save(sheets: Iterable[Sheet], folder: Path) -> dict[str, Path]:
    """Write every sheet in every form into a results folder's `report_tables/`; returns 'NAME.SUFFIX' -> path."""
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    paths = {}
    for sheet in sheets:
        for suffix, form in FORMS.values():
            path = place / f"{sheet.name}{suffix}"
            path.write_text(form(sheet), encoding="utf-8")
            paths[path.name] = path
    return paths


def form_of(name: str) -> Callable[[Sheet], str]:
    """Return a form by name. Raises StoreError if it is unknown; the error lists the known ones."""
    if name not in FORMS:
        raise StoreError(f"unknown form {name!r} of a table; {nearest(name, FORMS)}")
    return FORMS[name][1]


def _number(text: str) -> str:
    return re.sub(r"(?<=\d),(?=\d{3})", "", text).replace("\N{MINUS SIGN}", "-")


def _plain(text: str) -> str:
    shown = _one_line(text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))


def shown_as_is(text: str) -> str:
    """Return a cell whose text is shown as it is: no tags, links, code or further cells."""
    plain = re.sub(r"&(?=#?\w+;)", "&amp;", _one_line(text)).replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[\\|`]|(?<=\])\(", r"\\\g<0>", plain)


def _tex(text: str) -> str:
    shown = "".join(_TEX.get(character, character) for character in re.sub(_PICTURES, "?", _one_line(text)))
    return f"{{{shown}}}" if shown.startswith(("[", "*")) else shown
