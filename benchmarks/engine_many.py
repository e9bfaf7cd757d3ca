"""Interrupt a sweep of many trials that train nothing halfway, and resume it: the section `many` of `engine.py`.

    python benchmarks/engine_many.py FOLDER CELLS TRIALS_PER_CELL [STOP_AFTER [EPOCHS]]

This command runs one part of the sweep and prints JSON: the seconds since the process started, the driver's memory as
trials finish, and the processor time by kind of process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEGUN = time.perf_counter()
BEGUN_CPU = time.process_time()

import psutil  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.fakes import TRIAL, FakeCell, FakeConfirm, FakePlan, FakeSearch, FakeTrain, fake_plan  # noqa: E402

EARLY = 50
"""Number of trials after which all processes run."""
FURTHER = 10
"""Number of additional epochs in the sweep that measures the cost of an epoch."""
SETTLED = 8_000
"""Number of trials from which on each half of the sweep takes more than three Tuners. With fewer trials the Tuners
themselves make the memory grow.
"""
METHODS = ("lora", "randlora", "vera", "nola", "dora")
KINDS = {"RayTrainWorker": "lane workers", "TrainController": "lane controllers", "Broker": "broker",
         "gcs_server": "GCS", "raylet": "raylet"}  # fmt: skip


def noop_plan(folder: Path, cells: int, per_cell: int, epochs: int = 1) -> FakePlan:
    """Return a plan of `cells` cells with `per_cell` trials that train nothing. A fifth of them are CONFIRM trials."""
    confirm = max(1, per_cell // 5)
    made = tuple(FakeCell(METHODS[k % len(METHODS)], 1000 * (1 + k // len(METHODS))) for k in range(cells))
    search = FakeSearch(trials=per_cell - confirm, sampler="qmc")
    seeds = FakeConfirm(tuple(range(confirm)))
    return fake_plan(folder, made, search=search, confirm=seeds, train=FakeTrain(epochs=epochs))


class Watch:
    """A display that notes time and the driver's memory, and interrupts the sweep after `stop_after` trials."""

    def __init__(self, stop_after: int | None = None, every: int = 100) -> None:
        self.stop_after, self.every = stop_after, every
        self.rebuilt: tuple[float, float] | None = None  # seconds, processor seconds
        self.points: list[tuple[int, float, int]] = []  # trials of this run, seconds, bytes
        self.cpu: list[tuple[int, dict[str, float]]] = []  # trials of this run, seconds by kind of process
        self.own: dict[str, int] = {}  # unshared bytes of the largest process of each kind
        self._before, self._next = 0, 1
        self._process = psutil.Process()

    def start(self, state: Any) -> None:
        self.rebuilt = time.perf_counter() - BEGUN, time.process_time() - BEGUN_CPU
        self._before = self._done(state)

    def update(self, state: Any) -> None:
        done = self._done(state) - self._before
        if done >= self._next:
            self._next = (done // self.every + 1) * self.every
            self._count_memory(done)
        if done >= (self.cpu[-1][0] + 2 * EARLY if self.cpu else EARLY):
            self._count_cpu(done)
        if self.stop_after is not None and done >= self.stop_after:
            self.stop_after = None
            os.kill(os.getpid(), signal.SIGINT)

    def stop(self, state: Any) -> None:
        done = self._done(state) - self._before
        if self.points and done > self.points[-1][0]:
            self._count_memory(done)

    def _count_memory(self, done: int) -> None:
        self.points.append((done, time.perf_counter() - BEGUN, self._process.memory_info().rss))

    def _count_cpu(self, done: int) -> None:
        seconds = {"driver": time.process_time()}
        for child in self._process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                title = " ".join(child.cmdline()[:1])
                kind = next((name for key, name in KINDS.items() if key in title), "Ray's others")
                times = child.cpu_times()
                seconds[kind] = seconds.get(kind, 0.0) + times.user + times.system
                self.own[kind] = max(self.own.get(kind, 0), child.memory_full_info().uss)
        self.cpu.append((done, seconds))

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)

    @staticmethod
    def _done(state: Any) -> int:
        return sum(len(cell.rows) for cell in state.cells.values())


def part(folder: Path, cells: int, per_cell: int, stop_after: int | None, epochs: int) -> dict[str, Any]:
    from sweeps.engine.run import run

    watch = Watch(stop_after)
    summary = run(noop_plan(folder, cells, per_cell, epochs), trial=TRIAL, progress=watch)
    return {
        "finished": summary.finished, "failed": summary.failed, "skipped": summary.skipped,
        "seconds": time.perf_counter() - BEGUN, "cpu_seconds": time.process_time() - BEGUN_CPU,
        "rebuilt": watch.rebuilt, "points": watch.points, "cpu": watch.cpu,
        "own": watch.own,
    }  # fmt: skip


