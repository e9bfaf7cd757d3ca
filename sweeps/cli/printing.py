"""The streams of the command line, and what the verbs print on them: JSON, Arrow tables, names, notes, progress."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from analysis.format import plural
from analysis.sheets.data import json_text
from analysis.sheets.sheet import Sheet, sheet_of_arrow, text
from analysis.sheets.terminal import print_sheet, safe_console

if TYPE_CHECKING:
    import pyarrow as pa

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
    """Print one JSON document on standard output, as `json_text`."""
    sys.stdout.write(json_text(value))


def print_table(table: pa.Table, title: str = "") -> None:
    """Print an Arrow table on the terminal; only its first rows if it has very many."""
    print_sheet(sheet_of_arrow(table, _MOST_ROWS, title), out)
    left_out = table.num_rows > _MOST_ROWS
    rest = f", of which the first {_MOST_ROWS:,} are shown; --to FILE writes all" if left_out else ""
    out.print(f"{plural(table.num_rows, 'row')}{rest}", style="dim")


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


def print_named(texts: Iterable[tuple[str, object]]) -> None:
    """Print names with their texts, one in each line."""
    rows = [{"name": name, "text": str(value)} for name, value in texts]
    print_sheet(Sheet("", "", [text("", "name"), text("", "text")], rows), out)


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
    print_named(texts.items())
