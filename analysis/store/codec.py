"""Derive the columns of a table from a dataclass, and convert rows to JSON and back.

Each field of a row's dataclass is a column. The field's type gives the Arrow type. Its metadata has the sentence that
describes the column, and the unit (`trainables.training.measured.column`). Everything that reads or writes a table uses
the columns made here.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeVar

import pyarrow as pa

from analysis.errors import StoreError, nearest
from analysis.format import finite
from analysis.store.columns import BITS, FLAG, INT, REAL, TEXT, TIME

_ARROW: dict[Any, pa.DataType] = {
    str: TEXT,
    int: INT,
    float: REAL,
    bool: FLAG,
    bytes: BITS,
    datetime: TIME,
    list[float]: pa.list_(REAL),
    Mapping[str, Any]: TEXT,
}
"""The Arrow type of a field's Python type. A mapping is stored as JSON text."""


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A row of a results table. Its fields are the table's columns, in order.

    Attributes:
        table: the table's name.
        key: the columns that identify a row. If two rows have the same key, the one that was written later counts.
    """

    table: ClassVar[str]
    key: ClassVar[tuple[str, ...]]


R = TypeVar("R", bound=TableRow)


@dataclass(frozen=True)
class Column:
    """A column of a results table.

    Attributes:
        name: its name.
        kind: its Arrow type. Every column may be null on disk.
        doc: a sentence that says what its values mean.
        unit: the unit of its numbers, or None if they have none.
        required: whether a row cannot be made without a value.
        parsed: whether a value is JSON text on disk and a mapping in a row.
    """

    name: str
    kind: pa.DataType
    doc: str
    unit: str | None = None
    required: bool = False
    parsed: bool = False

    @property
    def field(self) -> pa.Field:
        """The Arrow field, with the sentence and the unit in its metadata."""
        metadata = {"doc": self.doc} | ({"unit": self.unit} if self.unit else {})
        return pa.field(self.name, self.kind, metadata=metadata)

    @functools.cached_property
    def _plain(self) -> type | None:
        return {pa.string(): str, pa.float64(): float, pa.int64(): int, pa.bool_(): bool}.get(self.kind)

    def stored(self, table: str, value: Any) -> Any:
        """Return a value as Arrow takes it.

        The value may come from JSON. Then an instant is ISO 8601 text (in UTC if it names no zone), and bits are base64
        text. A mapping or list in a text column becomes JSON text. A number that is not finite becomes None.

        Raises:
            StoreError: the value does not fit the column's type.
        """
        if value is None or (type(value) is self._plain and _as_it_is(value)):  # fast, for most values
            return value
        try:
            return _fitted(self.kind, value)
        except (TypeError, ValueError, AttributeError) as error:
            raise StoreError(
                f"table {table!r}, column {self.name!r}: {value!r} does not fit type {self.kind} ({error}); {self.doc}"
            ) from error

    def stored_all(self, table: str, values: list[Any]) -> list[Any]:
        """Return `stored` of each value. It is much faster than calling `stored` if all have the column's type."""
        present = [value for value in values if value is not None]
        if set(map(type, present)) <= {self._plain} and all(map(_as_it_is, present)):
            return values
        return [self.stored(table, value) for value in values]


def _as_it_is(value: Any) -> bool:
    """Return whether `_fitted` would return this value unchanged, in a column of its type."""
    if isinstance(value, str):
        return value.isascii()
    return bool(-(2**53) < value < 2**53)  # False if the value is not finite


def _fitted(kind: pa.DataType, value: Any) -> Any:
    if pa.types.is_timestamp(kind):
        instant = datetime.fromisoformat(value) if isinstance(value, str) else value
        if isinstance(instant, int | float):
            return datetime.fromtimestamp(instant, UTC)
        return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
    if pa.types.is_binary(kind):
        return base64.b64decode(value, validate=True) if isinstance(value, str) else bytes(value)
    if pa.types.is_string(kind):
        if isinstance(value, Mapping | list | tuple):
            return json.dumps(finite(value), sort_keys=True, allow_nan=False)
        return str(value).encode(errors="backslashreplace").decode()  # a text may contain a file name that is not UTF-8
    if pa.types.is_boolean(kind):
        if not isinstance(value, bool):
            raise TypeError("not a boolean")
        return value
    if pa.types.is_list(kind):
        return [_fitted(kind.value_type, each) for each in value]
    number = float(value)
    if not math.isfinite(number):
        return None
    if not pa.types.is_integer(kind):
        return number
    if number != int(number):
        raise TypeError("not a whole number")
    return int(value)


