"""Adapters trained in PEFT, taken over bit for bit; and adapters exported, taken back."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from randlora import AdapterConfig, CheckpointError, DoraConfig, LoraConfig, RandLoraConfig, VeraConfig, attach, load
from randlora.adapted.load import load_peft
from randlora.files.peft_import import _of_pattern
from randlora.methods.lowrank.lora import Lora
from tests.randlora.files.support import inputs, layers
from tests.randlora.support import batch, block, config_id, perturb

peft = pytest.importorskip("peft")

ALL = ["0", "2", "4"]
MAKERS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(r=3, lora_alpha=5, target_modules=ALL),
    "rslora": lambda: peft.LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules=ALL),
    "dora": lambda: peft.LoraConfig(r=3, lora_alpha=3, use_dora=True, target_modules=ALL),
    "vera": lambda: peft.VeraConfig(r=7, target_modules=ALL),
    "randlora": lambda: peft.RandLoraConfig(r=5, randlora_alpha=10, target_modules=ALL),
    "randlora-sparse": lambda: peft.RandLoraConfig(r=4, randlora_alpha=8, sparse=True, target_modules=ALL),
}


def in_peft(config: Any, model: nn.Module, folder: Path) -> Any:
    """A PEFT model with trained-looking values, saved to `folder`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained = peft.get_peft_model(model, config)
        perturb(p for p in trained.parameters() if p.requires_grad)
        trained.save_pretrained(str(folder))
    return trained


def stored(folder: Path) -> dict[str, Tensor]:
    """The file's tensors without PEFT's per-layer copies of RandLoRA's bases."""
    found = load_file(folder / "adapter_model.safetensors")
    return {k: v for k, v in found.items() if not (".model." in k and k.endswith(("randlora_A", "randlora_B")))}


