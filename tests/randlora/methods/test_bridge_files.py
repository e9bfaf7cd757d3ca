"""What is kept of PEFT's types beside their trainables: that of what is drawn again, and no delta without its bias."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
from tests.randlora.methods.support import TARGETS, configured, network, on_another_machine, rows

pytest.importorskip("peft")
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
