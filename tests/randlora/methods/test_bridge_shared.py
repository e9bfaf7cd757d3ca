"""Types of PEFT whose weights share trainables, and AdaMSS, whose count the shape gives at one direction a cluster."""

from __future__ import annotations

import gc
import itertools
import warnings
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn

from randlora import ConfigError, attach, get_method
from randlora.files.peft_export import peft_form
from tests.randlora.methods.support import NAMES, SHAPES, TARGETS, configured, network, rows, single


@pytest.mark.parametrize("name", ["vblora", "lily"])
def test_weights_that_share_trainables_have_one_capacity(name: str) -> None:
    config, names = configured(name), list(attach(network(), configured(name), TARGETS).adapters)
    with pytest.raises(ConfigError, match=r"has one (num_vectors|r) for all weights but got \[4, 6\]"):
        attach(network(), config, TARGETS, capacities={names[0]: 6})


def test_layers_of_one_kind_share_in_pefts_own_folder_too(tmp_path: Path) -> None:
    attach(network(), configured("lily"), TARGETS).export_peft(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(network(), str(tmp_path), is_trainable=True)
    shapes = {f"{i}.{n}.weight": s for i in range(2) for n, s in zip(TARGETS, SHAPES, strict=True)}
    assert sum(p.numel() for p in loaded.parameters() if p.requires_grad) == get_method("peft:lily").total(shapes, 4)
    model = nn.ModuleDict({"0": nn.ModuleDict({"q": nn.Linear(4, 4), "kq": nn.Linear(4, 4)})})
    with pytest.raises(ConfigError, match="PEFT cannot tell kq and q apart by name"):
        attach(model, configured("lily"), ["0.q", "0.kq"])


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_that_is_kept_is_counted(name: str) -> None:
    """Against what appears in memory: PEFT keeps some outside its state dicts."""

    def alive() -> dict[int, Tensor]:
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {id(t): t for t in gc.get_objects() if isinstance(t, Tensor)}

    model = network()
    before = alive()
    adapted = attach(model, configured(name), TARGETS)
    ours = {p.data_ptr() for p in (*model.parameters(), *adapted.parameters())}
    new = [t.untyped_storage() for key, t in alive().items() if key not in before and t.data_ptr() not in ours]
    assert adapted.stored_bytes() == sum({memory.data_ptr(): memory.nbytes() for memory in new}.values())


def test_the_form_of_a_type_that_needs_values_is_known_without_them() -> None:
    on_meta = attach(network().to("meta"), configured("shira"), TARGETS)
    assert peft_form(on_meta) == "itself"


def test_adamss_counts_by_the_values_of_the_weights_where_clusters_have_more_directions_than_rows() -> None:
    counts: dict[int, set[int]] = {1: set(), 8: set()}
    for rank, outliers in itertools.product(counts, (0, 3)):
        model = single(
            (64, 64), "cpu"
        )  # rows that stand apart, as trained weights have them, are a cluster of their own
        with torch.no_grad():
            model[0].weight[:outliers] *= 40  # type: ignore[index]
        inner = peft.AdamssConfig(r=16, num_subspaces=5, subspace_rank=rank, target_modules=["0"])
        counts[rank].add(sum(p.numel() for p in peft.get_peft_model(model, inner).parameters() if p.requires_grad))
    assert counts[1] == {get_method("peft:adamss").count((64, 64), 16)}
    assert len(counts[8]) == 2


def test_adamss_moves_a_bias_beside_the_matrix() -> None:
    """PEFT takes the bias for a column of the weight; the update as a matrix is without it."""
    model, base = network().eval(), network()[0].up
    adapted, x = attach(model, configured("adamss"), ["up"]), rows()[0]
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(torch.ones_like(parameter), alpha=0.1)
    layer, none = model[0].up, torch.zeros_like(x)
    assert not torch.allclose(layer(none), base(none), atol=1e-2)
    weight = adapted.adapters["0.up.weight"].weight(base.weight)
    assert not torch.allclose(weight, base.weight, atol=1e-2)
    assert torch.allclose(layer(x) - layer(none), x @ weight.t(), atol=1e-5)


def test_adamss_on_a_part_takes_that_parts_bias() -> None:
    fused, alone = nn.ModuleDict({"qkv": nn.Linear(16, 48)}), nn.ModuleDict({"v": nn.Linear(16, 16)})
    alone.v.load_state_dict({key: value[32:] for key, value in fused.qkv.state_dict().items()})
    x, start = rows()[0], fused.qkv(rows()[0])
    for model, target in ((fused, "qkv.weight[v]"), (alone, "v")):
        for parameter in attach(model, configured("adamss"), [target]).parameters():
            nn.init.ones_(parameter)
    assert torch.equal(fused.qkv(x)[..., :32], start[..., :32])
    assert torch.allclose(fused.qkv(x)[..., 32:], alone.v(x), atol=1e-5)
    assert not torch.allclose(alone.v(x), start[..., 32:], atol=1e-2)
