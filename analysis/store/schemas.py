"""Every results table with its Arrow schema, derived from the dataclasses of `rows` and `diagnostic_rows`."""

from __future__ import annotations

import pyarrow as pa

from analysis.errors import StoreError, nearest
from analysis.store import diagnostic_rows
from analysis.store.codec import TableRow, columns_of, doc_of
from analysis.store.rows import CellRow, ChoiceRow, MetricRow, PredictionRow, TrialRow

SCHEMA_VERSION = 1
"""It is raised when a column changes its meaning or leaves. A new column does not raise it: old parts read as null."""

_ROWS: tuple[type[TableRow], ...] = (TrialRow, MetricRow, PredictionRow, CellRow, ChoiceRow, *diagnostic_rows.ROWS)
TABLES: dict[str, type[TableRow]] = {row.table: row for row in _ROWS}
"""The dataclass of every table's rows, by the table's name."""


def _schema(row: type[TableRow]) -> pa.Schema:
    metadata = {"table": row.table, "schema_version": str(SCHEMA_VERSION), "doc": doc_of(row)}
    return pa.schema([column.field for column in columns_of(row)], metadata=metadata)


SCHEMAS: dict[str, pa.Schema] = {name: _schema(row) for name, row in TABLES.items()}


def schema(name: str) -> pa.Schema:
    """Return the Arrow schema of a table: `schema_version` in its metadata, `doc` and `unit` in its fields'.

    Raises:
        StoreError: unknown table, with the known ones.
    """
    if name not in SCHEMAS:
        raise StoreError(f"unknown table {name!r}; {nearest(name, SCHEMAS)}")
    return SCHEMAS[name]
