"""Compare a worker that packs K trials of a cell with one that runs the same trials one by one, in trials per hour.

    python benchmarks/packing.py            # an epoch of 43 steps of 64 images, K = 2, 4, 8, 5 rounds
    python benchmarks/packing.py --quick    # 11 steps, 3 rounds
    python benchmarks/packing.py --sweep 4  # whole sweeps of two cells, resources.pack = 4 against 1
    python benchmarks/packing.py --text llama --batch 8    # or gpt2, or bert, which has dropout: made on the spot

The trials use the embedded CLIP with the quickstart's data and weights, at the budget LoRA-8. They differ in their
learning rates. A trial includes its set-up, training and validation. The model, the data and the decoded images are
cached on both sides, as in a lane. In each round the same K trials run packed and one by one, in shuffled order. The
script prints the median of the ratios inside rounds, in process time on one thread on a CPU and in wall time on a GPU.

These numbers leave out lanes and Ray Tune. `--sweep` includes them, but not the start of Ray. It measures the wall time
of LoRA and RandLoRA with 6 (TUNE) + 5 (CONFIRM) trials each, on two workers whose caches last from sweep to sweep.

With `--text`, models with random weights learn made-up questions or sentences of 20 to 50 words. Trials then also
differ in their data seeds, as seeds of CONFIRM do. So each trial has its own batches, padded to the longest of the
pack. `padded` is the number of tokens that a pack computes, divided by that of separate trials. With `--same-data` only
the rates differ, as in TUNE.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from contenders import RETAIN, restart_with, summary
from small_texts import make_bert, make_gpt2, make_llama

from sweeps import Plan, SweepSpec
from sweeps.backends.ray.backend import using
from sweeps.backends.ray.pool import Pool
from sweeps.budget.solver import reference_budget, solve
from sweeps.engine.run import run
from sweeps.spec.solution import Solution
from trainables.config import EvaluateSettings, TrainSettings, TrialConfig
from trainables.models.shapes import default_targets, target_shapes
from trainables.packing.together import run_pack
from trainables.runtime import pick_device
from trainables.tasks.lane_cache import LaneCache
from trainables.tasks.make import make_task
from trainables.tasks.task import Parts
from trainables.training.worker import run_trial

MODEL, DATA, TARGETS = "embedded:tiny-clip", "embedded:fashion-mnist-turned", ("attn.in_proj_weight",)
METHODS = ("lora", "randlora", "vera")
SIZES = (2, 4, 8)
POOL = 5_400  # training images of the set, without its validation images


@dataclass(frozen=True)
class Work:
    """The model and data that trials train on: a CLIP's image tower on images, or a model of text on texts."""

    model: str
    data: str
    share: float
    batch: int
    epochs: int
    text: bool = False
    own_data: bool = False

    def trials(self, method: str, count: int) -> list[TrialConfig]:
        """Return trials with different rates, and with different data seeds if `own_data` is set.

        VeRA does not reach the budget, so it trains its nearest number of parameters.
        """
        adapt: Any = "all" if self.text else "vision"
        targets = tuple(default_targets(self.model)) if self.text else TARGETS
        shapes = target_shapes(self.model, targets, adapt)
        answer = solve(method, shapes, reference_budget(shapes, 8), "auto", tolerance=None)
        if not isinstance(answer, Solution):
            raise SystemExit(f"{method}: {answer.reason}")
        shared = TrialConfig(
            stage="TUNE", cell_id="benchmark", model=self.model, adapt=adapt, targets=targets, dataset=self.data,
            train_size=self.share, method=method, capacities=tuple(answer.capacities.items()), lr=1e-3,
            data_seed=1, init_seed=2, basis_seed=3,
            train=TrainSettings(epochs=self.epochs, global_batch_size=self.batch),
            evaluate=EvaluateSettings(validation_rows=16) if self.text else EvaluateSettings(),
        )  # fmt: skip
        own = [{"lr": 1e-3 * (1 + k)} | ({"data_seed": 1 + k} if self.own_data else {}) for k in range(count)]
        return [shared.model_copy(update=given) for given in own]

    def padded(self, trials: list[TrialConfig]) -> float:
        """Return the tokens that a pack computes, with padding, divided by those of separate trials (1 for images)."""
        if not self.text:
            return 1.0
        lane = LaneCache({}, pick_device())
        loaded = lane.model(self.model)
        tasks = [
            make_task(Parts(trial=t, lane=lane, loaded=loaded, autocast=contextlib.nullcontext, precision="fp32"))
            for t in trials
        ]
        widths = [[t.width(b) or 1 for b in t.batches(1)] for t in tasks]
        return sum(max(step) * len(step) for step in zip(*widths, strict=True)) / sum(map(sum, widths))


