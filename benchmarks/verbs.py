"""Processor seconds of the verbs that read results: `python benchmarks/verbs.py` prints docs/performance.md's table.

The folders are the committed league, and one that is made up (`tests.analysis.synthetic`): 200 cells with 25 trials
each, unless `--cells` says another number. Each verb runs in a process of its own, which starts anew: the least of
`--rounds` is printed, with what the processes that it starts take. `--verbs best,status` measures these alone.
"""

from __future__ import annotations

import argparse
import os
import resource
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
"""Of stage CONFIRM, besides four rates and two re-runs: 25 trials of a cell."""


def made(folder: Path, cells: int) -> Path:
    """A made-up folder of about so many cells: every method at every budget, on as many data sets as that takes."""
    datasets = [f"folder:set{k}" for k in range(max(1, round(cells / len(METHODS) / len(BUDGETS))))]
    return make_results(folder, datasets=datasets, seeds=SEEDS, plan=dict.fromkeys(METHODS, BUDGETS))


def processor_seconds(words: list[str]) -> float:
    """User and system seconds of a verb in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", "from sweeps.cli.program import main; main()", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="*", default=[200], help="of the made-up folders (200)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed; the least counts (3)")
    parser.add_argument("--verbs", default=",".join(VERBS), help="which of them")
    asked = parser.parse_args()
    verbs = {name: VERBS[name] for name in asked.verbs.split(",")}
    with tempfile.TemporaryDirectory() as place:
        league = Path(place) / "league"
        league.symlink_to(ROOT / "docs" / "results" / "league")
        folders = [league, *(made(Path(place) / f"made{cells}", cells) for cells in asked.cells)]
        print(f"| trials | cells | {' | '.join(verbs)} |\n|---:|---:|{'---:|' * len(verbs)}")
        for folder in folders:
            store = open_store(folder)
            took = []
            for words in verbs.values():
                found = [word.replace("FOLDER", str(folder)) for word in words]
                rounds = 1 if "report" in words else asked.rounds
                took.append(min(processor_seconds(found) for _ in range(rounds)))
            sizes = [f"{store.table(name).num_rows:,}" for name in ("trials", "cells")]
            print(f"| {' | '.join([*sizes, *(f'{seconds:.1f}' for seconds in took)])} |", flush=True)


if __name__ == "__main__":
    main()
