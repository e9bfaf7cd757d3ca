"""Read-only SQL: views, types, messages, and that a query reaches nothing but the tables."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scipy import stats

from analysis import QueryError, Store, StoreError, open_store
from analysis.findings.cost import cost_says
from analysis.findings.fits.measured import costed_runs
from analysis.findings.scaling.numbers import curve
from analysis.format import duration
from analysis.store.schemas import SCHEMAS
from analysis.store.sql.queries import connect
from analysis.store.sql.views import VIEWS, named_in
from analysis.store.tables import part_paths, write_part
from analysis.verdict.inference import mean_interval
from tests.analysis.odd import Cells, odd_results
from tests.analysis.synthetic import make_results

OUTSIDE = [
    "copy trials to '{0}/out.csv'",
    "copy (select 1) to '{0}/out.parquet'",
    "select * from read_csv('{0}/secret.csv')",
    "select * from read_parquet('{0}/*.parquet')",
    "select * from read_text('{0}/secret.csv')",
    "select * from glob('{0}/*')",
    "select * from '{0}/secret.csv'",
    "attach '{0}/other.db'",
    "install httpfs",
    "load httpfs",
    "set enable_external_access = true",
    "set threads = 1",
    "reset lock_configuration",
    "export database '{0}/db'",
    "import database '{0}/db'",
]


@pytest.mark.parametrize("statement", OUTSIDE)
def test_sql_reaches_nothing_outside(store: Store, tmp_path: Path, statement: str) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    query = statement.format(tmp_path)
    with pytest.raises(QueryError):
        store.sql(query)
    # the lock alone holds too, without the check of the statement's kind
    connection = connect({name: schema.empty_table() for name, schema in SCHEMAS.items()})
    with pytest.raises(duckdb.Error):
        connection.execute(query)
    connection.close()
    assert [p.name for p in tmp_path.iterdir()] == ["secret.csv"]


@pytest.mark.parametrize(
    "statement", ["select 1; drop table trials", "create table x as select 1", "drop view best", "", "vacuum"]
)
def test_a_query_is_one_select(store: Store, statement: str) -> None:
    with pytest.raises(QueryError, match="one SELECT"):
        store.sql(statement)


def test_python_variables_stay_private(store: Store) -> None:
    private = pa.table({"a": [1]})
    with pytest.raises(QueryError, match="private"):
        store.sql("select * from private")
    assert private.num_rows == 1


@pytest.mark.parametrize(
    "statement", ["show tables", "describe trials", "summarize cells", "explain select 1", "from best"]
)
def test_reading_statements_work(store: Store, statement: str) -> None:
    assert store.sql(statement).num_rows > 0


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("select test_scor from trials", "nearest: test_score"),
        ("select t.test_scor from trials t", "nearest: test_score"),
        ("select * from trails", "nearest: trials"),
        ("select * from trails", "Tables and views: approximation, best, cells"),
        ("select wibble from choices", "choices has sweep, cell_id, lr"),
        ("selec 1", "syntax error"),
    ],
)
def test_a_wrong_name_is_answered_with_the_known_ones(store: Store, query: str, said: str) -> None:
    with pytest.raises(QueryError) as caught:
        store.sql(query)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


def test_numbers_come_back_as_numbers(store: Store) -> None:
    table = store.sql("select sum(samples) as s, avg(lr) as a, count(*) as n, max(ended_at) as at from trials")
    assert [str(t) for t in table.schema.types] == ["int64", "double", "int64", "timestamp[us, tz=UTC]"]


def test_confirmed_leaves_out_superseded_failed_and_tuning(store: Store) -> None:
    rows = store.table("confirmed").to_pylist()
    assert {r["stage"] for r in rows} == {"CONFIRM"}
    assert {r["status"] for r in rows} == {"finished"}
    assert len({r["trial_id"] for r in rows}) == len(rows)
    chosen = {r["cell_id"]: r["lr"] for r in store.table("chosen").to_pylist()}
    assert all(r["lr"] is None or r["lr"] == chosen[r["cell_id"]] for r in rows)
    superseded = store.table("superseded").to_pylist()
    assert len(superseded) == 1
    assert superseded[0]["trial_id"] not in {r["trial_id"] for r in rows}
    assert sum(r["method"] == "zero-shot" for r in rows) == 1


def test_a_score_that_is_no_number_wins_nothing(tmp_path: Path) -> None:
    """SQL takes NaN for the largest number; parts of ours have null there, those of others may not."""
    cells = {(m, "lora-1", "a"): {0: 0.7, 1: 0.8} for m in ("lora", "randlora")}
    folder = odd_results(tmp_path / "nan", cells)
    [part] = part_paths(folder, "trials")
    table = pq.read_table(part)
    rows = [
        r | {"val_score": math.nan, "test_score": math.nan} if (r["method"], r["data_seed"]) == ("lora", 1) else r
        for r in table.to_pylist()
    ]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), part)
    store = open_store(folder)
    for view in ("confirmed", "last_attempts"):
        scores = store.table(view).filter(pc.field("data_seed") < 2).sort_by("trial_id").to_pylist()
        assert [r["test_score"] for r in scores] == [0.7, None, 0.7, 0.8], view
        assert [r["val_score"] for r in scores] == [0.7, None, 0.7, 0.8], view
    found = {r["method"]: (r["n"], r["mean"]) for r in store.table("best").to_pylist()}
    assert found == {"lora": (1, pytest.approx(0.7)), "randlora": (2, pytest.approx(0.75))}


def test_a_retry_counts_once_with_its_last_attempt(store: Store) -> None:
    retried = store.sql("select * from trials where attempt = 2 and status = 'finished'").to_pylist()
    assert len(retried) == 1
    last = store.sql(f"select * from last_attempts where trial_id = '{retried[0]['trial_id']}'").to_pylist()
    assert [r["attempt"] for r in last] == [2]


def test_failures_say_whether_they_were_recovered(store: Store) -> None:
    rows = store.table("failures").to_pylist()
    assert sorted(r["recovered"] for r in rows) == [False, True]
    assert all("nan" in r["reason"] for r in rows)


def test_scaling_agrees_with_scipy(store: Store) -> None:
    rows = [r for r in store.table("scaling").to_pylist() if r["n"] > 1]
    assert len(rows) == 14
    for r in rows:
        query = f"select test_score from confirmed where cell_id = '{r['cell_id']}'"
        scores = store.sql(query).column(0).to_pylist()
        low, high = stats.t.interval(0.95, len(scores) - 1, loc=np.mean(scores), scale=stats.sem(scores))
        assert (r["mean"], r["low"], r["high"]) == pytest.approx((np.mean(scores), low, high))
    alone = next(r for r in store.table("scaling").to_pylist() if r["method"] == "zero-shot")
    assert alone["n"] == 1
    assert alone["low"] is None


def test_scaling_is_the_one_place_of_a_cells_mean_and_interval(tmp_path: Path) -> None:
    """Python's interval of any mean agrees with it, also without a spread, and its readers have it to the digit."""
    scores = {
        "lora-1": (0.7,),
        "lora-2": (0.7, 0.7, 0.7),
        "lora-4": (0.7, 0.7 + 1e-13, 0.7 - 1e-13),
        "lora-8": (0.71, 0.74, 0.69, 0.7),
    }
    cells: Cells = {
        (method, budget, name): dict(enumerate(each))
        for method in ("lora", "randlora")
        for name in ("a", "b")
        for budget, each in scores.items()
    }
    store = open_store(odd_results(tmp_path / "r", cells))
    rows = store.table("scaling").to_pylist()
    assert len(rows) == 16
    for row in rows:
        wanted = mean_interval(scores[row["reference"]])
        assert (row["low"] is None, row["sd"] is None, row["n"]) == (wanted.low is None, wanted.sd is None, wanted.n)
        seen = [row[k] or 0.0 for k in ("mean", "low", "high", "sd")]
        assert seen == pytest.approx([getattr(wanted, k) or 0.0 for k in ("mean", "low", "high", "sd")], abs=1e-12)
    columns = ("dataset", "method", "reference", "adapter_params", "n", "mean", "low", "high")
    of_cells = {tuple(r[k] for k in columns) for r in rows}
    assert {tuple(r[k] for k in columns) for r in curve(store).to_pylist() if r["dataset"]} == of_cells


