from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console

from sweeps.progress.progress import CellProgress
from sweeps.watch.displays import (
    JsonProgress,
    LineProgress,
    LiveProgress,
    NotebookProgress,
    Silent,
    best_table,
    make_progress,
    render,
)
from tests.fakes import fake_row
from tests.sweeps.progress.support import half_way, progress_of


def test_displays(tmp_path: Path) -> None:
    state = half_way(tmp_path)
    state.used = Taken()
    for live in (False, True):
        text = io.StringIO()
        console = Console(file=text, force_terminal=live, width=100)
        display = LiveProgress(console) if live else LineProgress(console, every=0.0)
        display.start(state)
        display.note("damaged table file set aside: x")
        display.update(state)
        display.stop(state)
        assert "12/41 trials" in text.getvalue()
        assert "set aside" in text.getvalue()
    console = Console(file=io.StringIO(), width=120, record=True)
    console.print(render(progress_of(state), 60.0))
    shown = console.export_text()
    for words in ("12/41 trials", "randlora", "loss became nan", "12.0/min", "58 s left", "cost 3.50"):
        assert words in shown
    assert "params-1000" in shown
    assert "params-8000" in shown
    assert "(training.py:88 in train)" in shown


def test_without_a_display_warnings_stay_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    make_progress(False).note("[/results/a] set aside: no [bold] answer")
    assert "[/results/a] set aside: no [bold] answer" in capfd.readouterr().err


def test_lines_tell_every_failure_once(tmp_path: Path) -> None:
    state, text = half_way(tmp_path), io.StringIO()
    display = LineProgress(Console(file=text, width=200), every=0.0)
    display.start(state)
    slot = state.next_slot()
    assert slot is not None
    state.start(slot)
    state.finish(fake_row(slot, "failed", reason="no memory", seconds_total=1.0))
    for _ in range(2):
        display.update(state)
    assert text.getvalue().count("failed: ") == 1 and "no memory" in text.getvalue()


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize(
    ("terminal", "variables", "kind"),
    [
        (True, {"TERM": "xterm"}, LiveProgress),
        (True, {"TERM": "dumb"}, LineProgress),  # rich draws nothing live there
        (False, {"FORCE_COLOR": "1", "TERM": "xterm"}, LineProgress),  # as in the logs of a CI job
    ],
)
def test_only_a_terminal_that_can_redraw_is_redrawn(
    terminal: bool, variables: dict[str, str], kind: type[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stderr", Stream(terminal))
    assert type(make_progress(True)) is kind


class Taken:
    accelerator_hours = 1.75
    cost = 3.5


def test_json_lines(tmp_path: Path) -> None:
    state = half_way(tmp_path)
    state.used = Taken()
    stream = io.StringIO()
    display = JsonProgress(stream, every=0.0)
    display.start(state)
    slot = state.next_slot()
    assert slot is not None
    state.start(slot)
    cell = state.cells[slot.cell_id]
    cell.raised[slot.trial_id] = "clip.py:5 in forward"
    state.finish(fake_row(slot, "failed", reason="ValueError: no"))
    display.note("a note")
    display.update(state)
    display.stop(state)
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [t["event"] for t in told] == ["start", "note", "failure", "progress", "stop"]
    assert told[2]["reason"] == "ValueError: no"
    assert told[2]["where"] == "clip.py:5 in forward"
    assert (told[0]["done"], told[3]["done"], told[3]["cost"]) == (12, 13, 3.5)
    assert all(b["score"] is not None for b in told[3]["best"])
    early = next(cell for cell in state.cells.values() if cell.cell.cell_id != slot.cell_id)  # before it in the plan
    known = next(row for row in early.rows.values() if row.status == "finished")
    state.finish(replace(known, status="failed", reason="OSError: late"))
    display.update(state)
    late = [json.loads(line) for line in stream.getvalue().splitlines()][len(told) :]
    assert [t.get("reason") for t in late] == ["OSError: late", None]


def test_many_rows_are_cut_and_say_so() -> None:
    cell = CellProgress("", "", "lora", "data", "lora-8", 1, 0, (0, 0), begun=True, scored=True, best=0.5)
    cells = tuple(replace(cell, data=f"data {i}", best=i / 100) for i in range(40))
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(best_table(cells))
    shown = console.export_text()
    assert "first 16 of 40 rows" in shown
    assert "data 15" in shown
    assert "data 16" not in shown


def test_progress_may_be_none_or_ones_own() -> None:
    own = Silent()
    assert make_progress(own) is own
    assert isinstance(make_progress(False), Silent)
    assert isinstance(make_progress("json"), JsonProgress)
    assert isinstance(make_progress(True), LineProgress)  # under pytest there is no terminal


def test_a_notebook_has_one_bar_that_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    handle = SimpleNamespace(update=shown.append)

    def display(page: str, *, display_id: bool) -> SimpleNamespace:
        assert display_id and not shown  # a second call would begin a second bar
        shown.append(page)
        return handle

    package, inside = ModuleType("IPython"), ModuleType("IPython.display")
    package.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    inside.HTML, inside.display = str, display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", inside)
    progress, state = make_progress(True), half_way(tmp_path)
    assert isinstance(progress, NotebookProgress)
    progress.start(state)
    progress.note("set aside: <x>")
    progress.stop(state)
    assert len(shown) == 2 and all('<progress value="12" max="41">' in page for page in shown)
    assert "12/41 trials" in shown[-1] and "set aside: &lt;x&gt;" in shown[-1] and "<td>randlora</td>" in shown[-1]
    assert "loss became nan" in shown[-1]
    assert isinstance(make_progress(False), Silent)
