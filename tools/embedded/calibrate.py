"""Measure whether capacity matters on the quickstart's task: validation scores and seconds by method and rate.

Usage::

    python -m tools.embedded.calibrate --lr lora=5e-3,1e-2 --lr full=3e-4,6e-4 --seeds 3 lora-1 lora-8 full

A cell is METHOD-R, a method at the budget LoRA-R (``lora-1``, ``randlora-8``), or ``full``. The package runs every
trial in stage TUNE, so no trial reads the test split.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sweeps.budget.solver import reference_budget, solve
from sweeps.spec.solution import Solution
from trainables.config import TrainSettings, TrialConfig
from trainables.models.shapes import target_shapes
from trainables.training.worker import run_trial

FIRST_SEED = 2_000_000  # neither TUNE nor CONFIRM uses these seeds
_WARM: dict[str, Any] = {}


@dataclass(frozen=True)
class Outcome:
    """The result of one trial.

    Attributes:
        score: validation score in percent.
        seconds_train, seconds_other: wall seconds of training and of everything else.
        seconds_cpu: CPU seconds of both.
        count: number of trained parameters.
    """

    cell: str
    lr: float
    seed: int
    score: float
    seconds_train: float
    seconds_other: float
    seconds_cpu: float
    count: int


def parts(cell: str) -> tuple[str, str]:
    """Return the method and the LoRA rank of a cell, "" if it has no rank: ``randlora-a-4`` is RandLoRA-a at LoRA-4."""
    method, _, rank = cell.rpartition("-")
    return (method, rank) if rank.isdecimal() else (cell, "")


def configure(cell: str, lr: float, seed: int, arguments: argparse.Namespace) -> TrialConfig:
    """Return the trial of one cell, rate and seed."""
    method, rank = parts(cell)
    capacities: tuple[tuple[str, int], ...] = ()
    budget = None
    if rank:
        shapes = target_shapes(arguments.model, arguments.targets, "vision")
        budget = reference_budget(shapes, int(rank))
        solved = solve(method, shapes, budget, options=arguments.options.get(method, {}))
        if not isinstance(solved, Solution):
            raise SystemExit(f"{cell}: {solved.reason}")
        capacities = tuple(solved.capacities.items())
    return TrialConfig(
        stage="TUNE", cell_id=cell, model=arguments.model, adapt="vision", targets=(), dataset=arguments.dataset,
        train_size=arguments.train_size, method=method, capacities=capacities, budget=budget, lr=lr,
        options=tuple(arguments.options.get(method, {}).items()), data_seed=seed, init_seed=seed, basis_seed=seed,
        train=TrainSettings(epochs=arguments.epochs, global_batch_size=arguments.batch),
    )  # fmt: skip


def run(config: TrialConfig) -> Outcome:
    """Run one trial on one core of this process."""
    torch.set_num_threads(1)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        *_, last = run_trial(config, warm=_WARM, directory=Path(folder))
    result = last["result"]
    assert config.lr is not None
    return Outcome(
        cell=config.cell_id,
        lr=config.lr,
        seed=config.data_seed,
        score=100 * result["val_score"],
        seconds_train=result["seconds_train"],
        seconds_other=result["seconds_eval"] + result["seconds_setup"],
        seconds_cpu=time.process_time() - began,
        count=result["adapter_params"],
    )


def table(outcomes: list[Outcome]) -> Iterator[str]:
    """Return Markdown rows, one for each cell and rate, with the best rate of a cell in bold."""
    yield "| cell | parameters | lr | mean | sd | training, s | other, s | CPU, s |"
    yield "|---|---|---|---|---|---|---|---|"
    for cell in dict.fromkeys(o.cell for o in outcomes):
        by_rate: dict[float, list[Outcome]] = {}
        for o in outcomes:
            if o.cell == cell:
                by_rate.setdefault(o.lr, []).append(o)
        means = {lr: statistics.mean(o.score for o in part) for lr, part in by_rate.items()}
        best = max(means, key=lambda lr: means[lr])
        for lr, part in sorted(by_rate.items()):
            deviation = f"{statistics.stdev(o.score for o in part):.2f}" if len(part) > 1 else ""
            mark = "**" if lr == best else ""
            train = statistics.median(o.seconds_train for o in part)
            other = statistics.median(o.seconds_other for o in part)
            yield (
                f"| {cell} | {part[0].count:,} | {lr:g} | {mark}{means[lr]:.1f}{mark} | {deviation} "
                f"| {train:.1f} | {other:.2f} | {statistics.median(o.seconds_cpu for o in part):.1f} |"
            )


def pairs(text: str) -> tuple[str, str]:
    """Parse `lora=1e-3,1e-2` into ("lora", "1e-3,1e-2")."""
    key, _, value = text.partition("=")
    return key, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="+")
    parser.add_argument("--lr", type=pairs, action="append", required=True, help="METHOD=RATE,RATE or CELL=RATE,RATE")
    parser.add_argument("--option", type=pairs, action="append", default=[], help="METHOD=JSON of its options")
    parser.add_argument("--model", default="embedded:tiny-clip")
    parser.add_argument("--dataset", default="embedded:fashion-mnist-turned")
    parser.add_argument("--targets", nargs="*", default=["attn.in_proj_weight"])
    parser.add_argument("--train-size", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    arguments.options = {method: json.loads(text) for method, text in arguments.option}
    rates = {key: [float(v) for v in value.split(",")] for key, value in arguments.lr}
    configs = [
        configure(cell, lr, FIRST_SEED + seed, arguments)
        for cell in arguments.cells
        for lr in rates.get(cell, rates.get(parts(cell)[0], []))
        for seed in range(arguments.seeds)
    ]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        outcomes = []
        for outcome in pool.map(run, configs):
            print(outcome, file=sys.stderr, flush=True)
            outcomes.append(outcome)
    print("\n".join(table(outcomes)))


if __name__ == "__main__":
    main()
