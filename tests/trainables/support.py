"""Trials on models of one tower, run in this process or in a group, and what they found."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch.multiprocessing
from torch import Tensor

from trainables.config import FULL_METHODS, LINEAR_PROBE, NO_TRAINING, TrainSettings, TrialConfig
from trainables.models.shapes import default_targets, target_shapes
from trainables.training.worker import run_trial


def one_tower_trial(
    method: str, *, model: str | Path, train: dict[str, Any], capacity: int = 4, **given: Any
) -> TrialConfig:
    """A CONFIRM trial on the model's default targets.

    `given` has the data set, and replaces any other field. A path as model is a local one.
    """
    name = model if isinstance(model, str) else f"local:{model}"
    budgetless = method in (*FULL_METHODS, LINEAR_PROBE, NO_TRAINING)
    values: dict[str, Any] = {
        "stage": "CONFIRM",
        "cell_id": "cell",
        "model": name,
        "adapt": "all",
        "targets": tuple(default_targets(name)),
        "train_size": 1.0,
        "method": method,
        "capacities": () if budgetless else tuple((n, capacity) for n in target_shapes(name)),
        "lr": None if method == NO_TRAINING else 5e-3,
        "data_seed": 1,
        "init_seed": 2,
        "basis_seed": 3,
        "train": TrainSettings(**train),
    }
    return TrialConfig(**(values | given))


def weights(warm: dict[str, Any]) -> dict[str, Tensor]:
    (loaded,) = warm["models"].values()
    return {k: v.clone() for k, v in loaded.module.state_dict().items()}


def run(trial: TrialConfig, directory: Path, warm: dict[str, Any] | None = None, **more: Any) -> list[dict[str, Any]]:
    return list(run_trial(trial, warm={} if warm is None else warm, directory=directory, **more))


def outcome(reports: list[dict[str, Any]]) -> list[Any]:
    """What a trial found, without clocks and memory."""
    kept = [(r["epoch"], r["train_loss"], r["val_score"], r["samples"]) for r in reports]
    result = reports[-1]["result"]
    return [*kept, result.measured.test_score, result.predicted.correct, result.measured.val_score]


def save_reports(reports: list[dict[str, Any]], folder: Path, rank: int) -> None:
    """Keep what a worker reported for the process that started it."""
    (folder / f"reports{rank}.pickle").write_bytes(pickle.dumps(reports))


def saved_reports(folder: Path, rank: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pickle.loads((folder / f"reports{rank}.pickle").read_bytes())
    return found


def work(rank: int, world: int, trial: TrialConfig, folder: str, kind: str = "cpu") -> None:
    torch.set_num_threads(1)
    if kind == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if kind == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    directory = Path(folder) / "trial"
    reports = list(run_trial(trial, warm={}, directory=directory, keep=True, rank=rank, world=world))
    save_reports(reports, Path(folder), rank)
    torch.distributed.destroy_process_group()
