"""Two workers of one trial give the gradient, and so the weights, of one worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from safetensors.torch import load_file
from torch import nn

from randlora import LoraConfig, attach
from tests.randlora.support import perturb
from tests.trainables.support import saved_reports, work
from trainables.config import TrialConfig
from trainables.training.adapting import of_worker, reseed_dropout
from trainables.training.worker import run_trial


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("method", "file"), [("full-targets", "weights"), ("lora-ga", "adapter"), ("lora-ga", "derived")]
)
def test_two_workers_equal_one(make_trial: Callable[..., TrialConfig], tmp_path: Path, method: str, file: str) -> None:
    # 58 images in batches of 19 leave one for the last batch: a worker without images
    trial = make_trial(method, train={"global_batch_size": 19, "epochs": 2})
    alone = list(run_trial(trial, warm={}, directory=tmp_path / "alone", keep=True))
    torch.multiprocessing.spawn(work, args=(2, trial, str(tmp_path)), nprocs=2)
    both = [saved_reports(tmp_path, rank) for rank in (0, 1)]
    for reports in both:
        assert [r["train_loss"] for r in reports] == pytest.approx([r["train_loss"] for r in alone], rel=1e-4)
        assert reports[-1]["result"].predicted.n_examples == 32
    assert both[0][-1]["result"].predicted.correct == both[1][-1]["result"].predicted.correct
    a, b = (load_file(str(tmp_path / d / "adapter" / f"{file}.safetensors")) for d in ("alone", "trial"))
    # Adam divides by the gradient's own size, which turns rounding in near-zero gradients into visible steps
    assert all((a[k] - b[k]).abs().mean() < 2e-4 for k in a)


def test_workers_draw_masks_of_their_own() -> None:
    layer, masks = nn.Sequential(nn.Linear(24, 16)), []
    adapted = attach(layer, LoraConfig(3, dropout=0.5), ["0"])
    perturb(adapted)
    for rank in (0, 1, 0):
        reseed_dropout(layer, 7, 1, rank=rank)
        masks.append(layer.train()(torch.ones(8, 24)).detach())
    assert torch.equal(masks[0], masks[2]) and not torch.equal(masks[0], masks[1])
    assert of_worker(0) == ()  # so that a trial of one worker stays as it is
