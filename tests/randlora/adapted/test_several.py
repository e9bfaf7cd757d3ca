"""Several adapters of one model, which take turns: no state of one in another, and nothing left behind."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from randlora import Adapted, AdapterError, DoraConfig, LoraConfig, RandLoraConfig, attach
from tests.randlora.support import TARGETS, batch, block, perturb

MEMBERS = {
    "wide": (RandLoraConfig(3), TARGETS),
    "low": (LoraConfig(4), ["fc", "proj", "own.in_proj_weight"]),
    "dora": (DoraConfig(2), ["square", "fc"]),
}


def several(model: nn.Module, names: list[str] | None = None) -> dict[str, Adapted]:
    """All disabled."""
    members = {}
    for name in names or MEMBERS:
        members[name] = attach(model, *MEMBERS[name])
        perturb(members[name])
        members[name].disable()
    return members


def test_each_computes_in_turn_what_it_computes_alone() -> None:
    model, x = block(torch.float64), batch(torch.float64)
    members = several(model)
    for name in ("low", "wide", "dora", "wide"):
        members[name].enable()
        assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in members[name].parameters()}
        alone = block(torch.float64)
        (only,) = several(alone, [name]).values()
        only.enable()
        assert torch.equal(model(x), alone(x))
        members[name].disable()


@pytest.mark.parametrize("order", list(itertools.permutations(MEMBERS)), ids="-".join)
@pytest.mark.parametrize("running", [None, "low"])
def test_the_last_to_be_detached_gives_the_flags_back(order: tuple[str, ...], running: str | None) -> None:
    model = block()
    model.norm.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    members = several(model)
    if running is not None:
        members[running].enable()
    for name in order:
        left = {id(p) for n in order[order.index(name) :] for p in members[n].parameters()}
        assert all(id(p) in left for p in model.parameters() if p.requires_grad)
        members[name].detach()
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


def test_a_merged_one_is_no_base_for_the_others() -> None:
    model = block(torch.float64)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    members = several(model)
    low, dora = members["low"], members["dora"]
    want = dora.deltas()
    low.enable()
    low.merge()
    for verb, act in (("take deltas", dora.deltas), ("enable", dora.enable)):
        with pytest.raises(AdapterError, match=rf"cannot {verb}: another adapter \(LoRA\) is merged.*unmerge\(\) it"):
            act()
    later = attach(model, LoraConfig(2), ["fc"])  # of the merged weights, which are its own base
    assert later.deltas().keys() == {"fc.weight"}
    with pytest.raises(AdapterError, match="cannot detach: other adapters are in the model"):
        low.detach()
    later.merge()
    with pytest.raises(AdapterError, match="cannot unmerge: another adapter"):
        low.unmerge()
    later.detach()
    low.unmerge()
    low.disable()
    assert all(torch.equal(delta, want[name]) for name, delta in dora.deltas().items())
    for member in members.values():
        member.detach()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_waits_follows_the_model_when_it_comes_back() -> None:
    model = block()
    members = several(model)
    model.eval()
    members["low"].enable()
    assert not any(a.training for a in members["low"].adapters.values())
    members["low"].disable()
    model.to("meta")
    members["wide"].enable()
    assert {p.device.type for p in members["wide"].parameters()} == {"meta"}
