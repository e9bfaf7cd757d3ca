"""Attach, freeze, merge, detach: what must hold for every method and every kind of weight."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from randlora import (
    METHODS,
    AdapterConfig,
    AdapterError,
    ConfigError,
    DoraConfig,
    LoraConfig,
    NolaConfig,
    RandLoraConfig,
    TargetError,
    attach,
    default_targets,
    get_method,
    resolve_targets,
)
from tests.randlora.support import CONFIGS, TARGETS, batch, block, config_id, perturb, stored, targets_of

every_method = pytest.mark.parametrize("config", CONFIGS, ids=config_id)
MERGEABLE = [c for c in CONFIGS if get_method(c.method).mergeable]
every_mergeable = pytest.mark.parametrize("config", MERGEABLE, ids=config_id)


def test_every_method_has_a_row_here() -> None:
    assert {c.method for c in CONFIGS} == {name for name, method in METHODS.items() if not method.needs_gradients}


def test_what_is_no_configuration_is_named_with_one() -> None:
    model = block()
    with pytest.raises(ConfigError, match=r"nearest: LoraConfig\(8\), or 'lora' and r=8"):
        attach(model, {}, TARGETS)  # type: ignore[arg-type]
    assert all(parameter.requires_grad for parameter in model.parameters())


@every_method
def test_a_methods_name_with_options_is_its_configuration(config: AdapterConfig) -> None:
    options = {config.capacity_field: config.capacity, **config.options()}
    by_name = attach(block(), config.method, targets_of(config), **options)
    assert (by_name.config, by_name.count()) == (config, attach(block(), config, targets_of(config)).count())


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        ("lora", {}, r"'lora' needs its capacity, 'r'; nearest: attach\(model, 'lora', r=8\)"),
        ("nola", {"rank": 8}, r"'nola' has no option 'rank'.*its capacity is 'k'"),
        ("lora", {"r": 8, "aplha": 2.0}, r"'lora' has no option 'aplha'; nearest: 'alpha'"),
        ("lora", {"r": 0}, "r must be"),
        ("lora", {"r": 8, "alpha": "much"}, "alpha"),
        ("lroa", {"r": 8}, r"unknown method 'lroa'.*nearest: 'lora'"),
        (LoraConfig(8), {"alpha": 2.0}, r"alpha = 2\.0 beside a configuration: options are fields of LoraConfig"),
    ],
)
def test_a_wrong_name_or_option_is_refused_with_the_nearest(config: Any, options: dict[str, Any], words: str) -> None:
    model = block()
    with pytest.raises(AdapterError, match=words):
        attach(model, config, TARGETS, **options)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_targets_are_the_familys_if_none_are_named() -> None:
    import transformers

    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_attention_heads=2))
    usual = set(resolve_targets(model, default_targets(model)))
    assert set(attach(model, "lora", r=2).sites) == usual
    with pytest.raises(TargetError, match="no default targets"):
        attach(block(), "lora", r=2)


def test_it_shows_itself_in_a_notebook() -> None:
    shown = attach(block(), "lora", TARGETS, r=2)
    page = shown._repr_html_()
    assert f"{shown.count():,}" in page and all(name in page for name in shown.sites)
    assert page.count("<tr>") == 1 + len(shown.sites)


@every_method
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_output_unchanged_at_attach(config: AdapterConfig, grad: bool, training: bool) -> None:
    """Compared under the same grad mode: torch's attention has a fast path for inference."""
    model = block().train(training)
    x = batch()
    model.requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        before = model(x)
        attach(model, config, targets_of(config))
        after = model(x)
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)


@every_mergeable
def test_merge_equals_unmerged(config: AdapterConfig) -> None:
    model, x = block(torch.float64), batch(torch.float64)
    adapted = attach(model, config, targets_of(config))
    perturb(adapted)
    unmerged = model(x)
    assert not torch.allclose(unmerged, block(torch.float64)(x), atol=1e-3)
    state = copy.deepcopy(adapted.state_dict())
    with adapted.merging():
        assert adapted.merged
        torch.testing.assert_close(model(x), unmerged, rtol=1e-11, atol=1e-11)
    assert not adapted.merged
    assert torch.equal(model(x), unmerged)
    assert all(torch.equal(state[k], v) for k, v in adapted.state_dict().items())


