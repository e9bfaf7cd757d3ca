"""What the engine costs: no-op trials through the whole of it, resuming them, and queries over many rows.

python benchmarks/engine.py --quick            # a minute or two
python benchmarks/engine.py --cells 400        # 10,000 trials
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.queries import run_sql
from analysis.schemas import SCHEMAS, schema
from sweeps.engine import run
from tests.fakes import TRIAL, FakeCell, FakeConfirm, FakePlan, FakeResources, FakeSearch, FakeTrain, fake_plan

QUERIES = {
    "count by method": "select method, count(*) as n, avg(val_score) as v from trials group by all order by all",
    "best trial of each cell": "select cell_id, max(val_score) as v from trials group by all order by v desc limit 20",
    "one cell": "select * from trials where cell_id = 'cell-7' limit 100",
}


def sweep_plan(folder: Path, cells: int) -> FakePlan:
    """Cells of 25 no-op trials: 16 rates, the best two on two further seeds, five seeds to confirm."""
    search = FakeSearch(trials=20, sampler="qmc", rerun_rates=2, rerun_seeds=2)
    made = tuple(FakeCell("lora", 1000 + i) for i in range(cells))
    more = {"confirm": FakeConfirm((0, 1, 2, 3, 4)), "train": FakeTrain(epochs=1)}
    return fake_plan(folder, made, search=search, resources=FakeResources(concurrent=2), **more)


class Memory:
    """A display that shows nothing and notes the driver's resident memory as trials finish."""

    def __init__(self) -> None:
        self.points: list[tuple[int, int, float]] = []
        self._process = psutil.Process()
        self._last = 0.0

    def start(self, state: Any) -> None: ...

    def note(self, text: str) -> None: ...

    def stop(self, state: Any) -> None:
        self._note(state)

    def update(self, state: Any) -> None:
        if time.monotonic() - self._last > 1.0:
            self._note(state)

    def _note(self, state: Any) -> None:
        self._last = time.monotonic()
        done = sum(len(cell.rows) for cell in state.cells.values())
        self.points.append((done, self._process.memory_info().rss, self._last))


def scale(cells: int) -> dict[str, float]:
    """No-op trials through Tune, broker, lanes, journal and tables; then the same command again."""
    folder = Path(tempfile.mkdtemp(prefix="sweeps-engine-"))
    try:
        plan, memory = sweep_plan(folder / "r", cells), Memory()
        begun = time.perf_counter()
        summary = run(plan, trial=TRIAL, progress=memory)
        seconds = time.perf_counter() - begun
        assert summary.complete, summary
        # the first fifth loads libraries and warms caches: growth and rate are of the rest
        steady = [p for p in memory.points if p[0] >= summary.finished / 5]
        (first, low, at), (last, high, end) = steady[0], steady[-1]
        begun = time.perf_counter()
        again = run(plan, trial=TRIAL, progress=False)
        resume = time.perf_counter() - begun
        assert (again.finished, again.skipped) == (0, summary.finished)
        files = [p for p in (folder / "r").rglob("*") if p.is_file()]
        return {
            "cells": cells,
            "trials": summary.finished,
            "seconds, Ray's start and end included": seconds,
            "trials a second, steady": (last - first) / (end - at),
            "driver memory, bytes a finished trial": (high - low) / (last - first),
            "files in the store": len(files),
            "bytes in the store a trial": sum(p.stat().st_size for p in files) / summary.finished,
            "seconds to resume": resume,
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def queries(rows: int, rounds: int = 7) -> dict[str, float]:
    """Seconds of queries over a trials table of so many rows, in memory as an opened store holds it; medians."""
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {}
    for field in schema("trials"):
        columns[field.name] = pa.nulls(rows, field.type)
    cells = rng.integers(0, 400, rows)
    columns |= {
        "sweep": pa.array(np.full(rows, "s")),
        "trial_id": pa.array(np.char.mod("%016x", np.arange(rows))),
        "cell_id": pa.array(np.char.add("cell-", cells.astype(str))),
        "attempt": pa.array(np.ones(rows, np.int64)),
        "stage": pa.array(np.where(rng.random(rows) < 0.8, "TUNE", "CONFIRM")),
        "method": pa.array(np.array(["lora", "randlora", "vera", "nola"])[cells % 4]),
        "status": pa.array(np.full(rows, "finished")),
        "val_score": pa.array(rng.random(rows)),
        "lr": pa.array(10 ** rng.uniform(-5, -1, rows)),
    }
    tables = {name: shape.empty_table() for name, shape in SCHEMAS.items()}
    tables["trials"] = pa.table(columns, schema=schema("trials"))
    found = {}
    for name, query in QUERIES.items():
        took = []
        for _ in range(rounds):
            begun = time.perf_counter()
            assert run_sql(tables, query).num_rows
            took.append(time.perf_counter() - begun)
        found[f"seconds: {name}"] = statistics.median(took)
    return {"rows": rows, **found}


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure and print; returns the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="8 cells, 100,000 rows")
    parser.add_argument("--cells", type=int, default=400, help="cells of 25 trials")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", choices=("scale", "queries"))
    parser.add_argument("--json", type=Path, help="file for the numbers")
    asked = parser.parse_args(arguments)
    cells, rows = (8, 100_000) if asked.quick else (asked.cells, asked.rows)
    found = {}
    if asked.only != "scale":
        found["queries"] = queries(rows)
    if asked.only != "queries":
        found["scale"] = scale(cells)
    for part, numbers in found.items():
        print(part)
        for name, value in numbers.items():
            print(f"  {name}: {value:,.4g}")
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
