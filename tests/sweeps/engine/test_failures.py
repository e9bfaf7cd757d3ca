"""What the journal promises: whatever is killed, and whenever, the final tables are an undisturbed run's."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from analysis.store.store import open_store
from sweeps.backends.ray.backend import using
from sweeps.backends.ray.cluster.processes import runs
from sweeps.backends.ray.pool import Pool
from sweeps.engine.run import run
from sweeps.records.locks import HEARTBEAT_S, LockedError
from tests.fakes import TRIAL, FakeCell, FakeConfirm, FakeSearch, fake_plan
from tests.support import ROOT, gone, wait_for
from tests.sweeps.support import (
    DRIVER,
    PAIR,
    KillOnce,
    StartDriver,
    Undisturbed,
    assert_same_tables,
    events,
    go,
    logged,
    rows,
    trained,
)

pytestmark = pytest.mark.slow  # every test starts and kills drivers

KILLED_AFTER = """
import os, signal
from sweeps.records.journal import Journal
left, real = int(sys.argv[4]), Journal.write

def write(self, event, *, sync=True):
    global left
    real(self, event, sync=sync)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

Journal.write = write
"""
SMALL_FILES = """
import resource
from sweeps.backends.ray.backend import using
from sweeps.backends.ray.pool import Pool
with Pool(plan.spec.resources, folder.with_name("ray")) as pool:  # Ray's own processes keep their limits
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), usual[1]))
    try:
        run(plan, trial=TRIAL, progress=False, backend=using(pool))
    except OSError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        print("stopped by", error.errno)
"""


def driver(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run driver code to its end."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False, timeout=200)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kills", "seed", "backend"), [(2, 0, "ray"), (10, 1, "inline")])
def test_a_driver_killed_after_random_numbers_of_events(
    tmp_path: Path, pool: Pool, undisturbed: Undisturbed, kills: int, seed: int, backend: str
) -> None:
    """Many kills without Ray, which takes 20 s to start; the last driver of both goes on with Ray's lanes."""
    folder, log, draw = tmp_path / "r", tmp_path / "log", random.Random(seed)
    code = DRIVER.replace("plan = ", KILLED_AFTER + "\nplan = ")
    code = code.replace("progress=False", f"progress=False, backend={backend!r}")
    for _ in range(kills):
        after = draw.randint(1, 16)
        before = {e["trial_id"] for e in events(folder, "finish")}
        seen = len(log.read_text().splitlines()) if log.exists() else 0
        done = driver(code, folder, log, 0, after)
        assert done.returncode == -signal.SIGKILL, "the sweep was over before its kill"
        later = {line.split()[0] for line in log.read_text().splitlines()[seen:]} if log.exists() else set()
        assert not later & before, "a finished trial was trained again"
    summary = go(fake_plan(folder, logged(log)), pool)
    assert (summary.finished + summary.skipped, summary.failed) == (32, 0)
    assert_same_tables(folder, undisturbed(logged(log)))
    for kind in ("ask", "finish"):
        assert set(Counter(e["trial_id"] for e in events(folder, kind)).values()) == {1}, kind


@pytest.mark.parametrize("title", ["TrainController", "RayTrainWorker", "Broker"])
def test_a_killed_actor_changes_nothing(tmp_path: Path, pool: Pool, undisturbed: Undisturbed, title: str) -> None:
    """The lane's controller, the workers in the middle of an epoch, and our own broker."""
    kill = KillOnce(title)
    cells = (FakeCell("lora", options=(("delay", 0.05),)), FakeCell("vera", options=(("delay", 0.05),)))
    summary = run(fake_plan(tmp_path / "r", cells), trial=TRIAL, progress=kill, backend=using(pool))
    assert kill.killed
    assert (summary.finished, summary.failed) == (16, 0)
    assert_same_tables(tmp_path / "r", undisturbed(PAIR))


