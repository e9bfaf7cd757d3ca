"""The results tables on disk: immutable Parquet parts, written to a temporary name and renamed; damaged ones are named.

A results folder holds `journal.jsonl` (the truth) and `tables/NAME/part-UUID.parquet`. Nothing is ever rewritten: a row
that supersedes another has the same key (`schemas.TABLES`) and is written later.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.errors import DamagedPart, ForeignPartError, StoreError
from analysis.store.codec import TableRow, stored_rows
from analysis.store.schemas import SCHEMA_VERSION, TABLES, schema
from trainables.errors import first_line

_STAMP = re.compile(r"part-(\d{8})T(\d{12})-")


def to_table(name: str, rows: Iterable[TableRow | Mapping[str, Any]]) -> pa.Table:
    """Make an Arrow table of the named schema from rows: dataclasses, or mappings as the journal has them.

    A column that a row lacks is null. `Column.stored` says which values fit.

    Raises:
        StoreError: unknown table, unknown column (with the nearest known ones), or a value of the wrong type.
    """
    wanted = schema(name)
    return pa.table(stored_rows(TABLES[name], rows), schema=wanted)


def conform(table: pa.Table, name: str, source: str) -> pa.Table:
    """Return a table read from disk in today's schema. Missing columns are null, and unknown ones are dropped.

    Raises:
        StoreError: written by a newer version of this package.
        ForeignPartError: of another table, or with values that are none of this table's.
    """
    wanted = schema(name)
    own = (table.schema.metadata or {}).get(b"table", name.encode()).decode(errors="replace")
    if own != name:
        raise ForeignPartError(f"it is a part of the table {own!r}")
    written = int((table.schema.metadata or {}).get(b"schema_version", b"1"))
    if written > SCHEMA_VERSION:
        raise StoreError(
            f"{source}: schema version {written} is newer than this package's {SCHEMA_VERSION}; upgrade the package"
        )
    arrays = [
        _as_kind(table.column(field.name), field)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in wanted
    ]
    conformed = pa.table(arrays, schema=wanted)
    for key in ("trial_id", "cell_id"):
        if key in TABLES[name].key and conformed.column(key).null_count:
            raise ForeignPartError(f"it has rows without {key!r}, which tells rows apart")
    return conformed


def _as_kind(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    """Return a column in the type of `field`: other widths of numbers, texts and lists were written by others."""
    if column.type == field.type:
        return column
    if _family(column.type) not in (_family(field.type), "null") and (
        (_family(column.type), _family(field.type)) != ("integer", "real")
    ):
        raise ForeignPartError(f"its column {field.name!r} is {column.type}, and {field.type} is needed")
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise ForeignPartError(f"its column {field.name!r} does not fit {field.type} ({first_line(error)})") from error


def _family(kind: pa.DataType) -> str:
    """Return what a type holds, whatever its width."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list of {_family(kind.value_type)}"
    if pa.types.is_dictionary(kind):
        return _family(kind.value_type)
    families = {
        "null": (pa.types.is_null,),
        "integer": (pa.types.is_integer,),
        "real": (pa.types.is_floating,),
        "text": (pa.types.is_string, pa.types.is_large_string),
        "bits": (pa.types.is_binary, pa.types.is_large_binary),
        "time": (pa.types.is_timestamp,),
    }
    return next((name for name, are in families.items() if any(is_one(kind) for is_one in are)), str(kind))


def latest(name: str, tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of all tables. Of rows with the same key only the last one is kept."""
    all_rows = pa.concat_tables([schema(name).empty_table(), *tables])
    keys = zip(*(all_rows.column(key).to_pylist() for key in TABLES[name].key), strict=True)
    rows = {key: index for index, key in enumerate(keys)}
    return all_rows if len(rows) == all_rows.num_rows else all_rows.take(pa.array(list(rows.values()), pa.int64()))


def write_part(folder: Path, name: str, rows: Sequence[TableRow | Mapping[str, Any]]) -> Path:
    """Write rows into a new part file of a results folder, and return its path. The file is whole, or not there.

    Args:
        folder: the results folder. It must exist, so that a folder that was moved away is not created again.
        name: the table.
        rows: at least one row, by column name; see `to_table`.

    Raises:
        StoreError: there are no rows, or they do not fit the table.
        OSError: the disk is full, or the folder is missing or read-only. No part file is left.
    """
    table = to_table(name, rows)
    if table.num_rows == 0:
        raise StoreError(f"a part of table {name!r} needs at least one row")
    place = Path(folder) / "tables" / name
    for directory in (place.parent, place):
        directory.mkdir(exist_ok=True)
    path = place / f"part-{_next_stamp(place)}-{uuid.uuid4().hex[:8]}.parquet"
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd", write_page_checksum=True)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(place)
    return path


def _next_stamp(place: Path) -> str:
    """Return a stamp that sorts after all parts: the time, or the newest stamp plus one if the clock was set back."""
    matches = (_STAMP.match(path.name) for path in place.glob("part-*.parquet"))
    newest = max((stamp[1] + stamp[2] for stamp in matches if stamp), default="")
    now = f"{datetime.now(UTC):%Y%m%d%H%M%S%f}"
    digits = now if now > newest else str(int(newest) + 1)
    return f"{digits[:8]}T{digits[8:]}"


def sync_folder(folder: Path) -> None:
    """Write a folder's list of files to disk. Otherwise a power failure may lose a new or renamed file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def part_paths(folder: Path, name: str) -> list[Path]:
    """Return the paths of a table's parts, in the order they were written."""
    return [Path(folder) / "tables" / name / part for part in part_names(folder, name)]


def part_names(folder: Path, name: str) -> list[str]:
    """Return the file names of a table's parts, in the order they were written.

    It runs before every access to a store, so it does without `Path`s, which are slower.
    """
    schema(name)
    try:
        file_names = os.listdir(os.path.join(folder, "tables", name))  # noqa: PTH118, PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(part for part in file_names if part.startswith("part-") and part.endswith(".parquet"))


def scan_parts(folder: Path, name: str) -> tuple[pa.Table, list[DamagedPart]]:
    """Return the rows of a table's parts, one per key, and the parts that are damaged.

    A damaged part is truncated, has a wrong checksum, or holds rows of another table.

    Raises:
        StoreError: the table is unknown, or a part is of a newer version.
        OSError: a part cannot be read now for another reason, such as permissions or too many open files.
    """
    tables, damaged = [], []
    for path in part_paths(folder, name):
        try:
            with path.open("rb") as file:
                # `pq.read_table` loads Arrow's data sets, and pandas, which takes longer than most folders
                part = pq.ParquetFile(pa.BufferReader(file.read()), page_checksum_verification=True)
                # a process that ends while Arrow starts its threads is aborted; parts are small, and need none
                table = part.read(use_threads=False)
            tables.append(conform(table, name, str(path)))
        except FileNotFoundError:  # set aside meanwhile
            continue
        except (pa.ArrowException, OSError, ForeignPartError) as error:
            if getattr(error, "errno", None) not in (None, errno.EIO):  # Arrow's own have none
                raise
            damaged.append(DamagedPart(path, name, first_line(error)))
    return latest(name, tables), damaged


def set_aside(part: DamagedPart) -> Path:
    """Rename a damaged part to `*.damaged`, so that it is kept but no longer read; returns the new path."""
    aside = part.path.with_suffix(".parquet.damaged")
    part.path.rename(aside)
    return aside
