"""PEFT's own methods by name: the bits of `get_peft_model`, exact counts, files, and every type accounted for."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from analysis import open_store
from randlora import (
    METHODS,
    AdapterConfig,
    AdapterError,
    ConfigError,
    ExportError,
    Request,
    UnknownMethodError,
    attach,
    get_method,
    load,
)
from randlora.methods.bridge import installed
from randlora.methods.bridge.build import legal_capacities, target_names
from randlora.methods.bridge.config import PeftOptions
from randlora.methods.bridge.kinds import KINDS, UNFIT
from randlora.methods.bridge.measure import divisors
from tests.randlora.methods.support import NAMES, TARGETS, configured, network, of_conv1d, rows, single
from tests.support import ROOT


def theirs(model: nn.Module, config: PeftOptions, adapted: Any, init_seed: int, basis_seed: int) -> Any:
    """What PEFT makes of the same configuration, seeds and targets."""
    legal = set(legal_capacities(adapted).values())
    capacity = sum(adapted.capacities.values()) if config.kind.pooled else legal.pop()
    more = {} if config.kind.seed is None else {config.kind.seed: basis_seed}
    more |= config.kind.settled(adapted.shapes.values(), config.options())
    inner = config.peft_config(capacity, target_modules=target_names(config, adapted.adapters), **more)
    torch.manual_seed(init_seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, inner)


def sums(parameters: list[nn.Parameter]) -> list[Any]:
    """Shapes, values and gradients, in an order that does not depend on names."""
    found = [
        (p.shape, p.detach().double().sum().item(), None if p.grad is None else p.grad.double().sum().item())
        for p in parameters
    ]
    return sorted(found, key=str)


@pytest.mark.parametrize("name", NAMES)
def test_trains_to_the_bits_of_get_peft_model(name: str) -> None:
    ours, model = network(), network()
    config, (x, y) = configured(name), rows()
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    start = ours(x)
    adapted = attach(ours, config, TARGETS, init_seed=5, basis_seed=7)
    other = theirs(model, config, adapted, 5, 7)
    if config.kind.start == "changed":
        assert not torch.equal(ours(x), start)
    else:
        bound = 0.0 if config.kind.start == "exact" else 3e-6
        assert (ours(x) - start).abs().max() <= bound
    mine = list(adapted.parameters())
    its = [p for p in other.parameters() if p.requires_grad]
    assert adapted.count() == sum(p.numel() for p in its)
    if config.kind.draws:  # numbers from a stream of the adapter's own, in training
        ours.eval(), other.eval()
    optimisers = [torch.optim.AdamW(found, lr=1e-2) for found in (mine, its)]
    for _ in range(2):
        for run in (ours, other.base_model):
            (run(x) - y).square().mean().backward()
        assert sums(mine) == sums(its)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
    ours.eval(), other.eval()
    assert torch.equal(ours(x), other.base_model(x))
    assert not torch.allclose(ours(x), start, atol=1e-6)
    adapted.detach()
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())
    assert torch.equal(ours(x), start)
    again = attach(ours, config, TARGETS, init_seed=5, basis_seed=7)  # a warm model starts as a cold one
    cold = attach(network(), config, TARGETS, init_seed=5, basis_seed=7)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), cold.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_files_give_the_same_model_here_and_in_peft(name: str, tmp_path: Path) -> None:
    model, (x, _) = network().eval(), rows()
    adapted = attach(model, configured(name), TARGETS, init_seed=5, basis_seed=7)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    wanted = model(x)
    adapted.save(tmp_path / "own")
    again = network().eval()
    assert load(again, tmp_path / "own").basis_seed == 7
    assert torch.equal(again(x), wanted)
    adapted.export_peft(tmp_path / "peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(network(), str(tmp_path / "peft")).eval()
    assert torch.equal(loaded.base_model(x), wanted)


def test_an_adapter_saved_before_basis_seeds_were_kept_still_loads(tmp_path: Path) -> None:
    adapted = attach(network(), get_method("vera").config.from_options(4, {}), TARGETS, basis_seed=3)
    adapted.save(tmp_path)
    meta = json.loads((tmp_path / "adapter.json").read_text())
    del meta["basis_seed"]
    (tmp_path / "adapter.json").write_text(json.dumps(meta))
    assert load(network(), tmp_path).basis_seed == 3


@pytest.mark.parametrize("name", NAMES)
def test_the_count_is_that_of_what_is_built(name: str) -> None:
    """Every shape at the ends and in the middle of its reach; with weights, and on the meta device; also in bf16."""
    method, options = get_method(f"peft:{name}"), {"road": {"group_size": 4}}.get(name, {})
    for shape in [(12, 12), (24, 8), (8, 24), (16, 20)]:
        most = method.max_capacity([shape], **options)
        for capacity in sorted({method.min_capacity, (method.min_capacity + most) // 3, most - 1, most}):
            if not method.min_capacity <= capacity <= most:
                continue
            config = method.config.from_options(capacity, options)
            bases = [single(shape, d).to(t) for d in ("cpu", "meta") for t in (torch.float32, torch.bfloat16)]
            counts = {attach(base, config, ["0"]).count() for base in bases}
            assert counts == {method.count(shape, capacity, **options)}, (shape, capacity)


@pytest.mark.parametrize(
    ("name", "capacity", "options"),
    [
        ("lora", 3, {"use_dora": True}),
        ("lora", 3, {"use_rslora": True}),
        ("deft", 3, {"para": True}),
        ("miss", 4, {"init_weights": "bat"}),
        ("miss", 4, {"init_weights": "mini", "mini_r": 2}),
        ("peanut", 3, {"depth": 2}),
        ("glora", 3, {"config_A_B": "vector"}),
        ("lokr", 2, {"decompose_both": True, "decompose_factor": 4}),
        ("psoft", 3, {"psoft_orth": False, "psoft_mag_a": False}),
        ("gralora", 6, {"gralora_k": 4}),
        ("supertuning", 9000, {"r": 2}),
        ("tinylora", 7, {"r": 3}),
        ("vblora", 7, {"r": 2, "vector_length": 10, "topk": 3}),
        ("vblora", 2, {"topk": 3}),
        ("lily", 3, {"stride_A": 2, "num_B": 3}),
    ],
)
def test_options_that_change_the_count_are_counted(name: str, capacity: int, options: dict[str, Any]) -> None:
    method, adapted = get_method(f"peft:{name}"), attach(network(), configured(name, capacity, **options), TARGETS)
    assert adapted.count() == method.total(adapted.shapes, capacity, **options)


def test_capacities_that_differ_stand_side_by_side() -> None:
    """`fill` gives some weights more than others, and every one what its own capacity says."""
    for name in ("miss", "vera", "fourierft", "unilora"):
        model, config = network(), configured(name)
        names = list(attach(network(), config, TARGETS).adapters)
        capacities = {key: 6 if i % 2 else 4 for i, key in enumerate(names)}
        adapted = attach(model, config, TARGETS, capacities=capacities)
        method = get_method(f"peft:{name}")
        assert adapted.count() == sum(method.count(adapted.shapes[key], c) for key, c in capacities.items())
        if name == "miss":
            with pytest.raises(ExportError, match="differ in r: \\[4, 6\\]"):
                adapted.export_peft("nowhere")


def test_the_scale_does_not_shrink_with_the_capacity() -> None:
    for name, field in (
        ("lora", "lora_alpha"),
        ("loha", "alpha"),
        ("gralora", "alpha"),
        ("randlora", "randlora_alpha"),
    ):
        scales = {getattr(configured(name, r).peft_config(r), field) / r for r in (2, 4, 8)}
        assert scales == {KINDS[name].alpha[1]}  # type: ignore[index]
    given = configured("lora", 8, lora_alpha=16.0)
    assert given.peft_config(8).lora_alpha / 8 == given.peft_config(4).lora_alpha / 4 == 2.0
    assert configured("lora", 16, use_rslora=True).peft_config(16).lora_alpha == 4.0


@pytest.mark.parametrize("name", NAMES)
def test_seeds_move_what_is_random(name: str) -> None:
    def everything(init_seed: int, basis_seed: int) -> tuple[list[Tensor], list[Tensor]]:
        adapted = attach(network(), configured(name), TARGETS, init_seed=init_seed, basis_seed=basis_seed)
        with torch.no_grad():
            for i, parameter in enumerate(adapted.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
        (x, _), model = rows(), adapted.model.eval()
        return [p.detach().clone() for p in adapted.parameters()], [model(x)]

    same, moved = everything(1, 1)[1], everything(1, 2)[1]
    assert torch.equal(same[0], everything(1, 1)[1][0])
    random = KINDS[name].seed is not None and name != "psoft"  # its seed serves an approximate decomposition
    assert torch.equal(same[0], moved[0]) != random


@pytest.mark.parametrize("name", NAMES)
def test_init_seed_moves_the_starts_that_are_drawn(name: str) -> None:
    """Drawn are those that `torch.manual_seed` moves in PEFT itself."""

    def starts(seed: int) -> tuple[list[Any], list[Any]]:
        config = configured(name)
        adapted = attach(network(), config, TARGETS, init_seed=seed, basis_seed=7)
        other = theirs(network(), config, adapted, seed, 7)
        return sums(list(adapted.parameters())), sums([p for p in other.parameters() if p.requires_grad])

    (ours, its), (moved, drawn) = starts(1), starts(2)
    assert (ours != moved) == (its != drawn)


def test_dropout_follows_the_adapters_own_stream() -> None:
    def outputs(seed: int) -> list[Tensor]:
        model, (x, _) = network(), rows()
        adapted = attach(model, configured("lora", lora_dropout=0.5, init_lora_weights=False), TARGETS)
        adapted.reseed_dropout(seed)
        torch.manual_seed(torch.seed())  # nothing depends on the global generator
        return [model(x), model(x)]

    first, again, other = outputs(1), outputs(1), outputs(2)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.out = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.attn(x, x, x, need_weights=False)[0])
        return y


def test_weights_that_are_read_as_matrices() -> None:
    for name in ("miss", "ia3", "oft", "delora"):
        torch.manual_seed(0)
        model, (x, y) = Packed(), (rows()[0], torch.ones(3, 5, 16))
        start = model(x)
        adapted = attach(model, configured(name), ["attn.in_proj_weight[q,v]", "out"])
        assert torch.allclose(model(x), start, atol=1e-6)
        (model(x) - y).square().mean().backward()
        assert all(p.grad is not None for p in adapted.parameters())
        with torch.no_grad():
            for parameter in adapted.parameters():
                parameter.sub_(parameter.grad, alpha=0.1)  # type: ignore[arg-type]
        after = model(x)
        if adapted.adapters["out.weight"].moves_bias:
            with pytest.raises(AdapterError, match=r"out.weight: the adapter changes the layer's bias"):
                adapted.merge()
        else:
            assert torch.allclose(adapted.merge()(x), after, atol=1e-5)
    with pytest.raises(
        ConfigError, match=r"called nn.Linear.*in_proj_weight is read as a matrix.*can adapt out.weight"
    ):
        attach(Packed(), configured("beft"), ["attn.in_proj_weight", "out"])


@pytest.mark.parametrize("made", [network, of_conv1d])
@pytest.mark.parametrize("name", NAMES)
def test_merging_gives_the_same_outputs_or_is_refused(name: str, made: Callable[[], nn.Sequential]) -> None:
    """Also with every switch of PEFT's the other way round, of those that it takes."""
    switches = {key: value for key, value in get_method(f"peft:{name}").options.items() if isinstance(value, bool)}
    for options in ({}, *({key: not value} for key, value in switches.items())):
        model, (x, _) = made()[0].eval(), rows()
        try:
            adapted = attach(model, configured(name, **options), ["up", "q"])
        except ConfigError:
            continue
        with torch.no_grad():
            for i, parameter in enumerate(adapted.parameters()):
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
                parameter.add_(noise, alpha=0.05)
            unmerged = model(x)
            zero = torch.zeros(1, 16)  # what a layer makes of it is its bias
            if not torch.allclose(model.up(zero), made()[0].up(zero), atol=1e-3) or not KINDS[name].matrix:
                with pytest.raises(AdapterError, match=r"changes the layer's bias|is not a change of a weight"):
                    adapted.merge()
                continue
            adapted.merge()
            torch.testing.assert_close(model(x), unmerged, rtol=1e-4, atol=1e-4, msg=lambda m, o=options: f"{o}: {m}")