def test_a_full_disk(tmp_path: Path, pool: Pool, undisturbed: Undisturbed) -> None:
    """The kernel refuses to let the journal grow, from one byte of it to the next."""
    code = DRIVER.rpartition("print(")[0] + SMALL_FILES
    done = driver(code, tmp_path / "r", tmp_path / "log", 0, 30_000)
    assert done.stdout.split() == ["stopped", "by", str(errno.EFBIG)]
    before = {e["trial_id"] for e in events(tmp_path / "r", "finish")}
    assert 0 < len(before) < 32
    assert (tmp_path / "r" / "journal.jsonl").read_bytes().endswith(b"\n")
    summary = go(fake_plan(tmp_path / "r", logged(tmp_path / "log")), pool)
    assert (summary.skipped, summary.finished) == (len(before), 32 - len(before))
    assert_same_tables(tmp_path / "r", undisturbed(logged(tmp_path / "log")))


def test_ctrl_c_twice_ends_at_once_and_loses_nothing(
    tmp_path: Path, pool: Pool, undisturbed: Undisturbed, start_driver: StartDriver
) -> None:
    running = start_driver(tmp_path / "r", tmp_path / "log", 1.0)
    wait_for(lambda: len(events(tmp_path / "r", "finish")) >= 2, "two finished trials")
    family = psutil.Process(running.pid).children(recursive=True)
    for _ in range(2):
        running.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert running.communicate(timeout=30)[0].split()[-1] == "True"
    wait_for(lambda: gone(family), "its processes to end", 60)
    assert not (tmp_path / "r" / "lock").exists()
    go(fake_plan(tmp_path / "r", logged(tmp_path / "log")), pool)
    assert_same_tables(tmp_path / "r", undisturbed(logged(tmp_path / "log")))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ray_comes_up_leaves_nothing_behind(
    tmp_path: Path, number: int, start_driver: StartDriver
) -> None:
    running = start_driver(tmp_path / "r", tmp_path / "log", 1.0)
    driver = psutil.Process(running.pid)
    wait_for(lambda: any("gcs_server" in p.name() for p in driver.children(recursive=True)), "Ray's first process")
    running.send_signal(number)
    seen: set[psutil.Process] = set()
    while running.poll() is None:
        with contextlib.suppress(psutil.Error):
            seen.update(driver.children(recursive=True))
        time.sleep(0.05)
    assert (running.returncode, running.communicate()[0].split()[-1]) == (0, "True")
    wait_for(lambda: gone(list(seen)), "its processes to end", 5)
    assert not (tmp_path / "r" / "lock").exists()


def test_a_raylet_killed_while_ray_comes_up(
    tmp_path: Path, pool: Pool, undisturbed: Undisturbed, start_driver: StartDriver
) -> None:
    """Ray is started once more."""
    running = start_driver(tmp_path / "r", tmp_path / "log", 0)
    driver = psutil.Process(running.pid)
    found: list[psutil.Process] = []

    def raylet() -> bool:
        with contextlib.suppress(psutil.Error):
            found.extend(p for p in driver.children(recursive=True) if p.name() == "raylet")
        return bool(found)

    wait_for(raylet, "Ray's raylet")
    found[0].kill()
    assert running.communicate(timeout=200)[0].split()[-1] == "False"
    assert_same_tables(tmp_path / "r", undisturbed(logged(tmp_path / "log")))


def test_impatient_ctrl_c_while_lanes_are_ended(tmp_path: Path, pool: Pool, start_driver: StartDriver) -> None:
    """They are in the middle of an epoch, longer than anything waits for: Ray must not go down around their threads."""
    log = tmp_path / "log"
    running = start_driver(tmp_path / "r", log, 15.0)
    wait_for(log.exists, "an epoch", 200)
    time.sleep(1.0)
    for _ in range(4):
        running.send_signal(signal.SIGINT)
        time.sleep(1.2)
    assert running.communicate(timeout=60)[0].split()[-1] == "True"
    assert running.returncode == 0
    assert not (tmp_path / "r" / "lock").exists()


ONE_RAY = DRIVER.replace(
    "print(run(plan, trial=TRIAL, progress=False).interrupted)",
    """
from sweeps.backends.backend import BackendLostError
try:
    print(run(plan, trial=TRIAL, progress=False, restart=False).interrupted)
except BackendLostError as error:
    print("lost:", error.why)
""",
)


