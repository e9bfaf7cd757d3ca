"""Several adapters on one model: no state of one in another, and nothing left behind."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from randlora import (
    AdapterError,
    AdapterSet,
    DoraConfig,
    HydraLoraConfig,
    LoraConfig,
    PissaConfig,
    RandLoraConfig,
    TargetError,
    attach,
)
from tests.randlora.support import TARGETS, Block, batch, block, perturb


def alone(config: object, targets: list[str], size: float) -> torch.Tensor:
    """What the model computes with this adapter and no other."""
    model = block(torch.float64)
    perturb(attach(model, config, targets), size)  # type: ignore[arg-type]
    output: torch.Tensor = model(batch(torch.float64))
    return output


def plain() -> torch.Tensor:
    """The base model's output, frozen as a set's is: torch's attention rounds otherwise where it is differentiated."""
    output: torch.Tensor = block(torch.float64).requires_grad_(False)(batch(torch.float64))
    return output


MEMBERS = {
    "wide": (RandLoraConfig(3), TARGETS, 0.1),
    "narrow": (RandLoraConfig(7), ["fc", "attn.in_proj_weight"], 0.2),
    "low": (LoraConfig(4), ["fc", "proj", "own.in_proj_weight"], 0.3),
    "dora": (DoraConfig(2), ["square"], 0.1),
}


def filled() -> tuple[Block, AdapterSet]:
    model = block(torch.float64)
    adapters = AdapterSet(model)
    for name, (config, targets, size) in MEMBERS.items():
        perturb(adapters.add(name, config, targets), size)
    return model, adapters


def test_switching_gives_each_adapters_own_output_in_any_order() -> None:
    model, adapters = filled()
    x = batch(torch.float64)
    assert adapters.active == "dora" and list(adapters) == list(MEMBERS) and len(adapters) == 4
    for name in ("low", "wide", "narrow", "wide", "wide", "dora", "low"):
        adapters.switch(name)
        assert adapters.active == name
        assert torch.equal(model(x), alone(*MEMBERS[name]))
    adapters.disable()
    assert adapters.active is None
    assert torch.equal(model(x), plain())


def test_a_member_that_is_merged_by_itself_is_in_the_way() -> None:
    model, adapters = filled()
    before = block(torch.float64).state_dict()
    adapters["dora"].merge()
    for step in (lambda: adapters.switch("low"), adapters.disable, lambda: adapters.merge({"low": 1.0})):
        with pytest.raises(AdapterError, match="while 'dora' is merged into the weights: unmerge"):
            step()
    adapters.unload()
    assert len(adapters) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_disabled_for_a_while() -> None:
    model, adapters = filled()
    x = batch(torch.float64)
    y = model(x)
    with adapters.disabled():
        assert torch.equal(model(x), plain())
    assert adapters.active == "dora"
    assert torch.equal(model(x), y)
    with adapters["dora"].disabled():
        assert torch.equal(model(x), plain())
    assert torch.equal(model(x), y)


def test_training_one_leaves_the_others() -> None:
    model, adapters = filled()
    before = {n: copy.deepcopy(adapters[n].state_dict()) for n in adapters}
    member = adapters.switch("narrow")
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in member.parameters()}
    optimizer = torch.optim.SGD(member.parameters(), lr=0.1)
    model(batch(torch.float64)).square().sum().backward()
    optimizer.step()
    for name in adapters:
        same = all(torch.equal(v, before[name][k]) for k, v in adapters[name].state_dict().items())
        assert same == (name != "narrow")


