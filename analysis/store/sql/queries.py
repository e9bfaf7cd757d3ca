"""Run read-only SQL over the results tables with DuckDB.

DuckDB gets the Arrow tables. Its access to anything else is switched off, and its configuration is locked. So a query
cannot read or change files, the network, extensions, settings or Python's variables. What it creates is gone when it
ends.
"""

from __future__ import annotations

import difflib
import re
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import duckdb
import numpy as np
import pyarrow as pa

from analysis.errors import QueryError, nearest
from analysis.store.schemas import SCHEMAS
from analysis.store.sql import limits
from analysis.store.sql.views import NO_SUCH_TABLE, T95, VIEWS, named_in
from trainables.errors import both_ends, brief

_LOCKS = (
    "SET temp_directory = ''",  # else DuckDB writes what does not fit into the working folder
    "SET threads = 1",  # else sums over several threads differ in their last digits from run to run
    "SET TimeZone = 'UTC'",
    "SET python_enable_replacements = false",  # else a query reads the caller's local variables
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)
_READS = ("SELECT", "EXPLAIN")
_BATCH = 10_000


def t95_table() -> pa.Table:
    """Return the critical values of the two-sided 95 % t interval, with columns df (1 .. 2000) and t."""
    from scipy import special  # takes longer to load than most queries take

    df = np.arange(1, 2001)
    return pa.Table.from_arrays([pa.array(df), pa.array(special.stdtrit(df, 0.975))], ["df", "t"])


def connect(tables: Mapping[str, pa.Table], names: Iterable[str] = (T95, *VIEWS)) -> duckdb.DuckDBPyConnection:
    """Return a locked in-memory connection with the tables, and the views of `views.VIEWS` in `names` (or all)."""
    connection = duckdb.connect(":memory:")
    for name, table in tables.items():
        connection.register(name, table)
    for name in names:
        _add(connection, name)
    for lock in (f"SET memory_limit = '{limits.gigabytes()}GB'", *_LOCKS):
        connection.execute(lock)
    return connection


