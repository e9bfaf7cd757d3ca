"""Trials of PEFT's methods: alone, in a pack, resumed; the base model is as it was, whatever its code did."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import trainables.training.checkpoints
from randlora import get_method
from randlora.methods.bridge.build import PeftAdapter
from tests.randlora.methods.support import on_another_machine
from tests.trainables.support import outcome, run
from tests.trainables.training.support import OWN, MakeTrial, alone, check_weights, together
from trainables.config import TrialConfig
from trainables.models.loading import load_model
from trainables.models.shapes import target_shapes
from trainables.training.adapting import Trainables, adapted
from trainables.training.checkpoints import load_checkpoint, save_checkpoint
from trainables.training.trainer import Trainer, Work
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
def test_a_checkpoint_has_what_trains_and_what_no_seed_gives_back(
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
    assert {name[:2] for name in sizes} - {"d."} <= {"p.", "m.", "v.", "t."}  # values, AdamW's moments and steps
    assert any(name.startswith("d.") for name in sizes) is get_method(method).config.kind.derived


def trainer_of(trial: TrialConfig, module: nn.Module, trainables: Trainables, rank: int = 0, world: int = 1) -> Trainer:
    task: Any = SimpleNamespace(head=None, batches=lambda _: [torch.arange(4)])
    device = torch.device("cpu")
    return Trainer(
        Work(trial=trial, module=module, task=task, trainables=trainables, device=device, rank=rank, world=world)
    )


@pytest.mark.parametrize("method", ["peft:tinylora", "peft:psoft", "peft:frod", "pissa"])
def test_a_trial_goes_on_between_the_vectors_of_the_machine_that_it_began_on(
    make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    trial = trial_of(make_trial, method)
    module, draw = load_model(trial.model).module, torch.Generator().manual_seed(1)
    with adapted(module, trial) as begun:
        trainer = trainer_of(trial, module, begun)
        with torch.no_grad():
            for parameter in begun.parameters.values():
                parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)
        assert begun.added is not None
        wanted = {name: delta.clone() for name, delta in begun.added.deltas().items()}
        save_checkpoint(tmp_path, "t", 1, [], trainer.state())
    found = load_checkpoint(tmp_path, "t")
    assert found is not None
    on_another_machine(monkeypatch)
    with adapted(module, trial) as resumed:
        trainer_of(trial, module, resumed).load_state(found.tensors)
        assert resumed.added is not None
        for name, delta in resumed.added.deltas().items():
            torch.testing.assert_close(delta, wanted[name])
    with adapted(module, trial) as resumed:  # from a checkpoint of an older version
        older = {name: tensor for name, tensor in found.tensors.items() if not name.startswith("d.")}
        trainer_of(trial, module, resumed).load_state(older)
        assert all(torch.equal(p, older[f"p.{name}"]) for name, p in resumed.parameters.items())


@pytest.mark.parametrize("method", ["peft:tinylora", "peft:psoft"])
def test_workers_begin_as_the_first_of_them(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    trial, sent = trial_of(make_trial, method), list[torch.Tensor]()
    module, states = load_model(trial.model).module, []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, src: sent.append(tensor.clone()))
    for rank in (0, 1):
        with adapted(module, trial) as trainables:
            trainer = trainer_of(trial, module, trainables, rank, world=2)
            states.append({name: tensor.clone() for name, tensor in trainer.state().items()})
        monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, src: tensor.copy_(sent.pop(0)))
        on_another_machine(monkeypatch)
    assert not sent and len(states[0]) > len(trial.capacities)
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_decompositions_are_made_once_for_a_model(make_trial: MakeTrial, tmp_path: Path) -> None:
    cold, warm = outcome(run(trial_of(make_trial, "peft:osf"), tmp_path / "cold", {})), {}
    run(trial_of(make_trial, "peft:osf", lr=1e-5), tmp_path / "first", warm)
    (keeper,) = warm["decompositions"].values()
    made = keeper.computed
    assert outcome(run(trial_of(make_trial, "peft:osf"), tmp_path / "second", warm)) == cold
    assert (keeper.computed, keeper.reused) == (made, made)


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