def test_parity_has_the_evidence(store: Store) -> None:
    rows = {(r["method"], r["reference"]): r for r in store.table("parity").to_pylist()}
    assert ("vera", "lora-16") not in rows  # infeasible
    for (method, _), r in rows.items():
        assert r["count_holds"]
        if method != "zero-shot":
            assert (r["allowance"], r["allowance_used"], r["rates_tried"]) == (6, 6, 4)
            assert r["decades"] == pytest.approx(3.0)
    assert sum(r["tune_failed"] for r in rows.values()) == 1
    assert sum(r["superseded"] for r in rows.values()) == 1
    assert [r["edge"] for r in rows.values() if r["edge"]] == ["high"]
    assert rows["randlora", "lora-8"]["residual_fraction"] == pytest.approx(97 / 12_288)


def test_coverage_counts_what_is_missing(store: Store, empty: Store) -> None:
    rows = store.table("coverage").to_pylist()
    assert sum(r["missing"] for r in rows) == 0
    assert sum(r["failed"] for r in rows) == 1
    left_out = [r for r in rows if not r["feasible"]]
    assert len(left_out) == 1
    assert "smaller budget" in left_out[0]["reason"]
    assert sum(r["missing"] for r in empty.table("coverage").to_pylist()) == 14 * 9 + 1