def columns_of(row: type[TableRow]) -> tuple[Column, ...]:
    """Return the columns that the fields of a row's dataclass define, in order."""
    if row not in _COLUMNS:
        _COLUMNS[row] = _columns(row)
    return _COLUMNS[row]


_COLUMNS: dict[type[TableRow], tuple[Column, ...]] = {}


def _columns(row: type[TableRow]) -> tuple[Column, ...]:
    kinds = typing.get_type_hints(row)
    columns = []
    for field in dataclasses.fields(row):
        kind = kinds[field.name]
        if isinstance(kind, types.UnionType):
            (kind,) = (each for each in typing.get_args(kind) if each is not types.NoneType)
        columns.append(
            Column(
                field.name,
                _ARROW[kind],
                field.metadata["doc"],
                field.metadata["unit"],
                field.default is dataclasses.MISSING,
                kind == Mapping[str, Any],
            )
        )
    return tuple(columns)


def doc_of(row: type[TableRow]) -> str:
    """Return the sentence that says what a row of the table is: its docstring."""
    return " ".join((row.__doc__ or "").split())


def values_of(row: TableRow | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row's values by column. A mapping is returned as it is."""
    return row if isinstance(row, Mapping) else vars(row)


def stored_rows(row: type[TableRow], rows: Iterable[TableRow | Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the values of rows by column, as Arrow takes them. If a row lacks a column, its value is None.

    Raises:
        StoreError: a row has an unknown column, or a value that does not fit.
    """
    columns = {column.name: column for column in columns_of(row)}
    all_values = [values_of(each) for each in rows]
    for values in all_values:
        _refuse_unknown(row.table, values, columns)
    return {
        name: column.stored_all(row.table, [values.get(name) for values in all_values])
        for name, column in columns.items()
    }


def to_json(row: TableRow) -> dict[str, Any]:
    """Return a row as JSON values, for the journal.

    Instants become text, bits become base64 text, and numbers that are not finite become None.
    """
    json_values: dict[str, Any] = {}
    for column in columns_of(type(row)):
        value = column.stored(row.table, getattr(row, column.name))
        json_values[column.name] = value.isoformat() if isinstance(value, datetime) else finite(value)
    return json_values


def from_values(row: type[R], values: Mapping[str, Any]) -> R:
    """Make a row from the values in the journal (JSON) or in a table (Arrow).

    If `values` lacks a column, for example because it is older than the column, the row gets the field's default.

    Raises:
        StoreError: a required column is missing, a column is unknown, or a value does not fit.
    """
    columns = columns_of(row)
    _refuse_unknown(row.table, values, {column.name: column for column in columns})
    field_values: dict[str, Any] = {}
    for column in columns:
        value = column.stored(row.table, values.get(column.name))
        if value is not None:
            field_values[column.name] = _parsed(row.table, column, value) if column.parsed else value
        elif column.required:
            raise StoreError(f"table {row.table!r}: a row lacks {column.name!r}, which is required; {column.doc}")
    return row(**field_values)


def _parsed(table: str, column: Column, text: str) -> Any:
    try:
        document = json.loads(text)
        if isinstance(document, dict):
            return document
        problem = "not an object"
    except (ValueError, RecursionError) as error:
        problem = str(error)
    raise StoreError(f"table {table!r}, column {column.name!r}: {text!r} is not JSON ({problem}); {column.doc}")


def _refuse_unknown(table: str, values: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    if values.keys() <= known.keys():
        return
    for key in values:
        if key not in known:
            raise StoreError(f"table {table!r} has no column {key!r}; {nearest(key, known)}")