def work_of(options: argparse.Namespace, folder: Path, samples: int) -> Work:
    """Return the work of the command line. A model of text is made in `folder`."""
    if options.text is None:
        return Work(options.model, DATA, min(1.0, samples / POOL), options.batch, options.epochs)
    make = {"llama": make_llama, "gpt2": make_gpt2, "bert": make_bert}[options.text]
    model, data = make(folder, options.width, options.layers, samples)
    return Work(model, data, 0.9, options.batch, options.epochs, text=True, own_data=not options.same_data)


class Sides:
    """The two ways to run some trials on one worker, whose caches last from call to call."""

    def __init__(self) -> None:
        self._warm: dict[str, Any] = {}
        self._clock = time.perf_counter if pick_device().type == "cuda" else time.process_time
        self.ways: dict[str, Callable[[list[TrialConfig]], list[dict[str, Any]]]] = {
            "packed": self._packed,
            "alone": self._alone,
        }

    def _packed(self, trials: list[TrialConfig]) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            places = [Path(folder) / str(k) for k in range(len(trials))]
            *_, last = run_pack(trials, warm=self._warm, directories=places, keep=[False] * len(trials))
        return [last[k] for k in range(len(trials))]  # type: ignore[misc]

    def _alone(self, trials: list[TrialConfig]) -> list[dict[str, Any]]:
        reports = []
        for trial in trials:
            with tempfile.TemporaryDirectory() as folder:
                *_, last = run_trial(trial, warm=self._warm, directory=Path(folder))
            reports.append(last)
        return reports

    def time(self, way: str, trials: list[TrialConfig]) -> tuple[float, list[float]]:
        """Return the seconds of all trials, and their last losses."""
        begun = self._clock()
        reports = self.ways[way](trials)
        return self._clock() - begun, [r["train_loss"] for r in reports]


def compare(sides: Sides, trials: list[TrialConfig], rounds: int) -> dict[str, Any]:
    """Time both ways in rounds. The first round warms up, and checks that both come to the same losses."""
    shuffle, order = random.Random(0), list(sides.ways)
    quotients, hours = [], []
    for number in range(rounds + 1):
        shuffle.shuffle(order)
        time_by_way = {way: sides.time(way, trials) for way in order}
        (packed, losses), (alone, expected) = time_by_way["packed"], time_by_way["alone"]
        far = max(abs(a - b) / b for a, b in zip(losses, expected, strict=True))
        if far > 1e-2:
            raise SystemExit(f"{trials[0].method}: packed losses {losses}, alone {expected}")
        if number:
            quotients.append(alone / packed)
            hours.append(3600 * len(trials) / alone)
    return {"ratio": summary(quotients), "alone_per_hour": summary(hours)}


def plan_of(folder: Path, pack: int, train_size: float, epochs: int) -> Plan:
    """Return the plan of the quickstart's LoRA and RandLoRA at the budget LoRA-8."""
    tree = {
        "name": "packing",
        "output": str(folder),
        "model": {"id": MODEL, "adapt": "vision", "targets": list(TARGETS)},
        "data": {"datasets": [DATA], "train_size": [train_size]},
        "budgets": {"lora_rank": [8]},
        "methods": {"lora": {"lr": 1e-2}, "randlora": {"lr": 5e-3}},
        "search": {"trials": 6, "rerun_rates": 2, "rerun_seeds": 1},
        "confirm": {"seeds": 5},
        "train": {"epochs": epochs, "global_batch_size": 64},
        "resources": {"pack": pack, "concurrent": 2},
    }
    return Plan.from_spec(SweepSpec.parse(tree))


