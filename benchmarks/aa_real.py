"""Count how often real sweeps call a method different from itself: LoRA against LoRA, both tuned by the engine.

    python benchmarks/aa_real.py --tables 100     # continues where it stopped, in results/aa-real-split
    python benchmarks/aa_real.py --tables 200 --rows docs/results/aa-real.parquet   # also uses the tables in this file
    python benchmarks/aa_real.py --quick          # 2 tiny tables, to see that it runs

Each table is a separate sweep on the embedded model. It has two arms, which are one method at one budget under two
names. Each arm has its own search of learning rates: 5 rates on one seed, then the best 2 on 2 more seeds. It trains
the chosen rate on 10 confirming seeds. The arms are compared as `sweeps best` compares methods, on the first 3, the
first 5 and all 10 of these seeds.

At one seed the arms see the same images in the same order, as two methods do, and have different initial values. Each
table has its own seeds, also for tuning. It also has its own split: the 8,000 images of the task are dealt anew into
training, validation and test images. If all tables shared one split, the printed share would depend on that split,
because rates may differ more on its test images than on its validation images.

The script prints the share of tables whose arms are called different, with its exact binomial interval. It does so for
the verdict that accounts for the choice of rates, and for the one that takes the chosen rates as given.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent))  # lanes import this file by name
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis import Store, open_store
from analysis.store.tables import write_part
from analysis.verdict.comparisons import comparisons
from benchmarks.calibration import proportion_interval
from sweeps.backends.ray.backend import using
from sweeps.backends.ray.pool import Pool
from sweeps.engine.run import run
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from trainables.config import TrialConfig
from trainables.data.registry import EMBEDDED
from trainables.training.worker import run_trial

Row = dict[str, Any]

ARMS = ("first", "second")
TABLE = 10_000_000
"""Distance between the seeds of two tables. It is larger than any seed that the engine uses."""
ARM = 5_000_000
"""Distance between the seeds of the two arms of a table."""
_NAME = re.compile(rf"({'|'.join(ARMS)})-(\d+)_")
TASK = EMBEDDED / "fashion-mnist-turned"
DIFFERENT = ("higher", "lower")
SEEDS = (3, 5, 10)
"""The numbers of confirming seeds on which the arms are compared."""


def shifted(trial: TrialConfig, **more: Any) -> Generator[Row, None, None]:
    """Run a trial on seeds of its table. The arms have different initial values and the same data."""
    match = _NAME.match(trial.cell_id)
    if match is None:
        raise ValueError(f"cell {trial.cell_id!r} is not of an A/A table")
    arm, table = ARMS.index(match[1]), int(match[2])
    shift = TABLE * (table + 1)
    seeds = {
        "data_seed": trial.data_seed + shift,
        "init_seed": trial.init_seed + shift + arm * ARM,
        "basis_seed": trial.basis_seed + shift + arm * ARM,
    }
    yield from run_trial(trial.model_copy(update=seeds), **more)


def split_of(number: int, folder: Path) -> Path:
    """Return the folder of a table's images."""
    return folder / f"split-{number:04d}"


def deal(number: int, folder: Path) -> None:
    """Deal the task's images into a training and a test set for one table, with the sizes of the original sets."""
    parts = {name: pq.read_table(TASK / f"{name}.parquet") for name in ("train", "test")}
    images = pa.concat_tables(parts.values())
    order = np.random.default_rng(number).permutation(len(images))
    at = len(parts["train"])
    target = split_of(number, folder)
    target.mkdir(exist_ok=True)
    shutil.copy(TASK / "dataset.json", target)
    for name, rows in (("train", order[:at]), ("test", order[at:])):
        pq.write_table(images.take(rows), target / f"{name}.parquet")