AGENTS_S = 120
"""Ray's agents end by themselves a minute after a driver that had no time to end them."""
VICTIMS = {
    "gcs_server": "Ray's gcs_server (process",
    "raylet": "Ray's raylet (process",
    "DashboardAgent": "Ray's dashboard agent (process",
    "RuntimeEnvAgent": "Ray's runtime-environment agent (process",
    "terminated gcs_server": "Ray's control store at",
}


def strike(victim: str, family: list[psutil.Process]) -> None:
    """End a part of Ray, or all of it: the driver's process, its workers and Ray's own."""
    for process in family:
        with contextlib.suppress(psutil.Error):
            if victim == "everything" or process.name().endswith(victim.rsplit(maxsplit=1)[-1]):
                process.send_signal(signal.SIGTERM if "terminated" in victim else signal.SIGKILL)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", [*VICTIMS, "everything"])
def test_a_sweep_outlives_its_ray(
    tmp_path: Path, pool: Pool, undisturbed: Undisturbed, victim: str, start_driver: StartDriver
) -> None:
    """A new session is started, without a second command."""
    log = tmp_path / "log"
    running = start_driver(tmp_path / "r", log, 0.5)
    wait_for(log.exists, "an epoch", 200)
    family = psutil.Process(running.pid).children(recursive=True)
    strike(victim, family)
    assert running.communicate(timeout=400)[0].split()[-1] == "False"
    assert running.returncode == 0
    (lost,) = events(tmp_path / "r", "lost")
    assert lost["reason"].startswith(VICTIMS.get(victim, "the process of Ray's driver"))
    wait_for(lambda: gone(family), "the lost session's processes to end", 60)
    assert_same_tables(tmp_path / "r", undisturbed(logged(log)))
    assert all(count <= 2 for count in trained(log).values())  # only an epoch that was under way


def test_without_restart_the_loss_of_ray_ends_the_run(
    tmp_path: Path, pool: Pool, undisturbed: Undisturbed, start_driver: StartDriver
) -> None:
    log = tmp_path / "log"
    running = start_driver(tmp_path / "r", log, 0.5, ONE_RAY)
    wait_for(log.exists, "an epoch", 200)
    strike("raylet", psutil.Process(running.pid).children(recursive=True))
    assert "lost: Ray's raylet (process" in running.communicate(timeout=60)[0]
    go(fake_plan(tmp_path / "r", logged(log)), pool)
    assert_same_tables(tmp_path / "r", undisturbed(logged(log)))


@pytest.mark.parametrize("everything", [False, True], ids=["the process group", "every process"])
def test_a_signal_to_more_than_the_driver_is_an_interruption(
    tmp_path: Path, pool: Pool, undisturbed: Undisturbed, start_driver: StartDriver, everything: bool
) -> None:
    """`timeout` and terminals signal the process group, systemd and Slurm every process."""
    log = tmp_path / "log"
    running = start_driver(tmp_path / "r", log, 0.5, start_new_session=True)
    wait_for(log.exists, "an epoch", 200)
    family = psutil.Process(running.pid).children(recursive=True)
    if everything:
        for process in [psutil.Process(running.pid), *family]:
            with contextlib.suppress(psutil.Error):
                process.terminate()
    else:
        os.killpg(running.pid, signal.SIGTERM)
    assert running.communicate(timeout=60)[0].split()[-1] == "True"
    assert not events(tmp_path / "r", "lost")
    wait_for(lambda: gone(family), "its processes to end", 20)
    go(fake_plan(tmp_path / "r", logged(log)), pool)
    assert_same_tables(tmp_path / "r", undisturbed(logged(log)))


OURS = ("RayTrainWorker", "TrainController", "Broker")
RAYS = ("raylet", "gcs_server", "DashboardAgent", "RuntimeEnvAgent")