def growth(points: list[tuple[int, float, int]]) -> float:
    """Return the bytes of driver memory per finished trial, by least squares over the last two fifths of the trials."""
    late = [(done, memory) for done, _, memory in points if done >= 0.6 * points[-1][0]]
    return statistics.linear_regression([d for d, _ in late], [m for _, m in late]).slope


def per_trial(one: dict[str, Any]) -> dict[str, float]:
    """Return the processor seconds of a trial by kind of process, after the start; the largest first."""
    (begun, before), *_, (ended, after) = one["cpu"]
    costs = {kind: (after[kind] - before.get(kind, 0.0)) / (ended - begun) for kind in after}
    return dict(sorted(costs.items(), key=lambda pair: -pair[1]))


def report(process: Callable[..., dict[str, Any]], cells: int, trials: int) -> dict[str, Any]:
    """Run half of the sweep, the other half, and the finished sweep once more, each in a separate process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "results"
        parts = [process("engine_many.py", folder, cells, trials // cells, *stop) for stop in ((trials // 2,), (), ())]
        first, second, third = parts
        files = [path for path in folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        journal = (folder / "journal.jsonl").stat().st_size
        few = min(cells, 20)
        longer = process("engine_many.py", Path(name) / "longer", few, trials // cells, 0, FURTHER + 1)
    if third["skipped"] != trials or any(one["failed"] for one in parts):
        raise SystemExit(f"the sweep of {trials} trials is not whole: {[one['skipped'] for one in parts]}")
    (begun, begun_at, _), (ended, ended_at, _) = first["points"][0], first["points"][-1]
    (again, again_at, _), (last, last_at, _) = second["points"][0], second["points"][-1]
    measured = ended - begun + last - again
    seconds = ended_at - begun_at + last_at - again_at
    cpu = per_trial(second)
    further = {kind: (value - cpu.get(kind, 0.0)) / FURTHER for kind, value in per_trial(longer).items()}
    results = {
        "cells": cells,
        "trials": trials,
        "trials per second": measured / seconds,
        "driver bytes per finished trial": [growth(one["points"]) for one in parts[:2]],
        "files": len(files),
        "store bytes per trial": (size - journal) / trials,
        "journal bytes per trial": journal / trials,
        "seconds to find it finished": (third["seconds"], third["cpu_seconds"]),
        "seconds to rebuild the half": second["rebuilt"],
        "seconds to the first trial of the rest": again_at,
        "seconds to the first trial of all": begun_at,
        "cpu seconds per trial": cpu,
        "cpu seconds per further epoch": further,
        "bytes of a process": second["own"],
        "parts": parts,
    }
    show(results)
    return results


def show(results: dict[str, Any]) -> None:
    print(f"  {results['trials']:,} trials in {results['cells']} cells: {results['trials per second']:.1f} a second")
    low, high = sorted(results["driver bytes per finished trial"])
    if results["trials"] >= SETTLED:
        print(f"  driver's memory: {low / 1e3:.1f} to {high / 1e3:.1f} kB a finished trial")
    print(f"  {results['files']} files; journal {results['journal bytes per trial']:.0f} bytes a trial, "
          f"tables {results['store bytes per trial']:.0f}")  # fmt: skip
    wall, cpu = results["seconds to find it finished"]
    print(f"  resumed when finished: {wall:.1f} s ({cpu:.1f} s of a processor)")
    wall, cpu = results["seconds to rebuild the half"]
    print(f"  resumed halfway: state rebuilt after {wall:.1f} s ({cpu:.1f} s of a processor), first trial finished "
          f"after {results['seconds to the first trial of the rest']:.1f} s (of a new sweep: "
          f"{results['seconds to the first trial of all']:.1f} s)")  # fmt: skip
    for name in ("trial", "further epoch"):
        each = ", ".join(f"{kind} {1000 * value:.1f}" for kind, value in results[f"cpu seconds per {name}"].items())
        print(f"  processor time a {name}, ms: {each}")
    each = ", ".join(f"{kind} {size / 1e6:.0f}" for kind, size in results["bytes of a process"].items())
    print(f"  memory of the largest process of a kind, shared pages left out, MB: {each}")


if __name__ == "__main__":
    stop, epochs = (*map(int, sys.argv[4:]), *(0, 1)[len(sys.argv) - 4 :])
    print(json.dumps(part(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), stop or None, epochs)))
