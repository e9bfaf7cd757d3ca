"""Trials of PEFT's methods: alone, in a pack, resumed; the base model is as it was, whatever its code did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import trainables.training.checkpoints
from randlora import get_method
from randlora.methods.bridge.build import PeftAdapter
from tests.trainables.support import outcome, run
from tests.trainables.training.support import OWN, MakeTrial, alone, check_weights, together
from trainables.config import TrialConfig
from trainables.models.shapes import target_shapes
from trainables.training.worker import run_trial


def trial_of(make_trial: MakeTrial, method: str, **given: Any) -> TrialConfig:
    trial = make_trial(method, train={"epochs": 2}, **given)
    called = tuple(c for c in trial.capacities if "c_fc" in c[0])  # some types need called layers
    return trial.model_copy(update={"capacities": called, "targets": ("mlp.c_fc",)})


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("peft:miss", ()),
        ("peft:lora", (("lora_dropout", 0.2),)),
        ("peft:pvera", ()),  # draws in every training step
        ("peft:unilora", ()),  # one vector for all weights
    ],
)
def test_a_pack_equals_separate_trials(make_trial: MakeTrial, tmp_path: Path, method: str, options: Any) -> None:
    trials = [trial_of(make_trial, method, options=options, **own) for own in OWN[:2]]
    packed = together(trials, tmp_path, keep=True)
    for k, trial in enumerate(trials):
        want = alone(trial, tmp_path / f"alone{k}", keep=True)
        assert packed[-1][k]["train_loss"] == pytest.approx(want[-1]["train_loss"], rel=1e-4)  # type: ignore[index]
        check_weights(tmp_path, k, tmp_path / f"alone{k}")


@pytest.mark.parametrize("method", ["peft:waveft", "peft:pvera"])
def test_a_trial_that_is_cut_off_goes_on(
    make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(trainables.training.checkpoints, "CHECKPOINT_SHARE", 1e9)  # after every epoch
    trial = trial_of(make_trial, method)
    warm: dict[str, Any] = {}
    whole = run(trial, tmp_path / "whole", warm)
    cut = run_trial(trial, warm=warm, directory=tmp_path / "cut")
    next(cut)
    cut.close()
    assert outcome(run(trial, tmp_path / "cut", warm)) == outcome(whole)
    assert set(warm["models"]) == {trial.model}  # the worker kept its model


@pytest.mark.parametrize("method", ["peft:fourierft", "peft:osf", "peft:unilora"])
def test_a_checkpoint_has_what_trains_alone(
    make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(trainables.training.checkpoints, "CHECKPOINT_SHARE", 1e9)
    trial = trial_of(make_trial, method)
    cut = run_trial(trial, warm={}, directory=tmp_path)
    next(cut)
    cut.close()
    (file,) = tmp_path.glob("epoch-*.safetensors")
    sizes = {name: tensor.numel() for name, tensor in load_file(str(file)).items()}
    shapes = target_shapes(trial.model)
    count = sum(get_method(method).count(shapes[name], capacity) for name, capacity in trial.capacities)
    assert sum(size for name, size in sizes.items() if name.startswith("p.")) == count
    assert {name[:2] for name in sizes} <= {"p.", "m.", "v.", "t."}  # values, AdamW's moments and steps


def test_decompositions_are_made_once_for_a_model(make_trial: MakeTrial, tmp_path: Path) -> None:
    cold, warm = outcome(run(trial_of(make_trial, "peft:osf"), tmp_path / "cold", {})), {}
    run(trial_of(make_trial, "peft:osf", lr=1e-5), tmp_path / "first", warm)
    (keeper,) = warm["decompositions"].values()
    made = keeper.made
    assert outcome(run(trial_of(make_trial, "peft:osf"), tmp_path / "second", warm)) == cold
    assert (keeper.made, keeper.given) == (made, made)


def test_a_base_model_that_is_written_to_is_dropped(
    make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some of PEFT's starts do, past the counter that torch keeps of writes."""
    once: list[bool] = []
    linear = PeftAdapter.linear

    def writes(self: PeftAdapter, x: torch.Tensor, base: torch.Tensor, bias: Any) -> torch.Tensor:
        if not once:
            once.append(True)
            nn.Parameter(base.detach(), requires_grad=False).data.mul_(1.5)
        return linear(self, x, base, bias)

    monkeypatch.setattr(PeftAdapter, "linear", writes)
    warm: dict[str, Any] = {}
    run(trial_of(make_trial, "peft:miss"), tmp_path, warm)
    assert once
    assert not warm["models"]
