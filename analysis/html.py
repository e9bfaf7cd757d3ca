"""Short tables for notebooks: plain HTML without colours, so that it can be read on dark and on light pages."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from analysis.format import visible

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 20
"""Largest number of rows that are shown of a table."""
_WIDE = 120
"""Largest number of characters of a cell."""


def html_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], more: int = 0) -> str:
    """Return a paragraph with the title, and a table. All texts are escaped, and long cells are cut.

    Args:
        columns: the headings. If all are empty, the table has no head.
        more: number of rows that are left out; the page says how many.
    """
    lines = ["".join(f"<th>{_text(column)}</th>" for column in columns)] if any(columns) else []
    lines += ["".join(f"<td>{_text(cell)}</td>" for cell in row) for row in rows]
    left_out_text = f"<p>and {more:,} more rows</p>" if more else ""
    return (
        f"<p>{_text(title, cut=False)}</p><table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>{left_out_text}"
    )


def html_of_arrow(table: pa.Table) -> str:
    """Return an Arrow table's size and its first rows as HTML."""
    size = f"{table.num_rows:,} rows, {table.num_columns} columns"
    first = table.slice(0, ROWS)
    rows = zip(*(first.column(i).to_pylist() for i in range(first.num_columns)), strict=True)
    return html_table(size, table.column_names, rows, table.num_rows - first.num_rows)


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


def _text(value: object, *, cut: bool = True) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else visible(str(value))
    return escape(f"{text[:_WIDE]}..." if cut and len(text) > _WIDE else text)
