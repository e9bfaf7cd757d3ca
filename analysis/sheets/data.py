"""Tables for programs: a sheet as CSV and JSON, and an Arrow table as CSV, JSON, Parquet and Arrow's file format."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from analysis.format import finite, one_line
from analysis.sheets.sheet import Sheet

if TYPE_CHECKING:
    import pyarrow as pa


def sheet_csv(sheet: Sheet) -> str:
    """Return a sheet as CSV with plain numbers. A text that a spreadsheet would take for a formula gets a quote."""
    numbers = [column.kind == "number" for column in sheet.columns]
    rows = (
        [_number(cell) if is_number else _plain(cell) for is_number, cell in zip(numbers, row, strict=True)]
        for row in sheet.cells
    )
    return _csv([[_plain(head) for head in sheet.header], *rows])


def _number(text: str) -> str:
    return re.sub(r"(?<=\d),(?=\d{3})", "", text).replace("\N{MINUS SIGN}", "-")


def _plain(text: str) -> str:
    shown = one_line(text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


def sheet_values(sheet: Sheet) -> dict[str, Any]:
    """Return a sheet as JSON values: name, title, header and rows."""
    return {"name": sheet.name, "title": sheet.title, "header": sheet.header, "rows": sheet.cells}


def json_text(value: Any) -> str:
    """Return one JSON document. Numbers that are not finite are null, other types become texts."""
    return json.dumps(finite(value), default=str, allow_nan=False, indent=2) + "\n"


def _table_csv(table: pa.Table) -> bytes:
    rows = zip(*(finite(column.to_pylist()) for column in table.columns), strict=True)
    return _csv([table.column_names, *rows]).encode()


def _csv(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)  # "\n": as shells read it
    return text.getvalue()


def _table_parquet(table: pa.Table) -> bytes:
    import pyarrow as pa  # not at the top: a verb without a table need not load it
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def _table_arrow(table: pa.Table) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


TABLE_FILES: dict[str, Callable[[pa.Table], bytes]] = {
    "csv": _table_csv,
    "json": lambda table: json_text(table.to_pylist()).encode(),
    "parquet": _table_parquet,
    "arrow": _table_arrow,
}
"""The content of a file with an Arrow table, by format. JSON keeps one of several columns that share a name. Parquet
and Arrow raise pyarrow.ArrowException if they cannot store a type or such columns."""
