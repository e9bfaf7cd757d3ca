"""A search of ranks inside a trial: which rows train what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from trainables.config import TrialConfig
from trainables.tasks.images.images import ImageTask
from trainables.training.worker import run_trial


@pytest.mark.parametrize("order", [1, 2])
def test_rows_held_out_of_a_search_train_no_weight(
    make_trial: Callable[..., TrialConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: int
) -> None:
    passes: list[set[int]] = []
    loss_sum = ImageTask.loss_sum

    def spied(task: ImageTask, rows: Tensor, plan: Tensor | None) -> Tensor:
        passes.append(set(rows.tolist()))
        return loss_sum(task, rows, plan)

    monkeypatch.setattr(ImageTask, "loss_sum", spied)
    trial = make_trial("autolora", options=(("order", order), ("held_out", 0.5)), train={"epochs": 4})
    reports = list(run_trial(trial, warm={}, directory=tmp_path))
    steps = 58 // trial.train.global_batch_size + (58 % trial.train.global_batch_size > 0)
    searching = 2 * steps - 1  # half of the training, its last step aside
    assert len(passes) == searching * (2 if order == 1 else 4) + 2 * steps + 1
    each = [passes[i : i + 2 * order] for i in range(0, searching * 2 * order, 2 * order)]
    train, held_out = (set().union(*(step[i] for step in each)) for i in (0, 1))
    assert train and held_out and not train & held_out and len(train | held_out) == 58
    assert all(step[0] == other for step in each for other in step[2:])
    assert set().union(*passes[-steps:]) == train | held_out
    assert reports[-1]["samples"] == 4 * 58
