"""Sizes of saved adapters, predicted on the meta device, against the files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from randlora import AdapterConfig, attach
from randlora.files.sizes import file_bytes, saved_bytes
from randlora.files.tensors import write_tensors
from randlora.methods.bridge.installed import PREFIX
from randlora.methods.bridge.kinds import KINDS
from randlora.methods.registry import get_method
from tests.randlora.support import CONFIGS, block, config_id, targets_of


def _sizes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize("config", CONFIGS, ids=config_id)
def test_predicted_on_meta_is_what_is_written(config: AdapterConfig, tmp_path: Path) -> None:
    with torch.device("meta"):
        predicted = saved_bytes(attach(block(), config, targets_of(config), capacities={"fc.weight": 4}))
    adapted = attach(block(), config, targets_of(config), capacities={"fc.weight": 4})
    assert saved_bytes(adapted) == _sizes(adapted.save(tmp_path))
    assert predicted == saved_bytes(adapted)


@pytest.mark.parametrize("kind", KINDS)
def test_of_the_methods_of_peft_too(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    method = get_method(PREFIX + kind)

    def attached(device: str) -> int:
        with torch.device(device):
            model = nn.Sequential(nn.Linear(24, 16), nn.Linear(16, 24, bias=False), nn.Linear(24, 16))
        options = {"group_size": 8} if kind == "road" else {}
        config = method.config.from_options(max(2, method.min_capacity), options)
        adapted = attach(model, config, ["0", "1", "2"])
        if device == "cpu":
            assert saved_bytes(adapted) == _sizes(adapted.save(tmp_path))
        return saved_bytes(adapted)

    if kind not in ("shira", "frod", "adamss"):
        assert attached("meta") == attached("cpu")
    else:  # built from the values of the weights
        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(24, 16))
        added = attach(model, method.config.from_options(2, {}), ["0"])
        assert all(adapter.stand_in for adapter in added.adapters.values())
        attached("cpu")


def test_a_file_of_many_types_has_its_header_predicted(tmp_path: Path) -> None:
    names = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.int32]
    tensors = {f"{i}.{'x' * i}": torch.zeros(i + 1, 3, dtype=dtype) for i, dtype in enumerate(names)}
    tensors |= {"scalar": torch.zeros(()), "none": torch.zeros(0, 4), "ü": torch.zeros(3)}
    write_tensors(tmp_path / "a.safetensors", tensors)
    assert file_bytes(tensors) == (tmp_path / "a.safetensors").stat().st_size
