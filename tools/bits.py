"""Measure how many bits of random labels an adapter of one weight learns by heart in 80 epochs.

    python -m tools.bits RUNS.jsonl [JOBS]

It runs what is missing in RUNS.jsonl, JOBS runs at a time (2 by default), then prints the table and the tests.

The weight is `in_proj_weight` (576 x 192) of the last block of `embedded:tiny-clip`. Everything before it is frozen, so
the tokens that enter this block are computed once. Images of Fashion-MNIST, in four turns, get labels drawn at random
from 1,024 classes. The classifier is random and frozen, except for its scale s: its logits are s W z, where z are the
features of the block's class token, standardised by the mean and deviation that they have without an adapter, and W ~
N(0, 1 / features). The scale is trained beside the adapter's parameters. Without it an adapter would first have to make
the logits smaller. Whoever knows the trained adapter can code the labels in the sum of -log2 p(label) bits, instead of
log2(1,024) bits each. The difference is what the adapter has learned:

    bits = images * log2(classes) - sum of -log2 p(label)

Length: 192 runs of about 23 s of one core, and some with further rates; 45 minutes of 2 cores. It resumes.

Declared before a run of it:

    question    Does what an adapter holds follow its parameters, its degrees of freedom, or the rank of its update?
    cells       30: LoRA, DoRA, RandLoRA, RandLoRA-b, VeRA, NoLA, LoRA-XS, SVFT, and RandLoRA-a of rank 4, 16, 64 and
                192, at the parameters of LoRA of rank 1, 4 and 16 (768, 3,072 and 12,288), or as near as they come.
                RandLoRA-a of rank 4 has 828 degrees of freedom at 3,136 parameters and 1,016 at 12,348, of rank 16 it
                has 4,000 at 12,272. So parameters, degrees of freedom and rank differ
    rates       three, half a decade apart, around the centre that examples/rank.toml or examples/quickstart.toml has
                (LoRA's for methods that are in neither), and up to two more while the best one is at an edge. Seed 0
                chooses the rate by its bits. Seeds 1, 2 and 3 run it again: other images, labels, starts and bases.
                A cell's bits are the mean of these three
    first       log2 of RandLoRA's bits over LoRA's, mean over the three budgets: a t test over the three seeds, at 5 %,
                two-sided
    second      For each of the three candidates, log2(bits) = c + b log2(candidate) is fitted by least squares without
                the cells of one method, and predicts these. Bits "follow" the candidate with the smallest mean squared
                error if its squared errors are smaller than those of both others by a Wilcoxon signed-rank test over
                the cells (5 %, two-sided). Otherwise the test decides nothing. We chose the methods, so a result is
                about these, and other methods might give another one
    described   log2(bits) = c + a log2(degrees of freedom) + b log2(rank), with 95 % intervals over cells; the slope of
                log2(bits) on log2(rank) within RandLoRA-a, at equal degrees of freedom
    checks      LoRA and RandLoRA at each budget, at their chosen rates, on seed 1: with half of the images at the same
                number of steps, and for twice as many epochs. If bits change little with the images, the labels are
                enough. If they grow with the epochs, the bits are what 80 epochs teach, not all that could be held
    expected    RandLoRA about twice LoRA at 768 parameters, less at more parameters; degrees of freedom and rank both
                matter

Corrected and added after the results were known: VeRA and NoLA run only at LoRA-1's parameters, and RandLoRA-b only at
LoRA-4's (these are the 30 cells). The slope within RandLoRA-a has its final form: cells without redundant parameters,
and an intercept for each budget. The joint slopes are also printed without RandLoRA-a, and without DoRA.

What was seen before: about 20 runs by hand without a trained scale, with 2 to 256 classes, of LoRA and RandLoRA at the
parameters of LoRA-1 and LoRA-4. RandLoRA held 1.9 to 3.5 times what LoRA held at LoRA-1's, and 1.7 times at LoRA-4's.
Bits grew by 1.4 to 1.7 times when four times as many epochs ran. Of this program three runs of 100 epochs: LoRA at
LoRA-1 held 209 bits, RandLoRA-a of rank 4 held 265, and RandLoRA at LoRA-16 held 2,026.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from randlora import attach, get_method
from randlora.adapted.freedom import degrees_of_one
from sweeps.budget.solver import reference_budget, solve
from sweeps.spec.solution import Solution
from trainables.data.registry import load_dataset
from trainables.models.loading import load_model

MODEL = "embedded:tiny-clip"
TARGET = "block.attn.in_proj_weight"
SHAPE = (576, 192)
CLASSES = 1024
IMAGES = 1024
EPOCHS = 80
BATCH = 32
WARMUP = 0.05
SCALE_LR = 1e-2
STEP = math.sqrt(10)
"""The ratio of neighbouring rates."""
WIDEN = 2
SEEDS = (1, 2, 3)
BUDGETS = (1, 4, 16)
CENTRES = {
    "lora": 1e-2, "dora": 1e-2, "randlora": 5e-3, "randlora-b": 4e-3, "vera": 6e-2, "nola": 1.4e-2, "lora-xs": 1e-2,
    "svft": 5e-2, "randlora-a": 2.5e-3,
}  # fmt: skip
CANDIDATES = ("parameters", "freedom", "rank")
WORDS = {"parameters": "parameters", "freedom": "degrees of freedom", "rank": "rank"}
"""What the printed lines call a candidate."""


@dataclass(frozen=True)
class Cell:
    """One method at one budget.

    Attributes:
        option: the option `r` of RandLoRA-a and of NoLA, a rank; None for other methods.
        budget: a rank. The method trains as many parameters as LoRA of this rank, or as near to it as it can.
    """

    method: str
    option: int | None
    budget: int

    @property
    def options(self) -> dict[str, Any]:
        return {} if self.option is None else {"r": self.option}

    def solution(self) -> Solution:
        """Return the capacity that is nearest to the budget."""
        shapes = {TARGET: SHAPE}
        solved = solve(self.method, shapes, reference_budget(shapes, self.budget), nearest=True, options=self.options)
        assert isinstance(solved, Solution)
        return solved


@dataclass(frozen=True)
class Run:
    """What one training needs: a cell, a rate, a seed, and how many images and epochs."""

    cell: Cell
    lr: float
    seed: int
    images: int = IMAGES
    epochs: int = EPOCHS

    def key(self) -> tuple[Any, ...]:
        """Return what tells this run from others. Rates are rounded, since they are written as decimal numbers."""
        return (self.cell, float(f"{self.lr:.6g}"), self.seed, self.images, self.epochs)


def cells() -> list[Cell]:
    """Return the 30 cells of the declaration."""
    everywhere: list[tuple[str, int | None]] = [
        (name, None) for name in ("lora", "dora", "randlora", "lora-xs", "svft")
    ]
    everywhere += [("randlora-a", rank) for rank in (4, 16, 64, 192)]
    extra: dict[int, list[tuple[str, int | None]]] = {
        1: [("vera", None), ("nola", 4)],
        4: [("randlora-b", None)],
        16: [],
    }
    return [Cell(method, option, budget) for budget in BUDGETS for method, option in everywhere + extra[budget]]


class LastBlock(nn.Module):
    """The last block of the vision tower: tokens (B, T, D) -> normalised features of the class token (B, D)."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.block = tower.transformer.resblocks[-1]
        self.norm = tower.ln_post

    def forward(self, tokens: Tensor) -> Tensor:
        features: Tensor = self.norm(self.block(tokens)[:, 0])
        return features


