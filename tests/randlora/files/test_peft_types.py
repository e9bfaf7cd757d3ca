"""PEFT's directories of its own types come back as `peft:NAME`, from here and from PEFT."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from randlora import CheckpointError, attach, load, load_peft
from randlora.methods.bridge.kinds import KINDS
from tests.randlora.methods.support import NAMES, TARGETS, configured, network, of_conv1d, rows
from tests.randlora.support import perturb

peft = pytest.importorskip("peft")
OWN = ("lora", "vera", "randlora")
"""Types that are read as methods of this package."""
TENSORS = "adapter_model.safetensors"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("made", [network, of_conv1d])
def test_what_is_exported_comes_back(name: str, made: Callable[[], nn.Module], tmp_path: Path) -> None:
    if made is of_conv1d and not KINDS[name].conv1d:
        pytest.skip("PEFT adapts no Conv1D by this type")
    model, again, (x, _) = made().eval(), made().eval(), rows()
    adapted = attach(model, configured(name), TARGETS, init_seed=5, basis_seed=7)
    perturb(adapted)
    adapted.export_peft(tmp_path / "theirs")
    back = load_peft(again, tmp_path / "theirs")
    assert back.method.name == (name if name in OWN else f"peft:{name}") and back.count() == adapted.count()
    torch.testing.assert_close(again(x), model(x), rtol=1e-5 if name in OWN else 0, atol=1e-5 if name in OWN else 0)
    if name not in OWN:
        back.save(tmp_path / "ours")
        third = made().eval()
        load(third, tmp_path / "ours")
        assert torch.equal(third(x), model(x))


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(OWN)))
def test_what_peft_has_saved_is_read(name: str, tmp_path: Path) -> None:
    config, (x, _) = configured(name, 24 if name == "unilora" else None), rows()
    shapes = [(32, 16), (16, 32), (16, 16)]
    more: dict[str, Any] = {"target_modules": TARGETS, **config.kind.settled(shapes * 2, config.options())}
    if name == "shira":
        more["random_seed"] = 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        theirs = peft.get_peft_model(network(), config.peft_config(config.capacity, **more)).eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=0.05)
        theirs.save_pretrained(tmp_path)
    model = network().eval()
    load_peft(model, tmp_path)
    assert torch.equal(model(x), theirs.base_model(x))


def test_how_peft_showed_its_progress_is_no_setting(tmp_path: Path) -> None:
    model, again, (x, _) = network().eval(), network().eval(), rows()
    attach(model, configured("frod"), TARGETS).export_peft(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["progressbar"] is False
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"progressbar": True}))  # PEFT's default
    load_peft(again, tmp_path)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("kept", [None, 0.25, 5])
def test_how_many_singular_vectors_osf_keeps(kept: float | None, tmp_path: Path) -> None:
    """PEFT's default is half of each weight's smaller side."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(network(), peft.OSFConfig(effective_rank=kept, target_modules=TARGETS)).eval()
        perturb(p for p in theirs.parameters() if p.requires_grad)
        theirs.save_pretrained(tmp_path)
    model, (x, _) = network().eval(), rows()
    load_peft(model, tmp_path)
    assert torch.equal(model(x), theirs.base_model(x))


def test_frozen_tensors_that_follow_no_seed(tmp_path: Path) -> None:
    """PEFT's SHiRA has no seed by default."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(network(), peft.ShiraConfig(r=4, target_modules=TARGETS))
        theirs.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="not those that PEFT draws here from the seed 0"):
        load_peft(network(), tmp_path)


def exported(folder: Path, name: str = "miss") -> Path:
    attach(network(), configured(name), TARGETS).export_peft(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("loha", {"use_effective_conv2d": True}, "use_effective_conv2d=True, which has no counterpart"),
        ("loha", {"rank_pattern": {"up": 2}}, "rank_pattern={'up': 2}, which has no counterpart"),
        ("miss", {"modules_to_save": ["2"]}, "modules_to_save"),
        ("miss", {"target_modules": ["nowhere"]}, "this model has no such modules"),
        ("miss", {"target_modules": "(0.)*up"}, "may match without end"),
        ("miss", {"target_modules": "("}, "has settings that are not valid"),
        ("miss", {"target_modules": ["up"]}, "have no counterpart here"),
        ("miss", {"target_modules": ["up", "down", "q", "2"]}, "its capacities need"),
        ("miss", {"r": "x"}, "has settings that are not valid"),
        ("miss", {"r": 2}, r"in the file and \(2, "),
        ("miss", {"r": 10**9}, "its capacities need"),
        ("road", {"variant": "road_x"}, "PEFT refuses the settings"),
        ("vblora", {"save_only_topk_weights": True}, "save_only_topk_weights=True"),
    ],
)
def test_settings_without_a_counterpart(name: str, settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = exported(tmp_path, name) / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    model, (x, _) = network(), rows()
    before = model(x)
    with pytest.raises(CheckpointError, match=said):
        load_peft(model, tmp_path)
    assert torch.equal(model(x), before) and all(p.requires_grad for p in model.parameters())


def test_files_of_other_tensors(tmp_path: Path) -> None:
    path = exported(tmp_path) / TENSORS
    tensors = load_file(path)
    first = min(tensors)
    for wrong, said in (
        ({**tensors, "other": torch.zeros(1)}, "which have no counterpart here"),
        ({k: v for k, v in tensors.items() if k != first}, "its capacities need"),
        ({**tensors, first: torch.zeros(50, 5)}, "in the file and"),
        ({**{k: v for k, v in tensors.items() if k != first}, "other": tensors[first]}, "lacks"),
    ):
        save_file(wrong, path)
        with pytest.raises(CheckpointError, match=said):
            load_peft(network(), tmp_path)


def test_a_type_that_is_no_method_here(tmp_path: Path) -> None:
    path = exported(tmp_path) / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_type": "POLY"}))
    with pytest.raises(CheckpointError, match="peft_type 'POLY' is not read here"):
        load_peft(network(), tmp_path)
