"""Shows live progress: a display that redraws on terminals and in notebooks, lines in logs, JSON, or nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from typing import Any, Literal, Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from analysis.format import duration, visible
from analysis.sheets.html import notebook, notebook_html
from analysis.sheets.sheet import Sheet, sheet_of
from analysis.sheets.terminal import safe_console
from sweeps.progress.failures import Failure
from sweeps.progress.of_state import StateReader, ended_trials
from sweeps.progress.progress import CellProgress, SweepProgress
from sweeps.search.stages import SweepState
from sweeps.watch.streams import lasting

_REFRESH_S = 0.5
_LINES_S = 10.0
_FAILURES = 3
_ROWS = 16


class Progress(Protocol):
    """A display. All methods are called from the driver's threads. An exception in one of them ends the sweep."""

    def start(self, state: SweepState) -> None: ...
    def update(self, state: SweepState) -> None: ...
    def note(self, text: str) -> None: ...
    def stop(self, state: SweepState) -> None: ...


class Silent:
    """A display that shows only notes, which are warnings."""

    def start(self, state: SweepState) -> None:
        return None

    update = stop = start

    def note(self, text: str) -> None:
        safe_console(file=lasting(sys.stderr)).print(Text(text, "yellow"), soft_wrap=True)  # a Text: no markup in it


def make_progress(progress: bool | Literal["json"] | Progress) -> Progress:
    """Return the display for a run: a live table on a terminal, a bar in a notebook, lines in a log.

    "json" gives lines of JSON, False gives nothing, and an object of the user's own is returned as it is.
    """
    if progress == "json":
        return JsonProgress(lasting(sys.stderr))
    if not isinstance(progress, bool | str):
        return progress
    if not progress:
        return Silent()
    if notebook() is not None:
        return NotebookProgress()
    console = safe_console(file=lasting(sys.stderr))
    # not live on a dumb terminal, and not if only FORCE_COLOR is set
    live = console.file.isatty() and console.is_interactive
    return LiveProgress(console) if live else LineProgress(console)


class _Timed:
    """A display that reads the progress at most every `every` seconds, and passes it to `_draw`."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._began = self._last = time.monotonic()
        self._reader: StateReader | None = None
        self._told: set[Failure] = set()

    def start(self, state: SweepState) -> None:
        self._began = time.monotonic()
        self._reader = StateReader(state, ended_trials(state))
        now = self._progress()
        self._told = set(now.failures)
        self._draw(now, "start", ())

    def update(self, state: SweepState) -> None:
        if time.monotonic() - self._last >= self._every:
            self._next("progress")

    def stop(self, state: SweepState) -> None:
        self._next("stop")

    def _next(self, when: str) -> None:
        now = self._progress()
        fresh = [failure for failure in now.failures if failure not in self._told]
        self._told.update(fresh)
        self._draw(now, when, fresh)

    def _progress(self) -> SweepProgress:
        if self._reader is None:
            raise AssertionError("a display is started before it is updated")
        self._last = time.monotonic()
        return self._reader.progress(datetime.now(UTC))

    @property
    def _seconds(self) -> float:
        """The seconds since this run began."""
        return time.monotonic() - self._began

    def _draw(self, now: SweepProgress, when: str, fresh: Sequence[Failure]) -> None:
        """Show the progress.

        Args:
            now: the progress.
            when: "start", "progress" or "stop".
            fresh: failures since the last call.
        """
        raise NotImplementedError


class LineProgress(_Timed):
    """A display for logs: a line at most every ten seconds, and a line for each failure."""

    def __init__(self, console: Console, every: float = _LINES_S) -> None:
        super().__init__(every)
        self._console = console

    def note(self, text: str) -> None:
        self._say(text, "yellow")

    def _draw(self, now: SweepProgress, when: str, fresh: Sequence[Failure]) -> None:
        for failure in fresh:
            self._say(f"failed: {failure}")
        self._say(headline(now, self._seconds))

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style), soft_wrap=True)


class JsonProgress(_Timed):
    """A display that writes one JSON object in each line.

    The events are `start`, `progress` (at most every ten seconds), `failure`, `note` and `stop`.
    """

    def __init__(self, stream: TextIO, every: float = _LINES_S) -> None:
        super().__init__(every)
        self._stream = stream

    def note(self, text: str) -> None:
        self._write({"event": "note", "text": text})

    def _draw(self, now: SweepProgress, when: str, fresh: Sequence[Failure]) -> None:
        for failure in fresh:
            values = asdict(failure)
            del values["traceback"]  # a running engine does not keep it
            self._write({"event": "failure", **values})
        self._write({"event": when, **json_values(now, self._seconds)})

    def _write(self, event: dict[str, Any]) -> None:
        self._stream.write(json.dumps(event) + "\n")
        self._stream.flush()


class NotebookProgress(_Timed):
    """A display below the cell of a notebook: a bar, the headline, the best scores so far and the last failures.

    It is HTML that is replaced in place. Every notebook shows it without further packages.
    """

    def __init__(self) -> None:
        super().__init__(_REFRESH_S)
        self._notes: list[str] = []
        self._handle: Any = None

    def note(self, text: str) -> None:
        self._notes.append(text)

    def _draw(self, now: SweepProgress, when: str, fresh: Sequence[Failure]) -> None:
        from IPython.display import HTML, display

        page = HTML(self._page(now))
        if self._handle is None:
            self._handle = display(page, display_id=True)
        else:
            self._handle.update(page)

    def _page(self, now: SweepProgress) -> str:
        failures = [f"failed: {failure}" for failure in now.failures[-_FAILURES:]]
        lines = "".join(f"<p>{escape(visible(text))}</p>" for text in [*self._notes, *failures])
        line = headline(now, self._seconds)
        head = notebook_html(_best_sheet(line, now.cells)) if now.cells else f"<p>{escape(line)}</p>"
        return f'<progress value="{now.done}" max="{max(1, now.total)}"></progress>{head}{lines}'


class LiveProgress(_Timed):
    """A display that redraws in place: cells by phase, best scores so far, speed, time left, and failures."""

    def __init__(self, console: Console) -> None:
        super().__init__(_REFRESH_S)
        self._console = console
        self._shown: SweepProgress | None = None
        # drawn every second from the last progress: if the time stood still, the sweep would seem to hang
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=1, transient=True)

    def start(self, state: SweepState) -> None:
        super().start(state)
        self._live.start()

    def note(self, text: str) -> None:
        self._console.print(Text(text, "yellow"), soft_wrap=True)

    def stop(self, state: SweepState) -> None:
        super().stop(state)
        self._live.stop()
        self._console.print(Text(headline(self._progress(), self._seconds)))

    def _draw(self, now: SweepProgress, when: str, fresh: Sequence[Failure]) -> None:
        self._shown = now
        if when != "start":
            self._live.refresh()

    def _render(self) -> RenderableType:
        return Text("") if self._shown is None else render(self._shown, self._seconds)


def render(now: SweepProgress, seconds: float) -> RenderableType:
    """Return the live display of a progress. `seconds`: seconds since this run began."""
    bar = ProgressBar(total=max(1, now.total), completed=now.done)
    parts: list[RenderableType] = [Text(headline(now, seconds)), bar]
    if any(cell.best is not None for cell in now.cells):
        parts.append(best_table(now.cells))
    for failure in now.failures[-_FAILURES:]:
        parts.append(Text(f"failed: {failure}", style="red", overflow="ellipsis", no_wrap=True))
    return Group(*parts)


def best_table(cells: Sequence[CellProgress]) -> RenderableType:
    """Return a table of the best validation scores so far, in percent.

    The rows are methods (and data sets), the columns are budgets. Scores of finished cells are bold.
    """
    references, groups = _budgets_and_groups(cells)
    several = len({data for data, _ in groups}) > 1
    cut = f" (first {_ROWS} of {len(groups)} rows)" if len(groups) > _ROWS else ""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in (*(("data",) if several else ()), "method"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for reference in references:
        table.add_column(reference or "no budget", justify="right", no_wrap=True)
    for data, method, *scores in _score_rows(cells):
        table.add_row(*((data,) if several else ()), method, *scores)
    return Group(Text(f"best validation score so far, %{cut}", style="dim"), table)


def _best_sheet(title: str, cells: Sequence[CellProgress]) -> Sheet:
    """Return `best_table` as a sheet."""
    references, _ = _budgets_and_groups(cells)
    heads = ["data", "best validation score so far, %", *(reference or "no budget" for reference in references)]
    return sheet_of(heads, _score_rows(cells), title)


def _budgets_and_groups(cells: Sequence[CellProgress]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the budgets, and the pairs of data and method, in the order of their first score."""
    return list(dict.fromkeys(c.reference for c in cells)), list(dict.fromkeys((c.data, c.method) for c in cells))


