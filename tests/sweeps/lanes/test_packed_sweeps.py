"""Whole sweeps whose trials share workers: the same trials, the same tables, whatever happens to a pack."""

from __future__ import annotations

import json
import signal
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil
import pytest

from analysis.store.store import open_store
from sweeps.backends.ray.pool import Pool
from sweeps.engine.run import RunSummary
from sweeps.packing import choosing
from tests.fake_packs import TOGETHER
from tests.fakes import FakeCell, FakeConfirm, FakePlan, FakeResources, FakeSearch, fake_plan
from tests.support import gone, wait_for
from tests.sweeps.support import (
    DRIVER,
    PAIR,
    StartDriver,
    Undisturbed,
    assert_same_tables,
    events,
    go,
    logged,
    rows,
    trained,
)

NOTHING: dict[str, Any] = {"lr_low": None, "lr_high": None, "lr_centre": None}
FEW = {"search": FakeSearch(trials=4, rerun_rates=0, rerun_seeds=0), "confirm": FakeConfirm((0, 1))}


@pytest.fixture
def whole(undisturbed: Undisturbed) -> Path:
    """Results of a sweep that packs nothing."""
    return undisturbed((*PAIR, FakeCell("full", None), FakeCell("zero-shot", None, **NOTHING)), **FEW)


@pytest.fixture(autouse=True)
def fakes_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    for trial, together in TOGETHER.items():
        monkeypatch.setitem(choosing.TOGETHER, trial, together)


def packed_plan(folder: Path, cells: tuple[FakeCell, ...] | None = None, pack: int = 3, **given: Any) -> FakePlan:
    return fake_plan(folder, cells, resources=FakeResources(pack=pack, attempts=3), **given)


def go_packed(folder: Path, pool: Pool, cells: tuple[FakeCell, ...] | None = None, **given: Any) -> RunSummary:
    return go(packed_plan(folder, cells, **given), pool)


def sizes(folder: Path) -> dict[str, Counter[int]]:
    """How often trials of each method were trained in a pack of each size."""
    found: dict[str, Counter[int]] = {}
    for row in open_store(folder).table("trials").to_pylist():
        found.setdefault(row["method"], Counter())[row["packed"]] += 1
    return found


def check(folder: Path, whole: Path, methods: tuple[str, ...] = ("lora", "vera")) -> None:
    """The rows of some methods are those of the undisturbed sweep."""
    for name in ("trials", "metrics", "predictions", "choices"):
        got, want = (
            [row for row in rows(f, name) if row["cell_id"].partition("-")[0] in methods] for f in (folder, whole)
        )
        assert got == want, name


def test_a_packed_sweep_has_the_tables_of_one_that_is_not(tmp_path: Path, pool: Pool, whole: Path) -> None:
    """Methods that can't be packed among the others; every trial alike, the same ids, each trained once."""
    cells = (
        FakeCell("lora", options=(("delay", 0.02),)),
        FakeCell("vera"),
        FakeCell("full", None),
        FakeCell("zero-shot", None, **NOTHING),
    )
    summary = go_packed(tmp_path / "r", pool, cells, **FEW)
    assert (summary.finished, summary.failed) == (19, 0)
    assert_same_tables(tmp_path / "r", whole)
    packed = sizes(tmp_path / "r")
    assert set(packed["full"]) == set(packed["zero-shot"]) == {1}
    assert max(packed["lora"]) > 1
    assert all(set(of) == {1} for of in sizes(whole).values())
    journal = [json.loads(line) for line in (tmp_path / "r" / "journal.jsonl").read_text().splitlines()]
    begun = list(accumulate({"ask": 1, "finish": -1}.get(event["ev"], 0) for event in journal))
    assert begun[-1] == 0
    assert max(begun) <= (pool.trials + 1) * 3
    assert [e["pack"] for e in events(tmp_path / "r", "sweep")] == [3]
    packs: dict[Any, list[dict[str, Any]]] = {}
    for trial in open_store(tmp_path / "r").table("trials").to_pylist():
        packs.setdefault((trial["cell_id"], trial["started_at"]), []).append(trial)
    assert any(len(pack) > 1 for pack in packs.values())
    for pack in packs.values():  # times are shares: together no more than has passed
        passed = max(t["ended_at"] for t in pack) - pack[0]["started_at"]
        assert 0 < sum(t["seconds_total"] for t in pack) <= passed.total_seconds() + 0.05


