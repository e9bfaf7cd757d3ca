"""Run SQL that a user typed in a separate process, so that its limits hold.

DuckDB checks only between batches of rows whether it should stop. Some functions compute one value for minutes, and
take gigabytes that DuckDB's own limit does not count. So the operating system ends this process when its time is over,
and (on Linux) refuses it memory beyond the limit.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from analysis.errors import QueryError
from analysis.store.sql import limits
from analysis.store.sql.no_pandas import spare_pandas
from analysis.store.sql.views import NO_SUCH_TABLE, named_in

_GRACE_S = 1.0
"""Seconds after the limit of time in which DuckDB may stop by itself, with a message."""
_REFUSED = 2


def run_sql_apart(tables: Mapping[str, pa.Table], query: str) -> pa.Table:
    """Run one SELECT as `queries.run_sql` does, in a process that takes no more than the allowed time and memory.

    The process gets only the tables that the query names, which saves time. If the query turns out to read another
    table, it runs once more with all tables.

    Raises:
        QueryError: for the same reasons as `queries.run_sql`.
    """
    named = {name: tables[name] for name in named_in(query, tables)}
    try:
        return _run(named, query)
    except QueryError as error:
        if len(named) == len(tables) or not NO_SUCH_TABLE.search(str(error)):
            raise
    return _run(tables, query)


def _run(tables: Mapping[str, pa.Table], query: str) -> pa.Table:
    start = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()"
    command = [sys.executable, "-P", "-c", start]  # -P: ignore a folder `analysis` in the current directory
    done = subprocess.run(command, input=_packed(tables, query), capture_output=True, check=False)
    if done.returncode == 0:
        return pa.ipc.open_stream(done.stdout).read_all()
    if done.returncode == -signal.SIGALRM:
        raise limits.too_slow()
    if done.returncode == _REFUSED:
        raise QueryError(json.loads(done.stderr))
    last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
    raise QueryError(f"{limits.too_large('the query')} (its process ended with code {done.returncode}: {last})")


def _packed(tables: Mapping[str, pa.Table], query: str) -> bytes:
    """Return the query and the names of the tables as a line of JSON, then each table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    sink.write(json.dumps({"query": query, "tables": list(tables)}).encode() + b"\n")
    for table in tables.values():
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return bytes(sink.getvalue())


def main() -> None:
    """Answer the query on standard input as an Arrow stream, or write the error's message to standard error."""
    spare_pandas()
    from analysis.store.sql.queries import run_sql

    received = sys.stdin.buffer.read()
    line, _, streams = received.partition(b"\n")
    request, source = json.loads(line), pa.BufferReader(streams)
    tables = {name: pa.ipc.open_stream(source).read_all() for name in request["tables"]}
    _limit_memory(limits.gigabytes())
    signal.setitimer(signal.ITIMER_REAL, limits.seconds() + _GRACE_S)  # without a handler SIGALRM ends the process
    try:
        table = run_sql(tables, request["query"])
        with pa.ipc.new_stream(sys.stdout.buffer, table.schema) as writer:
            writer.write_table(table)
        sys.stdout.flush()
    except (QueryError, MemoryError) as error:
        refusal = error if isinstance(error, QueryError) else limits.too_large("the query")
        sys.stderr.write(json.dumps(str(refusal)))
        sys.exit(_REFUSED)


def _limit_memory(gb: float) -> None:
    """Limit this process to the memory that it has now, plus what a query and its result may each take."""
    has = Path("/proc/self/statm")
    if has.exists():  # on other systems than Linux the limit has no effect
        pages = int(has.read_text().split()[0])
        most = pages * resource.getpagesize() + int(2 * gb * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
