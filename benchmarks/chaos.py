"""A sweep that is never left alone: random faults, again and again, until its tables are those of an undisturbed one.

    python benchmarks/chaos.py --minutes 20            # prints its seed; --seed N repeats the same faults
    python benchmarks/chaos.py --minutes 180 --folder DIR
    python benchmarks/chaos.py --minutes 60 --round 60 --cells 60   # one sweep for an hour

Each round is a new sweep of a trial that trains nothing (`tests.fakes`), whose driver is a process of its own. While it
runs, a fault is drawn every few seconds: a driver killed, interrupted, told to end, hung up on or stopped for a while;
a worker, a lane's controller or the broker killed or stopped; Ray's raylet, control store or an agent killed. A
driver's clock may step while it runs, and its disk may be full after some writes.
Between two drivers the journal's last line is torn, or tables or journal are lost. A round is over when a driver finds
nothing left. Then its tables must be an undisturbed sweep's, no trial may have run after its end, and no process,
session folder or file of /dev/shm may be left. What differs is printed, and its folder kept; the exit code is 1. At the
end a process that runs six sweeps must have no more threads after the last than after the second, and no more files
but two for each, which Ray leaves. Commit nothing meanwhile: `trials.git_commit` is compared too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sweeps.backends.ray.cluster.private import PREFIX  # noqa: E402
from sweeps.backends.ray.cluster.session import EXIT_LOST  # noqa: E402
from tests.sweeps.support import assert_same_tables, events, trained  # noqa: E402

PLAN = """
import errno, itertools, os, sys, time
from pathlib import Path
from sweeps.backends.backend import BackendLostError
from sweeps.engine.run import run
from tests.fakes import TRIAL, FakeCell, FakeResources, fake_plan
def plan(folder, log, cells):
    made = (FakeCell(("lora", "vera")[k % 2], 1000 * (1 + k // 2), options=(("log", log), ("delay", 0.3)))
            for k in range(int(cells)))
    return fake_plan(Path(folder), tuple(made), resources=FakeResources(concurrent=2))
"""
DRIVER = f"""{PLAN}
folder, log, cells, step, full = sys.argv[1:]
clock, begun, sync, writes = time.time, time.monotonic(), os.fsync, itertools.count(1)
time.time = lambda: clock() + float(step) * (time.monotonic() > begun + 15)
def fsync(file):
    if next(writes) > int(full) > 0:
        raise OSError(errno.ENOSPC, "No space left on device")
    sync(file)
os.fsync = fsync
try:
    print(run(plan(folder, log, cells), trial=TRIAL, progress=False, retry_failed=True).complete)
except BackendLostError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
except OSError as error:
    print(error, file=sys.stderr)
    sys.exit(2 if error.errno == errno.ENOSPC else 1)
"""
AGAIN = f"""{PLAN}
import psutil
own, seen = psutil.Process(), []
for k in range(6):
    assert run(plan(f"{{sys.argv[1]}}/{{k}}", sys.argv[1] + "/log", 1), trial=TRIAL, progress=False).complete
    seen.append((own.num_fds(), own.num_threads(), own.memory_full_info().uss // 2**20))
print(seen)
(files, threads, _), (before, alike, _) = seen[-1], seen[1]
# a session of Ray's leaves two sockets by itself; gRPC's pool adds threads where these starve
assert files <= before + 2 * 4 and threads < alike + 4
"""
VICTIMS = ("driver", "RayTrainWorker", "TrainController", "Broker")
RAYS = ("raylet", "gcs_server", "DashboardAgent", "RuntimeEnvAgent")
STILL_S = (1.0, 8.0)


class Round:
    """One sweep in a folder, and its faults, as they are drawn."""

    def __init__(self, folder: Path, draw: random.Random, cells: int) -> None:
        self.results, self.log, self.draw, self.cells = folder / "r", folder / "log", draw, cells
        self.journal, self.done = self.results / "journal.jsonl", list[str]()
        self.over: dict[str, int] = {}
        """Trials that are finished on disk, with how many lines the log had then."""
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(folder.parent)}

    def run(self, ends: float) -> None:
        """Drivers one after another until one finds nothing left; none is disturbed after `ends`."""
        while True:
            step = self.draw.choice([0.0, 0.0, -3600.0, 86400.0, -86400.0 * 400])
            full = self.draw.choice([0, 0, 0, self.draw.randrange(5, 60)]) if time.monotonic() < ends else 0
            command = [sys.executable, "-c", DRIVER, *map(str, (self.results, self.log, self.cells, step, full))]
            with (self.results.parent / "said").open("wb") as said:
                driver = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=said)
            family = {psutil.Process(driver.pid)}
            strikes = time.monotonic() + self.draw.uniform(5.0, 40.0)
            while driver.poll() is None:
                time.sleep(0.2)
                with contextlib.suppress(psutil.Error):
                    family.update(psutil.Process(driver.pid).children(recursive=True))
                if strikes < time.monotonic() < ends:
                    self.strike(driver.pid)
                    strikes = time.monotonic() + self.draw.uniform(2.0, 20.0)
            answer = driver.communicate()[0].decode().split()[-1:]
            self.done.append(f"ended with {driver.returncode}, clock {step:+.0f} s" + f", full at {full}" * (full > 0))
            left = [p for p in psutil.wait_procs(family, timeout=90)[1] if p.status() != psutil.STATUS_ZOMBIE]
            assert not left, f"still running: {left}"
            if driver.returncode == 0 and answer == ["True"]:
                return
            sent = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            # Ray aborts a process whose raylet is lost while they meet
            fair = driver.returncode in (0, EXIT_LOST, 130, -signal.SIGABRT, *(-number for number in sent))
            fair |= bool(full) and driver.returncode == 2
            fair |= (self.results.parent / "said").read_bytes().endswith(b"KeyboardInterrupt\n")  # while it imports
            assert fair, f"exit code {driver.returncode}"  # 1: failed trials
            seen = len(self.log.read_text().splitlines()) if self.log.exists() else 0
            self.over = {e["trial_id"]: self.over.get(e["trial_id"], seen) for e in events(self.results, "finish")}
            if time.monotonic() < ends:
                self.hurt()

    def strike(self, pid: int) -> None:
        """One fault to one process of the run; Ray's own are struck seldom, since each ends the run."""
        name = self.draw.choice(RAYS if self.draw.random() < 0.15 else VICTIMS)
        sent = self.draw.choice(
            [signal.SIGKILL, signal.SIGSTOP, *([signal.SIGINT, signal.SIGTERM, signal.SIGHUP] * (name == "driver"))]
        )
        still, pick = self.draw.uniform(*STILL_S), self.draw.random()
        with contextlib.suppress(psutil.Error):
            driver = psutil.Process(pid)
            children = driver.children(recursive=True)
            named = [p for p in children if name in " ".join([p.name(), *p.cmdline()[:1]])]
            found = [driver] if name == "driver" else sorted(named, key=lambda p: p.pid)
            if not found:
                return
            victim = found[int(pick * len(found))]
            self.done.append(
                f"{signal.Signals(sent).name} to {name}" + f" for {still:.1f} s" * (sent == signal.SIGSTOP)
            )
            victim.send_signal(sent)
            if sent == signal.SIGSTOP:
                try:
                    time.sleep(still)
                finally:
                    victim.resume()

    def hurt(self) -> None:
        """What a crash or a bad disk does to the folder between two drivers; perhaps nothing."""
        kinds: dict[str, Callable[[], None]] = {
            "nothing": lambda: None,
            "torn line": self._torn,
            "tables lost": lambda: shutil.rmtree(self.results / "tables", ignore_errors=True),
            "journal lost": self._journal_lost,
        }
        kind = self.draw.choice(list(kinds))
        if self.journal.exists():
            kinds[kind]()
            self.done.append(kind)

    def _torn(self) -> None:
        with self.journal.open("ab") as file:
            file.write(self.draw.choice([b'{"ev":"ask","trial_id":"to', b"\0" * 300]))

    def _journal_lost(self) -> None:
        self.journal.unlink()
        self.over = {}  # what is not sealed runs again

    def check(self, undisturbed: Path) -> None:
        """Raises AssertionError: the tables differ, or a trial ran after its end."""
        assert_same_tables(self.results, undisturbed)
        lines = self.log.read_text().splitlines()
        late = {line.split()[0] for trial, seen in self.over.items() for line in lines[seen:] if line.startswith(trial)}
        assert not late, f"trained again: {late}"
        assert not (self.results / "lock").exists() and not (self.results / "work").exists()


def in_shm() -> set[str]:
    return {p.name for p in Path("/dev/shm").glob("*")}


def left_over(before: set[str], ray: Path) -> set[str]:
    """Files of Ray in /dev/shm, and folders of its sessions, that were not there before."""
    files = {name for name in in_shm() - before if "ray" in name or "plasma" in name}
    return files | {p.name for p in ray.glob(f"{PREFIX}*")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--round", type=float, default=5.0, help="minutes after which a round is left alone (5)")
    parser.add_argument("--cells", type=int, default=4, help="of each sweep, of 8 trials each (4)")
    parser.add_argument("--folder", type=Path, default=None, help="for everything; a short path (default: in /tmp)")
    asked = parser.parse_args()
    top = Path(tempfile.mkdtemp(prefix="c", dir=asked.folder))  # short, for Ray's sockets
    print(f"seed {asked.seed}, in {top}", flush=True)
    shm, whole = in_shm(), top / "undisturbed"
    whole.mkdir()
    Round(whole, random.Random(0), asked.cells).run(0.0)
    ends, number, broken = time.monotonic() + 60 * asked.minutes, 0, 0
    while time.monotonic() < ends:
        folder = top / f"round{number}"
        folder.mkdir()
        one = Round(folder, random.Random(f"{asked.seed} {number}"), asked.cells)
        wrong = ""
        try:
            one.run(min(ends, time.monotonic() + 60 * asked.round))
            one.check(whole / "r")
            assert not (files := left_over(shm, top)), f"left: {files}"
        except AssertionError as error:
            wrong, broken = str(error)[:2000], broken + 1
        epochs = sum(trained(one.log).values()) if one.log.exists() else 0
        print(json.dumps({"round": number, "epochs": epochs, "faults": one.done, "wrong": wrong}), flush=True)
        if not wrong:
            shutil.rmtree(folder)
        number += 1
    (top / "again").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(top)}
    command = [sys.executable, "-c", AGAIN, str(top / "again")]
    broken += subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode != 0
    print(f"{number} rounds, {broken} wrong, seed {asked.seed}")
    if not broken:
        shutil.rmtree(top)
    raise SystemExit(bool(broken))


if __name__ == "__main__":
    main()
