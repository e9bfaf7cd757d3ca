"""Sweeps that are killed, or whose workers are: nothing finished is lost or repeated, and the tables are the same."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from sweeps.backends.backend import BackendError
from sweeps.backends.ray.backend import using
from sweeps.backends.ray.lanes.broker import Broker
from sweeps.backends.ray.pool import Pool
from sweeps.engine.run import run
from sweeps.engine.runner import _make_work_folder
from sweeps.records.journal import Journal
from sweeps.records.locks import LockedError
from tests.fakes import FakeCell, FakeConfirm, FakeResources, FakeSearch, fake_plan
from tests.support import ROOT, gone, wait_for
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


@pytest.mark.slow
def test_a_killed_driver_is_resumed_without_repeating_a_finished_trial(
    tmp_path: Path, pool: Pool, undisturbed: Undisturbed, start_driver: StartDriver
) -> None:
    log = tmp_path / "log"
    driver = start_driver(tmp_path / "r", log, 0.1)
    wait_for(lambda: len(events(tmp_path / "r", "finish")) >= 7, "seven finished trials")
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    wait_for(lambda: gone(family), "the killed driver's processes to end", 60)
    before = {e["trial_id"] for e in events(tmp_path / "r", "finish")}
    asked = {e["trial_id"] for e in events(tmp_path / "r", "ask")}
    seen = len(log.read_text().splitlines())
    assert before < asked  # some were in flight
    with (tmp_path / "r" / "journal.jsonl").open("ab") as file:
        file.write(b'{"ev":"ask","trial_id":"torn')
    summary = go(fake_plan(tmp_path / "r", logged(log)), pool)
    assert (summary.skipped, summary.finished, summary.failed) == (len(before), 32 - len(before), 0)
    later = {line.split()[0] for line in log.read_text().splitlines()[seen:]}
    assert not later & before
    assert asked <= {t["trial_id"] for t in rows(tmp_path / "r", "trials")}
    finishes = [e["trial_id"] for e in events(tmp_path / "r", "finish")]
    asks = [e["trial_id"] for e in events(tmp_path / "r", "ask")]
    assert len(finishes) == len(set(finishes)) == len(asks) == len(set(asks)) == 32
    assert_same_tables(tmp_path / "r", undisturbed(logged(log)), ("trials", "predictions"))
    assert all(count <= 2 for count in trained(log).values())  # only an epoch that was under way


HEARD = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)"
"""Where the tests themselves run under `nohup`, a driver would inherit that SIGHUP does nothing."""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_cleanly_and_the_next_run_goes_on(
    tmp_path: Path, pool: Pool, start_driver: StartDriver, number: int
) -> None:
    log = tmp_path / "log"
    driver = start_driver(tmp_path / "r", log, 0.3, HEARD + DRIVER)
    wait_for(lambda: len(events(tmp_path / "r", "finish")) >= 2, "two finished trials")
    assert (tmp_path / "r" / "work").stat().st_mode & 0o777 == 0o700
    with pytest.raises(LockedError, match=f"is being run by process {driver.pid} on host"):
        go(fake_plan(tmp_path / "r", logged(log)), pool)
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(number)
    assert driver.communicate(timeout=30)[0].split()[-1] == "True"
    assert driver.returncode == 0
    assert gone(family)
    assert not (tmp_path / "r" / "lock").exists()
    before = {e["trial_id"] for e in events(tmp_path / "r", "finish")}
    assert before == {t["trial_id"] for t in rows(tmp_path / "r", "trials")}
    summary = go(fake_plan(tmp_path / "r", logged(log)), pool)
    assert (summary.skipped, summary.finished) == (len(before), 32 - len(before))
    assert set(trained(log).values()) <= {1, 2}
    assert not (tmp_path / "r" / "work").exists()


@pytest.mark.slow
def test_a_killed_worker_costs_an_attempt_not_the_trial(tmp_path: Path, pool: Pool, undisturbed: Undisturbed) -> None:
    cells = (FakeCell("lora", options=(("kill", "once"),)), FakeCell("vera"))
    one = {"search": FakeSearch(trials=1, rerun_rates=0, rerun_seeds=0), "confirm": FakeConfirm((0,))}
    summary = go(fake_plan(tmp_path / "r", cells, **one), pool)
    assert (summary.finished, summary.failed) == (4, 0)
    finishes = {e["row"]["cell_id"]: [] for e in events(tmp_path / "r", "finish")}
    for event in events(tmp_path / "r", "finish"):
        finishes[event["row"]["cell_id"]].append(event["attempt"])
    assert all(attempt in (2, 3) for attempt in finishes["lora-1000"])  # 3: its neighbour's death took it along
    assert_same_tables(tmp_path / "r", undisturbed(PAIR, **one))


@pytest.mark.slow
def test_a_trial_that_always_kills_its_worker_fails_and_the_others_do_not(tmp_path: Path, pool: Pool) -> None:
    cells = (FakeCell("lora", options=(("kill", "always"),)), FakeCell("vera", options=(("delay", 0.5),)))
    search = FakeSearch(trials=2, rerun_rates=0, rerun_seeds=0)
    summary = go(fake_plan(tmp_path / "r", cells, search=search, confirm=FakeConfirm((0,))), pool)
    failed = [t for t in rows(tmp_path / "r", "trials") if t["status"] == "failed"]
    assert (summary.finished, summary.failed) == (3, 2)
    assert {t["method"] for t in failed} == {"lora"}
    assert all(t["reason"].startswith("its worker process died 3 times while running it: Actor") for t in failed)


def test_lanes_that_cannot_start_are_an_error_that_says_why(
    tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    broken = ray.remote(num_cpus=0)(Broker).options(name="broken").remote()
    try:
        ray.get(broken.lane_lost.remote("lane0", "RuntimeError: no room", True, 1.0))
        monkeypatch.setattr(pool, "broker", broken)
        monkeypatch.setattr(pool, "broker_name", "broken")
        with pytest.raises(BackendError, match="RuntimeError: no room"):
            go(fake_plan(tmp_path / "r", (FakeCell("lora"),)), pool)
    finally:
        ray.kill(broken)


def test_a_broker_that_cannot_be_made_is_an_error_that_says_why(
    tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    class Refused:
        def __init__(self) -> None:
            raise OSError("no room on the head")

        def reset(self) -> None: ...
        def status(self) -> None: ...

    monkeypatch.setattr(pool, "broker", ray.remote(num_cpus=0)(Refused).remote())
    with pytest.raises(BackendError, match=r"the broker can't run on the cluster's head: .*Refused"):
        go(fake_plan(tmp_path / "r", (FakeCell("lora"),)), pool)


def test_lanes_that_ended_untold_end_the_sweep_which_goes_on_later(
    tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch, undisturbed: Undisturbed
) -> None:
    """No worker asks for a trial any more, and the broker knows of nothing: Tune would wait for ever."""
    slow = (FakeCell("lora", options=(("delay", 0.05),)), FakeCell("vera"))
    down = property(lambda self: "OSError: busy" if events(tmp_path / "r", "finish") else None)
    monkeypatch.setattr(Pool, "down", down)
    with pytest.raises(BackendError, match="no lane could be kept up: OSError: busy"):
        go(fake_plan(tmp_path / "r", slow), pool)
    monkeypatch.undo()
    before = events(tmp_path / "r", "finish")
    summary = go(fake_plan(tmp_path / "r", slow), pool)
    assert 0 < len(before) <= summary.skipped and summary.skipped + summary.finished == 16
    assert_same_tables(tmp_path / "r", undisturbed(PAIR))


@pytest.mark.slow
def test_a_data_parallel_group_trains_one_trial_at_a_time(tmp_path: Path) -> None:
    """In its own process: this one's Ray session has its CPUs in the shared lanes."""
    cells = '(FakeCell("lora", options=(("fail_above", 1e-4),)), FakeCell("vera", options=(("kill", "once"),)))'
    search = "search=FakeSearch(trials=2, rerun_rates=0, rerun_seeds=0), confirm=FakeConfirm((0,))"
    code = DRIVER.replace("concurrent=2", "workers=2").replace("logged(log, delay=delay)", f"{cells}, {search}")
    command = [sys.executable, "-c", code, str(tmp_path / "r"), str(tmp_path / "log"), "0"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ})
    assert done.stdout.split()[-1] == "False"
    trials = rows(tmp_path / "r", "trials")
    assert {t["reason"] for t in trials if t["status"] == "failed"} == {"ValueError: lr 0.001 is too much"}
    assert [t["status"] for t in trials].count("finished") == 5
    assert FakeResources().workers == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(
    tmp_path: Path, pool: Pool, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    plan = fake_plan(tmp_path / "r", PAIR)
    real, written = Journal.write, []

    def write(self: Journal, event: dict[str, Any], *, sync: bool = True) -> None:
        written.append(event)
        if len(written) > 20:
            raise OSError(code, os.strerror(code))
        real(self, event, sync=sync)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", write)
        with pytest.raises(OSError, match=os.strerror(code)):
            go(plan, pool)
    assert go(plan, pool).finished > 0
    assert_same_tables(tmp_path / "r", undisturbed(PAIR))


@pytest.mark.slow
def test_a_full_disk_under_a_trial_is_not_the_trials_fault(
    tmp_path: Path, pool: Pool, undisturbed: Undisturbed
) -> None:
    cells = (FakeCell("lora", options=(("full_disk", "once"),)), FakeCell("vera"))
    with pytest.raises(OSError, match=r"No space left on device.*on host"):
        go(fake_plan(tmp_path / "r", cells), pool)
    # a second trial may have been on its way to the same fault: the disk has room again for both
    again = run(fake_plan(tmp_path / "r", PAIR), trial="tests.fakes:mended_trial", progress=False, backend=using(pool))
    assert again.complete
    assert_same_tables(tmp_path / "r", undisturbed(PAIR))


def test_workers_of_a_cluster_may_enter_what_a_local_run_made(tmp_path: Path) -> None:
    """They may be other users of the group that shares the results folder."""
    work, modes = tmp_path / "r" / "work", []
    for private in (True, False, True):
        _make_work_folder(work, private=private)
        modes.append(work.stat().st_mode & 0o777)
        work.parent.chmod(0o770)
    assert modes == [0o700, 0o770, 0o770]