@every_method
def test_gradient_reaches_every_trainable_and_no_other(config: AdapterConfig) -> None:
    model = block()
    adapted = attach(model, config, targets_of(config))
    perturb(adapted)
    model(batch()).square().sum().backward()
    trained = {id(p) for p in adapted.parameters()}
    for name, parameter in adapted.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).all(), name
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (id(parameter) in trained), name
        assert (parameter.grad is not None) == (id(parameter) in trained), name


@every_method
def test_gradient_flows_at_the_start(config: AdapterConfig) -> None:
    """A start with delta zero must not be a stationary point of the trainables."""
    model = block()
    adapted = attach(model, config, targets_of(config))
    model(batch()).square().sum().backward()
    for name, adapter in adapted.adapters.items():
        assert any(p.grad is not None and bool((p.grad != 0).any()) for p in adapter.parameters()), name


@every_method
def test_count_is_the_registrys(config: AdapterConfig) -> None:
    method = get_method(config.method)
    adapted = attach(block(), config, targets_of(config))
    assert adapted.count() == method.total(list(adapted.shapes.values()), config.capacity, **config.options())
    built = sum(p.numel() for p in adapted.parameters())
    assert built == sum(p.numel() for p in adapted.model.parameters() if p.requires_grad)
    assert adapted.count() == built or (method.scheduled and adapted.count() < built)


@every_method
@pytest.mark.parametrize("merged", [False, True])
def test_detach_restores_bit_for_bit(config: AdapterConfig, merged: bool) -> None:
    model, x = block(), batch()
    model.norm.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    classes = {n: type(m) for n, m in model.named_modules()}
    flags = [(n, id(p), p.requires_grad) for n, p in model.named_parameters()]
    output = model(x)
    adapted = attach(model, config, targets_of(config))
    perturb(adapted)
    model(x).sum().backward()
    if merged and get_method(config.method).mergeable:
        adapted.merge()
    adapted.detach()
    adapted.detach()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert {n: type(m) for n, m in model.named_modules()} == classes
    assert [(n, id(p), p.requires_grad) for n, p in model.named_parameters()] == flags
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(x), output)
    with pytest.raises(AdapterError, match="detached"):
        adapted.merge()


def test_detach_keeping_the_merged_weights() -> None:
    model, x = block(torch.float64), batch(torch.float64)
    adapted = attach(model, RandLoraConfig(4), TARGETS)
    perturb(adapted)
    expected = model(x)
    for _ in range(2):  # twice is as once
        adapted.detach(keep_merged=True)
    assert list(model.state_dict()) == list(block().state_dict())
    torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-11)


