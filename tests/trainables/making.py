"""Configurations of trials on models of one tower, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainables.config import FULL_METHODS, LINEAR_PROBE, NO_TRAINING, TrainSettings, TrialConfig
from trainables.models.shapes import default_targets, target_shapes


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