def test_a_trial_that_fails_in_a_pack_leaves_the_others(tmp_path: Path, pool: Pool) -> None:
    cells = (
        FakeCell("lora", options=(("nan_above", 1e-2),)),  # foreseen: its own row
        FakeCell("vera", options=(("fail_above", 1e-2),)),  # a fault of ours: who it was shows one by one
    )
    three = FakeSearch(trials=3, rerun_rates=0, rerun_seeds=0)
    summary = go_packed(tmp_path / "r", pool, cells, search=three, confirm=FakeConfirm((0, 1)))
    assert (summary.finished, summary.failed) == (8, 2)
    failures = {t["method"]: t for t in rows(tmp_path / "r", "trials") if t["status"] == "failed"}
    assert failures["lora"]["reason"] == "TrialError: loss became nan at step 1"
    assert failures["vera"]["reason"] == "ValueError: lr 0.1 is too much"
    assert failures["lora"]["lr"] == failures["vera"]["lr"] == 0.1
    given_up = events(tmp_path / "r", "unpack")
    vera = [t for t in rows(tmp_path / "r", "trials") if t["method"] == "vera" and t["stage"] == "TUNE"]
    assert {e["trial_id"] for e in given_up} == {t["trial_id"] for t in vera}
    assert {(e["cause"], e["reason"]) for e in given_up} == {("refused", "ValueError: lr 0.1 is too much")}
    packed = sizes(tmp_path / "r")
    assert (packed["lora"][3], packed["vera"]) == (3, {1: 5})


@pytest.mark.parametrize(
    ("option", "cause", "reason"),
    [
        (("refuse_pack", True), "refused", "NotPackableError: this fake is not packed"),
        pytest.param(("pack_oom_above", 2), "memory", "OutOfMemoryError: 3 trials do not fit", marks=pytest.mark.slow),
    ],
    ids=["refused", "memory"],
)
def test_packs_that_do_not_do_run_one_by_one(
    tmp_path: Path, pool: Pool, whole: Path, option: tuple[str, Any], cause: str, reason: str
) -> None:
    cells = (FakeCell("lora", options=(option,)), FakeCell("vera"), FakeCell("nola"))
    assert go_packed(tmp_path / "r", pool, cells, **FEW).complete
    check(tmp_path / "r", whole)
    said = events(tmp_path / "r", "unpack")
    assert {e["cause"] for e in said} == {cause}
    assert reason in {e["reason"] for e in said}
    assert set(sizes(tmp_path / "r")["lora"]) <= ({1} if cause == "refused" else {1, 2})


@pytest.mark.slow
def test_a_worker_that_dies_with_a_pack_costs_an_attempt_each(tmp_path: Path, pool: Pool, whole: Path) -> None:
    cells = (FakeCell("lora", options=(("pack_kill", "once"),)),)
    assert go_packed(tmp_path / "r", pool, cells, **FEW).complete
    check(tmp_path / "r", whole, ("lora",))
    said = events(tmp_path / "r", "unpack")
    assert {e["cause"] for e in said} == {"death"}
    finishes = {e["trial_id"]: e for e in events(tmp_path / "r", "finish")}
    assert all(finishes[e["trial_id"]]["attempt"] >= 2 for e in said)
    assert all(finishes[e["trial_id"]]["row"]["packed"] == 1 for e in said)


@pytest.mark.slow
def test_a_killed_driver_goes_on_with_packs_and_repeats_nothing(
    tmp_path: Path, pool: Pool, undisturbed: Undisturbed, start_driver: StartDriver
) -> None:
    log = tmp_path / "log"
    code = DRIVER.replace("concurrent=2", "concurrent=2, pack=3").replace(
        "folder, log,", "from sweeps.packing import choosing\nfrom tests.fake_packs import TOGETHER\n"
        "choosing.TOGETHER.update(TOGETHER)\nfolder, log,"
    )  # fmt: skip
    driver = start_driver(tmp_path / "r", log, 0.05, code)
    wait_for(lambda: len(events(tmp_path / "r", "finish")) >= 7, "seven finished trials")
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    wait_for(lambda: gone(family), "the killed driver's processes to end", 60)
    before = {e["trial_id"] for e in events(tmp_path / "r", "finish")}
    asked = {e["trial_id"] for e in events(tmp_path / "r", "ask")}
    seen = len(log.read_text().splitlines())
    assert before < asked
    summary = go_packed(tmp_path / "r", pool, logged(log))
    assert (summary.skipped, summary.finished, summary.failed) == (len(before), 32 - len(before), 0)
    assert not {line.split()[0] for line in log.read_text().splitlines()[seen:]} & before
    assert all(count <= 2 for count in trained(log).values())
    assert_same_tables(tmp_path / "r", undisturbed(logged(log)), ("trials", "predictions"))
    assert max(max(of) for of in sizes(tmp_path / "r").values()) == 3