def _score_rows(cells: Sequence[CellProgress]) -> Iterator[list[str | Text]]:
    """Yield data, method and the score at each budget, for the first `_ROWS` pairs of data and method."""
    references, groups = _budgets_and_groups(cells)
    by_place = {(c.data, c.method, c.reference): c for c in cells}
    for data, method in groups[:_ROWS]:
        yield [data, method, *(_score(by_place.get((data, method, reference))) for reference in references)]


def _score(cell: CellProgress | None) -> Text:
    if cell is None:
        return Text("")
    if cell.best is None:
        return Text("stuck" if cell.phase == "stuck" else "·", style="dim")
    return Text(f"{100 * cell.best:.1f}", style="bold" if cell.phase == "done" else "")


def json_values(now: SweepProgress, seconds: float) -> dict[str, Any]:
    """Return a progress as JSON values: failures as their number, and the best score of each cell that has one.

    `seconds`: seconds since this run began.
    """
    best = [
        {"data": c.data, "method": c.method, "reference": c.reference, "score": c.best, "phase": c.phase}
        for c in now.cells
        if c.best is not None
    ]
    return {
        "done": now.done,
        "total": now.total,
        "running": now.running,
        "cells": now.phases,
        "best": best,
        "failures": len(now.failures),
        "per_minute": now.per_minute,
        "seconds_left": now.seconds_left,
        "seconds": seconds,
        "accelerator_hours": now.accelerator_hours,
        "cost": now.cost,
    }


def headline(now: SweepProgress, seconds: float) -> str:
    """Return one line on how far the sweep is. `seconds`: seconds since this run began."""
    done, total, per_minute, seconds_left = now.done, now.total, now.per_minute, now.seconds_left
    words = [f"{done}/{total} trials", ", ".join(f"{n} {phase}" for phase, n in now.phases.items())]
    if per_minute is not None:
        words.append(f"{per_minute:.1f}/min")
    if seconds_left is not None and done < total:
        words.append(f"{duration(seconds_left)} left")
    elif per_minute is None and now.running == 0 and done < total:
        words.append("starting workers")
    if now.failures:
        words.append(f"{len(now.failures)} failed")
    words.append(f"{duration(seconds)} so far")
    if now.cost is not None:
        words.append(f"cost {now.cost:.2f}")
    elif now.accelerator_hours is not None and now.accelerator_hours >= 0.1:
        words.append(f"{now.accelerator_hours:.1f} accelerator-hours")
    return " · ".join(words)
