"""Shows live progress: a display that redraws on terminals and in notebooks, lines in logs, JSON, or nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
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
from sweeps.search.stages import SweepState
from sweeps.watch.snapshot import Best, Counting, Failure, Snapshot
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
    """A display that takes a snapshot at most every `every` seconds, and passes it to `_draw`."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._began = self._last = time.monotonic()
        self._counting: Counting | None = None
        self._told: set[Failure] = set()

    def start(self, state: SweepState) -> None:
        self._began = time.monotonic()
        self._counting = Counting(state)
        self._counting.begin()
        shot = self._snapshot()
        self._told = set(shot.failures)
        self._draw(shot, "start", ())

    def update(self, state: SweepState) -> None:
        if time.monotonic() - self._last >= self._every:
            self._next("progress")

    def stop(self, state: SweepState) -> None:
        self._next("stop")

    def _next(self, when: str) -> None:
        shot = self._snapshot()
        fresh = [failure for failure in shot.failures if failure not in self._told]
        self._told.update(fresh)
        self._draw(shot, when, fresh)

    def _snapshot(self) -> Snapshot:
        if self._counting is None:
            raise AssertionError("a display is started before it is updated")
        self._last = time.monotonic()
        return self._counting.snapshot(self._last - self._began)

    def _draw(self, shot: Snapshot, when: str, fresh: Sequence[Failure]) -> None:
        """Show a snapshot.

        Args:
            shot: the snapshot.
            when: "start", "progress" or "stop".
            fresh: failures since the last snapshot.
        """
        raise NotImplementedError


class LineProgress(_Timed):
    """A display for logs: a line at most every ten seconds, and a line for each failure."""

    def __init__(self, console: Console, every: float = _LINES_S) -> None:
        super().__init__(every)
        self._console = console

    def note(self, text: str) -> None:
        self._say(text, "yellow")

    def _draw(self, shot: Snapshot, when: str, fresh: Sequence[Failure]) -> None:
        for failure in fresh:
            self._say(f"failed: {failure}")
        self._say(headline(shot))

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

    def _draw(self, shot: Snapshot, when: str, fresh: Sequence[Failure]) -> None:
        for failure in fresh:
            self._write({"event": "failure", **asdict(failure)})
        self._write({"event": when, **shot.as_dict()})

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

    def _draw(self, shot: Snapshot, when: str, fresh: Sequence[Failure]) -> None:
        from IPython.display import HTML, display

        page = HTML(self._page(shot))
        if self._handle is None:
            self._handle = display(page, display_id=True)
        else:
            self._handle.update(page)

    def _page(self, shot: Snapshot) -> str:
        failures = [f"failed: {failure}" for failure in shot.failures[-_FAILURES:]]
        lines = "".join(f"<p>{escape(visible(text))}</p>" for text in [*self._notes, *failures])
        head = notebook_html(_best_sheet(shot)) if shot.best else f"<p>{escape(headline(shot))}</p>"
        return f'<progress value="{shot.done}" max="{max(1, shot.total)}"></progress>{head}{lines}'


class LiveProgress(_Timed):
    """A display that redraws in place: cells by phase, best scores so far, speed, time left, and failures."""

    def __init__(self, console: Console) -> None:
        super().__init__(_REFRESH_S)
        self._console = console
        self._shot: Snapshot | None = None
        # drawn every second from the last snapshot: if the time stood still, the sweep would seem to hang
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=1, transient=True)

    def start(self, state: SweepState) -> None:
        super().start(state)
        self._live.start()

    def note(self, text: str) -> None:
        self._console.print(Text(text, "yellow"), soft_wrap=True)

    def stop(self, state: SweepState) -> None:
        super().stop(state)
        self._live.stop()
        self._console.print(Text(headline(self._snapshot())))

    def _draw(self, shot: Snapshot, when: str, fresh: Sequence[Failure]) -> None:
        self._shot = shot
        if when != "start":
            self._live.refresh()

    def _render(self) -> RenderableType:
        if self._shot is None:
            return Text("")
        return render(replace(self._shot, seconds=time.monotonic() - self._began))


def render(shot: Snapshot) -> RenderableType:
    """Return the live display of a snapshot."""
    parts: list[RenderableType] = [Text(headline(shot)), ProgressBar(total=max(1, shot.total), completed=shot.done)]
    if any(best.score is not None for best in shot.best):
        parts.append(best_table(shot.best))
    for failure in shot.failures[-_FAILURES:]:
        parts.append(Text(f"failed: {failure}", style="red", overflow="ellipsis", no_wrap=True))
    return Group(*parts)


def best_table(best: tuple[Best, ...]) -> RenderableType:
    """Return a table of the best validation scores so far, in percent.

    The rows are methods (and data sets), the columns are budgets. Scores of finished cells are bold.
    """
    references, groups = _budgets_and_groups(best)
    several = len({data for data, _ in groups}) > 1
    cut = f" (first {_ROWS} of {len(groups)} rows)" if len(groups) > _ROWS else ""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in (*(("data",) if several else ()), "method"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for reference in references:
        table.add_column(reference or "no budget", justify="right", no_wrap=True)
    for data, method, *scores in _score_rows(best):
        table.add_row(*((data,) if several else ()), method, *scores)
    return Group(Text(f"best validation score so far, %{cut}", style="dim"), table)


def _best_sheet(shot: Snapshot) -> Sheet:
    """Return `best_table` as a sheet, with the headline as its title."""
    references, _ = _budgets_and_groups(shot.best)
    heads = ["data", "best validation score so far, %", *(reference or "no budget" for reference in references)]
    return sheet_of(heads, _score_rows(shot.best), headline(shot))


def _budgets_and_groups(best: tuple[Best, ...]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the budgets, and the pairs of data and method, in the order of their first score."""
    return list(dict.fromkeys(b.reference for b in best)), list(dict.fromkeys((b.data, b.method) for b in best))


def _score_rows(best: tuple[Best, ...]) -> Iterator[list[str | Text]]:
    """Yield data, method and the score at each budget, for the first `_ROWS` pairs of data and method."""
    references, groups = _budgets_and_groups(best)
    cells = {(b.data, b.method, b.reference): b for b in best}
    for data, method in groups[:_ROWS]:
        yield [data, method, *(_score(cells.get((data, method, reference))) for reference in references)]


def _score(best: Best | None) -> Text:
    if best is None:
        return Text("")
    if best.score is None:
        return Text("stuck" if best.phase == "stuck" else "·", style="dim")
    return Text(f"{100 * best.score:.1f}", style="bold" if best.phase == "done" else "")


def headline(shot: Snapshot) -> str:
    """Return one line on how far the sweep is."""
    words = [f"{shot.done}/{shot.total} trials", ", ".join(f"{n} {phase}" for phase, n in shot.cells.items())]
    if shot.per_minute is not None:
        words.append(f"{shot.per_minute:.1f}/min")
    if shot.seconds_left is not None and shot.done < shot.total:
        words.append(f"{duration(shot.seconds_left)} left")
    elif shot.per_minute is None and shot.running == 0 and shot.done < shot.total:
        words.append("starting workers")
    if shot.failures:
        words.append(f"{len(shot.failures)} failed")
    words.append(f"{duration(shot.seconds)} so far")
    if shot.cost is not None:
        words.append(f"cost {shot.cost:.2f}")
    elif shot.accelerator_hours is not None and shot.accelerator_hours >= 0.1:
        words.append(f"{shot.accelerator_hours:.1f} accelerator-hours")
    return " · ".join(words)
