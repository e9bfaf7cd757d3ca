"""Whole sweeps of the fake trial through Ray: what must hold when nothing goes wrong, or a trial does."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from analysis.store.store import open_store
from sweeps.backends.ray.backend import using
from sweeps.backends.ray.pool import Pool
from sweeps.backends.reports import processor
from sweeps.backends.resources import ResourceError
from sweeps.engine.run import run
from sweeps.spec.solution import Infeasible
from tests.fakes import (
    FakeCell,
    FakeConfirm,
    FakeKeep,
    FakePlan,
    FakeResources,
    FakeSearch,
    FakeTrain,
    fake_plan,
)
from tests.sweeps.support import PAIR, Undisturbed, assert_same_tables, go, logged, rows, trained
from trainables.config import TrialConfig


def test_a_sweep_end_to_end_and_again(tmp_path: Path, pool: Pool) -> None:
    plan = fake_plan(tmp_path / "r")
    out_of_reach = Infeasible("nola", 7, "out of reach", None, None, "raise it")
    plan = FakePlan(plan.spec, (*plan.cells, FakeCell("nola", 7, solution=out_of_reach)))
    summary = go(plan, pool)
    assert (summary.finished, summary.failed, summary.skipped, summary.interrupted) == (41, 0, 0, False)
    trials = rows(tmp_path / "r", "trials")
    assert Counter(t["status"] for t in trials) == {"finished": 41}
    assert Counter(t["stage"] for t in trials) == {"TUNE": 30, "CONFIRM": 11}
    assert all((t["test_score"] is None) == (t["stage"] == "TUNE") for t in trials)
    assert all(t["epochs"] == 3 and t["samples"] == 300 and t["val_score"] is not None for t in trials)
    assert len(rows(tmp_path / "r", "metrics")) == 41 * 3
    assert len(rows(tmp_path / "r", "predictions")) == 11
    assert len(rows(tmp_path / "r", "choices")) == 5
    assert len(rows(tmp_path / "r", "cells")) == 7
    store = open_store(tmp_path / "r")
    assert store.table("predictions")["correct"][0].as_py() == bytes([0b10110000])
    assert store.table("trials")["ended_at"].null_count == 0
    assert store.table("cells").column("seed_rule").unique().to_pylist() == ["per-data-set"]
    assert {r["data_seed"] for r in trials} == {0, 1, 1_000_000, 1_000_001}
    again_ids = {e["trial_id"]: TrialConfig.model_validate(e["config"]).trial_id for e in store.events("ask")}
    assert all(name == made for name, made in again_ids.items())  # so a trial can be rerun from its configuration alone
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "r").rglob("*") if p.is_file()}
    assert not (tmp_path / "r" / "work").exists()
    again = go(plan, None)  # nothing to do, so no Ray either
    assert (again.finished, again.skipped) == (0, 41)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "r").rglob("*") if p.is_file()} == files


def test_two_runs_make_the_same_tables(tmp_path: Path, pool: Pool) -> None:
    for name in ("a", "b"):
        go(fake_plan(tmp_path / name, PAIR, search=FakeSearch(sampler="qmc")), pool)
    assert_same_tables(tmp_path / "a", tmp_path / "b")


def test_failing_trials_are_rows_and_the_sweep_goes_on(tmp_path: Path, pool: Pool) -> None:
    cells = (
        FakeCell("lora", options=(("fail_above", 1e-2),)),
        FakeCell("vera", options=(("nan_above", 1e-2),)),
        FakeCell("nola", options=(("fail_above", 0.0),)),
        FakeCell("randlora"),
    )
    summary = go(fake_plan(tmp_path / "r", cells, confirm=FakeConfirm((0,))), pool)
    assert (summary.finished, summary.failed) == (6 + 6 + 0 + 7, 1 + 1 + 5)
    assert summary.stuck == ("nola params-1000 fake-data 1.0",)
    failed = [t for t in rows(tmp_path / "r", "trials") if t["status"] == "failed"]
    reasons = {t["method"]: t["reason"] for t in failed if t["lr"] == 1e-1}
    assert reasons["lora"] == "ValueError: lr 0.1 is too much"
    assert reasons["vera"] == "TrialError: loss became nan at step 1"
    assert all(t["val_score"] is None for t in failed)
    again = go(fake_plan(tmp_path / "r", cells, confirm=FakeConfirm((0,))), None)
    assert (again.finished, again.skipped) == (0, summary.finished + summary.failed)


def test_failed_trials_are_tried_again_when_asked(tmp_path: Path, pool: Pool) -> None:
    plan = fake_plan(tmp_path / "r", (FakeCell("nola", options=(("fail_above", 0.0),)),), confirm=FakeConfirm((0,)))
    first = go(plan, pool)
    assert not first.complete
    assert first.stuck == ("nola params-1000 fake-data 1.0",)
    again = go(plan, None)
    assert (again.finished, again.failed, again.failed_before) == (0, 0, first.failed)
    assert not again.complete
    mended = run(plan, trial="tests.fakes:mended_trial", progress=False, backend=using(pool), retry_failed=True)
    assert mended.complete
    table = open_store(tmp_path / "r").table("trials").to_pylist()
    attempts: dict[str, list[tuple[int, str]]] = {}
    for row in table:
        attempts.setdefault(row["trial_id"], []).append((row["attempt"], row["status"]))
    retried = [sorted(seen) for seen in attempts.values() if len(seen) > 1]
    assert len(retried) == first.failed
    assert all(seen == [(1, "failed"), (2, "finished")] for seen in retried)
    assert go(plan, None).complete


def test_extending_a_sweep_only_adds(tmp_path: Path, pool: Pool) -> None:
    log = tmp_path / "log"
    small = fake_plan(tmp_path / "r", logged(log), search=FakeSearch(trials=4, sampler="qmc"))
    go(small, pool)
    before = {t["trial_id"] for t in rows(tmp_path / "r", "trials")}
    cells = (*logged(log), FakeCell("full", None, options=(("log", str(log)),)))
    large = fake_plan(tmp_path / "r", cells, search=FakeSearch(trials=6, sampler="qmc"), confirm=FakeConfirm((0, 1, 2)))
    summary = go(large, pool)
    after = {t["trial_id"] for t in rows(tmp_path / "r", "trials")}
    assert before < after
    assert summary.finished == len(after - before)
    assert set(trained(log).values()) == {1}
    assert {c["tune_trials"] for c in rows(tmp_path / "r", "cells")} == {6}


def test_pruning_stops_bad_rates_in_tune_only(tmp_path: Path, pool: Pool) -> None:
    search = FakeSearch(trials=9, pruner="asha", sampler="random")
    plan = fake_plan(tmp_path / "r", PAIR, search=search, train=FakeTrain(9))
    summary = go(plan, pool)
    trials = rows(tmp_path / "r", "trials")
    pruned = [t for t in trials if t["status"] == "pruned"]
    assert summary.pruned == len(pruned) > 0
    assert {t["stage"] for t in pruned} == {"TUNE"}
    assert {t["epochs"] for t in pruned} <= {1, 3}
    assert all("stopped by the pruner" in t["reason"] for t in pruned)
    whole = open_store(tmp_path / "r").table("trials").to_pylist()
    assert all(t["seconds_total"] > 0 and t["ended_at"] >= t["started_at"] and t["host"] for t in whole)
    assert {(t["device"], t["workers"], t["processor"]) for t in whole} == {("cpu", 1, processor())}
    assert Counter(t["cell_id"] for t in trials if t["stage"] == "TUNE") == {"lora-1000": 9, "vera-1000": 9}
    metrics = Counter(m["trial_id"] for m in rows(tmp_path / "r", "metrics"))
    assert all(metrics[t["trial_id"]] == t["epochs"] for t in trials)


@pytest.mark.parametrize(("keep", "count"), [("best", 1), ("all", 8)])
def test_kept_adapters(tmp_path: Path, pool: Pool, keep: str, count: int) -> None:
    cells = (FakeCell("lora"), FakeCell("full", None))
    go(fake_plan(tmp_path / "r", cells, keep=FakeKeep(keep)), pool)
    kept = list((tmp_path / "r" / "adapters").glob("*/adapter.json"))
    assert len(kept) == count
    known = {t["trial_id"] for t in rows(tmp_path / "r", "trials") if t["method"] == "lora"}
    assert {path.parent.name for path in kept} <= known


def test_damaged_parts_are_named_set_aside_and_made_good(tmp_path: Path, undisturbed: Undisturbed) -> None:
    cells = logged(tmp_path / "log")
    shutil.copytree(undisturbed(cells), tmp_path / "r")
    parts = sorted((tmp_path / "r" / "tables").glob("*/part-*.parquet"))
    assert len(parts) == 5
    for part in parts:
        part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    summary = go(fake_plan(tmp_path / "r", cells), None)
    assert summary.finished == 0
    assert len(summary.damaged) == 5
    assert all(any(part.name in line for line in summary.damaged) for part in parts)
    assert len(list((tmp_path / "r" / "tables").glob("*/*.damaged"))) == 5
    assert_same_tables(tmp_path / "r", undisturbed(cells))


def test_a_damaged_part_whose_rows_the_journal_lacks_is_run_again(
    tmp_path: Path, pool: Pool, undisturbed: Undisturbed
) -> None:
    shutil.copytree(undisturbed(PAIR), tmp_path / "r")
    journal = tmp_path / "r" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if '"ev":"finish"' not in line or '"lora-1000"' not in line))
    for part in (tmp_path / "r" / "tables").glob("trials/part-*.parquet"):
        part.write_bytes(b"PAR1")
    summary = go(fake_plan(tmp_path / "r", PAIR), pool)
    assert summary.finished == 8
    assert_same_tables(tmp_path / "r", undisturbed(PAIR))


def test_a_request_beyond_the_machine_is_refused_before_anything_starts(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path / "r", resources=FakeResources(concurrent=10_000))
    with pytest.raises(ResourceError, match=r"concurrent = 10000.*Nearest: concurrent = \d+"):
        go(plan)
    assert not (tmp_path / "r").exists()