@every_mergeable
def test_autocast_rounds_neither_deltas_nor_merged_weights(config: AdapterConfig) -> None:
    model = block()
    adapted = attach(model, config, targets_of(config))
    perturb(adapted)
    deltas, before = adapted.deltas(), {name: site.base.detach().clone() for name, site in adapted.sites.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = adapted.deltas()
        adapted.detach(keep_merged=True)
    for name, site in adapted.sites.items():
        assert torch.equal(under[name], deltas[name])
        torch.testing.assert_close(site.base, before[name] + deltas[name], rtol=1e-5, atol=1e-6)


def test_deltas_are_where_the_model_is_now() -> None:
    model = block()
    adapted = attach(model, DoraConfig(2), ["fc"])
    adapted.disable()
    model.to("meta")
    assert adapted.deltas()["fc.weight"].is_meta


@every_mergeable
def test_deltas_are_what_merge_adds(config: AdapterConfig) -> None:
    model = block(torch.float64)
    adapted = attach(model, config, targets_of(config))
    assert all((d == 0).all() for d in adapted.deltas().values())
    perturb(adapted)
    before = {name: site.base.detach().clone() for name, site in adapted.sites.items()}
    deltas = adapted.deltas()
    adapted.merge()
    for name, shape in adapted.shapes.items():
        assert deltas[name].shape == shape
        torch.testing.assert_close(adapted.sites[name].base, before[name] + deltas[name])
        torch.testing.assert_close(adapted.deltas()[name], deltas[name], rtol=0, atol=0)


@every_method
def test_a_capacity_per_layer(config: AdapterConfig) -> None:
    model, x = block(torch.float64), batch(torch.float64)
    shapes = resolve_targets(model, targets_of(config))
    method = get_method(config.method)
    capacities = {name: 2 + i for i, name in enumerate(shapes)}
    adapted = attach(model, config, targets_of(config), capacities=capacities)
    assert adapted.capacities == capacities
    assert adapted.count() == sum(method.count(shapes[n], c, **config.options()) for n, c in capacities.items())
    perturb(adapted)
    y = model(x)
    y.sum().backward()
    if method.mergeable:
        with adapted.merging():
            torch.testing.assert_close(model(x), y, rtol=1e-11, atol=1e-11)


def test_one_scale_for_all_layers() -> None:
    for config in (LoraConfig(4, alpha=6.0), RandLoraConfig(4, alpha=6.0), NolaConfig(4, r=4, alpha=6.0)):
        adapted = attach(block(), config, TARGETS, capacities={"fc.weight": 7})
        assert {a.scale for a in adapted.adapters.values()} == {1.5}  # type: ignore[union-attr]
        adapted.detach()


@pytest.mark.filterwarnings("ignore:.*targets can use")
@given(
    method=st.sampled_from(sorted(n for n, entry in METHODS.items() if entry.mergeable and not entry.needs_gradients)),
    shapes=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=3),
    capacity=st.integers(2, 24),
    rows=st.integers(1, 60),
)
@settings(max_examples=150, deadline=None)
def test_random_shapes(method: str, shapes: list[tuple[int, int]], capacity: int, rows: int) -> None:
    """r not dividing m, in > out, square; ranks above a small layer's m."""
    entry = METHODS[method]
    if method == "nola":
        reach = entry.max_capacity(shapes)
        if reach < 2:
            return
        capacity = min(capacity, reach)
    layers = nn.ModuleList([nn.Linear(width, out) for out, width in shapes]).double()
    adapted = attach(layers, entry.config.from_options(capacity, {}), ["*"])
    assert adapted.count() == entry.total(shapes, capacity)
    perturb(adapted)
    generator = torch.Generator().manual_seed(rows)
    for layer, (out, width), delta in zip(layers, shapes, adapted.deltas().values(), strict=True):
        x = torch.randn(rows, width, generator=generator, dtype=torch.float64).requires_grad_()
        y = layer(x)
        weight = stored(layer).detach() + delta
        torch.testing.assert_close(layer.weight, weight)
        torch.testing.assert_close(y, nn.functional.linear(x, weight, layer.bias), rtol=1e-9, atol=1e-9)
        weights = torch.randn(rows, out, generator=generator, dtype=torch.float64)
        (grad,) = torch.autograd.grad((y * weights).sum(), x)
        torch.testing.assert_close(grad, weights @ weight, rtol=1e-9, atol=1e-9)


def test_tied_weights_are_warned_of_and_cannot_be_merged() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    attach(nn.ModuleList([model["a"], model["a"]]), LoraConfig(2), ["0"]).detach()  # one module, adapted everywhere
    model["b"].weight = model["a"].weight
    with pytest.warns(UserWarning, match=r"a.weight is tied \(a.weight, b.weight\): .* module reads, and no other"):
        adapted = attach(model, LoraConfig(2), ["a"])
    with pytest.raises(AdapterError, match="tied"):
        adapted.merge()


def test_a_module_that_stands_twice_is_not_tied() -> None:
    layer = nn.Linear(4, 4)
    model, x = nn.Sequential(layer, nn.Tanh(), layer), torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    adapted = attach(model, LoraConfig(2), ["0"])
    perturb(adapted)
    y = model(x)
    with adapted.merging():
        torch.testing.assert_close(model(x), y)


def test_starts_follow_the_seeds_and_the_name_alone() -> None:
    def starts(targets: list[str], init_seed: int, config: AdapterConfig | None = None) -> dict[str, torch.Tensor]:
        return attach(block(), config or LoraConfig(3), targets, init_seed=init_seed).state_dict()

    one, other = starts(["fc"], 1), starts(TARGETS, 1)
    assert torch.equal(one["fc.weight.a"], other["fc.weight.a"])
    assert not torch.equal(one["fc.weight.a"], starts(["fc"], 2)["fc.weight.a"])
    bound = 16**-0.5
    assert one["fc.weight.a"].abs().max() <= bound < one["fc.weight.a"].abs().max() * 1.2


def test_bases_are_shared_by_all_layers_and_outside_the_state() -> None:
    model = block()
    adapted = attach(model, RandLoraConfig(4), TARGETS)
    assert adapted.stored_bytes() == 4 * (4 * 16 + 48 * 16)
    assert len(list(model.buffers())) == 2
    assert set(model.state_dict()) - {n for n, _ in model.named_parameters()} == set()
    copied = copy.deepcopy(model)
    assert len(list(copied.buffers())) == 2
    perturb(adapted)
    assert not torch.equal(copied(batch()), model(batch()))