def _add(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    if name == T95:
        connection.register(name, t95_table())
    else:
        connection.execute(f"create view {name} as {VIEWS[name].sql}")


def run_sql(tables: Mapping[str, pa.Table], query: str) -> pa.Table:
    """Run one SELECT (or DESCRIBE, SHOW, SUMMARIZE, EXPLAIN) over the tables and views, in this process.

    Only DuckDB's own limits hold here. A function that makes one huge text can exceed them, so `process` runs SQL from
    outside. Whole-number sums come back as int64, other decimals as float64, and intervals as seconds, so that they
    print and serialise as numbers.

    Raises:
        QueryError: the SQL is wrong, has more than one statement, or does more than read. The query takes more time or
            memory than the environment allows. Python has no type for its values. If a table or column is unknown, the
            message lists the known ones.
    """
    return Database(tables).ask(query)


class Database:
    """Answers several queries on one connection, because making a connection takes longer than most queries."""

    def __init__(self, tables: Mapping[str, pa.Table]) -> None:
        self._tables = tables
        self._connection = connect(tables, ())
        self._named: set[str] = set()
        self._asking = threading.Lock()

    def ask(self, query: str) -> pa.Table:
        """Answer one query, as `run_sql` does. After a QueryError the database may not answer any more."""
        try:
            query.encode()
        except UnicodeEncodeError as error:
            raise QueryError(f"a query is UTF-8 text, and this one has other bytes: {brief(query)}") from error
        with self._asking:
            for name in named_in(query, (T95, *VIEWS)):
                if name not in self._named:
                    _add(self._connection, name)
                    self._named.add(name)
            return self._answer(query)

    def _answer(self, query: str) -> pa.Table:
        connection = self._connection
        timer = threading.Timer(limits.seconds(), connection.interrupt)
        timer.start()
        try:
            statements = connection.extract_statements(query)
            kinds = [statement.type.name for statement in statements]
            if len(kinds) != 1 or kinds[0] not in _READS:
                sent = "no statement" if not kinds else " and ".join(kinds)
                raise QueryError(
                    f"a query is one SELECT (DESCRIBE, SHOW, SUMMARIZE and EXPLAIN too), got {sent}: {brief(query)}"
                )
            return _plain(_fetched(connection.sql(statements[0].query).to_arrow_reader(_BATCH)))
        except (duckdb.Error, pa.ArrowException, OSError) as error:  # Arrow's reader raises DuckDB's as OSError
            message = str(error)
            if message.startswith("INTERRUPT"):
                raise limits.too_slow() from error
            if "Out of Memory" in message:
                raise limits.too_large("the query") from error
            raise QueryError(_explain(_columns(self._tables), query, message)) from error
        finally:
            timer.cancel()
            timer.join()  # it must not interrupt the next query


def _fetched(reader: pa.RecordBatchReader) -> pa.Table:
    """Return a result as a table. Raises QueryError if it needs more memory than is allowed."""
    batches, bytes_left = [], limits.gigabytes() * 2**30
    for batch in reader:
        bytes_left -= batch.nbytes
        if bytes_left < 0:
            raise limits.too_large("the result")
        batches.append(batch)
    return pa.Table.from_batches(batches, reader.schema)


def _columns(tables: Mapping[str, pa.Table]) -> dict[str, list[str]]:
    """Return the column names of every table and view, also of those that this process was not given."""
    columns_by_table: dict[str, list[str]] = defaultdict(list)
    empty = {name: shape.empty_table() for name, shape in SCHEMAS.items()}
    with connect(empty | dict(tables)) as connection:
        listed = connection.execute("select table_name, column_name from duckdb_columns() where not internal")
        for table, column in listed.fetchall():
            if table != T95:
                columns_by_table[table].append(column)
    return columns_by_table


def _explain(known: Mapping[str, Sequence[str]], query: str, message: str) -> str:
    """Return DuckDB's message in one line, with the names that would have worked."""
    first = re.sub(r"\s*\n\s*(Candidate|LINE|Did you mean|Possibly|Given the).*", "", message, flags=re.S).strip()
    first = both_ends(" ".join(first.split()).rstrip(".!"), 500)  # it may contain a long word of the query
    table = NO_SUCH_TABLE.search(message)
    column = re.search(r"column \"([^\"]+)\"|does not have a column named \"([^\"]+)\"", message)
    if table:
        return f"{first}; {nearest(table.group(1)[:500], known)}. Tables and views: {', '.join(sorted(known))}"
    if column:
        words = set(re.findall(r"\w+", query.lower()))
        read = {t: names for t, names in known.items() if t in words} or known
        listed = "; ".join(f"{t} has {', '.join(names)}" for t, names in list(read.items())[:3])
        close = difflib.get_close_matches(column.group(1) or column.group(2), {c for n in read.values() for c in n})
        hint = f"nearest: {', '.join(close)}. " if close else ""
        return f"{first}; {hint}{listed}"
    return first


def _plain(table: pa.Table) -> pa.Table:
    for i, field in enumerate(table.schema):
        if pa.types.is_decimal(field.type):
            kind = pa.int64() if field.type.scale == 0 else pa.float64()
            try:
                table = table.set_column(i, field.name, table.column(i).cast(kind))
            except pa.ArrowInvalid:  # beyond 64 bits: leave it exact
                continue
        elif field.type == pa.month_day_nano_interval():
            table = table.set_column(i, field.name, _seconds(field.name, table.column(i)))
        elif pa.types.is_temporal(field.type) or pa.types.is_nested(field.type):
            try:
                table.column(i).to_pylist()
            except (ValueError, OverflowError) as error:  # 'infinity', years after 9999
                raise QueryError(f"column {field.name!r} has an instant that is no date; cast it to varchar") from error
    return table


def _seconds(name: str, column: pa.ChunkedArray) -> pa.Array:
    spans = column.to_pylist()
    if any(span is not None and span.months for span in spans):
        raise QueryError(f"column {name!r} has intervals of months, which are no number of seconds; cast it to varchar")
    seconds = [None if span is None else 86400 * span.days + span.nanoseconds / 1e9 for span in spans]
    return pa.array(seconds, pa.float64())