def whole_sweeps(pack: int, train_size: float, epochs: int, rounds: int) -> dict[str, float]:
    """Time sweeps with packs and without, in shuffled order. The first round warms up and is not counted."""
    shuffle, order, ratios = random.Random(0), [1, pack], []
    with tempfile.TemporaryDirectory() as folder:
        resources = plan_of(Path(folder), 1, train_size, epochs).spec.resources
        with Pool(resources, Path(folder) / "ray") as pool:
            for number in range(rounds + 1):
                shuffle.shuffle(order)
                spent = {}
                for size in order:
                    plan = plan_of(Path(folder) / f"{number}-{size}", size, train_size, epochs)
                    begun = time.perf_counter()
                    if not run(plan, progress=False, backend=using(pool)).complete:
                        raise SystemExit(f"a trial of the sweep with pack = {size} failed")
                    spent[size] = time.perf_counter() - begun
                if number:
                    ratios.append(spent[1] / spent[pack])
                    print(f"  one by one {spent[1]:.0f} s, packed {spent[pack]:.0f} s", flush=True)
    return summary(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="11 steps an epoch, 3 rounds")
    parser.add_argument("--rounds", type=int, help="kept rounds (5; 3 with --quick)")
    parser.add_argument("--images", type=int, help="images an epoch (2,700; 700 with --quick), or texts (128)")
    parser.add_argument("--batch", type=int, default=64, help="images or texts of a step")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--model", default=MODEL, help="a CLIP, such as local:DIR")
    parser.add_argument("--text", choices=("llama", "gpt2", "bert"), help="a model of text instead of a CLIP")
    parser.add_argument("--same-data", action="store_true", help="trials of text share their data seed")
    parser.add_argument("--width", type=int, default=128, help="of the model of text")
    parser.add_argument("--layers", type=int, default=4, help="of the model of text")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="trials of a pack")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--sweep", type=int, metavar="K", help="compare whole sweeps instead, pack = K against 1")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    options = parser.parse_args()
    restart_with(RETAIN)
    torch.set_num_threads(1)
    rounds = options.rounds or (3 if options.quick else 5)
    usual = (128, 128) if options.text else (700, 2700)
    samples = options.images or usual[0 if options.quick else 1]
    results: dict[str, Any] = {
        "torch": torch.__version__,
        "device": str(pick_device()),
        "batch": options.batch,
        "model": options.text or options.model,
    }
    if options.sweep:
        if options.text:
            parser.error("--sweep is of images alone")
        share = min(1.0, samples / POOL)
        ratio = results["sweep"] = whole_sweeps(options.sweep, share, options.epochs, rounds)
        spread = f"[{ratio['low']:.2f}, {ratio['high']:.2f}]"
        print(f"sweeps per hour, pack = {options.sweep} / pack = 1: {ratio['median']:.2f}  {spread}", flush=True)
    else:
        with tempfile.TemporaryDirectory() as folder:
            trials(options, work_of(options, Path(folder), samples), rounds, results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def trials(options: argparse.Namespace, work: Work, rounds: int, results: dict[str, Any]) -> None:
    """Time all methods and pack sizes of the command line, and add the ratios to `results`."""
    sides = Sides()
    print(f"trials per hour, packed / one by one; batches of {options.batch}, kept rounds: {rounds}", flush=True)
    for method in options.methods:
        for size in options.sizes:
            configs = work.trials(method, size)
            answer = compare(sides, configs, rounds) | {"padded": work.padded(configs)}
            results.setdefault(method, {})[str(size)] = answer
            ratio = answer["ratio"]
            spread = f"[{ratio['low']:.2f}, {ratio['high']:.2f}]"
            more = f"   tokens {answer['padded']:.2f}" if work.text else ""
            print(f"  {method:9} K = {size}   {ratio['median']:.2f}  {spread}{more}", flush=True)


if __name__ == "__main__":
    main()
