"""Sweeps of the fake trial, in this process or in one that a test kills, and what they leave behind."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from analysis.store.store import open_store
from sweeps.backends.ray.backend import using
from sweeps.backends.ray.pool import Pool
from sweeps.engine.run import RunSummary, run
from sweeps.plan.plan import Plan
from sweeps.records.journal import Journal
from sweeps.records.locks import write_identity
from sweeps.spec.space import BATCH_SIZE, Dimension
from tests.fakes import (
    FAULTS,
    FAULTS_OF_PACKS,
    TRIAL,
    FakeCell,
    FakeConfirm,
    FakePlan,
    FakeResources,
    FakeSearch,
    fake_plan,
)

VARIES = {"attempt", "host", "started_at", "ended_at", "seconds_total", "seconds_setup", "chosen_at", "packed"}
"""Columns that differ between two runs of one sweep."""

PAIR = (FakeCell("lora"), FakeCell("vera"))

Undisturbed = Callable[..., Path]
"""The fixture of that name: from cells and sections to the results of a sweep that ran without faults."""

StartDriver = Callable[..., subprocess.Popen[str]]
"""The fixture `start_driver`: from a folder, a log, the seconds of an epoch and perhaps other code to its process."""

DRIVER = """
import sys
from pathlib import Path
from sweeps.engine.run import run
from tests.fakes import TRIAL, FakeCell, FakeConfirm, FakeResources, FakeSearch, FakeTrain, fake_plan
from tests.sweeps.support import logged

folder, log, delay = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
plan = fake_plan(folder, logged(log, delay=delay), resources=FakeResources(concurrent=2))
print(run(plan, trial=TRIAL, progress=False).interrupted)
"""
"""A sweep in a process of its own: its folder, its log of epochs, and the seconds of an epoch are arguments."""


def without_faults(cell: FakeCell) -> FakeCell:
    """The cell of the same trials; faults and logs make no other ones."""
    options = tuple(option for option in cell.options if option[0] not in (*FAULTS, *FAULTS_OF_PACKS))
    return replace(cell, options=options)


def go(plan: FakePlan, pool: Pool | None = None) -> RunSummary:
    return run(plan, trial=TRIAL, progress=False, backend="ray" if pool is None else using(pool))


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """A table without what varies, in a fixed order."""
    keep = [{k: v for k, v in row.items() if k not in VARIES} for row in open_store(folder).table(name).to_pylist()]
    return sorted(keep, key=lambda row: sorted((k, str(v)) for k, v in row.items()))


def assert_same_tables(one: Path, other: Path, names: Iterable[str] = ("trials", "metrics", "predictions")) -> None:
    for name in (*names, "cells", "choices"):
        assert rows(one, name) == rows(other, name), name


def trained(log: Path) -> Counter[tuple[str, int]]:
    """How often each (trial, epoch) was trained."""
    return Counter((line.split()[0], int(line.split()[1])) for line in log.read_text().splitlines())


def logged(log: Path, **options: Any) -> tuple[FakeCell, ...]:
    given = (("log", str(log)), *options.items())
    return tuple(FakeCell(method, budget, options=given) for method in ("lora", "vera") for budget in (1000, 4000))


def begin(plan: Plan) -> None:
    """Leave in the results folder what a trial of every cell that was begun leaves."""
    with Journal(plan.spec.folder / "journal.jsonl") as journal:
        for cell in plan.cells:
            journal.write({"ev": "ask", "config": {"dataset": cell.dataset, "model": cell.model}})
    write_identity(plan.spec.folder, plan.spec.identity())


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    path = folder / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in found if event["ev"] == kind]


def searched(folder: Path, delay: float = 0.0, **more: Any) -> FakePlan:
    cells = tuple(FakeCell(method, options=(("delay", delay),)) for method in ("lora", "vera"))
    search = FakeSearch(trials=5, sampler="tpe", rerun_rates=0, rerun_seeds=0, **more)
    resources = FakeResources(concurrent=2)
    return fake_plan(folder, cells, search=search, confirm=FakeConfirm((0,)), resources=resources)


def pairs(folder: Path) -> FakePlan:
    """Two cells that search three batch sizes with their rates: nine points, a re-run and two seeds each."""
    dimension = Dimension(BATCH_SIZE, integer=True, values=(8, 16, 32))
    cells = tuple(FakeCell(method, dimensions=(dimension,)) for method in ("lora", "vera"))
    return fake_plan(folder, cells, search=FakeSearch(trials=10), confirm=FakeConfirm((0, 1)))


class KillOnce:
    """A display that kills all of Ray's processes with a title in it, once, when some trials have finished."""

    def __init__(self, title: str, after: int = 3) -> None:
        self.title, self.after = title, after
        self.killed: list[int] = []

    def start(self, state: Any) -> None: ...
    def note(self, text: str) -> None: ...
    def stop(self, state: Any) -> None: ...

    def update(self, state: Any) -> None:
        if not self.killed and sum(len(cell.rows) for cell in state.cells.values()) >= self.after:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):  # children come and go
                    if self.title in " ".join(process.cmdline()):
                        process.kill()
                        self.killed.append(process.pid)


def language_tree(place: Path, **given: Any) -> dict[str, Any]:
    """Return a sweep file of a small language model in the folder `place`, with the sections `given`."""
    return {
        "name": "tiny-language",
        "output": str(place / "results"),
        "model": {"id": f"local:{place / 'llama'}"},
        "data": {"datasets": [f"json:{place / 'rows'}"]},
        "budgets": {"lora_rank": [2]},
        "methods": {"lora": {}, "randlora": {}, "zero-shot": {}},
        "search": {"trials": 2, "rerun_rates": 0, "rerun_seeds": 0},
        "confirm": {"seeds": 2},
        "train": {"epochs": 2, "global_batch_size": 16},
        "keep": {"adapters": "confirm"},
    } | given
