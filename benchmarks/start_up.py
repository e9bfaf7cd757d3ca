"""Measure how long a run takes until its first trial has ended, with all of Ray Train's processes and with ours.

    python -m benchmarks.start_up               # five rounds, each with both sides in a random order
    python -m benchmarks.start_up --rounds 1

Ray Train starts processes that lanes do not need. Each run has one for data sets and one that frees placement groups.
All runs together have one that asks an autoscaler for nodes. `sweeps.backends.ray.compat` leaves them out (the side
"ours"), and the side "usual" puts them back.

Every run is a new process with a Ray session and two workers. The clock starts before the libraries are imported. It
stops when the first trial, which trains nothing, has ended. Its parts are the imports, Ray's session, and the lanes
with the trial. Processor seconds are those of the driver and of every process that Ray had started by then. They depend
less on what else the machine does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("usual", "ours")
MEASURED = ("seconds", "imports", "session", "lanes and a trial", "processor seconds", "processes")


class FirstTrial:
    """A progress display that takes its measurements once: when the first trial has ended.

    Attributes:
        ended: the time of that moment, by `time.perf_counter`.
        spent: processor seconds of the driver, and of each process that it had started until that moment.
    """

    def __init__(self) -> None:
        self.ended = 0.0
        self.spent: list[float] = []

    def start(self, state: Any) -> None: ...
    def note(self, text: str) -> None: ...
    def stop(self, state: Any) -> None: ...

    def update(self, state: Any) -> None:
        if self.spent or not any(cell.rows for cell in state.cells.values()):
            return
        self.ended = time.perf_counter()
        driver = psutil.Process()
        for process in [driver, *driver.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):  # children come and go
                own_and_ended_childrens = process.cpu_times()[:4]
                self.spent.append(sum(own_and_ended_childrens))


def run_side(side: str) -> dict[str, float]:
    """Run a sweep of two trials in this process, in a Ray session with two workers. Return the `MEASURED` values."""
    begun = time.perf_counter()
    from sweeps.backends.ray import compat
    from sweeps.backends.ray.backend import using
    from sweeps.backends.ray.pool import Pool
    from sweeps.engine.run import run
    from tests.fakes import TRIAL, FakeCell, FakeConfirm, FakeResources, FakeSearch, fake_plan

    if side == "usual":
        del compat.OwnController._create_default_callbacks  # Ray Train's own method comes after it
        compat.ask_no_autoscaler = lambda policy: None
    first, imported = FirstTrial(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        search = FakeSearch(trials=1, rerun_rates=0, rerun_seeds=0)
        plan = fake_plan(Path(folder) / "results", (FakeCell("lora"),), search=search, confirm=FakeConfirm((0,)))
        with Pool(FakeResources(concurrent=2), Path(folder) / "ray") as pool:
            connected = time.perf_counter()
            run(plan, trial=TRIAL, progress=first, backend=using(pool))
    parts = (first.ended - begun, imported - begun, connected - imported, first.ended - connected)
    return dict(zip(MEASURED, (*parts, sum(first.spent), float(len(first.spent))), strict=True))


def report(rounds: Sequence[dict[str, dict[str, float]]]) -> list[str]:
    """Return a line for each side and each quantity, and one for the ratios inside rounds."""
    lines = []
    for name in MEASURED:
        for side in SIDES:
            values = [each[side][name] for each in rounds]
            lines.append(f"{name}, {side}: {statistics.median(values):.1f} [{min(values):.1f}, {max(values):.1f}]")
        ratios = [each["ours"][name] / each["usual"][name] for each in rounds]
        lines.append(f"{name}, ours / usual: {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often both sides are measured")
    parser.add_argument("--side", choices=SIDES, help="measure this side once, in this process, and print JSON")
    arguments = parser.parse_args()
    if arguments.side is not None:
        print(json.dumps(run_side(arguments.side)))
        return
    rounds = []
    for number in range(arguments.rounds):
        measured = {}
        for side in random.Random(number).sample(SIDES, len(SIDES)):
            command = [sys.executable, "-m", "benchmarks.start_up", "--side", side]
            variables = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True, check=True)
            measured[side] = json.loads(done.stdout.splitlines()[-1])
            print(f"round {number + 1}, {side}: {measured[side]}", file=sys.stderr, flush=True)
        rounds.append(measured)
    print("\n".join(report(rounds)))


if __name__ == "__main__":
    main()