@cache
def tokens() -> Tensor:
    """Return the tokens that enter the last block, for every training image of Fashion-MNIST in each of four turns."""
    model: Any = load_model(MODEL)
    train = load_dataset("embedded:fashion-mnist").train
    pixels = torch.stack([torch.from_numpy(np.asarray(train.image(row)).copy()) for row in range(len(train))])
    images = pixels.permute(0, 3, 1, 2).float() / 255
    turned = torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(4)])
    mean, std = (torch.tensor(triple).view(1, 3, 1, 1) for triple in (model.preprocess.mean, model.preprocess.std))
    tower, found = model.module.visual, []
    hook = tower.transformer.resblocks[-1].register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    with torch.no_grad():
        for batch in torch.split(turned, 1024):
            tower((batch - mean) / std)
    hook.remove()
    return torch.cat(found)


def train(run: Run) -> dict[str, Any]:
    """Train one adapter on random labels, and return its row: the run, counts, and the bits that it holds."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    draw = torch.Generator().manual_seed(run.seed)
    every = tokens()
    inputs = every[torch.randperm(len(every), generator=draw)[: run.images]]
    labels = torch.randint(CLASSES, (run.images,), generator=draw)
    block = LastBlock(load_model(MODEL).module.visual).eval().requires_grad_(False)
    with torch.no_grad():
        features = block(inputs)
    mean, deviation = features.mean(0), features.std(0)
    head = torch.randn(CLASSES, features.shape[1], generator=draw) / math.sqrt(features.shape[1])

    log_scale = nn.Parameter(torch.zeros(()))

    def loss(rows: Tensor) -> Tensor:
        logits = log_scale.exp() * ((block(inputs[rows]) - mean) / deviation) @ head.T
        return nn.functional.cross_entropy(logits, labels[rows])

    cell, solved = run.cell, run.cell.solution()
    (capacity,) = solved.capacities.values()
    options = {get_method(cell.method).capacity_field: capacity} | cell.options
    adapted = attach(block, cell.method, [TARGET], init_seed=run.seed, basis_seed=run.seed, **options)
    optimizer = torch.optim.Adam(
        [{"params": list(adapted.parameters()), "lr": run.lr}, {"params": [log_scale], "lr": SCALE_LR}]
    )
    steps = run.epochs * math.ceil(run.images / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / (WARMUP * steps)) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    for _ in range(run.epochs):
        for rows in torch.split(torch.randperm(run.images, generator=draw), BATCH):
            optimizer.zero_grad()
            torch.autograd.backward(loss(rows))
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        nats = run.images * loss(torch.arange(run.images)).item()
    method = get_method(cell.method)
    assert method.update_rank is not None
    freedom = degrees_of_one(cell.method, SHAPE, capacity, cell.options)
    assert freedom is not None
    return asdict(cell) | {
        "lr": run.key()[1], "seed": run.seed, "images": run.images, "epochs": run.epochs,
        "parameters": solved.count, "freedom": freedom.count,
        "rank": method.update_rank(SHAPE, capacity, **cell.options),
        "bits": round(run.images * math.log2(CLASSES) - nats / math.log(2), 1),
    }  # fmt: skip


class Study:
    """The runs that a file has, and those that are missing."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def bits(self, run: Run) -> float | None:
        """Return the bits of a run; None if it is missing."""
        for row in self.rows:
            cell = Cell(row["method"], row["option"], row["budget"])
            if Run(cell, row["lr"], row["seed"], row["images"], row["epochs"]).key() == run.key():
                return float(row["bits"])
        return None

    def known(self, run: Run) -> float:
        """Return the bits of a run that has ended."""
        bits = self.bits(run)
        assert bits is not None, f"{run} is missing"
        return bits

    def best_rate(self, cell: Cell) -> tuple[float, list[Run]]:
        """Return the best rate on seed 0 so far, and the missing runs of that seed."""
        centre = CENTRES[cell.method]
        powers = [-1, 0, 1]
        while True:
            runs = {power: Run(cell, centre * STEP**power, 0) for power in powers}
            if missing := [run for run in runs.values() if self.bits(run) is None]:
                return centre, missing
            best = max(powers, key=lambda power: self.known(runs[power]))
            if best not in (powers[0], powers[-1]) or len(powers) == 3 + WIDEN:
                return runs[best].lr, []
            powers = [best - 1, *powers] if best == powers[0] else [*powers, best + 1]

    def missing(self) -> list[Run]:
        """Return the runs that can start now. There are more when these have ended, until there are none."""
        wanted = []
        for cell in cells():
            rate, of_rates = self.best_rate(cell)
            wanted += of_rates or [run for run in after(cell, rate) if self.bits(run) is None]
        return wanted

    def run(self, jobs: int) -> None:
        """Run what is missing, and append each row to the file as its run ends."""
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            while wanted := self.missing():
                for done, future in enumerate(as_completed([pool.submit(train, run) for run in wanted]), start=1):
                    row = future.result()
                    self.rows.append(row)
                    with self.file.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(f"{done} of {len(wanted)}: {row}", flush=True)


