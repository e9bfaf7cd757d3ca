"""Frozen weights in 4 or 8 bits: which layers, exact bytes and counts, gradients, what transformers packs, refusals."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.small_texts import make_llama
from benchmarks.step_memory import Case, measured, trial_of
from randlora import attach
from randlora.methods.registry import METHODS, get_method
from randlora.model.quantised import dequantised, is_quantised, packed_bytes, scale_tensors
from sweeps.plan.base_model import BaseModelInfo
from tests.trainables.support import one_tower_trial, outcome, run
from tests.trainables.tiny_language import save_model
from trainables.config import FULL_METHODS, QUANTISED, TrialConfig
from trainables.errors import TrialError
from trainables.models.base_weights import held_bytes, hold, planned, quantisable, refusal, round_as
from trainables.models.loading import load_model
from trainables.models.shapes import meta_model
from trainables.packing.alike import NotPackableError, check_alike
from trainables.runtime import versions
from trainables.tasks.lane_cache import LaneCache
from trainables.training.costs import CostModel

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra `quantised`)")

CPU = torch.device("cpu")
every_kind = pytest.mark.parametrize("kind", QUANTISED)


def held(model: Path | str, kind: str) -> nn.Module:
    module = load_model(f"local:{model}").module
    hold(module, kind, CPU)
    return module


def ids() -> Tensor:
    return torch.randint(3, 300, (3, 12), generator=torch.Generator().manual_seed(1))


def loss_of(module: Any) -> Tensor:
    logits = module(input_ids=ids()).logits.float()
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids()[:, 1:].flatten())


@every_kind
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_all_linear_layers_but_the_head_are_packed(tmp_path: Path, kind: str, family: str) -> None:
    folder = save_model(tmp_path / family, family)
    plain, module = load_model(f"local:{folder}").module, held(folder, kind)
    linear = (nn.Linear, type(plain.transformer.h[0].attn.c_attn)) if family == "gpt2" else nn.Linear
    expected = {n for n, m in plain.named_modules() if isinstance(m, linear) and n != "lm_head"}
    packed = {n for n, m in module.named_modules() if is_quantised(m)}
    assert packed == expected
    assert {n for n, p in module.named_parameters() if p.is_floating_point() and p.dtype != torch.bfloat16} == set()
    assert type(module.get_output_embeddings()) is nn.Linear  # type: ignore[operator]

    others = [p for n, p in module.named_parameters() if p.is_floating_point()]
    stored = [t for name in packed for t in scale_tensors(module.get_submodule(name))]
    stored += [module.get_parameter(f"{name}.weight").data for name in packed]
    tables = {t.data_ptr(): t.nbytes for t in stored if t.dtype == torch.float32 and t.numel() in (1, 16, 256)}
    real = sum(p.nbytes for p in others) + sum({t.data_ptr(): t.nbytes for t in stored}.values())
    count = held_bytes(meta_model(f"local:{folder}"), kind)
    assert real - sum(tables.values()) <= count <= real  # the codes of 4-bit numbers aside
    for name in packed:
        layer: Any = module.get_submodule(name)
        sizes = packed_bytes((layer.out_features, layer.in_features), 4 if kind == "nf4" else 8)
        assert layer.weight.nbytes == sizes[0]


@every_kind
@pytest.mark.parametrize("method", ["lora", "randlora", "vera", "dora", "pissa", "milora", "olora"])
def test_gradients_beside_packed_weights_are_those_beside_the_weights_that_they_stand_for(
    llama: Path, kind: str, method: str
) -> None:
    packed = held(llama, kind)
    read = load_model(f"local:{llama}").module
    round_as(read, kind)  # in float32
    for name, layer in ((n, m) for n, m in packed.named_modules() if is_quantised(m)):
        assert torch.equal(read.get_submodule(name).weight, dequantised(layer).float())
    found, counts = {}, set()
    for which, module in (("packed", packed), ("read", read)):
        config = get_method(method).config.from_options(8, {})
        adapted = attach(module, config, ["q_proj", "v_proj", "down_proj"], init_seed=1, basis_seed=2)
        total = get_method(method).total(adapted.shapes, 8)
        counts |= {adapted.count(), total}
        if method != "lora":  # else only B has a gradient in the first step
            with torch.no_grad():
                for index, p in enumerate(adapted.parameters()):
                    p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(index)))
        module.train()
        loss_of(module).backward()
        found[which] = {n: p.grad.clone() for n, p in adapted.named_parameters() if p.grad is not None}
        adapted.detach()
    assert len(counts) == 1  # packing changes the shape of what is stored, and no count
    assert found["packed"].keys() == found["read"].keys()
    for name, gradient in found["packed"].items():
        other = found["read"][name]
        assert float((gradient - other).norm()) <= 0.05 * float(other.norm()) + 1e-6, name  # bf16 against float32
    assert any(bool(g.any()) for g in found["packed"].values())


@every_kind
def test_the_lanes_model_survives_trials(llama: Path, rows: Path, tmp_path: Path, kind: str) -> None:
    """Evaluation and training leave every packed number as it was, so the next trial takes the same model."""
    warm: dict[str, Any] = {}
    made = [trial(llama, rows, method, kind) for method in ("lora", "randlora", "lora")]
    first = [outcome(run(one, tmp_path / str(i), warm)) for i, one in enumerate(made)]
    assert first[0] == first[2]
    (model,) = warm["models"].values()
    assert LaneCache(warm, CPU).check_model(f"local:{llama}", kind)
    assert LaneCache(warm, CPU).model(f"local:{llama}", kind) is model
    assert LaneCache(warm, CPU).model(f"local:{llama}") is not model
    assert "bitsandbytes" in versions()


def trial(llama: Path, rows: Path, method: str, kind: str, **train: Any) -> TrialConfig:
    settings = {"epochs": 2, "global_batch_size": 16, "base_weights": kind} | train
    return one_tower_trial(method, model=llama, dataset=f"json:{rows}", train=settings)


@every_kind
def test_resuming_is_exact(llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from trainables.training.worker import run_trial

    monkeypatch.setattr("trainables.training.checkpoints.CHECKPOINT_SHARE", 1e9)  # after every epoch
    one = trial(llama, rows, "randlora", kind)
    whole = run(one, tmp_path / "whole")
    generator = run_trial(one, warm={}, directory=tmp_path / "cut")
    next(generator)
    generator.close()
    assert outcome(run(one, tmp_path / "cut")) == outcome(whole)


def test_what_cannot_act_beside_packed_weights() -> None:
    """Told by one function, for the registry's methods and for PEFT's."""
    pytest.importorskip("peft")
    peft = ("adamss", "beft", "ia3", "lily", "pvera", "road")
    for kind in QUANTISED:
        assert [m for m in METHODS if refusal(m, kind) is not None] == []
        for name in (*FULL_METHODS, *(f"peft:{n}" for n in peft)):
            found = refusal(name, kind)
            assert found is not None and found.nearest.startswith("train.base_weights")
        assert refusal("peft:lora", kind) is None and refusal("zero-shot", kind) is None
    assert refusal("full", "bf16") is not None and refusal("peft:ia3", "bf16") is None
    assert all(refusal(name, "fp32") is None for name in FULL_METHODS)


def test_trials_that_cannot_be_are_refused(llama: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(TrialError, match=r'use train\.base_weights = "fp32"'):
        run(trial(llama, rows, "full-targets", "nf4"), tmp_path / "full")
    pair = [trial(llama, rows, "lora", "int8")] * 2
    with pytest.raises(NotPackableError, match="outliers of the whole batch"):
        check_alike(pair)
    check_alike([trial(llama, rows, "lora", "nf4")] * 2)


@every_kind
def test_transformers_packs_the_same_layers_to_the_same_numbers(llama: Path, kind: str) -> None:
    """By the settings that an exported model's README gives."""
    import transformers

    from sweeps.exporting.usage import QUANTISATION

    pytest.importorskip("accelerate")
    config = transformers.BitsAndBytesConfig(**QUANTISATION[kind])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        llama, dtype=torch.bfloat16, quantization_config=config, device_map="cpu"
    )
    ours = held(llama, kind)
    packed = {n: m for n, m in ours.named_modules() if is_quantised(m)}
    assert {n for n, m in theirs.named_modules() if is_quantised(m)} == packed.keys()
    for name, layer in packed.items():
        assert torch.equal(dequantised(theirs.get_submodule(name)), dequantised(layer))
        assert getattr(theirs.get_submodule(name), "compute_dtype", None) == getattr(layer, "compute_dtype", None)
    with torch.no_grad():
        found = [model.eval()(input_ids=ids()).logits.float() for model in (theirs, ours)]
    torch.testing.assert_close(*found, rtol=0.02, atol=0.02)


