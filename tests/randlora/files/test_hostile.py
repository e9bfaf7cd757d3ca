"""Folders that ask for more memory than their files hold, or have forms that no adapter has: `CheckpointError`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from randlora import AdaLoraConfig, AdapterError, AutoLoraConfig, CheckpointError, LoraConfig, NolaConfig, attach, load
from randlora.adapted.load import load_peft
from randlora.files.tensors import digest_of
from randlora.methods.registry import get_method
from tests.randlora.support import perturb
from tests.support import pipe


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 6))


def changed(folder: Path, **settings: Any) -> None:
    path = folder / "adapter.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


class Attached(Exception):
    """Memory would have been taken."""


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise Attached

    monkeypatch.setattr("randlora.adapted.load.attach", refuse)


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize(
    ("config", "option", "value"),
    [
        (NolaConfig(4), "r", 10**9),
        (AdaLoraConfig(2), "initial", 1e9),
        (AdaLoraConfig(2), "initial", 1e5),
        (AutoLoraConfig(2), "initial", 1e5),
        (("peft:unilora", 4), "r", 10**9),
        (("peft:tinylora", 4), "r", 10**9),
    ],
)
def test_no_option_takes_memory_that_the_file_does_not_fill(
    config: Any, option: str, value: float, tmp_path: Path
) -> None:
    if isinstance(config, tuple):
        pytest.importorskip("peft")
        config = get_method(config[0]).config.from_options(config[1], {})
    attach(small(), config, ["0"]).save(tmp_path)
    with pytest.raises(Attached):
        load(small(), tmp_path)
    changed(tmp_path, options={**config.options(), option: value})
    with pytest.raises(AdapterError, match=r"its capacities need|its r = [\d,]+ is larger than|initial must be"):
        load(small(), tmp_path)


@pytest.mark.parametrize("shape", [5, None, [6], [6, "8"], [6, 8, 1], {"6": 8}])
def test_a_shape_is_two_numbers(shape: object, tmp_path: Path) -> None:
    attach(small(), LoraConfig(2), ["0"]).save(tmp_path)
    changed(tmp_path, shapes={"0.weight": shape})
    with pytest.raises(CheckpointError, match=r"adapter\.json is damaged: a pair of numbers in shapes is missing"):
        load(small(), tmp_path)


@pytest.mark.parametrize("name", ["*", "weight", "[0].weight"])
@pytest.mark.parametrize("capacities", [{}, {"0.weight": 2}])
def test_a_name_is_no_pattern(name: str, capacities: dict[str, int], tmp_path: Path) -> None:
    attach(small(), LoraConfig(2), ["0"]).save(tmp_path)
    changed(tmp_path, shapes={name: [6, 8]}, capacities=capacities)
    with pytest.raises(
        CheckpointError, match=r"is for '.*', which this model does not have; (nearest|known): '0.weight'"
    ):
        load(small(), tmp_path)


def test_a_seed_is_a_number(tmp_path: Path) -> None:
    attach(small(), LoraConfig(2), ["0"]).save(tmp_path)
    changed(tmp_path, basis_seed="x")
    with pytest.raises(CheckpointError, match="basis_seed is missing, or its value"):
        load(small(), tmp_path)


def test_cuts_are_of_the_terms_that_there_are(tmp_path: Path) -> None:
    model = small()
    adapted = attach(model, AdaLoraConfig(2), ["0"])
    perturb(adapted)
    model(torch.ones(3, 8)).sum().backward()
    adapted.hooks.on_step(1, 1)
    adapted.save(tmp_path)
    load(small(), tmp_path)
    for kept in (torch.ones(7, dtype=torch.uint8), torch.ones(3, 1, dtype=torch.uint8)):
        tensors = {"schedule.0.kept": kept}
        save_file(tensors, tmp_path / "schedule.safetensors")
        changed(tmp_path, schedule=digest_of(tensors))
        with pytest.raises(CheckpointError, match=r"kept has shape \(.*\) in the state, the adapters have 3 terms"):
            load(small(), tmp_path)


@pytest.mark.parametrize(
    ("rank", "settings", "kind"),
    [(0, {}, "ZeroDivisionError"), (2, {"alpha_pattern": {"(" * 3000 + ")" * 3000: 1.0}}, "RecursionError")],
)
def test_pefts_folders_raise_nothing_else(rank: int, settings: dict[str, Any], kind: str, tmp_path: Path) -> None:
    tensors = {"lora_A": torch.zeros(rank, 8), "lora_B": torch.zeros(6, rank)}
    save_file({f"base_model.model.0.{k}.weight": v for k, v in tensors.items()}, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, **settings}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"has settings that are not valid \({kind}"):
        load_peft(small(), tmp_path)


def test_a_rank_may_exceed_small_weights(tmp_path: Path) -> None:
    attach(small(), NolaConfig(4, r=32), ["0"]).save(tmp_path)
    load(small(), tmp_path)


@pytest.mark.parametrize("name", ["adapter.safetensors", "adapter.json", "adapter_config.json"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(name: str, tmp_path: Path) -> None:
    attach(small(), LoraConfig(2), ["0"]).save(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    read = load_peft if name == "adapter_config.json" else load
    with pipe(tmp_path / name), pytest.raises(CheckpointError, match=f"{name} is not a file"):
        read(small(), tmp_path)