def table_spec(number: int, folder: Path, quick: bool) -> SweepSpec:
    """Return the sweep of one table: the quickstart's task with a fifth of its images and a quarter of the epochs."""
    names = [f"{arm}-{number:04d}" for arm in ARMS]
    return SweepSpec.parse(
        {
            "name": f"aa-{number:04d}",
            "output": str(folder / f"aa-{number:04d}"),
            "model": {"id": "embedded:tiny-clip", "adapt": "vision", "targets": ["attn.in_proj_weight"]},
            "data": {"datasets": [f"parquet:{split_of(number, folder)}"], "train_size": ["2-shot" if quick else 0.1]},
            "budgets": {"lora_rank": [4]},
            "methods": {name: {"method": "lora", "lr": 2e-2} for name in names},
            "search": {"sampler": "grid", "trials": 9, "rerun_rates": 2, "rerun_seeds": 2, "lr": {"decades": 1.2}},
            "confirm": {"seeds": max(SEEDS), "max_seeds": max(SEEDS)},
            "train": {"epochs": 1, "global_batch_size": 20 if quick else 32},
        }
    )


def table_rows(number: int, folder: Path) -> list[Row]:
    """Return the verdicts of a finished table on its first confirming seeds, and the rates that its arms chose."""
    store, rows = open_store(folder), []
    rates = {r["cell_id"]: r["lr"] for r in store.table("chosen").to_pylist()}
    keys = ("n", "difference", "low", "high", "sd", "p", "verdict", "choice_sd", "p_given_rates", "verdict_given_rates")
    for seeds in SEEDS:
        with tempfile.TemporaryDirectory() as temporary:
            fewer = open_store(_first_seeds(store, Path(temporary), seeds))
            (row,) = comparisons(fewer, baseline=f"{ARMS[0]}-{number:04d}").to_pylist()
            means = fewer.sql(
                "select avg(test_score) as test, avg(val_score) as val from confirmed group by method order by method"
            ).to_pylist()
        named = {"table": number, "seeds": seeds, **{k: row[k] for k in keys}}
        named |= {"means": [m["test"] for m in means], "validation": [m["val"] for m in means]}
        rows.append(named | {"rates": [rates[c] for c in sorted(rates)]})
    return rows


def _first_seeds(store: Store, folder: Path, seeds: int) -> Path:
    """Return the store of a table with only its first `seeds` confirming seeds."""
    (folder / "tables").mkdir()
    cells = [row | {"seeds": None} for row in store.table("cells").to_pylist()]
    kept = [r for r in store.table("trials").to_pylist() if r["stage"] == "TUNE" or r["slot"] < seeds]
    for name, rows in (("cells", cells), ("choices", store.table("choices").to_pylist()), ("trials", kept)):
        write_part(folder, name, rows)
    return folder


def summary(rows: Sequence[Row]) -> Row:
    """Return the share of tables with a false difference by number of seeds, with exact 95 % intervals."""
    results: Row = {"tables": len({r["table"] for r in rows})}
    for seeds in SEEDS:
        seed_rows = [r for r in rows if r["seeds"] == seeds]
        results[seeds] = {"not_testable": sum(r["verdict"].startswith("not testable") for r in seed_rows)}
        for key in ("verdict_given_rates", "verdict"):
            false = sum(r[key] in DIFFERENT for r in seed_rows)
            false_differences = {
                "false": false,
                "share": false / len(seed_rows),
                "interval": proportion_interval(false, len(seed_rows)),
            }
            for name, same in (("same_rate", True), ("other_rate", False)):
                part = [r for r in seed_rows if (len(set(r["rates"])) == 1) is same]
                false_differences[name] = [sum(r[key] in DIFFERENT for r in part), len(part)]
            results[seeds][key] = false_differences
    results["sd_of_difference"] = (sum(r["difference"] ** 2 for r in rows) / len(rows)) ** 0.5
    results["mean_score"] = sum(sum(r["means"]) / 2 for r in rows) / len(rows)
    cells: dict[float, list[tuple[float, float]]] = {}
    for r in rows:
        if r["seeds"] == max(SEEDS):
            for rate, *scores in zip(r["rates"], r["validation"], r["means"], strict=True):
                cells.setdefault(rate, []).append((scores[0], scores[1]))
    results["by_rate"] = [
        {"lr": rate, "cells": len(means), "validation": float(mean[0]), "test": float(mean[1])}
        for rate, means in sorted(cells.items())
        for mean in [np.mean(means, axis=0)]
    ]
    return results


