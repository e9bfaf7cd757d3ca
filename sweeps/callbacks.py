"""Live progress of a sweep: a display that redraws on terminals, lines elsewhere, or nothing."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.stages import SweepState

_REFRESH_S = 0.5
_LINES_S = 10.0
_FAILURES = 3


class Progress(Protocol):
    """A display. All methods are called from the driver's threads; an exception in one ends the sweep."""

    def start(self, state: SweepState) -> None: ...
    def update(self, state: SweepState) -> None: ...
    def note(self, text: str) -> None: ...
    def stop(self, state: SweepState) -> None: ...


@dataclass(frozen=True)
class Snapshot:
    """Numbers of a sweep in progress.

    Attributes:
        done, total: trials of the plan; `total` may fall when failures leave fewer rates to run again.
        running: trials handed to the lanes.
        cells: cells by phase.
        best: (method, best validation score, label of its cell) in the plan's order.
        failures: (label, reason) of failed trials, the latest last.
        per_minute: trials a minute of this run; None before the first.
        seconds_left: estimate from the seconds of each method's trials; None before the first.
        seconds: since this run began.
    """

    done: int
    total: int
    running: int
    cells: dict[str, int]
    best: tuple[tuple[str, float, str], ...]
    failures: tuple[tuple[str, str], ...]
    per_minute: float | None
    seconds_left: float | None
    seconds: float


def snapshot(state: SweepState, done_before: int, seconds: float) -> Snapshot:
    """Count a state. `done_before`: trials done when this run began, `seconds` ago."""
    best: dict[str, tuple[float, str]] = {}
    failures: list[tuple[str, str]] = []
    spent: dict[str, list[float]] = {}
    missing: Counter[str] = Counter()
    done = 0
    for cell in state.cells.values():
        method = cell.cell.method
        counted = cell.counted()
        done += counted
        if cell.phase not in ("done", "stuck"):
            missing[method] += max(0, cell.planned() - counted)
        if cell.best is not None and (method not in best or cell.best > best[method][0]):
            best[method] = (cell.best, cell.cell.label)
        for row in cell.rows.values():
            if row["status"] == "failed":
                failures.append((cell.cell.label, str(row["reason"])))
            if row.get("seconds_total") is not None:
                # without the set-up, which the first trial of a worker pays for all
                spent.setdefault(method, []).append(row["seconds_total"] - (row.get("seconds_setup") or 0.0))
    fresh = done - done_before
    left: float | None = None
    if spent and fresh > 0:
        overall = statistics.fmean(s for all_seconds in spent.values() for s in all_seconds)
        means = {method: statistics.fmean(all_seconds) for method, all_seconds in spent.items()}
        work = sum(count * means.get(method, overall) for method, count in missing.items())
        left = work / state.workers
    phases = Counter(cell.phase for cell in state.cells.values())
    return Snapshot(
        done=done,
        total=done + sum(missing.values()),
        running=state.running,
        cells={phase: phases[phase] for phase in ("waiting", "tuning", "confirming", "done", "stuck") if phases[phase]},
        best=tuple((method, score, label) for method, (score, label) in best.items()),
        failures=tuple(failures),
        per_minute=60 * fresh / seconds if fresh > 0 and seconds > 0 else None,
        seconds_left=left,
        seconds=seconds,
    )


def make_progress(progress: bool | Progress) -> Progress:
    """The display for a run: live on a terminal, lines otherwise, silent for False."""
    if not isinstance(progress, bool):
        return progress
    if not progress:
        return Silent()
    console = Console(stderr=True)
    return LiveProgress(console) if console.is_terminal else LineProgress(console)


class Silent:
    """Shows nothing."""

    def start(self, state: SweepState) -> None:
        return None

    def update(self, state: SweepState) -> None:
        return None

    def note(self, text: str) -> None:
        return None

    def stop(self, state: SweepState) -> None:
        return None


class _Timed:
    """Counts from the start of a run, and limits how often it is counted."""

    def __init__(self, console: Console, every: float) -> None:
        self._console, self._every = console, every
        self._began = self._last = time.monotonic()
        self._before = 0

    def start(self, state: SweepState) -> None:
        self._began = time.monotonic()
        self._before = sum(cell.counted() for cell in state.cells.values())
        self._draw(state, first=True)

    def update(self, state: SweepState) -> None:
        if time.monotonic() - self._last >= self._every:
            self._draw(state)

    def note(self, text: str) -> None:
        self._console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def stop(self, state: SweepState) -> None:
        self._draw(state)

    def _snapshot(self, state: SweepState) -> Snapshot:
        self._last = time.monotonic()
        return snapshot(state, self._before, self._last - self._began)

    def _draw(self, state: SweepState, *, first: bool = False) -> None:
        raise NotImplementedError


class LineProgress(_Timed):
    """One line every ten seconds, and one for each failure: for logs."""

    def __init__(self, console: Console, every: float = _LINES_S) -> None:
        super().__init__(console, every)
        self._failures = 0

    def _draw(self, state: SweepState, *, first: bool = False) -> None:
        shot = self._snapshot(state)
        for label, reason in () if first else shot.failures[self._failures :]:
            self._console.print(f"failed: {label}: {reason}", markup=False, highlight=False, soft_wrap=True)
        self._failures = len(shot.failures)
        self._console.print(_headline(shot), markup=False, highlight=False, soft_wrap=True)


class LiveProgress(_Timed):
    """A table that redraws in place: cells by phase, best so far per method, speed, time left, failures."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, _REFRESH_S)
        self._shot: Snapshot | None = None
        # drawn every second, from the last snapshot: a display that stands still looks like a sweep that hangs
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=1, transient=True)

    def start(self, state: SweepState) -> None:
        super().start(state)
        self._live.start()

    def stop(self, state: SweepState) -> None:
        super().stop(state)
        self._live.stop()
        self._console.print(_headline(self._snapshot(state)), markup=False, highlight=False)

    def _draw(self, state: SweepState, *, first: bool = False) -> None:
        self._shot = self._snapshot(state)
        if not first:
            self._live.refresh()

    def _render(self) -> RenderableType:
        if self._shot is None:
            return Text("")
        return render(replace(self._shot, seconds=time.monotonic() - self._began))


def render(shot: Snapshot) -> RenderableType:
    """The live display of a snapshot."""
    parts: list[RenderableType] = [Text(_headline(shot)), ProgressBar(total=max(1, shot.total), completed=shot.done)]
    if shot.best:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("method", "best val", "cell"):
            table.add_column(name, justify="right" if name == "best val" else "left", overflow="ellipsis", no_wrap=True)
        for method, score, label in shot.best:
            table.add_row(method, f"{100 * score:.1f}", label)
        parts.append(table)
    for label, reason in shot.failures[-_FAILURES:]:
        parts.append(Text(f"failed: {label}: {reason}", style="red", overflow="ellipsis", no_wrap=True))
    return Group(*parts)


def _headline(shot: Snapshot) -> str:
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
    return " · ".join(words)


def duration(seconds: float) -> str:
    """Seconds as "45 s", "12 min" or "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
