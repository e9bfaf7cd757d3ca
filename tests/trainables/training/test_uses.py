"""A trial whose adapters take no part has no score, whether or not its forward pass runs without values."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainables.tiny_images import SIDE
from tests.trainables.training.support import OWN, MakeTrial, together
from trainables.errors import TrialError
from trainables.models.shapes import meta_model
from trainables.training.costs import CostModel, UncountableError
from trainables.training.worker import run_trial


def loaded(make_trial: MakeTrial, folder: Path, change: Callable[[nn.Module], None]) -> dict[str, Any]:
    """A lane's cache with the model, whose MLPs were changed."""
    warm: dict[str, Any] = {}
    list(run_trial(make_trial("zero-shot"), warm=warm, directory=folder / "first"))
    (model,) = warm["models"].values()
    change(model.module)
    return warm


def blocks(module: Any) -> Any:
    return module.visual.transformer.resblocks


def skip_mlps(module: nn.Module) -> None:
    for block in blocks(module):
        block.mlp.forward = lambda x: x


def skip_the_first_mlp(module: nn.Module) -> None:
    blocks(module)[0].mlp.forward = lambda x: x


def skip_by_value(module: nn.Module) -> None:
    """No fake tensor can tell whether the sum is finite."""
    for block in blocks(module):
        own = block.mlp.forward
        block.mlp.forward = lambda x, own=own: x if bool(x.sum().isfinite()) else own(x)


def test_an_idle_adapter_fails_its_trial_before_a_score(make_trial: MakeTrial, tmp_path: Path) -> None:
    warm = loaded(make_trial, tmp_path, skip_by_value)
    with pytest.raises(TrialError, match=r"'lora': the adapter of .*mlp\.c_fc\.weight takes no part"):
        next(run_trial(make_trial(), warm=warm, directory=tmp_path / "trial"))


def test_so_do_those_of_a_pack(make_trial: MakeTrial, tmp_path: Path) -> None:
    warm = loaded(make_trial, tmp_path, skip_mlps)
    (reports,) = together([make_trial(**own) for own in OWN[:2]], tmp_path / "pack", warm=warm)
    assert len(reports) == 2
    assert all("takes no part" in str(error) for error in reports.values())


@pytest.mark.parametrize("packed", [False, True], ids=["alone", "packed"])
def test_a_trial_goes_on_if_no_input_reached_an_adapter(make_trial: MakeTrial, tmp_path: Path, packed: bool) -> None:
    """An expert that no token was routed to is an example. The user is warned."""
    warm = loaded(make_trial, tmp_path, skip_the_first_mlp)
    with pytest.warns(UserWarning, match=r"no input reached the adapters of .*resblocks\.0\.mlp\.c_fc\.weight"):
        if packed:
            last = together([make_trial(**own) for own in OWN[:2]], tmp_path / "pack", warm=warm)[-1][0]
        else:
            last = list(run_trial(make_trial(), warm=warm, directory=tmp_path / "trial"))[-1]
    assert isinstance(last, dict) and last["done"]


@pytest.mark.parametrize("adapt", ["vision", "both"])
def test_nothing_is_said_of_a_usual_trial(make_trial: MakeTrial, tmp_path: Path, adapt: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        list(run_trial(make_trial(adapt=adapt, train={"epochs": 1}), warm={}, directory=tmp_path / "trial"))


def fake_uses(trial: Any, change: Callable[[nn.Module], None]) -> list[str]:
    module = meta_model(trial.model)
    change(module)
    return CostModel(module, "clip", side=SIDE, classes=3).uses(trial).idle


def test_fake_tensors_tell_without_values(make_trial: MakeTrial) -> None:
    trial = make_trial()
    assert fake_uses(trial, lambda module: None) == []
    first = fake_uses(trial, skip_the_first_mlp)
    assert [name.split("resblocks.")[1] for name in first] == ["0.mlp.c_fc.weight", "0.mlp.c_proj.weight"]
    with pytest.raises(UncountableError, match="without its weights' values"):
        fake_uses(trial, skip_by_value)


def test_a_weight_that_is_read_takes_part(make_trial: MakeTrial) -> None:
    class Reader(nn.Module):
        def __init__(self, mlp: Any) -> None:
            super().__init__()
            self.c_fc, self.c_proj = mlp.c_fc, mlp.c_proj

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x @ self.c_fc.weight.t()) @ self.c_proj.weight.t()

    def read(module: nn.Module) -> None:
        for block in blocks(module):
            block.mlp = Reader(block.mlp)

    assert fake_uses(make_trial(), read) == []
