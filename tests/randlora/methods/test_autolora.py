"""AutoLoRA: the held-out gradient against autograd, the search, its end, and what is kept of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from randlora import AutoLoraConfig, ConfigError, LoraConfig, attach, load
from randlora.methods.scheduled.autolora import AutoLora, Selector
from randlora.methods.scheduled.bilevel import held_out_gradient, set_aside
from tests.randlora.support import block, perturb


def test_the_kept_terms_are_found_by_weight_in_a_copy_too() -> None:
    adapted = attach(block(), AutoLoraConfig(2, initial=3.0), ["fc", "proj"], capacities={"proj.weight": 1})
    for those in (adapted, copy.deepcopy(adapted)):
        first, second = those.adapters.values()
        schedule = first.schedule
        assert isinstance(schedule, Selector) and isinstance(first, AutoLora) and isinstance(second, AutoLora)
        assert second.kept() is None
        schedule.load_state({"kept": torch.tensor([1, 0, 0, 1, 0, 0, 0, 0, 1])})
        for adapter, want in ((first, [1, 0, 0, 1, 0, 0]), (second, [0, 0, 1])):
            kept = adapter.kept()
            assert kept is not None and kept.tolist() == list(map(bool, want))


@pytest.mark.parametrize("second", [False, True])
def test_the_gradient_is_that_of_the_loss_after_the_step(second: bool) -> None:
    g = torch.Generator().manual_seed(0)

    def noise(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    x, y, u, v = noise(9, 4), noise(9, 3), noise(7, 4), noise(7, 3)
    w, s, lr = noise(4, 3).requires_grad_(), noise(4).requires_grad_(), 0.3

    def loss(inputs: Tensor, targets: Tensor, weights: Tensor, gates: Tensor) -> Tensor:
        return (torch.tanh(inputs * torch.softmax(gates, 0)) @ weights - targets).square().mean()

    (slope,) = torch.autograd.grad(loss(x, y, w, s), w, create_graph=True)
    stepped = w - lr * slope
    if not second:
        stepped = stepped.detach()
    (expected,) = torch.autograd.grad(loss(u, v, stepped, s), s)

    before, after = w.detach().clone(), stepped.detach().clone()
    with torch.no_grad():
        w.copy_(after)
    held_out_gradient(
        lambda: loss(u, v, w, s).backward(),  # type: ignore[no-untyped-call]
        (lambda: loss(x, y, w, s).backward()) if second else None,  # type: ignore[no-untyped-call]
        weights=[w],
        before=[before],
        selections=[s],
        lr=lr,
    )
    assert s.grad is not None
    torch.testing.assert_close(s.grad, expected, rtol=1e-4 if second else 1e-12, atol=0.0)
    assert w.grad is None and torch.equal(w, after)


def test_a_row_is_held_out_whatever_the_others_are() -> None:
    few, many = set_aside(10, 0.3, 5), set_aside(4000, 0.3, 5)
    assert torch.equal(few, many[:10])
    assert 0.27 < float(many.double().mean()) < 0.33
    assert not torch.equal(many, set_aside(4000, 0.3, 6))


class Two(nn.Module):
    """Two layers that add up."""

    def __init__(self) -> None:
        super().__init__()
        self.useful, self.idle = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        for i, layer in enumerate((self.useful, self.idle)):
            nn.init.normal_(layer.weight, std=0.3, generator=torch.Generator().manual_seed(i))

    def forward(self, x: Tensor) -> Tensor:
        return self.useful(x[..., :8]) + self.idle(x[..., 8:])  # type: ignore[no-any-return]


def task() -> tuple[Tensor, Tensor]:
    """Rows and what a changed first layer makes of them."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(64, 16, generator=g)
    x[:, 8:] = 0.01 * x[:, 8:]
    return x, x[:, :8] @ torch.randn(8, 8, generator=g)


def search(config: AutoLoraConfig, total: int, steps: range, state: Any = None) -> tuple[Two, Any, list[int]]:
    """Learn a change of the first layer alone, as a training loop does it."""
    model = Two()
    adapted = attach(model, config, ["useful", "idle"])
    hooks = adapted.hooks
    if state is not None:
        adapted.load_state_dict(state[0])
        hooks.load_state(state[1])
    apart = {id(p) for p in hooks.apart()}
    weights = [p for p in adapted.parameters() if id(p) not in apart]
    optimizer = torch.optim.SGD(weights, lr=0.1)
    x, target = task()
    aside = set_aside(64, config.held_out, 0)
    seen = []

    def backward(rows: Tensor) -> None:
        (model(x[rows]) - target[rows]).square().mean().backward()

    for step in steps:
        optimizer.zero_grad()
        held_out = hooks.held_out(step, total)
        before = [w.detach().clone() for w in weights]
        backward(~aside if held_out else torch.ones(64, dtype=torch.bool))
        optimizer.step()
        hooks.on_step(step + 1, total)
        if hooks.restarts(step + 1, total):
            seen.append(step + 1)
        if held_out:
            held_out_gradient(
                lambda: backward(aside),
                (lambda: backward(~aside)) if hooks.order == 2 else None,
                weights=weights,
                before=before,
                selections=hooks.apart(),
                lr=0.1,
            )
            hooks.on_held_out()
    return model, adapted, seen


