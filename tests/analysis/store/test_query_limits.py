"""What a query may take: memory, time, space on disk; and what of a journal is no event."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from analysis import QueryError
from analysis.errors import StoreError
from analysis.store.journal import read_journal
from analysis.store.schemas import SCHEMAS
from analysis.store.sql import process
from analysis.store.sql.process import run_sql_apart
from analysis.store.sql.queries import run_sql
from analysis.store.tables import to_table

ENDLESS = "with recursive t(a) as (select 1 union all select 1 - a from t) select count(*) from t"


TABLES = {name: shape.empty_table() for name, shape in SCHEMAS.items()}


def ask(query: str) -> object:
    return run_sql(TABLES, query).to_pylist()


def test_a_function_that_duckdb_cannot_interrupt_is_ended_with_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """This one compares texts for an hour, in memory of a few kilobytes, and does not ask whether it should stop."""
    monkeypatch.setenv("SWEEPS_SQL_SECONDS", "0.2")
    with pytest.raises(QueryError, match=r"took more than 0\.2 s \(SWEEPS_SQL_SECONDS allows more\)"):
        run_sql_apart(TABLES, "select levenshtein(repeat('a', 5000000), repeat('b', 5000000))")


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
def test_a_function_that_makes_one_huge_text_gets_no_memory() -> None:
    with pytest.raises(QueryError, match="the query takes more than 2 GB of memory"):
        run_sql_apart(TABLES, "select repeat('x', 3000000000)")


def test_sql_apart_answers_and_refuses_as_it_does_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a folder of the same name as one of ours lies in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "__init__.py").write_text("raise SystemExit('not ours')")
    rows = {"cells": [{"sweep": "s", "cell_id": "c", "title": "\u202e\x00"}]}
    tables = TABLES | {name: to_table(name, found) for name, found in rows.items()}
    for query in ("select * from cells", "select count(*) as n, interval 2 days as t from best", "show tables"):
        assert run_sql_apart(tables, query).equals(run_sql(tables, query))
    for query in ("select wibble from cells", "drop table cells", "select '\udc80' as a", "", "\n"):
        with pytest.raises(QueryError) as here:
            run_sql(tables, query)
        with pytest.raises(QueryError) as apart:
            run_sql_apart(tables, query)
        assert str(apart.value) == str(here.value)


@pytest.mark.parametrize(
    ("query", "what"),
    [
        ("select list(a) from range(30000000) t(a)", "the query"),
        ("select a, count(*) from range(30000000) t(a) group by a order by a limit 1", "the query"),
        ("select * from range(30000000)", "the result"),
    ],
)
def test_memory_is_limited_and_nothing_is_spilled(
    query: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWEEPS_SQL_GB", "0.05")
    with pytest.raises(QueryError, match=f"{what} takes more than 0.05 GB of memory .*SWEEPS_SQL_GB.*add a LIMIT"):
        ask(query)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("query", [ENDLESS, "select count(*) from range(1000000000000)"])
def test_time_is_limited(query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPS_SQL_SECONDS", "0.2")
    with pytest.raises(QueryError, match=r"took more than 0\.2 s \(SWEEPS_SQL_SECONDS allows more\)"):
        ask(query)


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "much"])
@pytest.mark.parametrize("variable", ["SWEEPS_SQL_SECONDS", "SWEEPS_SQL_GB"])
def test_a_limit_is_a_number_above_0(variable: str, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, given)
    with pytest.raises(QueryError, match=rf"{variable} = '{given}': must be a number above 0"):
        ask("select 1")


@pytest.mark.parametrize(
    "value", ["'infinity'::timestamp", "'-infinity'::date", "[timestamp 'infinity']", "'99999-01-01'::timestamptz"]
)
def test_an_instant_that_is_no_date_is_named(value: str) -> None:
    with pytest.raises(QueryError, match="column 'x' has an instant that is no date; cast it to varchar"):
        ask(f"select {value} as x")
    assert ask(f"select ({value})::varchar as x")


@pytest.mark.parametrize("kind", ["finish", "choose"])
def test_a_row_that_is_none_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(f'{{"ev": "sweep"}}\n{{"ev": "{kind}", "row": [1]}}\n')
    with pytest.raises(StoreError, match=rf"event '{kind}' of line 2 has no row; restore the journal"):
        read_journal(path)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"ev": ' * 100_000, "\udcff"])
def test_a_line_that_is_no_json_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(f'{line}\n{{"ev": "sweep"}}\n'.encode(errors="surrogateescape"))
    with pytest.raises(StoreError, match="line 1 is no event, or does not match its checksum"):
        read_journal(path)


@pytest.mark.parametrize(
    "query", [f"drop table {'x' * 10**5}", f"select {'x' * 10**5}", f"select * from {'x' * 10**5}", f"'{'x' * 10**5}'"]
)
def test_a_message_has_little_of_a_long_query(query: str) -> None:
    with pytest.raises(QueryError) as caught:
        ask(query)
    assert 30 < len(str(caught.value)) < 2000


def test_a_process_gets_the_tables_that_its_query_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """And all, if it asks for one whose name it makes up, or what there is."""
    given: list[set[str]] = []
    run = process._run
    monkeypatch.setattr(process, "_run", lambda tables, query: given.append(set(tables)) or run(tables, query))
    tables = TABLES | {"cells": to_table("cells", [{"sweep": "s", "cell_id": "c"}])}
    assert run_sql_apart(tables, "select count(*) as n from Cells").to_pylist() == [{"n": 1}]
    assert run_sql_apart(tables, "select count(*) as n from superseded").to_pylist() == [{"n": 0}]
    assert given == [{"cells"}, {"cells", "trials", "choices"}]
    given.clear()
    assert run_sql_apart(tables, "select count(*) as n from query_table('cel' || 'ls')").to_pylist() == [{"n": 1}]
    assert given == [set(), set(tables)]
    with pytest.raises(QueryError, match=r"Tables and views: .*trials"):
        run_sql_apart(tables, "select * from trial")