def test_failures_of_another_rate_or_seed_hide_nothing_that_is_missing(tmp_path: Path) -> None:
    cell = ("lora", "lora-1", "a")
    folder = odd_results(tmp_path / "r", {cell: {0: 0.6, 1: None, 2: None}}, seeds=3)
    before = open_store(folder)
    trials = [
        r | {"lr": 2 * r["lr"]} for r in before.table("trials").to_pylist() if (r["stage"], r["slot"]) == ("CONFIRM", 1)
    ]
    cells = [r | {"seeds": "0/0/0 1/1/1 3/3/3"} for r in before.table("cells").to_pylist()]
    for more, found in (({}, (2, 0)), ({"trials": trials}, (1, 1)), ({"cells": cells}, (0, 2))):
        for name, rows in more.items():
            write_part(folder, name, rows)
        (row,) = open_store(folder).table("coverage").to_pylist()
        assert (row["failed"], row["missing"]) == found


def test_best_ranks_by_validation_not_by_test(store: Store) -> None:
    rows = [r for r in store.table("best").to_pylist() if r["reference"] == "lora-1"]
    assert [r["rank_by_val"] for r in rows] == [1, 2, 3, 4]
    assert [r["mean_val"] for r in rows] == sorted((r["mean_val"] for r in rows), reverse=True)


def test_the_test_split_changes_no_rank(tmp_path: Path) -> None:
    """The method and the trial with the best validation score have the worst test score."""
    folder = make_results(tmp_path / "r", plan={"lora": ("lora-1",), "vera": ("lora-1",)})
    rows, tuned = open_store(folder).table("trials").to_pylist(), []
    for row in rows:
        lead = 0.2 if row["method"] == "vera" else 0.0
        val = None if row["val_score"] is None else 0.5 + lead + 0.001 * (row["slot"] or 0)
        test = None if row["test_score"] is None or val is None else 1.0 - val
        tuned.append(row | {"val_score": val, "test_score": test})
    (folder / "journal.jsonl").unlink()
    shutil.rmtree(folder / "tables" / "trials")
    write_part(folder, "trials", tuned)
    store = open_store(folder)
    best = {r["rank_by_val"]: r for r in store.table("best").to_pylist()}
    assert [best[1]["method"], best[2]["method"]] == ["vera", "lora"] and best[1]["mean"] < best[2]["mean"]
    for row in best.values():
        own = [r for r in store.table("confirmed").to_pylist() if r["cell_id"] == row["cell_id"]]
        assert row["best_trial"] == max(own, key=lambda r: r["val_score"])["trial_id"]
        assert row["best_trial"] == min(own, key=lambda r: r["test_score"])["trial_id"]