def after(cell: Cell, rate: float) -> list[Run]:
    """Return the runs that a cell needs once its rate is chosen.

    These are three new seeds at this rate. LoRA and RandLoRA also have two checks on the first of these seeds: half of
    the images with as many steps, and twice as many epochs.
    """
    seeds = [Run(cell, rate, seed) for seed in SEEDS]
    if cell.method not in ("lora", "randlora"):
        return seeds
    half = replace(seeds[0], images=IMAGES // 2, epochs=2 * EPOCHS)
    return [*seeds, half, replace(seeds[0], epochs=2 * EPOCHS)]


def results(study: Study) -> list[dict[str, Any]]:
    """Return each cell's counts, rate, bits of its seeds and of its checks, in the order of `cells`."""
    counts = {(r["method"], r["option"], r["budget"]): {c: r[c] for c in CANDIDATES} for r in study.rows}
    found = []
    for cell in cells():
        rate, _ = study.best_rate(cell)
        bits = [study.known(run) for run in after(cell, rate)]
        found.append(
            asdict(cell)
            | counts[cell.method, cell.option, cell.budget]
            | {"lr": rate, "seeds": bits[: len(SEEDS)], "checks": bits[len(SEEDS) :]}
            | {"bits": float(np.mean(bits[: len(SEEDS)]))}
        )
    return found


def t_interval(values: np.ndarray) -> tuple[float, float, float, float]:
    """Return the mean, its 95 % interval, and the two-sided p value of a mean of zero."""
    test = stats.ttest_1samp(values, 0)
    low, high = test.confidence_interval(0.95)
    return float(values.mean()), float(low), float(high), float(test.pvalue)


def log_ratios(found: list[dict[str, Any]]) -> np.ndarray:
    """Return log2 of RandLoRA's bits over LoRA's: (budgets, seeds)."""
    by_method = [[row["seeds"] for row in found if row["method"] == method] for method in ("randlora", "lora")]
    randlora, lora = np.log2(np.array(by_method))
    return np.asarray(randlora - lora)


def errors(found: list[dict[str, Any]], candidate: str) -> np.ndarray:
    """Return each cell's squared error in log2(bits), predicted from the cells of the other methods."""
    x, y = np.log2([r[candidate] for r in found]), np.log2([r["bits"] for r in found])
    names = np.array([r["method"] for r in found])
    out = np.empty(len(found))
    for name in set(names):
        own = names == name
        slope, start = np.polyfit(x[~own], y[~own], 1)
        out[own] = (y[own] - start - slope * x[own]) ** 2
    return out


def fit(y: np.ndarray, x: np.ndarray) -> list[tuple[float, float, float]]:
    """Return the least-squares coefficient of every column of x, with its 95 % interval."""
    inverse = np.linalg.inv(x.T @ x)
    beta = inverse @ x.T @ y
    free = len(y) - x.shape[1]
    reach = stats.t.ppf(0.975, free) * np.sqrt(((y - x @ beta) ** 2).sum() / free * np.diag(inverse))
    return [(float(b), float(b - r), float(b + r)) for b, r in zip(beta, reach, strict=True)]


def slopes(found: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, tuple[float, float, float]]:
    """Return the slopes of log2(bits) on log2 of some columns in one fit, with 95 % intervals."""
    x = np.column_stack([np.ones(len(found)), *(np.log2([r[name] for r in found]) for name in names)])
    return dict(zip(names, fit(np.log2([r["bits"] for r in found]), x)[1:], strict=True))


def has_redundant_parameters(row: dict[str, Any]) -> bool:
    """Return whether a tenth or more of a cell's parameters are redundant."""
    return bool(row["freedom"] <= 0.9 * row["parameters"])


def slope_within(found: list[dict[str, Any]], method: str) -> tuple[float, float, float]:
    """Return the slope of log2(bits) on log2(rank) over one method's cells without redundant parameters, with an
    intercept for each budget, and its 95 % interval."""
    own = [r for r in found if r["method"] == method and not has_redundant_parameters(r)]
    budgets = np.array([[r["budget"] == budget for budget in BUDGETS] for r in own], dtype=float)
    x = np.column_stack([budgets, np.log2([r["rank"] for r in own])])
    return fit(np.log2([r["bits"] for r in own]), x)[-1]


def slope_line(candidate: str, over: str, interval: tuple[float, float, float]) -> str:
    """Return the line that prints a slope: what twice the candidate brings, over which cells."""
    slope, least, most = (2**value for value in interval)
    return f"described: twice the {WORDS[candidate]} over {over}: {slope:.2f} times the bits [{least:.2f}, {most:.2f}]"


def report(study: Study) -> Iterator[str]:
    """Return the lines of the answer: a Markdown table of the cells, then the tests."""
    found = results(study)
    yield (
        "| method | r | budget | parameters | degrees of freedom | rank | rate | bits | a parameter "
        "| seed 1: as it is; half the images; twice the epochs |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    for r in found:
        checks = "; ".join(f"{bits:,.0f}" for bits in [r["seeds"][0], *r["checks"]]) if r["checks"] else ""
        yield (
            f"| {r['method']} | {r['option'] or ''} | {r['budget']} | {r['parameters']:,} | {r['freedom']:,} "
            f"| {r['rank']} | {r['lr']:.2g} | {r['bits']:,.0f} | {r['bits'] / r['parameters']:.2f} | {checks} |"
        )
    *logs, p = t_interval(log_ratios(found).mean(axis=0))
    times, least, most = (2**v for v in logs)
    yield f"first: RandLoRA learns {times:.2f} times LoRA's bits [{least:.2f}, {most:.2f}], p = {p:.2g}"
    for budget, log in zip(BUDGETS, log_ratios(found).mean(axis=1), strict=True):
        yield f"described: at LoRA-{budget} RandLoRA learns {2**log:.1f} times LoRA's bits"
    squared = {candidate: errors(found, candidate) for candidate in CANDIDATES}
    best, *others = sorted(CANDIDATES, key=lambda candidate: float(squared[candidate].mean()))
    for candidate in (best, *others):
        factor = 2 ** np.sqrt(squared[candidate].mean())
        yield f"second: bits predicted from {WORDS[candidate]} are wrong by a factor of {factor:.2f} (root mean square)"
    for other in others:
        p = stats.wilcoxon(squared[best], squared[other]).pvalue
        yield f"second: {WORDS[best]} against {WORDS[other]}: p = {p:.2g}"
    redundant = np.array([has_redundant_parameters(row) for row in found])
    wrong = [f"{2 ** np.sqrt(squared[c][redundant].mean()):.1f} from {WORDS[c]}" for c in CANDIDATES]
    yield f"described: in the {redundant.sum()} cells with redundant parameters that factor is {', '.join(wrong)}"
    for left_out in (None, "randlora-a", "dora"):
        over = "all methods" if left_out is None else f"all methods but {left_out}"
        kept = [row for row in found if row["method"] != left_out]
        for candidate, interval in slopes(kept, ("freedom", "rank")).items():
            yield slope_line(candidate, over, interval)
    yield slope_line("rank", "RandLoRA-a without redundant parameters", slope_within(found, "randlora-a"))
    for budget in BUDGETS:
        own = [r for r in found if r["method"] == "randlora-a" and r["budget"] == budget]
        line = ", ".join(f"rank {r['rank']} ({r['freedom']:,} degrees) {r['bits']:,.0f}" for r in own)
        yield f"described: RandLoRA-a at LoRA-{budget}: {line}"


def main() -> None:
    study = Study(Path(sys.argv[1]))
    study.run(int(sys.argv[2]) if len(sys.argv) > 2 else 2)
    print("\n".join(report(study)))


if __name__ == "__main__":
    main()
