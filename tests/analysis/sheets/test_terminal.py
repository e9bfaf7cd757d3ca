"""Tables on the terminal: whole cells, numbers under each other, and nothing after the last character of a line."""

from __future__ import annotations

import io

import pytest

from analysis.sheets.sheet import Column, Sheet, sheet_of
from analysis.sheets.terminal import print_sheet, safe_console


def printed(sheet: Sheet) -> list[str]:
    file = io.StringIO()
    print_sheet(sheet, safe_console(soft_wrap=True, file=file))
    return file.getvalue().splitlines()


def test_numbers_are_aligned_right_and_lines_have_no_spaces_at_their_ends() -> None:
    rows = [{"p": "<0.001", "says": "higher"}, {"p": "0.2", "says": ""}]
    columns = [Column("p", lambda r: r["p"], "number"), Column("verdict", lambda r: r["says"])]
    assert printed(Sheet("t", "", columns, rows)) == ["     p  verdict", "<0.001  higher", "   0.2"]


def test_values_are_aligned_by_what_they_are_and_empty_columns_stay() -> None:
    lines = printed(sheet_of(["n", "n", "name"], [[12, None, "a"], [1204.5, b"xyz", "bb"]]))
    assert lines == ["   n        n  name", "  12           a", "1204  3 bytes  bb"]
    assert printed(sheet_of(["n", "none"], [[1, None]])) == ["n  none", "1"]
    assert printed(sheet_of(["", ""], [["name", "text"]])) == ["name  text"]


def test_a_narrow_terminal_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert printed(sheet_of(["name", "about"], [["x" * 30, "y" * 30]]))[1] == f"{'x' * 30}  {'y' * 30}"


def test_further_columns_are_a_second_table_and_notes_follow() -> None:
    columns = [
        Column("method", lambda r: r["method"], "method", label=True),
        Column("score", lambda r: r["score"], "number"),
        Column("rate", lambda r: r["rate"], "number", group="tuning"),
    ]
    rows = [{"method": "lora", "score": "61.4", "rate": "0.01"}]
    assert printed(Sheet("t", "Scores", columns, rows, legend="in percent")) == [
        "Scores",
        "method  score",
        "lora     61.4",
        "Scores: tuning",
        "method  rate",
        "lora    0.01",
        "in percent",
    ]
