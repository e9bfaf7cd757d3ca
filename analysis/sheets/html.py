"""Tables as HTML: macros for pages, and short tables for notebooks.

The tables of notebooks have no colours, so that they can be read on dark and on light pages.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from analysis.format import visible
from analysis.sheets.data import sheet_csv
from analysis.sheets.sheet import Sheet, sheet_of_arrow

if TYPE_CHECKING:
    import jinja2
    import pyarrow as pa
    from markupsafe import Markup

ROWS = 20
"""Largest number of rows that are shown of a table in a notebook."""


def templates(package: str) -> jinja2.Environment:
    """Return the environment of a package's templates. They can import those of this room.

    An undefined variable is an error. Values are escaped, and hidden characters in them are made `visible`.
    """
    import jinja2  # not at the top: most commands make no HTML

    folders = dict.fromkeys((package, "analysis.sheets"))
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(folder, "templates") for folder in folders]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: visible(value if isinstance(value, str) else str(value)),  # `Markup` stays what it is
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["bracketed"] = _bracketed
    environment.filters["csv"] = lambda sheet: quote(sheet_csv(sheet))
    return environment


def _bracketed(text: str) -> Markup:
    """Return a cell with its interval marked, so that the page can set it off."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(\[[^\]]*\])$", r'<span class="i">\1</span>', str(escape(text))))  # noqa: S704  escaped


def notebook_html(sheet: Sheet, more: int = 0) -> str:
    """Return a paragraph with the title, and a table with the first characters of each cell.

    Args:
        sheet: the table.
        more: number of rows that are left out; the page says how many.
    """
    macros: Any = templates("analysis.sheets").get_template("plain.html.j2").module
    return str(macros.short(sheet, more)).strip()


def html_of_arrow(table: pa.Table) -> str:
    """Return an Arrow table's size and its first rows as HTML."""
    size = f"{table.num_rows:,} rows, {table.num_columns} columns"
    return notebook_html(sheet_of_arrow(table, ROWS, size), max(0, table.num_rows - ROWS))


def show_arrow_tables() -> None:
    """Let the notebook that this runs in, if any, show Arrow tables as tables instead of pages of text.

    A display that the user has chosen for them stays.
    """
    import pyarrow as pa  # not at the top: reading a sweep file does not need it

    shell = notebook()
    if shell is not None:
        formatter = shell.display_formatter.formatters["text/html"]
        if pa.Table not in formatter:
            formatter.for_type(pa.Table, html_of_arrow)


def notebook() -> Any | None:
    """Return the IPython shell of the notebook that this runs in, or None outside of a notebook."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    shell = get_ipython()
    return shell if getattr(shell, "kernel", None) is not None else None