def test_weights_in_few_bits_get_the_update_as_a_matrix_or_none() -> None:
    weights = {"a.weight": torch.ones(4, 4), "b.weight": torch.ones(4, 4)}
    for name in ("beft", "ia3", "pvera"):
        request = Request(configured(name), weights, dict.fromkeys(weights, 1), 0, 0, quantised=frozenset(["a.weight"]))
        with pytest.raises(
            ConfigError, match=r"a.weight is kept in 4 or 8 bits: of these targets it can adapt b.weight"
        ):
            get_method(f"peft:{name}").build(request)
    base = torch.randn(16, 16)
    model = nn.Sequential(nn.Linear(16, 16))
    (adapter,) = attach(model, configured("lora", init_lora_weights=False, lora_dropout=0.5), ["0"]).adapters.values()
    x, y = torch.randn(3, 16), torch.zeros(3, 16)
    adapter.eval()
    assert torch.allclose(adapter.beside(x, y, lambda: base, None), x @ adapter.delta(base).t(), atol=1e-5)
    whole = adapter.delta(base)
    assert torch.equal(adapter.train().delta(base), whole)  # dropout falls on inputs, not on the matrix


def test_every_type_of_peft_is_accounted_for() -> None:
    there, known = {kind.value.lower() for kind in peft.PeftType}, KINDS.keys() | UNFIT.keys()
    assert not there - known, (
        f"new in PEFT {peft.__version__}: {sorted(there - known)}; each works without an entry if its capacity field "
        "is known, but add it to randlora/methods/bridge/kinds.py, to KINDS with its title and what holds of it, or to "
        "UNFIT with the reason, and to docs/peft-methods.md"
    )
    assert not known - there, f"not in PEFT {peft.__version__}: {sorted(known - there)}; take them out of both"
    assert not KINDS.keys() & UNFIT.keys()
    for name, reason in UNFIT.items():
        with pytest.raises(UnknownMethodError, match=reason[:20]):
            get_method(f"peft:{name}")
    with pytest.raises(UnknownMethodError, match="unknown method 'peft:mis': nearest: 'peft:miss'"):
        get_method("peft:mis")
    assert "peft:miss" in METHODS
    assert "peft:mis" not in METHODS
    assert not [name for name in METHODS if ":" in name]


