"""Time SQL queries over a large trials table: `python benchmarks/queries.py [--rows 1000000]`."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.store.schemas import SCHEMAS, schema
from analysis.store.sql.queries import run_sql

QUERIES = {
    "count by method": "select method, count(*) as n, avg(val_score) as v from trials group by all order by all",
    "best trial of each cell": "select cell_id, max(val_score) as v from trials group by all order by v desc limit 20",
    "one cell": "select * from trials where cell_id = 'cell-7' limit 100",
}


def queries(rows: int, rounds: int = 7) -> dict[str, float]:
    """Return the median seconds of queries over a trials table with this number of rows, in memory."""
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
    seconds = {}
    for name, query in QUERIES.items():
        took = []
        for _ in range(rounds):
            begun = time.perf_counter()
            assert run_sql(tables, query).num_rows
            took.append(time.perf_counter() - begun)
        seconds[f"seconds: {name}"] = statistics.median(took)
    return {"rows": rows, **seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    for name, value in queries(parser.parse_args().rows).items():
        print(f"{name}: {value:,.4g}")
