"""Measure what the engine costs per trial, on the quickstart, with ten thousand trials, and in SQL queries.

    python benchmarks/engine.py                       # all sections: about an hour on two cores
    python benchmarks/engine.py --quick               # fewer trials and rounds: about ten minutes
    python benchmarks/engine.py --only overhead many  # these sections; --json FILE keeps all numbers

    overhead    seconds of a trial that trains nothing, against a TorchTrainer per Tune trial and against Tune functions
    quickstart  trials an hour, against Ray Tune with PEFT and a process per trial
    many        10,000 trials in 400 cells, interrupted halfway: their rate, memory, files and resumption
    queries     SQL over a million rows

The engine and its peers run in the same rounds, in shuffled order, each in a separate process. Ratios are taken inside
a round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]


def process(script: str, *arguments: object) -> dict[str, Any]:
    """Return the JSON that a benchmark's process prints last. Its Ray is separate from other local sessions."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, HERE))), "OMP_NUM_THREADS": "1"}
    environment.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would leave its workers to whatever else runs
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    results: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return results


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    from engine_overhead import QUICK, TRIALS, report

    counts = {name: options.trials or n for name, n in (QUICK if options.quick else TRIALS).items()}
    order, shuffle, rounds = list(counts), random.Random(0), []
    for _ in range(options.rounds or (1 if options.quick else 3)):
        shuffle.shuffle(order)
        rounds.append({name: process("engine_overhead.py", name, counts[name])["seconds"] for name in order})
    return report(rounds)


def quickstart(options: argparse.Namespace) -> dict[str, Any]:
    from engine_quickstart import SIDES, report

    order, shuffle, rounds = list(SIDES), random.Random(0), []
    for _ in range(options.rounds or (1 if options.quick else 3)):
        shuffle.shuffle(order)
        rounds.append({name: process("engine_quickstart.py", name, int(options.quick)) for name in order})
    return report(rounds)


def many(options: argparse.Namespace) -> dict[str, Any]:
    from engine_many import report

    trials = options.trials or (1_000 if options.quick else 10_000)
    return report(process, cells=max(1, trials // 25), trials=trials)


def queries(options: argparse.Namespace) -> dict[str, Any]:
    from queries import queries as measure

    results = measure(100_000 if options.quick else 1_000_000)
    for name, value in results.items():
        print(f"  {name}: {value:,.4g}")
    return results


SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "overhead": overhead,
    "quickstart": quickstart,
    "many": many,
    "queries": queries,
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION",
                        help=f"some of {', '.join(SECTIONS)}")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="fewer trials, one round")
    parser.add_argument("--rounds", type=int, help="rounds of the sections with a peer (3; 1 with --quick)")
    parser.add_argument("--trials", type=int, help="trials of `many` and of each side of `overhead`")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    results: dict[str, Any] = {"cores": os.cpu_count()}
    for name in dict.fromkeys(options.only):
        print(f"{name}:", flush=True)
        results[name] = SECTIONS[name](options)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
