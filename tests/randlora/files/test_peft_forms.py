"""What PEFT has under another name or in another form: rank patterns, parts of fused weights, methods as a LoRA."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from randlora import (
    AdaLoraConfig,
    AdapterConfig,
    AutoLoraConfig,
    CheckpointError,
    ConfigError,
    DoraConfig,
    ExportError,
    HybridConfig,
    HydraLoraConfig,
    LoraConfig,
    LoraXsConfig,
    NolaConfig,
    OloraConfig,
    PissaConfig,
    RandLoraAConfig,
    RandLoraBConfig,
    RandLoraConfig,
    RandLoraSvdConfig,
    SvftConfig,
    VeraConfig,
    attach,
    get_method,
    load_peft,
)
from randlora.files.peft_export import peft_form
from tests.randlora.support import CONFIGS, block, config_id, perturb

peft = pytest.importorskip("peft")


class Net(nn.Module):
    """Called layers with a fused qkv; `inner.fc` ends like `fc`."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(24, 32)
        self.proj = nn.Linear(32, 24)
        self.inner = nn.ModuleDict({"fc": nn.Linear(24, 24), "qkv": nn.Linear(24, 72)})
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.proj(nn.functional.gelu(self.fc(x)))
        q, k, v = self.inner["qkv"](self.inner["fc"](x)).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v)


def inputs() -> Tensor:
    return torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1))


def in_peft(folder: Path, model: nn.Module | None = None) -> Any:
    return peft.PeftModel.from_pretrained(Net() if model is None else model, str(folder)).eval()


def assert_same_in_peft(config: AdapterConfig, targets: list[str], folder: Path, **settings: Any) -> Any:
    model = Net().eval()
    adapted = attach(model, config, targets, **settings)
    perturb(adapted)
    y = model(inputs())
    assert not torch.allclose(y, Net()(inputs()), atol=1e-3)
    adapted.export_peft(folder)
    theirs = in_peft(folder)
    torch.testing.assert_close(theirs(inputs()), y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs.merge_and_unload()(inputs()), y, rtol=1e-4, atol=1e-4)
    return json.loads((folder / "adapter_config.json").read_text())


AS_LORA: list[tuple[AdapterConfig, int]] = [
    (PissaConfig(3), 6),
    (OloraConfig(3), 6),
    (LoraXsConfig(5), 5),
    (AdaLoraConfig(3), 5),
    (AutoLoraConfig(3, initial=1.5), 5),
    (NolaConfig(9, r=2), 2),
    (RandLoraAConfig(5, r=4), 4),
]


@pytest.mark.parametrize(("config", "rank"), AS_LORA, ids=[config_id(c) for c, _ in AS_LORA])
def test_low_rank_methods_become_a_lora(config: AdapterConfig, rank: int, tmp_path: Path) -> None:
    written = assert_same_in_peft(config, ["proj", "inner.fc", "inner.qkv"], tmp_path)
    assert written["peft_type"] == "LORA" and written["r"] == rank
    assert "written as the LoRA" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("config", [LoraConfig(3, alpha=6.0), DoraConfig(3), VeraConfig(4)], ids=config_id)
def test_a_rank_per_weight_and_back(config: AdapterConfig, tmp_path: Path) -> None:
    ranks = {"fc.weight": 2, "proj.weight": 5, "inner.fc.weight": 3}
    written = assert_same_in_peft(config, ["fc", "proj", "inner.fc"], tmp_path, capacities=ranks)
    assert {written["r"], *written["rank_pattern"].values()} == {2, 3, 5}
    model = Net().eval()
    again = load_peft(model, tmp_path)
    assert again.capacities == ranks
    torch.testing.assert_close(model(inputs()), in_peft(tmp_path)(inputs()), rtol=1e-4, atol=1e-4)


def test_every_weight_keeps_its_scale(tmp_path: Path) -> None:
    """RandLoRA-a divides by its number of bases."""
    counts = {"fc.weight": 2, "proj.weight": 5, "inner.qkv.weight": 3}
    assert_same_in_peft(RandLoraAConfig(5, r=4), ["fc", "proj", "inner.qkv"], tmp_path, capacities=counts)


def test_adalora_exports_what_is_left(tmp_path: Path) -> None:
    model = Net().eval()
    adapted = attach(model, AdaLoraConfig(2, stop=1.0, interval=1), ["proj", "inner.fc", "inner.qkv"])
    perturb(adapted)
    for step in range(1, 5):
        model(inputs()).square().sum().backward()
        adapted.hooks.on_step(step, 4)
    adapted.export_peft(tmp_path)
    left = [int((a.e != 0).sum()) for a in adapted.adapters.values()]  # type: ignore[operator]
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert sorted({written["r"], *written["rank_pattern"].values()}) == sorted(set(left))
    torch.testing.assert_close(in_peft(tmp_path)(inputs()), model(inputs()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [LoraConfig(3), DoraConfig(3), PissaConfig(2)], ids=config_id)
def test_parts_of_a_fused_weight(config: AdapterConfig, tmp_path: Path) -> None:
    written = assert_same_in_peft(config, ["qkv[q,v]"], tmp_path, capacities={"inner.qkv.weight[v]": 4})
    assert written["target_modules"] == ["inner.qkv"]
    assert "`inner.qkv.weight[q]`: 24 x 24" in (tmp_path / "README.md").read_text()


def test_norms_of_rows_beside_the_parts_are_not_rounded(tmp_path: Path) -> None:
    model = Net().bfloat16()
    attach(model, DoraConfig(3), ["qkv[q,v]"]).export_peft(tmp_path)
    (magnitude,) = (v for k, v in load_file(tmp_path / "adapter_model.safetensors").items() if "magnitude" in k)
    torch.testing.assert_close(magnitude, torch.linalg.vector_norm(model.inner["qkv"].weight.float(), dim=1))


def test_parts_of_conv1d_and_of_packed_attention(tmp_path: Path) -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = nn.ModuleDict({"c_attn": conv1d(36, 12)}).eval()
    plain = copy.deepcopy(model)
    adapted = attach(model, LoraConfig(2), ["c_attn[q,v]"])
    perturb(adapted)
    adapted.export_peft(tmp_path / "conv")
    x = inputs()[..., :12]
    theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path / "conv"))
    torch.testing.assert_close(theirs.base_model.model["c_attn"](x), model["c_attn"](x), rtol=1e-4, atol=1e-4)

    attention = nn.ModuleDict({"attn": nn.MultiheadAttention(12, 3, batch_first=True)}).eval()
    plain = copy.deepcopy(attention)
    adapted = attach(attention, LoraConfig(2), ["attn.in_proj_weight[q,v]"])
    perturb(adapted)
    adapted.export_peft(tmp_path / "packed")
    theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path / "packed"))
    torch.testing.assert_close(
        theirs.base_model.model["attn"](x, x, x)[0], attention["attn"](x, x, x)[0], rtol=1e-4, atol=1e-4
    )


