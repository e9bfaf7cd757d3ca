"""Measure the processor seconds of the verbs that read results.

`python benchmarks/verbs.py` prints docs/performance.md's table. The verbs read the committed league and a made-up
folder (`tests.analysis.synthetic`), which has 200 cells of 25 trials each. `--cells` makes folders of other sizes. Each
verb runs `--rounds` times, every time in a new process, and the lowest number of seconds is printed. `report` runs only
once. The seconds include those of processes that the verb itself starts. `--verbs best,status` measures only these two.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from analysis.store.store import open_store  # noqa: E402
from tests.analysis.synthetic import make_results  # noqa: E402

VERBS = {
    "best": ["best", "FOLDER"],
    "compare": ["compare", "FOLDER"],
    "status": ["status", "FOLDER"],
    "query": ["query", "FOLDER", "select method, avg(test_score) from trials group by all order by all"],
    "report": ["report", "FOLDER"],
}
METHODS = ("lora", "randlora", "dora", "nola", "adalora")
BUDGETS = ("lora-1", "lora-2", "lora-4", "lora-8", "lora-16")
SEEDS = 19
"""Seeds of stage CONFIRM. With four rates and two re-runs, a cell has 25 trials."""


def made(folder: Path, cells: int) -> Path:
    """Write a made-up results folder of about `cells` cells: every method at every budget, on enough data sets.

    All rows are in Parquet parts, as when a sweep has ended.
    """
    datasets = [f"folder:set{k}" for k in range(max(1, round(cells / len(METHODS) / len(BUDGETS))))]
    return make_results(folder, datasets=datasets, seeds=SEEDS, seal=1.0, plan=dict.fromkeys(METHODS, BUDGETS))


def processor_seconds(words: list[str]) -> float:
    """Run `sweeps` with these words in a new process, and return the processor seconds (user and system) it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", "from sweeps.cli.program import main; main()", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="*", default=[200], help="of the made-up folders (200)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often each verb but report is timed; the lowest counts (3)"
    )
    parser.add_argument("--verbs", default=",".join(VERBS), help="the verbs to measure, with commas between them (all)")
    asked = parser.parse_args()
    verbs = {name: VERBS[name] for name in asked.verbs.split(",")}
    with tempfile.TemporaryDirectory() as place:
        league = Path(place) / "league"
        shutil.copytree(ROOT / "docs" / "results" / "league", league)  # `report` writes into it
        folders = [league, *(made(Path(place) / f"made{cells}", cells) for cells in asked.cells)]
        print(f"| trials | cells | {' | '.join(verbs)} |\n|---:|---:|{'---:|' * len(verbs)}")
        for folder in folders:
            store = open_store(folder)
            took = []
            for words in verbs.values():
                command = [word.replace("FOLDER", str(folder)) for word in words]
                rounds = 1 if "report" in words else asked.rounds
                took.append(min(processor_seconds(command) for _ in range(rounds)))
            sizes = [f"{store.table(name).num_rows:,}" for name in ("trials", "cells")]
            print(f"| {' | '.join([*sizes, *(f'{seconds:.1f}' for seconds in took)])} |", flush=True)


if __name__ == "__main__":
    main()
