"""A made-up results folder, as a sweep leaves it: journal, parts, choices, failures, retries, an infeasible cell.

The scores come from a formula plus seeded noise; nothing is trained. Seeds are paired: a seed's luck is partly shared
by all methods, as a hard training subset is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from analysis.store.tables import write_part

Row = dict[str, Any]

UNIT = 12_288  # LoRA's parameters per rank
N_TEST, N_TRAIN = 1000, 2000
START = datetime(2025, 3, 1, 9, 0, tzinfo=UTC)

# method -> references it is asked for; None: no budget
PLAN: dict[str, tuple[str | None, ...]] = {
    "randlora": ("lora-1", "lora-2", "lora-4", "lora-8", "lora-16"),
    "lora": ("lora-1", "lora-2", "lora-4", "lora-8", "lora-16"),
    "vera": ("lora-1",),
    "nola": ("lora-1", "lora-4"),
    "full": (None,),
    "zero-shot": (None,),
}
CENTRE = {"randlora": 1e-2, "lora": 1e-3, "vera": 1e-2, "nola": 1e-2, "full": 1e-4}
CAPACITY = {"randlora": 96, "lora": 1, "vera": 4, "nola": 512}


@dataclass
class _Writer:
    """Collects journal events and the rows to be sealed."""

    sweep: str
    rng: np.random.Generator
    advantage: float
    noise: float
    hunger: Mapping[str, float]
    luck: dict[Any, float] = field(default_factory=dict)
    events: list[Row] = field(default_factory=list)
    trials: list[Row] = field(default_factory=list)
    metrics: list[Row] = field(default_factory=list)
    choices: list[Row] = field(default_factory=list)
    clock: datetime = START

    def tick(self, seconds: float) -> str:
        self.clock += timedelta(seconds=seconds)
        return self.clock.isoformat()

    def score(self, cell: Row, lr: float | None, seed: int) -> float:
        base = {"embedded:fashion": 0.0, "embedded:digits": 0.06}.get(cell["dataset"], 0.0)
        if cell["method"] == "zero-shot":
            return 0.382 + base
        if cell["method"] == "full":
            level = 0.874
        else:
            rank = cell["count"] / UNIT
            level = 0.876 - 0.115 * math.exp(-0.62 * math.log2(rank + 0.9))
            if cell["method"] == "lora":  # rank-limited: it flattens
                level = min(level, 0.70 + 0.09 * (1 - math.exp(-rank / 2.2)) + 0.045) - 0.01
            level += {"randlora": self.advantage, "vera": -0.02, "nola": -0.03}.get(cell["method"], 0.0)
        off = 0.0 if lr is None or cell["lr_centre"] is None else math.log10(lr / cell["lr_centre"])
        shared = self.luck.setdefault((cell["dataset"], cell["train_size"], seed), self.rng.normal(0, self.noise))
        value = level + base - 0.05 * (off - 0.2) ** 2 + shared + self.rng.normal(0, self.noise / 2)
        value -= self.hunger.get(cell["method"], 0.02) * math.log10(N_TRAIN / _examples(cell["train_size"]))
        return float(np.clip(round(value * N_TEST) / N_TEST, 0.0, 1.0))

    def trial(self, cell: Row, stage: str, slot: int, lr: float | None, seed: int, failing: int = 0) -> Row:
        """One trial: `failing` failed attempts, then (unless it fails for good) a finished one."""
        config = {"stage": stage, "cell_id": cell["cell_id"], "lr": lr, "data_seed": seed}
        trial_id = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
        self.events.append(
            {
                "ev": "ask",
                "trial_id": trial_id,
                **{k: cell[k] for k in ("cell_id",)},
                "stage": stage,
                "slot": slot,
                "config": config,
            }
        )
        for attempt in range(1, failing + 1):
            self.finish(cell, trial_id, stage, slot, lr, seed, attempt, failed=True)
        return self.finish(cell, trial_id, stage, slot, lr, seed, failing + 1, failed=False)

    def finish(
        self, cell: Row, trial_id: str, stage: str, slot: int, lr: float | None, seed: int, attempt: int, failed: bool
    ) -> Row:
        names = {"sweep": self.sweep, "trial_id": trial_id, "cell_id": cell["cell_id"], "attempt": attempt}
        score = self.score(cell, lr, seed)
        trains = cell["method"] != "zero-shot"
        seconds = (4.0 + 0.6 * (cell["method"] != "lora")) if trains else 0.0
        epochs = 1 if failed or not trains else 5
        started = self.tick(0.4)
        row: Row = {
            **names,
            "stage": stage,
            "slot": slot,
            "lr": lr,
            "data_seed": seed,
            "init_seed": seed,
            "basis_seed": seed,
            **{
                k: cell[k]
                for k in (
                    "model",
                    "adapt",
                    "dataset",
                    "train_size",
                    "method",
                    "allocation",
                    "reference",
                    "budget",
                    "capacity",
                )
            },
            "status": "failed" if failed else "finished",
            "reason": "loss became nan at step 12" if failed else None,
            "val_score": None if failed else float(np.clip(score + self.rng.normal(0, self.noise / 2), 0, 1)),
            "test_score": score if stage == "CONFIRM" and not failed else None,
            "train_loss": None if failed or not trains else 1.2 - score,
            "epochs": epochs,
            "adapter_params": cell["count"],
            "head_params": 0,
            "stored_bytes": 393_216 if cell["method"] in ("randlora", "vera") else 0,
            "samples": _examples(cell["train_size"]) * epochs if trains else 0,
            "seconds_setup": 0.05,
            "seconds_train": seconds,
            "seconds_eval": 0.3,
            "seconds_total": seconds + 0.55,
            "samples_per_second": 2000 * epochs / seconds if seconds else None,
            "peak_memory_bytes": 620_000_000,
            "device": "cpu",
            "precision": "fp32",
            "backend": "default",
            "host": "laptop",
            "versions": json.dumps({"torch": "2.9.0", "ray": "2.60.0"}),
            "git_commit": "0123abc",
            "started_at": started,
            "ended_at": self.tick(seconds),
        }
        metrics = [
            {
                **names,
                "epoch": e,
                "train_loss": 2.0 / e,
                "val_score": score * (1 - 0.3 / e),
                "seconds": seconds / 5,
                "samples": 2000 * e,
                "samples_per_second": 10_000 / seconds,
            }
            for e in range(1, epochs + 1)
            if trains
        ]
        for m in metrics:
            values = {k: v for k, v in m.items() if k not in names}
            self.events.append({"ev": "report", "trial_id": trial_id, "epoch": m["epoch"], "values": values})
        prediction = None
        if stage == "CONFIRM" and not failed:
            bits = self.rng.random(N_TEST).argsort() < round(score * N_TEST)
            prediction = {
                "sweep": self.sweep,
                "trial_id": trial_id,
                "cell_id": cell["cell_id"],
                "n_examples": N_TEST,
                "correct": base64.b64encode(np.packbits(bits).tobytes()).decode(),
                "examples_hash": "ab" * 8,
            }
        self.trials.append(row)
        self.metrics += metrics
        self.events.append(
            {
                "ev": "finish",
                "trial_id": trial_id,
                "attempt": attempt,
                "row": row,
                "metrics": metrics,
                "prediction": prediction,
            }
        )
        return row

    def choose(self, cell: Row, lr: float, mean_val: float, trials: int, edge: str | None = None) -> None:
        row = {
            "sweep": self.sweep,
            "cell_id": cell["cell_id"],
            "lr": lr,
            "mean_val": mean_val,
            "n_trials": trials,
            "n_rerun_seeds": 1,
            "edge": edge,
            "chosen_at": self.tick(0.1),
        }
        self.choices.append(row)
        self.events.append(
            {"ev": "choose", "cell_id": cell["cell_id"], "lr": lr, "mean_val": mean_val, "trials": trials, "row": row}
        )


def _examples(train_size: str) -> int:
    """Training examples of a made-up set of 10 classes."""
    if train_size.endswith("-shot"):
        return 10 * int(train_size.removesuffix("-shot"))
    return int(N_TRAIN * float(train_size))


def make_cells(
    sweep: str, datasets: Sequence[str], sizes: Sequence[str], seeds: int, plan: Mapping[str, Any]
) -> list[Row]:
    """The cells, VeRA's and NoLA's odd counts and one infeasible VeRA cell per data set included."""
    cells = []
    for dataset in datasets:
        for size in sizes:
            for method, references in plan.items():
                for reference in references:
                    cells.append(_cell(sweep, dataset, size, method, reference, seeds))
            if "vera" in plan:
                cells.append(_infeasible(_cell(sweep, dataset, size, "vera", "lora-16", seeds)))
    return cells


def _cell(sweep: str, dataset: str, size: str, method: str, reference: str | None, seeds: int) -> Row:
    rank = int(reference.removeprefix("lora-")) if reference else None
    budget = rank * UNIT if rank else None
    count = {"full": 1_900_000, "zero-shot": 0}.get(method)
    if budget is not None and rank is not None:
        count = {"lora": budget, "randlora": budget + 97 * rank, "vera": budget - 301, "nola": budget + 2}.get(
            method, budget
        )
    centre = None if method == "zero-shot" else CENTRE.get(method, 1e-3)
    capacity = (
        None
        if budget is None or rank is None
        else {"randlora": max(1, 96 // rank)}.get(method, rank * CAPACITY.get(method, 1))
    )
    words = [method, reference or "", dataset, size]
    residual = None if budget is None or count is None else count - budget
    return {
        "sweep": sweep,
        "cell_id": "_".join(w.replace(":", "-") for w in words if w),
        "model": "embedded:tiny-clip",
        "adapt": "vision",
        "dataset": dataset,
        "train_size": size,
        "method": method,
        "label": " ".join(w for w in words if w),
        "reference": reference,
        "budget": budget,
        "allocation": None if budget is None else ("fill" if method == "randlora" else "uniform"),
        "capacity": capacity if method != "randlora" else None,
        "capacities": json.dumps({} if capacity is None else {"visual.0.mlp.c_fc.weight": capacity}),
        "count": count,
        "residual": residual,
        "residual_fraction": None if residual is None or budget is None else residual / budget,
        "feasible": True,
        "reason": None,
        "below": None,
        "above": None,
        "lr_low": centre and centre / 10**1.5,
        "lr_high": centre and centre * 10**1.5,
        "lr_centre": centre,
        "tune_trials": 0 if centre is None else 6,
        "confirm_seeds": 1 if centre is None else seeds,
        "classes": 10,
        "model_params": 2_000_000,
        "target_params": 1_500_000,
    }


def _infeasible(cell: Row) -> Row:
    return cell | {
        "feasible": False,
        "count": 13_440,
        "residual": 13_440 - cell["budget"],
        "capacity": 768,
        "residual_fraction": (13_440 - cell["budget"]) / cell["budget"],
        "reason": "vera reaches at most 13,440 parameters on these targets; a smaller budget would help",
        "below": json.dumps({"capacity": 768, "count": 13_440}),
    }


def make_results(
    folder: Path,
    *,
    sweep: str | None = None,
    datasets: Sequence[str] = ("embedded:fashion",),
    sizes: Sequence[str] = ("1.0",),
    seeds: int = 3,
    advantage: float = 0.0,
    noise: float = 0.006,
    seed: int = 0,
    plan: Mapping[str, Sequence[str | None]] = PLAN,
    seal: float = 0.7,
    trials: bool = True,
    hunger: Mapping[str, float] | None = None,
) -> Path:
    """Write a results folder.

    Args:
        folder: to make.
        sweep: its name; default the folder's.
        datasets, sizes: what it ran on; sizes as text.
        seeds: CONFIRM seeds per cell.
        advantage: RandLoRA's planted lead at equal parameters, besides LoRA's plateau (a fraction).
        noise: standard deviation of a seed's shared luck; a run's own is half of it.
        seed: of the noise.
        plan: method -> references.
        seal: share of the trials that is in Parquet parts; the rest is in the journal alone.
        hunger: method -> score lost per decade of training examples less, default 0.02 each.
        trials: False leaves a sweep that has been planned and has run nothing.

    In it besides: a trial that failed and was tried again (attempt 2 finished), one that failed for good, a cell whose
    choice was superseded, a choice at the edge of its range, an infeasible cell.
    """
    writer = _Writer(sweep or folder.name, np.random.default_rng(seed), advantage, noise, hunger or {})
    cells = make_cells(writer.sweep, datasets, sizes, seeds, plan)
    writer.events.append(
        {
            "ev": "sweep",
            "name": writer.sweep,
            "git_commit": "0123abc",
            "at": START.isoformat(),
            "host": "laptop",
            "trial": "trainables.training.worker:run_trial",
            "python": "3.11.7",
            "versions": {"torch": "2.9.0", "ray": "2.60.0", "optuna": "5.0.0"},
        }
    )
    if trials:
        for number, cell in enumerate(c for c in cells if c["feasible"]):
            _run(writer, cell, number, seeds)
    folder.mkdir(parents=True, exist_ok=True)
    identity = {
        "name": writer.sweep,
        "protocol": "standard",
        "model": {"id": "embedded:tiny-clip", "adapt": "vision"},
        "search": {"trials": 6, "sampler": "grid"},
        "train": {"epochs": 5, "global_batch_size": 128},
    }
    (folder / "spec.json").write_text(json.dumps({"identity": identity}), encoding="utf-8")
    lines = [json.dumps(event, separators=(",", ":")) + "\n" for event in writer.events]
    (folder / "journal.jsonl").write_text("".join(lines), encoding="utf-8")
    write_part(folder, "cells", cells)
    cut = int(len(writer.trials) * seal)
    sealed = {(r["trial_id"], r["attempt"]) for r in writer.trials[:cut]}
    for rows in (writer.trials[: cut // 2], writer.trials[cut // 2 : cut]):
        if rows:
            write_part(folder, "trials", rows)
    metrics = [m for m in writer.metrics if (m["trial_id"], m["attempt"]) in sealed]
    finished = [e for e in writer.events if e["ev"] == "finish" and (e["trial_id"], e["attempt"]) in sealed]
    predictions = [e["prediction"] for e in finished if e["prediction"] is not None]
    choices = writer.choices if seal == 1 else []
    for name, rows in (("metrics", metrics), ("predictions", predictions), ("choices", choices)):
        if rows:
            write_part(folder, name, rows)
    return folder


def _run(writer: _Writer, cell: Row, number: int, seeds: int) -> None:
    """Stage TUNE (four rates, the best two re-run on one further seed) and stage CONFIRM of one cell."""
    if cell["lr_centre"] is None:
        writer.trial(cell, "CONFIRM", 0, None, 0)
        return
    grid = [cell["lr_centre"] * 10**e for e in (-1.5, -0.5, 0.5, 1.5)]
    # the second cell has a trial that fails once, the third one that fails for good
    rows = [
        writer.trial(cell, "TUNE", k, lr, 1_000_000, failing=int(number == 1 and k == 0)) for k, lr in enumerate(grid)
    ]
    if number == 2:
        row = rows[3]
        writer.finish(cell, row["trial_id"], "TUNE", 3, grid[3], 1_000_000, 2, failed=True)
    first = sorted(rows[:3], key=lambda r: -r["val_score"])[:2]
    again = [writer.trial(cell, "TUNE", 4 + i, r["lr"], 1_000_001) for i, r in enumerate(first)]
    means = [float(np.mean([a["val_score"], b["val_score"]])) for a, b in zip(first, again, strict=True)]
    best, mean = first[int(np.argmax(means))], max(means)
    if number == 0:  # an earlier choice, superseded when the allowance was extended
        writer.choose(cell, grid[0], 0.5, 4, "low")
        writer.trial(cell, "CONFIRM", 0, grid[0], 0)
    writer.choose(cell, best["lr"], mean, 6, "high" if number == 7 else None)
    for k in range(seeds):
        writer.trial(cell, "CONFIRM", k, best["lr"], k)
