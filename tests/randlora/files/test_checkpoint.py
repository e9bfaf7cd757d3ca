"""Files: round trips without bases, and refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import randlora
from randlora import (
    AdaLoraConfig,
    Adapted,
    AdapterConfig,
    AdapterError,
    CheckpointError,
    LoraConfig,
    RandLoraConfig,
    VeraConfig,
    attach,
    export_merged,
    load,
)
from randlora.files import checkpoint
from randlora.files.tensors import UncheckedWarning
from tests.randlora.support import CONFIGS, TARGETS, batch, block, config_id, perturb, targets_of
from tests.support import flipped


@pytest.mark.parametrize("config", CONFIGS, ids=config_id)
def test_round_trip(config: AdapterConfig, tmp_path: Path) -> None:
    model, x = block(), batch()
    adapted = attach(model, config, targets_of(config), capacities={"fc.weight": 4}, init_seed=5, basis_seed=9)
    perturb(adapted)
    y = model(x)
    folder = adapted.save(tmp_path / "deep" / "adapter")
    more = ["derived.safetensors"] if adapted.derived() else []
    assert sorted(p.name for p in folder.iterdir()) == ["adapter.json", "adapter.safetensors", *more]
    tensors = load_file(folder / "adapter.safetensors")
    assert sum(t.numel() for t in tensors.values()) == sum(p.numel() for p in adapted.parameters())
    other = block()
    again = load(other, folder)
    assert torch.equal(other(x), y)
    assert again.config == config and again.capacities == adapted.capacities
    assert (again.init_seed, again.basis_seed) == (5, 9)


@pytest.mark.parametrize("config", [LoraConfig(4), RandLoraConfig(4)], ids=config_id)
def test_every_flipped_bit_of_a_tensor_is_refused(config: AdapterConfig, tmp_path: Path) -> None:
    model, x = block(), batch()
    adapted = attach(model, config, TARGETS)
    perturb(adapted)
    file = adapted.save(tmp_path) / "adapter.safetensors"
    whole, before = file.read_bytes(), block()(x)
    for damaged in flipped(whole, 40):
        file.write_bytes(damaged)
        other = block()
        with pytest.raises(CheckpointError, match=r"adapter\.safetensors is damaged or was changed: .* digest"):
            load(other, tmp_path)
        assert torch.equal(other(x), before)
    file.write_bytes(whole)
    assert torch.equal(load(other, tmp_path).model(x), model(x))


def test_an_adapter_of_before_digests_loads_with_a_note(tmp_path: Path) -> None:
    adapted = attach(block(), LoraConfig(4), TARGETS)
    file = adapted.save(tmp_path) / "adapter.safetensors"
    save_file(load_file(file), file)
    with pytest.warns(UncheckedWarning, match=r"adapter\.safetensors has no digest"):
        load(block(), tmp_path)


def test_a_save_that_is_cut_off_leaves_no_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attach(block(), RandLoraConfig(4), TARGETS, basis_seed=1).save(tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        attach(block(), RandLoraConfig(4), TARGETS, basis_seed=2).save(tmp_path)
    with pytest.raises(CheckpointError, match="no saved adapter"):
        load(block(), tmp_path)


def test_save_while_merged(tmp_path: Path) -> None:
    model, x = block(), batch()
    adapted = attach(model, RandLoraConfig(4), TARGETS)
    perturb(adapted)
    y = model(x)
    adapted.merge()
    adapted.save(tmp_path)
    other = block()
    load(other, tmp_path)
    assert torch.equal(other(x), y)


def saved(folder: Path, config: AdapterConfig | None = None) -> dict[str, object]:
    adapted = attach(block(), config or RandLoraConfig(4), TARGETS, basis_seed=9)
    adapted.save(folder)
    meta: dict[str, object] = json.loads((folder / "adapter.json").read_text())
    return meta


def rewrite(folder: Path, meta: dict[str, object]) -> None:
    (folder / "adapter.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("digest", "0" * 64, "have digest .* the adapter was trained with 000"),
        ("seed", 10, "seed 10 have digest"),
        ("generator_version", 2, "generator version 2, this package has 1"),
    ],
)
def test_other_bases_are_refused(key: str, value: object, message: str, tmp_path: Path) -> None:
    meta = saved(tmp_path)
    basis = meta["basis"]
    assert isinstance(basis, dict)
    basis[key] = value
    rewrite(tmp_path, meta)
    model, x = block(), batch()
    y = model(x)
    with pytest.raises(CheckpointError, match=message):
        load(model, tmp_path)
    assert torch.equal(model(x), y) and list(model.state_dict()) == list(block().state_dict())
    assert all(p.requires_grad for p in model.parameters())


def test_another_model_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(CheckpointError, match=r"fc.weight is \(24, 16\) in the adapter but \(32, 16\)"):
        load(block(hidden=32), tmp_path)
    with pytest.raises(CheckpointError, match="does not fit this model"):
        load(torch.nn.Linear(3, 3), tmp_path)
    around = torch.nn.ModuleDict({"body": block()})
    with pytest.raises(
        CheckpointError, match=r"is for 'attn.in_proj_weight', which this model does not have; nearest: 'bo"
    ):
        load(around, tmp_path)


def test_a_missing_basis_is_refused(tmp_path: Path) -> None:
    rewrite(tmp_path, {**saved(tmp_path), "basis": None})
    model = block()
    with pytest.raises(CheckpointError, match="has no basis, but randlora has some"):
        load(model, tmp_path)
    assert all(p.requires_grad for p in model.parameters())


def test_a_model_that_was_in_bf16_for_a_while_is_saved_for_good(tmp_path: Path) -> None:
    model = block()
    adapted = attach(model, RandLoraConfig(4), TARGETS)
    model.bfloat16().float()
    adapted.save(tmp_path)
    again = load(block(), tmp_path)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in adapted.state_dict().items())


def test_the_terms_that_adalora_cut_stay_cut(tmp_path: Path) -> None:
    model, other = block(), block()
    adapted = attach(model, AdaLoraConfig(3), ["fc", "proj"])
    perturb(adapted)
    model(batch()).square().sum().backward()
    adapted.hooks.on_step(1, 1)
    again = load(other, adapted.save(tmp_path))
    assert again.count() == adapted.count()
    perturb(again)
    again.hooks.on_step(2, 2)

    def kept(of: Adapted) -> list[bool]:
        return [bool(e) for name, p in of.named_parameters() if name.endswith(".e") for e in p]

    assert kept(again) == kept(adapted)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no saved adapter"):
        load(block(), tmp_path)
    meta = saved(tmp_path)
    rewrite(tmp_path, {**meta, "format": 99})
    with pytest.raises(CheckpointError, match="format 99"):
        load(block(), tmp_path)
    (tmp_path / "adapter.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        load(block(), tmp_path)
    rewrite(tmp_path, meta)
    (tmp_path / "adapter.safetensors").write_bytes(b"short")
    model = block()
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors"):
        load(model, tmp_path)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("config", [LoraConfig(2), VeraConfig(2), RandLoraConfig(2)], ids=config_id)
def test_settings_that_no_adapter_has_are_refused(config: AdapterConfig, tmp_path: Path) -> None:
    meta = saved(tmp_path, config)
    first = next(iter(dict(meta["capacities"])))  # type: ignore[call-overload]
    changes: list[dict[str, object]] = [
        {"capacities": {first: 10**9}},
        {"capacities": {first: "x"}},
        {"capacities": {}, "capacity": 10**9},
        {"shapes": {"nothing": [1, 2]}},
        {"shapes": {**dict(meta["shapes"]), first: "x"}},  # type: ignore[call-overload]
        {"basis": {}},
    ]
    for key in ("method", "capacity", "options", "capacities", "shapes", "init_seed", "basis"):
        changes += [{key: "x"}, {key: [1]}]
    for change in changes:
        rewrite(tmp_path, {**meta, **change})
        with pytest.raises(AdapterError):
            load(block(), tmp_path)
    for change in ({"method": "lora-fa"}, {"options": {"new_option": 1}}, {"capacity": 0}):
        rewrite(tmp_path, {**meta, **change})
        with pytest.raises(CheckpointError, match="does not fit this model"):
            load(block(), tmp_path)
    rewrite(tmp_path, {**meta, "capacities": {first: 10**9}})
    with pytest.raises(CheckpointError, match=r"capacities need [\d,]+ numbers, and its file holds [\d,]+"):
        load(block(), tmp_path)
    for key in meta.keys() - {"basis_seed", "derived"}:
        rewrite(tmp_path, {k: v for k, v in meta.items() if k != key})
        with pytest.raises(CheckpointError, match=r"adapter\.json"):
            load(block(), tmp_path)


def test_bases_on_request(tmp_path: Path) -> None:
    adapted = attach(block(), RandLoraConfig(4), TARGETS)
    adapted.save(tmp_path, bases=True)
    stored = load_file(tmp_path / "bases.safetensors")
    assert {k: tuple(v.shape) for k, v in stored.items()} == {"A": (4, 16), "B": (48, 16)}


def test_dense_and_merged_exports(tmp_path: Path) -> None:
    model, x = block(), batch()
    adapted = attach(model, RandLoraConfig(4), TARGETS)
    perturb(adapted)
    y = model(x)
    export_merged(adapted, tmp_path / "model.safetensors")
    adapted.export_deltas(tmp_path)
    assert torch.equal(model(x), y)
    plain = block()
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"))
    torch.testing.assert_close(plain(x), y, rtol=1e-4, atol=1e-4)
    dense, start = load_file(tmp_path / "deltas.safetensors"), block().state_dict()
    for name, delta in dense.items():
        torch.testing.assert_close(start[name] + delta, plain.state_dict()[name], rtol=1e-5, atol=1e-5)


def test_imports_torch_and_safetensors_alone() -> None:
    """With every other dependency of the project blocked, adapters still attach, train, save and load."""
    code = """
import sys
BLOCKED = {"ray", "pydantic", "pyarrow", "transformers", "open_clip", "optuna", "scipy", "peft", "duckdb", "datasets"}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
import tempfile, torch, randlora
model = torch.nn.Sequential(torch.nn.Linear(8, 6))
adapted = randlora.attach(model, randlora.RandLoraConfig(2), ["0"])
model(torch.ones(3, 8)).sum().backward()
with tempfile.TemporaryDirectory() as folder:
    adapted.save(folder); adapted.detach(); randlora.load(model, folder)
assert not BLOCKED & set(sys.modules)
"""
    root = Path(randlora.__file__).parent.parent
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_lora_has_no_bases(tmp_path: Path) -> None:
    assert saved(tmp_path, LoraConfig(2))["basis"] is None