def test_cost_adds_up(store: Store) -> None:
    hours = store.sql("select sum(hours) * 3600 from cost").column(0).to_pylist()[0]
    assert hours == pytest.approx(store.sql("select sum(seconds_total) from trials").column(0).to_pylist()[0])


def test_a_resumed_trial_costs_what_all_its_leases_took(tmp_path: Path) -> None:
    """Its training time is of all leases, `seconds_total` of the last."""
    folder = odd_results(tmp_path / "r", {(m, "lora-1", "a"): {0: 0.6, 1: 0.7} for m in ("lora", "randlora")})
    rows = [r for r in open_store(folder).table("trials").to_pylist() if r["method"] == "lora"]
    times = {"seconds_setup": 1.0, "seconds_train": 1000.0, "seconds_eval": 100.0, "seconds_total": 120.0}
    write_part(folder, "trials", [r | times for r in rows])
    resumed = open_store(folder)
    cost = [r for r in resumed.table("cost").to_pylist() if r["method"] == "lora"]
    [r] = cost
    assert r["seconds_per_trial"] == pytest.approx(1101) and r["seconds_overhead"] == pytest.approx(1)
    assert r["hours"] == pytest.approx(r["attempts"] * 1101 / 3600)
    whole = resumed.table("cost").to_pylist()
    (said,) = cost_says(resumed)
    assert f"took {duration(3600 * sum(r['hours'] for r in whole))}," in said and "A finished run spent" in said
    for x, value in (("seconds_total", 1101), ("device_hours", 1101 / 3600)):
        costs = [r["cost"] for r in costed_runs(resumed, x) if r["method"] == "lora"]
        assert costs and costs == pytest.approx([value] * len(costs))
    write_part(folder, "trials", [r | times | {"seconds_total": None} for r in rows])
    assert {r["hours"] for r in open_store(folder).table("cost").to_pylist() if r["method"] == "lora"} == {None}


@pytest.mark.parametrize("view", VIEWS)
def test_views_of_an_empty_store_are_empty_or_planned(empty: Store, view: str) -> None:
    table = empty.table(view)
    assert table.num_rows == {"coverage": 16, "parity": 15, "signs": 15}.get(view, 0)


def test_several_sweeps_in_one_query(store: Store, tmp_path: Path) -> None:
    other = make_results(tmp_path / "other", seed=9)
    both = open_store(store.path, other)
    counts = both.sql("select sweep, count(*) as n from confirmed group by all order by all").to_pylist()
    assert counts == [{"sweep": "made", "n": 43}, {"sweep": "other", "n": 43}]
    assert both.table("scaling").num_rows == 30
    assert set(both.names) == {"made", "other"}
    same = make_results(tmp_path / "same", sweep="made", trials=False)
    with pytest.raises(StoreError, match=r"/same both hold a sweep named 'made', .* give one of them another `name`"):
        open_store(store.path, same).table("cells")


def test_a_query_gets_the_views_it_reads_and_those_they_read() -> None:
    from analysis.store.sql import queries

    names = ("t95", *VIEWS)
    assert named_in("select * from trials", names) == []
    assert set(named_in('SELECT * FROM "Scaling"', names)) >= {"chosen", "confirmed", "scaling"}
    for question in ("show tables", "select table_name from information_schema.tables", "describe trials"):
        assert named_in(question, names) == list(names)
    tables = {name: shape.empty_table() for name, shape in SCHEMAS.items()}
    for name in VIEWS:
        assert queries.run_sql(tables, f"select * from {name}").num_rows == 0
