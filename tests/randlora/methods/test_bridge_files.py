"""What is kept of PEFT's types beside their trainables: that of what is drawn again, and no delta without its bias."""

from __future__ import annotations

import copy
import io
import json
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from randlora import AdapterError, CheckpointError, ExportError, attach, load
from randlora.files.checkpoint import DERIVED
from randlora.files.tensors import digest_of, write_tensors
from randlora.methods.bridge.build import PeftAdapter
from randlora.methods.bridge.kinds import KINDS
from tests.randlora.methods.support import NAMES, TARGETS, configured, network, of_conv1d, on_another_machine, rows
from tests.randlora.support import perturb

peft = pytest.importorskip("peft")
DRAWN = sorted(name for name, kind in KINDS.items() if kind.seed is not None and not kind.derived)


def changed(folder: Path, **settings: Any) -> None:
    path = folder / "adapter.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, **settings}))


def test_the_types_that_draw_what_is_frozen() -> None:
    assert DRAWN == ["fourierft", "pvera", "randlora", "shira", "unilora", "vera", "waveft"]


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_drawn_otherwise_is_refused(name: str, tmp_path: Path) -> None:
    attach(network(), configured(name), TARGETS, basis_seed=7).save(tmp_path)
    meta = json.loads((tmp_path / "adapter.json").read_text())
    model, (x, _) = network(), rows()
    y = model(x)
    for wrong in ({"basis_seed": 8}, {"redrawn": "x"}, {"redrawn": {**meta["redrawn"], "digest": 5}}):
        changed(tmp_path, **wrong)
        with pytest.raises(CheckpointError, match="the digest differs: what PEFT draws from seed"):
            load(model, tmp_path)
        assert torch.equal(model(x), y) and all(p.requires_grad for p in model.parameters())
        changed(tmp_path, **meta)
    load(network(), tmp_path)
    del meta["redrawn"]  # as folders of before
    (tmp_path / "adapter.json").write_text(json.dumps({**meta, "basis_seed": 8}))
    load(network(), tmp_path)


def test_a_peft_that_scales_its_draws_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attach(network(), configured("vera"), TARGETS).save(tmp_path)
    once = PeftAdapter.redrawn

    def twice(adapter: PeftAdapter) -> Iterator[Tensor]:
        return (2 * tensor for tensor in once(adapter))

    monkeypatch.setattr(PeftAdapter, "redrawn", twice)
    with pytest.raises(CheckpointError, match="the digest differs"):
        load(network(), tmp_path)


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_adapter_of_a_model_in_low_precision_goes_into_the_full_one(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """PEFT rounds some of its draws to the type of the model."""
    attach(network().to(dtype), configured(name), TARGETS).save(tmp_path)
    load(network(), tmp_path)


def test_an_adapter_brings_both_bases_of_frod_and_one_of_before_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deltas = attach(network(), configured("frod"), TARGETS).deltas()
    attach(network(), configured("frod"), TARGETS).save(tmp_path)
    with monkeypatch.context() as there:
        on_another_machine(there)
        for name, delta in load(network(), tmp_path).deltas().items():
            torch.testing.assert_close(delta, deltas[name])
    older = {name: tensor for name, tensor in load_file(tmp_path / DERIVED).items() if ".frod_V." not in name}
    write_tensors(tmp_path / DERIVED, older)
    changed(tmp_path, derived=digest_of(older))
    for name, delta in load(network(), tmp_path).deltas().items():
        torch.testing.assert_close(delta, deltas[name])


@pytest.mark.parametrize("name", ["ia3", "road", "adamss"])
def test_a_delta_that_would_lack_the_bias_is_not_exported(name: str, tmp_path: Path) -> None:
    adapted = attach(network(), configured(name), ["up"])
    for action in (adapted.merge, lambda: adapted.export_deltas(tmp_path / "deltas")):
        with pytest.raises(AdapterError, match="the adapter changes the layer's bias as well"):
            action()
    assert not (tmp_path / "deltas").exists()
    with pytest.raises(ExportError, match=r"cannot export the delta of 0.up.weight"):
        adapted.export_deltas(tmp_path)
    without = attach(nn.Sequential(nn.Linear(16, 16, bias=False)), configured(name), ["0"])
    assert list(load_file(without.export_deltas(tmp_path) / "deltas.safetensors")) == ["0.weight"]


def saved_whole(model: nn.Module) -> nn.Module:
    """A model that went through `torch.save`."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    # a whole model is no tensors alone, so weights_only cannot read it; these bytes were written two lines above
    again: nn.Module = torch.load(file, weights_only=False)
    return again


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("passed", [saved_whole, copy.deepcopy], ids=["saved", "copied"])
@pytest.mark.parametrize("made", [network, of_conv1d])
def test_a_model_is_saved_and_copied_whole(
    name: str, passed: Callable[[nn.Module], nn.Module], made: Callable[[], nn.Module]
) -> None:
    """With its adapters, which go on training as they did."""
    model, (x, _) = made().eval(), rows()
    adapted = attach(model, configured(name), TARGETS)
    perturb(adapted)
    again = passed(model)
    gradients = []
    for each in (model, again):
        y = each(x)
        each.zero_grad()
        y.square().mean().backward()
        gradients.append([y.detach(), *(p.grad for p in each.parameters() if p.grad is not None)])
    assert len(gradients[0]) > 1
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_is_pickled(name: str) -> None:
    config = configured(name)
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_on_conv1d_is_exported_if_peft_takes_such_layers(name: str, tmp_path: Path) -> None:
    """Beside an nn.Linear, if the type's layers share nothing with it."""
    model, (x, _) = of_conv1d().eval(), rows()
    adapted = attach(model, configured(name), TARGETS)
    perturb(adapted)
    if not KINDS[name].conv1d:
        with pytest.raises(ExportError, match=r"0\.up\.weight is the weight of a Conv1D"):
            adapted.export_peft(tmp_path)
        return
    adapted.export_peft(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(of_conv1d(), str(tmp_path)).eval()
    assert torch.equal(loaded.base_model(x), model(x))