def report(results: Row) -> str:
    """Return the summary as text."""
    lines = [f"{results['tables']} tables of LoRA against LoRA, mean test score {100 * results['mean_score']:.1f} %"]
    for seeds in SEEDS:
        for key, name in (("verdict_given_rates", "given the chosen rates"), ("verdict", "with the choice of rates")):
            false = results[seeds][key]
            low, high = false["interval"]
            same, other = false["same_rate"], false["other_rate"]
            lines.append(
                f"{seeds:2d} seeds, {name:26s} {false['false']:3d} false = {100 * false['share']:.1f} % "
                f"[{100 * low:.1f}, {100 * high:.1f}]; arms at one rate {same[0]} of {same[1]}, at two {other[0]} of "
                f"{other[1]}"
            )
    for r in results["by_rate"]:
        lines.append(
            f"rate {r['lr']:.3g}: {r['cells']} cells, mean validation score {100 * r['validation']:.1f} %, "
            f"test {100 * r['test']:.1f} %"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the tables that are missing, then print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first table, to share the work")
    parser.add_argument("--results", type=Path, default=Path("results/aa-real-split"))
    parser.add_argument("--rows", type=Path, default=None, help="Parquet file that keeps the rows of finished tables")
    parser.add_argument("--minutes", type=float, default=None, help="begin no further table after this many minutes")
    parser.add_argument("--quick", action="store_true", help="2 tiny tables in a temporary folder")
    parser.add_argument("--json", type=Path, default=None, help="write the summary there too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if arguments.quick else arguments.results.absolute()
        numbers = range(2) if arguments.quick else range(arguments.first, arguments.first + arguments.tables)
        known_rows = (
            pq.read_table(arguments.rows).to_pylist() if arguments.rows is not None and arguments.rows.exists() else []
        )
        done = {row["table"] for row in known_rows}
        rows = known_rows + tables(folder, [n for n in numbers if n not in done], arguments.quick, arguments.minutes)
    if arguments.rows is not None and rows:
        pq.write_table(pa.Table.from_pylist(sorted(rows, key=lambda r: (r["table"], r["seeds"]))), arguments.rows)
    if not rows:
        sys.exit("no table was finished; run the same command again to continue")
    results = summary(rows)
    print(report(results))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def tables(folder: Path, numbers: Sequence[int], quick: bool, minutes: float | None) -> list[Row]:
    """Return the rows of these tables. Tables that are not finished are run."""
    folder.mkdir(parents=True, exist_ok=True)
    specs = {number: table_spec(number, folder, quick) for number in numbers}
    missing = [n for n, spec in specs.items() if _unfinished(spec)]
    begun = time.monotonic()
    if missing:
        with Pool(specs[numbers[0]].resources, folder / "ray") as pool:
            for number in missing:
                if minutes is not None and time.monotonic() - begun > 60 * minutes:
                    break
                deal(number, folder)
                result = run(
                    Plan.from_spec(specs[number]), trial="aa_real:shifted", progress=False, backend=using(pool)
                )
                if not result.complete:
                    print(f"table {number}: stopped ({result.failed} failed trials)", file=sys.stderr)
                    break
                shutil.rmtree(split_of(number, folder))
    return [row for n, spec in specs.items() if not _unfinished(spec) for row in table_rows(n, spec.folder)]


def _unfinished(spec: SweepSpec) -> bool:
    if not (spec.folder / "tables" / "trials").is_dir():
        return True
    finished = open_store(spec.folder).sql("select count(*) as n from confirmed").to_pylist()
    return bool(finished[0]["n"] < len(ARMS) * len(spec.confirm.seeds))


if __name__ == "__main__":
    main()