def test_rates_are_those_that_peft_published() -> None:
    rows = open_store(ROOT / "docs" / "results" / "peft-published").table("trials").to_pylist()
    published = {(row["method"], row["reference"]): row["lr"] for row in rows}
    for name, kind in KINDS.items():
        folder = kind.source.removeprefix("PEFT's method comparison, ")
        if folder == "its default":
            own = {rate for (method, _), rate in published.items() if method == name}
            assert kind.rate == 1e-4 and (1e-4 in own or not own), f"{name} has {own}"
        else:
            assert published[name, folder] == kind.rate


def test_options_are_pefts_own() -> None:
    method = get_method("peft:lora")
    assert {"lora_dropout", "use_dora", "init_lora_weights", "lora_alpha"} <= method.options.keys()
    assert not {"target_modules", "rank_pattern", "bias", "r"} & method.options.keys()
    with pytest.raises(ConfigError, match=r"has no option 'lora_drop'.*'lora_dropout'"):
        method.config.from_options(4, {"lora_drop": 0.1})
    assert method.config.from_options(4, {"lora_bias": False}) == method.config.from_options(4, {})
    with pytest.raises(ConfigError, match="has no option 'lora_bias'"):
        method.config.from_options(4, {"lora_bias": True})
    for alpha in (0.0, -8.0):
        with pytest.raises(ConfigError, match="lora_alpha must be positive"):
            method.config.from_options(4, {"lora_alpha": alpha})
    for name in ("loha", "lokr", "gralora"):
        with pytest.raises(ConfigError, match="alpha must be a number but got '2r'"):
            configured(name, alpha="2r")
    with pytest.raises(ConfigError, match="dropout must be in"):
        method.config.from_options(4, {"lora_dropout": 1.5})
    for wrong in ({"init_weights": "gausian"}, {"init_weights": 3}):
        with pytest.raises(ValidationError, match=r"not one of PEFT's words; nearest: 'gaussian'|valid boolean"):
            TypeAdapter(get_method("peft:hira").config).validate_python({"r": 4, **wrong})
    with pytest.raises(ConfigError, match="PEFT refuses this configuration"):
        configured("waveft", wavelet_family="db99")


@pytest.mark.parametrize("word", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "eva"])
def test_starts_that_write_into_the_base_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=f"'{word}' writes into the base weights.*pissa"):
        configured("lora", init_lora_weights=word)
    with pytest.raises(ValidationError, match="writes into the base weights"):
        TypeAdapter(get_method("peft:lora").config).validate_python({"r": 4, "init_lora_weights": word})


def test_without_peft_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(AdapterError, match=r"pip install 'randlora-sweeps\[peft\]'"):
        installed.peft()


def test_divisors() -> None:
    assert divisors(12) == (1, 2, 3, 4, 6, 12)
    assert divisors(1) == (1,)
    assert AdapterConfig in PeftOptions.__mro__


def test_the_page_of_methods_has_every_type() -> None:
    page = (ROOT / "docs" / "peft-methods.md").read_text(encoding="utf-8")
    assert not [name for name in KINDS if f"`peft:{name}`" not in page]
    assert not [name for name in UNFIT if f"`{name}`" not in page]
    said = " ".join(page.split())
    assert f"{len(KINDS)} of PEFT's {len(KINDS) + len(UNFIT)} adapter types" in said
    assert f"[The other {len(UNFIT)}]" in said