@every_kind
def test_predicted_memory_is_within_5_percent_of_what_a_trial_takes(tmp_path: Path, kind: str) -> None:
    """benchmarks/step_memory.py has more methods."""
    model, data = make_llama(tmp_path, 192, 9, 32)
    train = {"global_batch_size": 4, "base_weights": kind, "max_tokens": 20, "loss_on_prompt": True}
    info = BaseModelInfo(model)
    for method in ("lora", "dora"):
        one = trial_of(Case(model, data, "all", train), method, info)
        predicted = CostModel(info.module, info.kind, side=None, classes=10).step(one).memory_bytes
        assert abs(predicted / measured(one) - 1) < 0.05, method


@every_kind
def test_layers_that_stand_for_packed_ones_are_as_large(llama: Path, kind: str) -> None:
    base = meta_model(f"local:{llama}")
    before = copy.deepcopy(base).state_dict().keys()
    stands = planned(base, kind)
    assert base.state_dict().keys() == before and not any(is_quantised(m) for m in base.modules())
    ours = held(llama, kind)
    for name in quantisable(base):
        layer: Any = stands.get_submodule(name.removesuffix(".weight"))
        real: Any = ours.get_submodule(name.removesuffix(".weight"))
        assert (layer.out_features, layer.in_features) == (real.out_features, real.in_features)
        assert layer.weight.nbytes == real.weight.nbytes
