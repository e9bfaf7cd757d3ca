"""Tables as Markdown, for README files, cards and the pages of the documentation."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from analysis.format import one_line
from analysis.sheets.sheet import Sheet


def markdown(sheet: Sheet) -> str:
    """Return a sheet as a Markdown table, with its mark beneath it."""
    numbers = [i for i, column in enumerate(sheet.columns) if column.kind == "number"]
    header, *lines = ([escaped(text) for text in line] for line in (sheet.header, *sheet.cells))
    return markdown_table(header, lines, numbers) + (f"\n{escaped(sheet.mark)}\n" if sheet.mark else "")


def markdown_table(header: Sequence[str], rows: Iterable[Iterable[object]], numbers: Collection[int] = ()) -> str:
    """Return a table of cells that are Markdown already. `numbers`: the indices of the columns to align right."""
    rule = ["---:" if i in numbers else "---" for i in range(len(header))]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in (header, rule, *rows))


def escaped(text: str) -> str:
    """Return a text as Markdown that shows it as it is: no tags, links, code or further cells."""
    plain = re.sub(r"&(?=#?\w+;)", "&amp;", one_line(text)).replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[\\|`]|(?<=\])\(", r"\\\g<0>", plain)


def code(text: object) -> str:
    """Return a name as code in Markdown. No name can break out of its backticks, or of its cell of a table."""
    return "`" + one_line(str(text)).replace("`", "'").replace("|", "¦") + "`"
