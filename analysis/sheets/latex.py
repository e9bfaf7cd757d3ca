"""Tables as LaTeX, for papers."""

from __future__ import annotations

import re

from analysis.format import one_line
from analysis.sheets.sheet import Sheet

_TEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}"}
_TEX |= {"^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "\N{MINUS SIGN}": "$-$", "<": "$<$", ">": "$>$"}
_TEX |= {"\N{ALMOST EQUAL TO}": r"$\approx$", "\N{LESS-THAN OR EQUAL TO}": r"$\leq$"}
_TEX |= {"\N{GREATER-THAN OR EQUAL TO}": r"$\geq$"}

_PICTURES = "[\u2400-\u2421\ufffd]"  # of `visible`, which LaTeX's fonts lack


def latex(sheet: Sheet) -> str:
    """Return a LaTeX tabular with booktabs rules, with its title and mark in comments."""
    spec = "".join("r" if c.kind == "number" else "l" for c in sheet.columns)
    comment_lines = filter(None, (sheet.title, sheet.mark))
    lines = [*(f"% {one_line(line)}" for line in comment_lines), rf"\begin{{tabular}}{{{spec}}}", r"\toprule"]
    lines += [" & ".join(map(_tex, sheet.header)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(_tex, row)) + r" \\" for row in sheet.cells]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _tex(text: str) -> str:
    shown = "".join(_TEX.get(character, character) for character in re.sub(_PICTURES, "?", one_line(text)))
    # a row that begins with a bracket would be read as an option of the line break before it
    return f"{{{shown}}}" if shown.startswith(("[", "*")) else shown
