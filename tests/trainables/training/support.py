"""Trials alone and together in a pack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from trainables.config import TrialConfig
from trainables.packing.together import Reports, run_pack
from trainables.training.worker import run_trial

ATOL = 1e-4
"""What rounding, which differs by processor, does to the weights after Adam's steps; another mask or seed does more."""
MakeTrial = Callable[..., TrialConfig]
OWN: list[dict[str, Any]] = [
    {"lr": 2e-3, "data_seed": 1, "init_seed": 10, "basis_seed": 20},
    {"lr": 1e-2, "data_seed": 2, "init_seed": 11, "basis_seed": 20},
    {"lr": 5e-3, "data_seed": 3, "init_seed": 12, "basis_seed": 22},
]


def alone(trial: TrialConfig, directory: Path, **more: Any) -> list[dict[str, Any]]:
    return list(run_trial(trial, warm={}, directory=directory, **more))


def folders(tmp_path: Path, count: int) -> list[Path]:
    return [tmp_path / f"packed{k}" for k in range(count)]


def together(trials: list[TrialConfig], tmp_path: Path, keep: bool = False, warm: Any = None) -> list[Reports]:
    tmp_path.mkdir(exist_ok=True)
    places = folders(tmp_path, len(trials))
    warm = {} if warm is None else warm
    return list(run_pack(trials, warm=warm, directories=places, keep=[keep] * len(trials)))


def check_weights(tmp_path: Path, place: int, alone_in: Path, atol: float = ATOL) -> None:
    got = load_file(str(folders(tmp_path, place + 1)[place] / "adapter" / "adapter.safetensors"))
    want = load_file(str(alone_in / "adapter" / "adapter.safetensors"))
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=atol)