def test_moving_the_model_moves_one_set_of_bases() -> None:
    model, x = block(), batch()
    adapted = attach(model, RandLoraConfig(4), TARGETS)
    perturb(adapted)
    y = model(x)
    model.double()
    assert len(list(model.buffers())) == 2
    torch.testing.assert_close(model(x.double()), y.double(), rtol=1e-5, atol=1e-5)


@every_method
def test_dropout(config: AdapterConfig) -> None:
    options = {**config.options(), "dropout": 0.5}
    dropping = type(config).from_options(config.capacity, options)
    model, x = block(), batch()
    with pytest.raises(ConfigError, match="in_proj_weight is read as a matrix"):
        attach(model, dropping, TARGETS)
    assert all(p.requires_grad for p in model.parameters())
    adapted = attach(model, dropping, ["fc", "proj", "square"], init_seed=4)
    perturb(adapted)
    outputs = []
    for step in (1, 1, 2):
        adapted.reseed_dropout(step)
        outputs.append(model(x))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    outputs[2].sum().backward()
    model.eval()
    if get_method(config.method).mergeable:
        with torch.no_grad():
            y = model(x)
            with adapted.merging():
                torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)


def test_conv1d_keeps_its_layout() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    layer = conv1d(24, 16).double()
    model = nn.ModuleDict({"c_attn": layer})
    assert resolve_targets(model, ["c_attn"]) == {"c_attn.weight": (24, 16)}
    stored = layer.weight.detach().clone()
    adapted = attach(model, RandLoraConfig(5), ["c_attn"])
    perturb(adapted)
    x = torch.randn(7, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = layer(x)
    delta = adapted.deltas()["c_attn.weight"]
    torch.testing.assert_close(y, x @ stored + layer.bias + x @ delta.t(), rtol=1e-11, atol=1e-11)
    with adapted.merging():
        torch.testing.assert_close(layer(x), y, rtol=1e-11, atol=1e-11)
    adapted.detach()
    assert torch.equal(layer.weight, stored)


def test_a_forward_of_the_instance_does_not_pass_the_adapter_by() -> None:
    """accelerate's hooks put one there, which calls the forward that the class had before."""
    hooks = pytest.importorskip("accelerate.hooks")
    model, x = block(torch.float64), batch(torch.float64)
    hooks.add_hook_to_module(model.fc, hooks.ModelHook())
    adapted = attach(model, LoraConfig(2), ["fc"])
    perturb(adapted)
    y = model(x)
    assert not torch.allclose(y, block(torch.float64)(x))
    with adapted.merging():
        torch.testing.assert_close(model(x), y)


def test_unmerge_follows_the_model_and_refuses_to_stand_on_another_adapter() -> None:
    model = block()
    adapted = attach(model, LoraConfig(2, dropout=0.5), ["fc"])
    adapted.merge()
    model.eval()
    adapted.unmerge()
    assert not adapted.adapters["fc.weight"].training
    adapted.merge()
    other = attach(model, LoraConfig(2), ["proj"])
    with pytest.raises(AdapterError, match="cannot unmerge: other adapters are in the model"):
        adapted.unmerge()
    assert adapted.merged
    other.disable()
    assert not adapted.unmerge().training and adapted.enabled


def test_shared_bases_are_for_one_device() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, device="meta"))
    for config in (c for c in CONFIGS if c.method in ("randlora", "randlora-a", "vera", "nola")):
        with pytest.raises(ConfigError, match="share frozen bases, but the targets are on cpu, meta; move"):
            attach(model, type(config).from_options(2, {}), ["*"])
    assert all(p.requires_grad for p in model.parameters())


def test_meta_model_is_counted_without_memory() -> None:
    with torch.device("meta"):
        model = nn.ModuleList([nn.Linear(8192, 28672), nn.Linear(28672, 8192)])
    for method in METHODS.values():
        capacity = 30
        adapted = attach(model, method.config.from_options(capacity, {}), ["*"])
        assert adapted.count() == method.total([(28672, 8192), (8192, 28672)], capacity)
        adapted.detach()


def test_repr_says_what_is_attached_and_where() -> None:
    adapted = attach(block(), LoraConfig(2), ["fc", "attn.in_proj_weight"], capacities={"fc.weight": 3})
    n = adapted.count()
    assert repr(adapted) == f"<Adapted: LoRA, r = 2..3, {n} parameters on 2 weights of Block, attached>"
    adapted.merge()
    assert repr(adapted).endswith("of Block, merged>")
    adapted.detach()
    assert repr(adapted).endswith("of Block, detached>")