@pytest.mark.parametrize("name", MAKERS)
def test_import_is_exact(name: str, tmp_path: Path) -> None:
    theirs = in_peft(MAKERS[name](), layers(torch.float32), tmp_path / "peft")
    model, x = layers(torch.float32), inputs(torch.float32)
    adapted = load_peft(model, tmp_path / "peft")
    torch.testing.assert_close(model(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert adapted.count() == sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    adapted.export_peft(tmp_path / "again")
    first, second = stored(tmp_path / "peft"), stored(tmp_path / "again")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    # the native format carries imported bases along
    adapted.save(tmp_path / "native")
    assert (tmp_path / "native" / "bases.safetensors").exists() == (adapted.bases() is not None)
    other = layers(torch.float32)
    load(other, tmp_path / "native")
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("holder", ["base_model.", "base_model.model.2."])
def test_one_copy_of_the_shared_bases_is_enough(holder: str, tmp_path: Path) -> None:
    """PEFT after 0.21 writes RandLoRA's bases once: of the model, or of one layer where there is no model around it."""
    theirs = in_peft(MAKERS["randlora"](), layers(torch.float32), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    found = load_file(path)
    bases = {key: value for key, value in found.items() if key.endswith(("randlora_A", "randlora_B"))}
    assert len(bases) == 2 * (len(ALL) + 1)  # PEFT 0.21: of the model and of every layer
    once = {f"{holder}{name}" for name in ("randlora_A", "randlora_B")}
    save_file({key: value for key, value in found.items() if key not in bases or key in once}, path)
    model, x = layers(torch.float32), inputs(torch.float32)
    load_peft(model, tmp_path)
    torch.testing.assert_close(model(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_several_scales_of_a_16_bit_file_are_exact(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=ALL, alpha_pattern={"2": 12.1}, rank_pattern={"2": 5})
    in_peft(config, layers(torch.float32), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({key: value.bfloat16() for key, value in load_file(path).items()}, path)
    theirs = peft.PeftModel.from_pretrained(layers(torch.float32), str(tmp_path))
    deltas = load_peft(layers(torch.float32), tmp_path).deltas()
    for name in ALL:
        want = theirs.base_model.model.get_submodule(name).get_delta_weight("default")
        torch.testing.assert_close(deltas[f"{name}.weight"], want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("start", ["mica", "Gaussian"])
def test_starts_that_leave_the_base_alone_are_a_plain_lora(start: str, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=3, lora_alpha=5, init_lora_weights=start, target_modules=ALL)
    theirs = in_peft(config, layers(torch.float32), tmp_path)
    model, x = layers(torch.float32), inputs(torch.float32)
    load_peft(model, tmp_path)
    torch.testing.assert_close(model(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [LoraConfig(3), LoraConfig(3, rank_stabilised=True), DoraConfig(2), VeraConfig(6), RandLoraConfig(5)],
    ids=config_id,
)
def test_export_and_back(config: AdapterConfig, tmp_path: Path) -> None:
    model, x = layers(torch.float32), inputs(torch.float32)
    adapted = attach(model, config, ["*"])
    perturb(adapted)
    adapted.export_peft(tmp_path)
    other = layers(torch.float32)
    again = load_peft(other, tmp_path)
    state = again.state_dict()
    assert all(torch.equal(state[key], value) for key, value in adapted.state_dict().items())
    torch.testing.assert_close(other(x), model(x), rtol=1e-6, atol=1e-6)
    again.detach()
    assert torch.equal(other(x), layers(torch.float32)(x))


@pytest.mark.parametrize("method", ["lora", "vera", "randlora", "dropping"])
def test_conv1d_both_ways(method: str, tmp_path: Path) -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D

    def model() -> nn.ModuleDict:
        torch.manual_seed(0)
        return nn.ModuleDict({"up": conv1d(24, 16), "down": conv1d(16, 24)})

    def run(m: Any, x: Tensor) -> Tensor:
        inner = getattr(getattr(m, "base_model", m), "model", m)
        y: Tensor = inner["down"](torch.tanh(inner["up"](x)))
        return y

    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    configs: dict[str, AdapterConfig] = {"lora": LoraConfig(2), "vera": VeraConfig(5), "randlora": RandLoraConfig(3)}
    configs["dropping"] = LoraConfig(2, dropout=0.5)
    ours = model().eval()
    adapted = attach(ours, configs[method], ["up", "down"])
    perturb(adapted)
    adapted.export_peft(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(model(), str(tmp_path))
    torch.testing.assert_close(run(theirs, x), run(ours, x), rtol=1e-5, atol=1e-5)
    back = model().eval()
    load_peft(back, tmp_path)
    torch.testing.assert_close(run(back, x), run(ours, x), rtol=1e-6, atol=1e-6)


def test_packed_attention_both_ways(tmp_path: Path) -> None:
    """PEFT adapts an attention's output projection as well; it gets factors of zero."""
    model, x = block(), batch()
    adapted = attach(model, LoraConfig(3), ["attn.in_proj_weight", "fc"])
    perturb(adapted)
    y = model(x)
    adapted.export_peft(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(block(), str(tmp_path))
    torch.testing.assert_close(theirs(x), y, rtol=1e-5, atol=1e-5)
    other = block()
    again = load_peft(other, tmp_path)
    assert list(again.shapes) == ["attn.in_proj_weight", "fc.weight"]
    torch.testing.assert_close(other(x), y, rtol=1e-5, atol=1e-5)


def test_an_adapted_output_projection_of_attention_is_refused(tmp_path: Path) -> None:
    """PEFT 0.21.2 adds its delta twice: what the file means depends on the version."""
    theirs = in_peft(peft.LoraConfig(r=2, target_modules=["attn"]), block(), tmp_path)
    with pytest.raises(CheckpointError, match=r"attn\.base_layer\.out_proj.*twice"):
        load_peft(block(), tmp_path)
    if peft.__version__ == "0.21.2":
        named = dict(theirs.named_parameters())
        model = block()
        adapted = attach(model, LoraConfig(2, alpha=8.0), ["attn.in_proj_weight", "attn.out_proj"])
        prefix = "base_model.model.attn"
        with torch.no_grad():
            for name, layer, times in (("in_proj_weight", "", 1.0), ("out_proj.weight", ".base_layer.out_proj", 2.0)):
                adapter = adapted.adapters[f"attn.{name}"]
                assert isinstance(adapter, Lora)
                adapter.a.copy_(named[f"{prefix}{layer}.lora_A.default.weight"].t())
                adapter.b.copy_(named[f"{prefix}{layer}.lora_B.default.weight"] * times)
        torch.testing.assert_close(model(batch()), theirs(batch()), rtol=1e-5, atol=1e-5)


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "POLY"}, "'POLY' is not read here.*LORA.*RANDLORA"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["head"]}, r"modules_to_save=\['head'\]"),
        ({"lora_bias": True}, "lora_bias"),
        ({"alora_invocation_tokens": [5]}, r"alora_invocation_tokens=\[5\]"),
        ({"layer_replication": [[0, 1], [0, 1]]}, r"layer_replication=\[\[0, 1\], \[0, 1\]\]"),
        ({"arrow_config": {"top_k": 3}}, "arrow_config="),
        ({"kasa_config": {"beta": 1e-4}}, "kasa_config="),
        ({"monteclora_config": {"num_samples": 2}}, "monteclora_config="),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora="),
        ({"init_lora_weights": "pissa"}, "which changes the base weights"),
        ({"init_lora_weights": "new"}, "which may change the base weights"),
        ({"r": "x"}, "settings that are not valid .*ValueError"),
        ({"lora_alpha": None}, "settings that are not valid .*TypeError"),
        ({"lora_alpha": 10**400}, "settings that are not valid .*OverflowError"),
        ({"alpha_pattern": [1]}, "settings that are not valid .*AttributeError"),
        ({"alpha_pattern": {"(a+)+$": 2}}, "may match without end"),
        ({"alpha_pattern": {".*a.*a.*a.*a.*b": 2}}, "may match without end"),
    ],
)
def test_what_has_no_counterpart_is_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    in_peft(MAKERS["lora"](), layers(torch.float32), tmp_path)
    rewrite(tmp_path, **changes)
    model = layers(torch.float32)
    with pytest.raises(CheckpointError, match=message):
        load_peft(model, tmp_path)
    assert all(p.requires_grad for p in model.parameters())


def test_a_convolution_is_refused_and_excluded_modules_need_no_rule(tmp_path: Path) -> None:
    both = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(3, 3))
    in_peft(peft.LoraConfig(r=2, target_modules=["0", "2"]), copy.deepcopy(both), tmp_path / "both")
    with pytest.raises(CheckpointError, match=r"lora_A of 0\.weight has shape .*only 2-D weights"):
        load_peft(copy.deepcopy(both), tmp_path / "both")
    config = peft.LoraConfig(r=2, target_modules=["0", "2"], exclude_modules=["0"])
    theirs = in_peft(config, copy.deepcopy(both), tmp_path / "one")
    load_peft(both, tmp_path / "one")
    x = torch.randn(4, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(both(x), theirs(x))


def test_an_optional_group_in_a_pattern_is_harmless() -> None:
    assert _of_pattern({"(self_)?attn.q_proj": 3.0}, "layers.0.self_attn.q_proj", 1.0) == 3.0


def test_a_rank_beyond_the_file_takes_no_memory(tmp_path: Path) -> None:
    in_peft(MAKERS["vera"](), layers(torch.float32), tmp_path)
    rewrite(tmp_path, r=10**9)
    with pytest.raises(CheckpointError, match=r"its capacities need [\d,]+ numbers, and its file holds"):
        load_peft(layers(torch.float32), tmp_path)


def test_damaged_or_unfit_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no PEFT adapter"):
        load_peft(layers(torch.float32), tmp_path)
    in_peft(MAKERS["randlora"](), layers(torch.float32), tmp_path)
    with pytest.raises(CheckpointError, match="this model does not have"):
        load_peft(block(), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    whole = load_file(path)
    model = layers(torch.float32)
    for cut, message in (("randlora_B", "save_projection"), ("randlora_gamma", "lacks")):
        save_file({k: v for k, v in whole.items() if not k.endswith(cut)}, path)
        with pytest.raises(CheckpointError, match=message):
            load_peft(model, tmp_path)
    small = {k: v[..., :2].contiguous() if k.endswith("randlora_A") else v for k, v in whole.items()}
    save_file(small, path)
    with pytest.raises(CheckpointError, match="basis A has shape"):
        load_peft(model, tmp_path)
    save_file({**whole, "base_model.model.0.lora_embedding_A": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="lora_embedding_A"):
        load_peft(model, tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not an object"):
        load_peft(model, tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        load_peft(model, tmp_path)
    assert torch.equal(model(inputs(torch.float32)), layers(torch.float32)(inputs(torch.float32)))


def test_tampered_stored_bases_are_refused(tmp_path: Path) -> None:
    in_peft(MAKERS["randlora"](), layers(torch.float32), tmp_path / "peft")
    load_peft(layers(torch.float32), tmp_path / "peft").save(tmp_path / "native")
    bases = load_file(tmp_path / "native" / "bases.safetensors")
    bases["B"][0, 0] += 1e-3
    save_file(bases, tmp_path / "native" / "bases.safetensors")
    with pytest.raises(CheckpointError, match="digest differs"):
        load(layers(torch.float32), tmp_path / "native")
