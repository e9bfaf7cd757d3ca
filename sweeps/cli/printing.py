"""Prints JSON, lines and tables for the verbs. It only formats, and computes nothing."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from analysis.format import finite, plural
from analysis.tables.terminal import print_whole, safe_console
from sweeps.errors import Problem, SpecError
from trainables.errors import first_line

if TYPE_CHECKING:
    import pyarrow as pa

    from analysis.tables.sheet import Sheet
    from sweeps.plan.estimate import Tell

_MOST_ROWS = 1000  # of a table on a terminal
_QUIET_S = 1.0
"""A log gets no line for a further step of a probe within this many seconds of the last line."""
_MOST_NAMES = 6  # of files that are named on one line

out = safe_console(soft_wrap=True)
err = safe_console(stderr=True, soft_wrap=True)


def emit(as_json: bool, value: Callable[[], Any], draw: Callable[[], object]) -> None:
    """Print an answer as JSON, or for people.

    Args:
        as_json: whether to print JSON.
        value: returns the answer as JSON values; only called for JSON.
        draw: prints the answer for people; only called otherwise.
    """
    if as_json:
        print_json(value())
    else:
        draw()


def print_json(value: Any) -> None:
    """Print one JSON document on standard output. Numbers that are not finite are null, other types become texts."""
    sys.stdout.write(_json(value))


def _json(value: Any) -> str:
    return json.dumps(finite(value), default=str, allow_nan=False, indent=2) + "\n"


def as_bytes(table: pa.Table, kind: str) -> bytes:
    """Return a table as the bytes of a file of kind 'csv', 'json', 'parquet' or 'arrow' (Arrow's file format).

    Raises:
        SpecError: columns share a name or have a type, and this kind can't store that.
    """
    if kind == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")  # as shells read it
        writer.writerow(table.column_names)
        writer.writerows(zip(*(finite(column.to_pylist()) for column in table.columns), strict=True))
        return text.getvalue().encode()
    if kind == "json":
        twice = [name for name, count in Counter(table.column_names).items() if count > 1]
        if twice:
            rule = "is the name of several columns, and JSON can store only one; give each another name: ... as NAME"
            raise SpecError([Problem("column", name, rule, "--format csv") for name in twice])
        return _json(table.to_pylist()).encode()
    import pyarrow as pa  # not at the top: a verb without a table need not load it

    try:
        return _arrow_bytes(table, kind)
    except pa.ArrowException as error:
        rule = f"can't hold these columns ({first_line(error)}); cast them: select NAME::varchar as NAME"
        raise SpecError([Problem("--format", kind, rule, "csv")]) from error


def _arrow_bytes(table: pa.Table, kind: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    if kind == "parquet":
        pq.write_table(table, sink, compression="zstd")
    elif kind == "arrow":
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        raise ValueError(f"unknown kind {kind!r} of file; known: csv, json, parquet, arrow")
    return bytes(sink.getvalue().to_pybytes())


def print_table(table: pa.Table, title: str | None = None) -> None:
    """Print an Arrow table on the terminal; only its first rows if it has very many."""
    first = table.slice(0, _MOST_ROWS)  # by columns, and not as dictionaries, because two columns may share a name
    rows = list(zip(*(column.to_pylist() for column in first.columns), strict=True))
    print_rows(table.column_names, [[shown(v) for v in row] for row in rows], title)
    rest = f", of which the first {_MOST_ROWS:,} are shown; --to FILE writes all" if len(rows) < len(table) else ""
    out.print(f"{plural(table.num_rows, 'row')}{rest}", style="dim")


def print_sheet(sheet: Sheet) -> None:
    """Print a table of the report: its main columns, a table for each group of further columns, and how to read it."""
    for part in (sheet.main, *sheet.further):
        heading = f"{sheet.title}: {part.heading}" if part.heading else sheet.title
        cells = [[text for _, text, _ in row] for _, _, row in part.rows]
        print_rows([column.head for column in part.columns], cells, heading)
    for text in filter(None, (sheet.legend, sheet.note)):
        out.print(text, style="dim")
    out.print()


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]], title: str | None) -> None:
    """Print texts as a table. No cell is cut."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(header):
        numeric = bool(rows) and all(_is_number(row[i]) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    print_whole(table, out)


def _is_number(text: str) -> bool:
    return (
        text == ""
        or text.replace(",", "").lstrip("+-\N{MINUS SIGN}\N{ALMOST EQUAL TO}\N{LESS-THAN OR EQUAL TO} ")[:1].isdigit()
    )


def shown(value: object) -> str:
    """Return a value of a table as a short text."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


def print_weak(says: Sequence[str], console: Console = out) -> None:
    """Print what makes the evidence weak (`analysis.findings.weak`), a line for each. Print nothing if nothing does."""
    if says:
        console.print("Weak evidence", style="bold yellow")
    for line in says:
        console.print(f"  {line}", style="yellow")


class _Probing:
    """Prints the steps of probes on standard error (`probing`)."""

    def __init__(self) -> None:
        self._method, self._at, self._width = "", 0.0, 0

    def __call__(self, method: str, number: int, count: int, step: str) -> None:
        text = f"probing {method} ({number} of {plural(count, 'method')}): {step}"
        if err.is_terminal:
            err.print(text.ljust(self._width), style="dim", end="\r")
            self._width = len(text)
        elif method != self._method or time.monotonic() - self._at > _QUIET_S:
            err.print(text, style="dim")
            self._method, self._at = method, time.monotonic()

    def clear(self) -> None:
        if self._width:
            err.print(" " * self._width, end="\r")


@contextlib.contextmanager
def probing(*, quiet: bool) -> Iterator[Tell | None]:
    """Yield a callback that prints on standard error which method is probed, and the step of the probe.

    A terminal shows one line, which changes. A log gets a line for each method, and a line for each step that begins
    more than a second after the line before. The callback can be sent to another process, which prints by itself. If
    `quiet`, None is yielded.
    """
    printer = _Probing()
    try:
        yield None if quiet else printer
    finally:
        printer.clear()


def print_named(texts: Mapping[str, object]) -> None:
    """Print names with their texts, one in each line."""
    width = max((len(name) for name in texts), default=0)
    for name, text in texts.items():
        out.print(f"{name.ljust(width)}  {text}")


def print_files(paths: Mapping[str, Path]) -> None:
    """Print the files that a report wrote. The files of a folder share a line, with their suffixes."""
    folders: dict[Path, dict[str, list[str]]] = {}
    texts: dict[str, object] = {}
    for name, path in paths.items():
        stem, _, suffix = name.partition(".")
        if name == path.name and suffix:
            folders.setdefault(path.parent, {}).setdefault(stem, []).append(suffix)
        else:
            texts[name] = path
    for folder, stems in folders.items():
        suffixes = dict.fromkeys(suffix for endings in stems.values() for suffix in endings)
        names = ", ".join(stems) if len(stems) <= _MOST_NAMES else f"{len(stems)} files"
        texts[folder.name] = f"{folder}  ({names}: {', '.join(suffixes)})"
    if "report" in texts:
        texts["report"] = texts.pop("report")  # last
    print_named(texts)