@pytest.mark.parametrize("order", [1, 2])
def test_the_search_lowers_the_held_out_loss(order: int) -> None:
    """Against the same terms, all weighted alike."""
    config = AutoLoraConfig(2, selection_lr=0.05, order=order)
    model, adapted, restarts = search(config, 40, range(19))
    aside = set_aside(64, config.held_out, 0)
    x, target = task()

    def loss() -> float:
        with torch.no_grad():
            return float((model(x[aside]) - target[aside]).square().mean())

    found = loss()
    for adapter in adapted.adapters.values():
        assert isinstance(adapter, AutoLora)
        adapter.selection.data.zero_()
    assert found < 0.98 * loss()
    assert restarts == []
    assert adapted.count() == attach(Two(), LoraConfig(2), ["useful", "idle"]).count()


def test_the_largest_weights_that_the_budget_pays_for_are_kept() -> None:
    model = nn.ModuleDict({"small": nn.Linear(4, 4), "large": nn.Linear(12, 12)})
    adapted = attach(model, AutoLoraConfig(2, selection_lr=0.05), ["small", "large"])
    small, large = adapted.adapters.values()
    assert isinstance(small, AutoLora) and isinstance(large, AutoLora)
    with torch.no_grad():
        large.selection.copy_(torch.tensor([0.0, 2.0, 0.0, 0.1]))
        small.selection.copy_(torch.tensor([0.3, 0.0, 0.2, 0.1]))
    budget = 2 * 8 + 2 * 24
    assert adapted.count() == budget
    adapted.hooks.on_step(4, 8)
    selector = adapted.hooks.schedules[0]
    assert isinstance(selector, Selector)
    # w: large 0.36, 2.68, 0.36, 0.40; small 1.15, 0.85, 1.04, 0.94. 24 + 4 * 8 leaves 8: no further large term
    assert selector.kept_of(large).tolist() == [False, True, False, False]  # type: ignore[union-attr]
    assert selector.kept_of(small).tolist() == [True] * 4  # type: ignore[union-attr]
    assert adapted.count() == 24 + 4 * 8 <= budget


def test_after_the_search_it_is_a_lora_from_a_new_start() -> None:
    model, adapted, _ = search(AutoLoraConfig(2), 10, range(5))
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(9))
    assert torch.equal(model(x), Two()(x))
    for adapter in adapted.adapters.values():
        assert isinstance(adapter, AutoLora)
        a, b = adapter.factors()
        assert a.shape[1] == b.shape[1] == adapter.count() // 16
    rates = [adapted.hooks.phase(step, 10) for step in (0, 4, 5, 9)]
    assert rates == [(0, 5), (0, 5), (5, 5), (5, 5)]
    assert [adapted.hooks.held_out(step, 10) for step in (0, 3)] == [0.0, 0.0]  # it is over


@pytest.mark.parametrize(("share", "total"), [(0.5, 2), (0.75, 2), (0.9, 4), (0.95, 10)])
def test_a_step_is_left_after_the_search(share: float, total: int) -> None:
    """The new start is the base model: ended by the last step, the search would leave that."""
    model, adapted, restarts = search(AutoLoraConfig(2, search=share), total, range(total))
    x = task()[0]
    assert restarts == [total - 1]
    assert not torch.equal(model(x), Two()(x))
    assert adapted.hooks.phase(total - 1, total) == (total - 1, 1)


def test_one_step_is_too_few_to_search_in() -> None:
    with pytest.raises(ConfigError, match="of 1 training step none is left after the search; train for 2 at least"):
        search(AutoLoraConfig(2), 1, range(1))


def test_the_held_out_share_ends_with_the_search() -> None:
    adapted = attach(Two(), AutoLoraConfig(2, held_out=0.25), ["useful", "idle"])
    assert [adapted.hooks.held_out(step, 8) for step in range(8)] == [0.25] * 3 + [0.0] * 5
    assert {id(p) for p in adapted.hooks.apart()} == {id(a.selection) for a in adapted.adapters.values()}


@pytest.mark.parametrize("stop", [3, 5, 8])
def test_the_searchs_state_goes_round(stop: int) -> None:
    config = AutoLoraConfig(2, selection_lr=0.05)
    _, whole, _ = search(config, 10, range(10))
    _, first, _ = search(config, 10, range(stop))
    state = {k: v.clone() for k, v in first.state_dict().items()}, first.hooks.state()
    _, second, _ = search(config, 10, range(stop, 10), state)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert whole.count() == second.count()


@pytest.mark.parametrize("stop", [3, 10])
def test_a_saved_adapter_computes_the_same(stop: int, tmp_path: Path) -> None:
    model, adapted, _ = search(AutoLoraConfig(2, selection_lr=0.5), 10, range(stop))
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(9))
    adapted.save(tmp_path)
    again = Two()
    load(again, tmp_path)
    torch.testing.assert_close(again(x), model(x), rtol=1e-6, atol=1e-6)


def test_without_hooks_all_terms_train() -> None:
    model = block()
    adapted = attach(model, AutoLoraConfig(3), ["fc"])
    perturb(adapted)
    (adapter,) = adapted.adapters.values()
    assert isinstance(adapter, AutoLora)
    delta = adapter.delta(adapted.sites["fc.weight"].base)
    terms = [w * torch.outer(adapter.b[:, j], adapter.a[:, j]) for j, w in enumerate(adapter.weights().tolist())]
    torch.testing.assert_close(delta, torch.stack(terms).sum(0), rtol=1e-5, atol=1e-6)
    assert float(adapter.weights().detach().mean()) == pytest.approx(1.0)