@pytest.mark.timeout(600)
def test_what_stands_still_for_a_while_goes_on(
    tmp_path: Path, pool: Pool, undisturbed: Undisturbed, start_driver: StartDriver
) -> None:
    """SIGSTOP and SIGCONT of the driver, workers in their epochs and our other actors, of each part of Ray, and of all.

    For longer than a lock's heartbeat, a lane's patience with its worker, and what is called lost (`_QUIET_S`).
    """
    log = tmp_path / "log"
    running = start_driver(tmp_path / "r", log, 2.0)
    wait_for(log.exists, "an epoch", 200)
    driver = psutil.Process(running.pid)
    for title in (str(driver.cmdline()), *OURS, *RAYS, ""):
        family = [driver, *driver.children(recursive=True)]
        still = [p for p in family if runs(p) and title in f"{p.cmdline()} {p.name()}"]
        for process in still:
            process.suspend()
        time.sleep(1.2 * HEARTBEAT_S)
        with pytest.raises(LockedError, match=f"process {driver.pid} on host"):
            go(fake_plan(tmp_path / "r", logged(log)), pool)
        for process in still:
            process.resume()
        assert still, title
    assert running.communicate(timeout=300)[0].split()[-1] == "False"
    assert set(trained(log).values()) == {1}
    assert_same_tables(tmp_path / "r", undisturbed(logged(log)))


SMALL_SHM = ["unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64k none /dev/shm; exec "$@"']


@pytest.mark.skipif(
    subprocess.run([*SMALL_SHM, "", "true"], capture_output=True, check=False).returncode != 0,
    reason="no name space with mounts of its own on this machine",
)
def test_shared_memory_that_is_too_small(tmp_path: Path, undisturbed: Undisturbed) -> None:
    """As in a container of 64 MB; and in a folder of any name, with all of Ray in it."""
    folder, log = tmp_path / 'it\'s "odd" #1 %20 опыт?', tmp_path / "log"
    command = [*SMALL_SHM, "", sys.executable, "-c", DRIVER, str(folder), str(log), "0"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False, timeout=400)
    assert (done.returncode, done.stdout.split()[-1]) == (0, "False")
    assert_same_tables(folder, undisturbed(logged(log)))


FIRST: dict[str, Any] = {"confirm": FakeConfirm((0, 1)), "search": FakeSearch(trials=4, sampler="qmc")}
LONGER: dict[str, Callable[[Path], dict[str, Any]]] = {
    "budgets": lambda log: {"cells": (*logged(log), FakeCell("lora", 16_000, options=(("log", str(log)),)))},
    "methods": lambda log: {"cells": (*logged(log), FakeCell("nola", options=(("log", str(log)),)))},
    "seeds": lambda log: {"confirm": FakeConfirm((0, 1, 2, 7))},
    "allowance": lambda log: {"search": FakeSearch(trials=7, sampler="qmc")},
}


@pytest.mark.parametrize("longer", LONGER)
def test_of_an_extended_sweep_only_the_difference_runs(
    tmp_path: Path, pool: Pool, undisturbed: Undisturbed, longer: str
) -> None:
    log = tmp_path / "log"
    go(fake_plan(tmp_path / "r", logged(log), **FIRST), pool)
    before = {t["trial_id"] for t in rows(tmp_path / "r", "trials")}
    more = {"cells": logged(log), **FIRST, **LONGER[longer](log)}
    summary = go(fake_plan(tmp_path / "r", **more), pool)
    assert set(trained(log).values()) == {1}, "a trial was trained again"
    undivided = undisturbed(**more)
    whole = {t["trial_id"] for t in rows(undivided, "trials")}
    assert summary.finished == len(whole - before) > 0
    if longer != "allowance":
        assert_same_tables(tmp_path / "r", undivided)
        return
    # a longer search may choose another rate: the old one's CONFIRM rows stay, superseded, and count no more
    kept = {t["trial_id"] for t in rows(tmp_path / "r", "trials")} - whole
    confirmed = [
        open_store(folder).table("confirmed").column("trial_id").to_pylist() for folder in (tmp_path / "r", undivided)
    ]
    assert sorted(confirmed[0]) == sorted(confirmed[1])
    assert not kept & set(confirmed[0])
