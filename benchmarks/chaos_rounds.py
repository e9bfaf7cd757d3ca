"""Run a sweep in a folder and harm the processes of its run. `chaos.py` and its cases with Ray are made of this."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import psutil

from sweeps.backends.ray.cluster.private import PREFIX
from sweeps.backends.ray.cluster.session import EXIT_LOST
from tests.support import wait_for
from tests.sweeps.cluster.support import Head, OwnRay
from tests.sweeps.support import assert_same_tables, events

ROOT = Path(__file__).resolve().parent.parent

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
VICTIMS = ("driver", "RayTrainWorker", "TrainController", "Broker")
RAYS = ("raylet", "gcs_server", "DashboardAgent", "RuntimeEnvAgent")
STILL_S = (1.0, 8.0)


class Round:
    """Runs one sweep in a folder, and draws its faults."""

    FIRST_S, EVERY_S = (5.0, 40.0), (2.0, 20.0)
    """The shortest and longest time before a driver's first fault, and between two faults, in seconds."""

    def __init__(self, folder: Path, draw: random.Random, cells: int) -> None:
        self.results, self.log, self.draw, self.cells = folder / "r", folder / "log", draw, cells
        self.journal, self.done = self.results / "journal.jsonl", list[str]()
        self.over: dict[str, int] = {}
        """The trials that are finished on disk, each with the number of lines that the log had then."""
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(folder.parent)}

    def run(self, ends: float) -> None:
        """Start drivers one after another until one completes the sweep. After the time `ends` none is disturbed."""
        while True:
            step, full = self.draw_clock_and_disk(time.monotonic() < ends)
            command = [sys.executable, "-c", DRIVER, *map(str, (self.results, self.log, self.cells, step, full))]
            stderr = self.results.parent / "stderr"
            with stderr.open("wb") as file:
                driver = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=file)
            family = {psutil.Process(driver.pid)}
            strikes = time.monotonic() + self.draw.uniform(*self.FIRST_S)
            while driver.poll() is None:
                time.sleep(0.2)
                with contextlib.suppress(psutil.Error):
                    family.update(psutil.Process(driver.pid).children(recursive=True))
                if strikes < time.monotonic() < ends:
                    self.strike(driver.pid)
                    strikes = time.monotonic() + self.draw.uniform(*self.EVERY_S)
            answer = driver.communicate()[0].decode().split()[-1:]
            disk = f", disk full after {full} writes" if full else ""
            self.done.append(f"ended with {driver.returncode}, clock {step:+.0f} s{disk}")
            left = [p for p in psutil.wait_procs(family, timeout=90)[1] if p.status() != psutil.STATUS_ZOMBIE]
            assert not left, f"still running: {left}"
            if driver.returncode == 0 and answer == ["True"]:
                return
            sent = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            # Ray aborts a process whose raylet is lost while they meet
            fair = driver.returncode in (0, EXIT_LOST, 130, -signal.SIGABRT, *(-number for number in sent))
            fair |= bool(full) and driver.returncode == 2
            fair |= stderr.read_bytes().endswith(b"KeyboardInterrupt\n")  # while it imports
            assert fair, f"exit code {driver.returncode}"  # 1: failed trials
            seen = len(self.log.read_text().splitlines()) if self.log.exists() else 0
            self.over = {e["trial_id"]: self.over.get(e["trial_id"], seen) for e in events(self.results, "finish")}
            if time.monotonic() < ends:
                self.hurt()

    def draw_clock_and_disk(self, disturbed: bool) -> tuple[float, int]:
        """Draw by how many seconds a driver's clock steps, and after how many writes its disk is full (0: never)."""
        step = self.draw.choice([0.0, 0.0, -3600.0, 86400.0, -86400.0 * 400])
        return step, self.draw.choice([0, 0, 0, self.draw.randrange(5, 60)]) if disturbed else 0

    def strike(self, pid: int) -> None:
        """Send one signal to one process of the run. Ray's own processes are rarely drawn, since each ends the run."""
        name = self.draw.choice(RAYS if self.draw.random() < 0.15 else VICTIMS)
        signals = [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM]
        if name == "driver":
            signals += [signal.SIGINT, signal.SIGHUP]
        self.send(pid, name, self.draw.choice(signals))

    def send(self, pid: int, name: str, sent: signal.Signals) -> None:
        """Send a signal to a random process of the run whose name has `name`, if any. SIGSTOP lasts some seconds."""
        still, pick = self.draw.uniform(*STILL_S), self.draw.random()
        with contextlib.suppress(psutil.Error):
            driver = psutil.Process(pid)
            children = driver.children(recursive=True)
            named = [p for p in children if name in " ".join([p.name(), *p.cmdline()[:3]])]
            candidates = [driver] if name == "driver" else sorted(named, key=lambda p: p.pid)
            if not candidates:
                return
            victim = candidates[int(pick * len(candidates))]
            duration = f" for {still:.1f} s" if sent == signal.SIGSTOP else ""
            self.done.append(f"{sent.name} to {name}{duration}")
            victim.send_signal(sent)
            if sent == signal.SIGSTOP:
                try:
                    time.sleep(still)
                finally:
                    victim.resume()

    def hurt(self) -> None:
        """Harm the folder between two drivers as a crash or a bad disk does, or do nothing."""
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
        """Raise AssertionError if the tables differ, or if a trial ran after its end."""
        assert_same_tables(self.results, undisturbed)
        lines = self.log.read_text().splitlines()
        late = {line.split()[0] for trial, seen in self.over.items() for line in lines[seen:] if line.startswith(trial)}
        assert not late, f"trained again: {late}"
        assert not (self.results / "lock").exists() and not (self.results / "work").exists()


