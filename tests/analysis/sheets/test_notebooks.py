"""What a notebook shows of tables: short, escaped, without colours, and for Arrow tables only where a notebook runs."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from analysis import curve, open_store
from analysis.findings.scaling.figure import draw_scaling
from analysis.sheets.html import ROWS, html_of_arrow, notebook_html, show_arrow_tables
from analysis.sheets.sheet import sheet_of


def as_notebook(monkeypatch: pytest.MonkeyPatch) -> dict[type, Any]:
    """Be in a notebook; returns its formatters of HTML."""
    formatters: dict[type, Any] = {}

    class Formatter(dict[type, Any]):
        def for_type(self, kind: type, make: Any) -> None:
            formatters[kind] = self[kind] = make

    html = Formatter()
    shell = SimpleNamespace(kernel=object(), display_formatter=SimpleNamespace(formatters={"text/html": html}))
    module = ModuleType("IPython")
    module.get_ipython = lambda: shell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", module)
    return formatters


def test_a_table_is_escaped_and_cut() -> None:
    page = notebook_html(sheet_of(["a", "b"], [["<script>", 0.123456], ["x" * 500, None]], "<b>"), more=3)
    assert "<script>" not in page and "&lt;script&gt;" in page and "&lt;b&gt;" in page
    assert "<td>0.1235</td>" in page and "x" * 121 not in page and "and 3 more rows" in page
    assert "style" not in page and "color" not in page
    assert "<th>" not in notebook_html(sheet_of(("", ""), [("a", "b")], "t"))


def test_an_arrow_table_shows_its_first_rows() -> None:
    page = html_of_arrow(pa.table({"n": range(1000), "t": [f"<{i}>" for i in range(1000)]}))
    assert page.startswith("<p>1,000 rows, 2 columns</p>") and page.count("<tr>") == 1 + ROWS
    assert "&lt;0&gt;" in page and "and 980 more rows" in page
    assert html_of_arrow(pa.table({"n": pa.array([], pa.int64())})).count("<tr>") == 1


def test_results_of_sql_are_tables_in_a_notebook_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    store = open_store(folder)
    show_arrow_tables()
    formatters = as_notebook(monkeypatch)
    store.sql("select 1 as one")
    assert formatters == {pa.Table: html_of_arrow}


def test_a_display_that_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    formatters = as_notebook(monkeypatch)
    from IPython import get_ipython

    html = get_ipython().display_formatter.formatters["text/html"]  # type: ignore[no-untyped-call]
    html[pa.Table] = str
    show_arrow_tables()
    assert formatters == {}


def test_a_store_and_its_figures_show_themselves(folder: Path) -> None:
    store = open_store(folder)
    page = store._repr_html_()
    cells = store.sql("select count(*) as n from scaling").to_pylist()[0]["n"]
    assert page.count("<tr>") == 1 + min(cells, ROWS) and "finished" in page
    assert draw_scaling(curve(store))._repr_png_().startswith(b"\x89PNG")


def test_a_store_without_results_shows_itself(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    assert "trials: none yet" in open_store(tmp_path)._repr_html_()