def test_merging_a_weighted_sum() -> None:
    model, adapters = filled()
    base = {n: p.detach().clone() for n, p in block(torch.float64).state_dict().items()}
    adapters.switch("low")
    sums = {"wide": 0.7, "low": -0.4, "dora": 1.5}
    deltas = {n: adapters[n].deltas() for n in sums}
    adapters.merge(sums)
    assert adapters.merged and adapters.active is None
    state = model.state_dict()
    assert state.keys() == base.keys()
    for name, old in base.items():
        expected = old + sum(w * deltas[n][name] for n, w in sums.items() if name in deltas[n])
        torch.testing.assert_close(state[name], expected, rtol=1e-12, atol=1e-12)
    for action in (lambda: adapters.switch("low"), lambda: adapters.remove("low"), lambda: adapters.merge(sums)):
        with pytest.raises(AdapterError, match=r"unmerge\(\) first"):
            action()
    adapters.unmerge()
    assert all(torch.equal(v, base[n]) for n, v in model.state_dict().items())
    adapters.merge({"wide": 1.0})
    merged = model(batch(torch.float64))
    torch.testing.assert_close(merged, alone(*MEMBERS["wide"]), rtol=1e-11, atol=1e-11)
    adapters.unload(keep_merged=True)
    torch.testing.assert_close(model(batch(torch.float64)), merged, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("merged", [False, True])
def test_unloading_leaves_nothing(merged: bool) -> None:
    model = block()
    model.norm.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    flags = [(n, id(p), p.requires_grad) for n, p in model.named_parameters()]
    classes = {n: type(m) for n, m in model.named_modules()}
    adapters = AdapterSet(model)
    for name, (config, targets, _) in MEMBERS.items():
        perturb(adapters.add(name, config, targets))
    adapters.remove("narrow")
    adapters.switch("wide")
    model(batch()).sum().backward()
    if merged:
        adapters.merge({"wide": 0.5, "low": 0.5})
    assert adapters.unload() is model
    assert len(adapters) == 0
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [(n, id(p), p.requires_grad) for n, p in model.named_parameters()] == flags
    assert {n: type(m) for n, m in model.named_modules()} == classes
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    perturb(attach(model, LoraConfig(2), ["fc"]))


def test_saving_and_loading_into_a_set(tmp_path: Path) -> None:
    model, adapters = filled()
    x = batch(torch.float64)
    for name in adapters:
        adapters[name].save(tmp_path / name)  # also those that are not in the model
    other = block(torch.float64)
    again = AdapterSet(other)
    for name in MEMBERS:
        again.load(name, tmp_path / name)
    for name in ("narrow", "dora", "wide"):
        adapters.switch(name)
        again.switch(name)
        torch.testing.assert_close(other(x), model(x), rtol=1e-6, atol=1e-6)


def test_an_interrupted_load_leaves_the_set_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, adapters = filled()
    adapters.switch("low")
    y = model(batch(torch.float64))
    adapters["low"].save(tmp_path)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("randlora.adapted.load._fill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        adapters.load("again", tmp_path)
    assert adapters.active == "low" and "again" not in adapters
    assert torch.equal(model(batch(torch.float64)), y)


def test_what_waits_follows_the_model_when_it_comes_back() -> None:
    model, adapters = filled()
    adapters.switch("wide")
    model.eval()
    adapters.switch("low")
    assert not any(a.training for a in adapters["low"].adapters.values())
    model.to("meta")
    adapters.switch("narrow")
    assert {p.device.type for p in adapters["narrow"].parameters()} == {"meta"}


def test_refusals_leave_the_set_as_it_was() -> None:
    model, adapters = filled()
    x = batch(torch.float64)
    adapters.switch("low")
    y = model(x)
    with pytest.raises(AdapterError, match=r"no adapter named 'lo': there are .*nearest: 'low'"):
        adapters.switch("lo")
    with pytest.raises(AdapterError, match="'low' is there already"):
        adapters.add("low", LoraConfig(2), ["fc"])
    with pytest.raises(TargetError, match="'fcc' matches no"):
        adapters.add("new", LoraConfig(2), ["fcc"])
    with pytest.raises(TypeError, match="capacity"):
        adapters.add("new", LoraConfig(2), ["fc"], capacity={})
    with pytest.raises(AdapterError, match="a weight per adapter"):
        adapters.merge({})
    with pytest.raises(AdapterError, match="without a merged sum"):
        adapters.unload(keep_merged=True)
    assert adapters.active == "low" and "new" not in adapters
    assert torch.equal(model(x), y)
    with pytest.raises(AdapterError, match="other adapters are in the model"):
        adapters["wide"].enable()
    with pytest.raises(AdapterError, match="disabled"):
        adapters["wide"].merge()
    adapters.add("hydra", HydraLoraConfig(2), ["fc"])
    with pytest.raises(AdapterError, match="cannot be merged"):
        adapters.merge({"low": 0.5, "hydra": 0.5})
    assert not adapters.merged and adapters.active == "hydra"
    with pytest.raises(AdapterError, match="adapters already"):
        AdapterSet(model)


def test_tied_weights_are_refused() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model["b"].weight = model["a"].weight
    adapters = AdapterSet(model)
    with pytest.warns(UserWarning, match="a.weight is tied"):
        adapters.add("one", PissaConfig(2), ["a"])
    with pytest.raises(AdapterError, match="tied"):
        adapters.merge({"one": 1.0})