def in_shm() -> set[str]:
    return {p.name for p in Path("/dev/shm").glob("*")}


def left_over(before: set[str], ray: Path) -> set[str]:
    """Return files of Ray in /dev/shm, and folders of its sessions, that were not there before."""
    files = {name for name in in_shm() - before if "ray" in name or "plasma" in name}
    return files | {p.name for p in ray.glob(f"{PREFIX}*")}


Outcomes = Counter[str]


class Signalled(Round):
    """A round with one fault: one process gets one signal, as soon as something trains."""

    FIRST_S = EVERY_S = (0.3, 1.0)

    def __init__(self, folder: Path, draw: random.Random, cells: int, name: str, sent: signal.Signals) -> None:
        super().__init__(folder, draw, cells)
        self.name, self.sent = name, sent

    def draw_clock_and_disk(self, disturbed: bool) -> tuple[float, int]:
        return 0.0, 0

    def strike(self, pid: int) -> None:
        if not self.done and self.log.exists():
            self.send(pid, self.name, self.sent)

    def hurt(self) -> None: ...


PROCESSES = (*VICTIMS, *RAYS, "log_monitor", "sweeps.backends.ray")
"""Each kind of process of a local session, by a part of its name or of the first three words of its command. The last
one is ours: it starts Ray.
"""


def terminated(top: Path, draw: random.Random, times: int) -> Outcomes:
    """Send SIGTERM to each kind of process of a local session. The tables are those of an undisturbed sweep."""
    outcomes, shm = Outcomes(), in_shm()
    (top / "whole").mkdir()
    Round(top / "whole", random.Random(0), 4).run(0.0)
    for name, number in itertools.product(PROCESSES, range(times)):
        folder = top / f"{PROCESSES.index(name)} {number}"
        folder.mkdir()
        signalled = Signalled(folder, draw, 4, name, signal.SIGTERM)
        signalled.run(time.monotonic() + 600)
        signalled.check(top / "whole" / "r")
        assert not (files := left_over(shm, top)), f"{name}: left {files}"
        outcomes[f"{name}: {'ended' if 'SIGTERM' in signalled.done[0] else 'not found'}"] += 1
    return outcomes


JOINING = f"""{PLAN}
folder, log, cells, address = sys.argv[1:]
print(run(plan(folder, log, cells), trial=TRIAL, progress=False, address=address, retry_failed=True).complete)
"""