def test_peft_adapts_no_module_that_only_ends_alike(tmp_path: Path) -> None:
    """PEFT takes every module whose name ends in a target: `inner.fc` for `fc`."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = assert_same_in_peft(LoraConfig(2), ["fc.weight"], tmp_path)
    assert written["target_modules"] == "fc"


def test_scales_per_weight_are_imported(tmp_path: Path) -> None:
    torch.manual_seed(0)  # PEFT draws A from the global generator; a saturated softmax magnifies rounding
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["proj", "fc"], rank_pattern={"proj": 2}, alpha_pattern={r"inner\.fc": 3.0}
    )
    model = peft.get_peft_model(Net(), config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(generator=torch.Generator().manual_seed(3))
    model.save_pretrained(str(tmp_path))
    ours = Net().eval()
    adapted = load_peft(ours, tmp_path)
    assert adapted.capacities == {"fc.weight": 4, "proj.weight": 2, "inner.fc.weight": 4}
    torch.testing.assert_close(ours(inputs()), model(inputs()), rtol=1e-4, atol=1e-4)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**written, "alpha_pattern": {"(": 2}}))
    with pytest.raises(CheckpointError, match=r"alpha_pattern has the key '\('"):
        load_peft(Net(), tmp_path)


@pytest.mark.parametrize(
    ("config", "targets", "message"),
    [
        (SvftConfig(3), ["proj"], "PEFT has no SVFT.*export_deltas"),
        (
            LoraXsConfig(16),
            ["proj"],
            "rank 16 in PEFT's LoRA form, which is no smaller than the dense one.*export_deltas",
        ),
        (
            HybridConfig(5),
            ["proj"],
            "PEFT has no LoRA [+] RandLoRA, and this package knows no low-rank form of its delta.*export_deltas",
        ),
        (RandLoraBConfig(3), ["proj"], "PEFT has no RandLoRA-b.*export_deltas"),
        (RandLoraSvdConfig(3), ["proj"], "PEFT has no RandLoRA-SVD.*export_deltas"),
        (RandLoraConfig(3), ["qkv[q]"], "part of a fused weight, which PEFT's RandLoRA cannot adapt.*export_deltas"),
        (HydraLoraConfig(3), ["proj"], r"PEFT has no HydraLoRA, and its update is not a matrix; save\(\)"),
    ],
    ids=lambda v: config_id(v) if isinstance(v, AdapterConfig) else None,
)
def test_what_has_no_form_in_peft_says_what_has(
    config: AdapterConfig, targets: list[str], message: str, tmp_path: Path
) -> None:
    adapted = attach(Net(), config, targets)
    perturb(adapted)
    with pytest.raises(ExportError, match=message):
        adapted.export_peft(tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("method", ["lora", "peft:miss"])
def test_peft_cannot_adapt_the_model_itself(method: str, tmp_path: Path) -> None:
    adapted = attach(nn.Linear(4, 4), get_method(method).config.from_options(2, {}), ["weight"])
    with pytest.raises(ExportError, match=r"the model itself.*nn.Sequential\(model\)"):
        adapted.export_peft(tmp_path)


@pytest.mark.parametrize("config", CONFIGS, ids=config_id)
@pytest.mark.parametrize("targets", [["fc", "proj"], ["fc", "attn.in_proj_weight"]], ids=["called", "packed"])
def test_the_form_is_known_before_there_are_weights(config: AdapterConfig, targets: list[str], tmp_path: Path) -> None:
    """What `peft_form` says on the meta device is what an export does."""
    real, forms = block(), []
    try:
        adapted, on_meta = attach(real, config, targets), attach(block().to("meta"), config, targets)
    except ConfigError:  # a method that needs called layers
        return
    if not isinstance(config, AdaLoraConfig | AutoLoraConfig):  # whose terms are not dropped yet
        for one in (adapted, on_meta):
            try:
                forms.append(peft_form(one))
            except ExportError as error:
                forms.append(str(error))
        assert forms[0] == forms[1]
    try:
        adapted.export_peft(tmp_path)
    except ExportError:
        assert forms[-1:] not in (["itself"], ["lora"])
        return
    as_lora = "written as the LoRA" in (tmp_path / "README.md").read_text()
    assert peft_form(on_meta) == ("lora" if as_lora else "itself")