def head_back(top: Path, draw: random.Random, times: int) -> Outcomes:
    """Kill the head of a joined cluster and start it again at its address. The same driver continues."""
    (top / "whole").mkdir()
    Round(top / "whole", random.Random(0), 4).run(0.0)
    for number in range(times):
        own = OwnRay(top / f"h{number}")
        own.folder.mkdir()
        port = 20_000 + draw.randrange(20_000)
        try:
            head = Head(own, port=port)
            results, log = top / f"head{number}", top / f"log{number}"
            command = [sys.executable, "-c", JOINING, str(results), str(log), "4", head.address]
            environment = {**head.environment, "PYTHONPATH": str(ROOT)}
            driver = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            wait_for(log.exists, "an epoch", 200)
            time.sleep(draw.uniform(0.0, 5.0))
            head.close()
            time.sleep(draw.uniform(5.0, 60.0))
            assert driver.poll() is None, driver.communicate()
            head = Head(own, port=port)
            out, err = driver.communicate(timeout=900)
            assert driver.returncode == 0 and out.split()[-1:] == [b"True"], err.decode()[-3000:]
            head.close()
        finally:
            own.end()
        assert_same_tables(results, top / "whole" / "r")
    return Outcomes({"the same driver went on": times})


KEPT_BYTES = {"driver": 20_000, "python": 40_000, "gcs_server": 60_000}
"""Bounds on the memory that a process keeps for each finished trial. The driver keeps its rows. Ray's driver ("python")
keeps Tune's trials. The control store keeps events of tasks, up to 100,000 of them.
"""


def soak(top: Path, draw: random.Random, minutes: int) -> Outcomes:
    """Run one sweep for `minutes` minutes. No process has more memory, files or threads at the end than early on.

    Those that keep something of every trial may grow by `KEPT_BYTES` a trial. gRPC's pool may add threads.
    """
    log, environment = top / "log", {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(top)}
    command = [sys.executable, "-c", DRIVER, str(top / "r"), str(log), str(60 * minutes), "0", "0"]
    driver = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    wait_for(log.exists, "an epoch", 200)
    ends, seen = time.monotonic() + 60 * minutes, defaultdict[tuple[int, str], list[tuple[int, int, int]]](list)
    ended: list[int] = []
    while time.monotonic() < ends and driver.poll() is None:
        root = psutil.Process(driver.pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error, IndexError):
                name = "driver" if process == root else process.cmdline()[0].rpartition("/")[2][:40]
                took = process.memory_full_info().uss, process.num_fds(), process.num_threads()
                seen[process.pid, name].append(took)
        ended.append(sum(b'"ev":"finish"' in line for line in (top / "r" / "journal.jsonl").read_bytes().splitlines()))
        time.sleep(10)
    driver.send_signal(signal.SIGINT)
    driver.wait(120)
    most, growing = max(map(len, seen.values())), []
    for (_, name), samples in seen.items():
        if len(samples) < most * 0.9:  # the process started or ended meanwhile
            continue
        quarter = len(samples) // 4
        early = [median(each) for each in zip(*samples[quarter : 2 * quarter], strict=True)]
        late = [median(each) for each in zip(*samples[-quarter:], strict=True)]
        (size, files, threads), (size_late, files_late, threads_late) = early, late
        memory = f"{size / 2**20:.0f} to {size_late / 2**20:.0f} MiB"
        print(f"{name}: {memory}, {files:.0f} to {files_late:.0f} files, {threads:.0f} to {threads_late:.0f} threads")
        kept = KEPT_BYTES.get(name, 0) * ended[-1]
        if size_late > 1.1 * size + 2**24 + kept or files_late > files + 4 or threads_late > threads + 8:
            growing.append(name)
    assert not growing, f"they grow: {growing}"
    return Outcomes({"minutes": minutes, "trials": ended[-1]})


def cases() -> Iterator[tuple[str, Callable[[Path, random.Random, int], Outcomes], int]]:
    """Yield the name of each case, the case, and how often it is done by default (for the soak: minutes)."""
    yield "terminated", terminated, 1
    yield "head_back", head_back, 2
    yield "soak", soak, 15
