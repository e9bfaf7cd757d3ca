"""Trials in a pack come to the results that they come to alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainables.tiny_images import save_dinov2
from tests.trainables.training.support import ATOL, MakeTrial, alone, check_weights, folders, together
from trainables.config import TrainSettings, TrialConfig
from trainables.errors import TrialError
from trainables.models.loading import load_model
from trainables.models.shapes import default_targets, target_shapes
from trainables.packing.alike import NotPackableError
from trainables.packing.together import run_pack


def check_same(got: dict[str, Any], want: dict[str, Any], rows: int = 32) -> None:
    """Everything but clocks and memory; one answer of `rows` may tip over at a tie."""
    assert got["train_loss"] == pytest.approx(want["train_loss"], rel=1e-4)
    assert got["val_score"] == pytest.approx(want["val_score"], abs=1.01 / 6)
    for name in ("epoch", "done", "samples", "skipped"):
        assert got[name] == want[name]
    assert got["val_further"] == pytest.approx(want["val_further"], rel=1e-4)
    assert set(got) == set(want)
    if want["done"]:
        assert got["result"].measured.test_score == pytest.approx(want["result"].measured.test_score, abs=1.01 / rows)
        for part, names in {
            "measured": ("adapter_params", "head_params", "metric", "precision"),
            "predicted": ("examples_hash", "n_examples"),
        }.items():
            mine, other = getattr(got["result"], part), getattr(want["result"], part)
            assert [getattr(mine, name) for name in names] == [getattr(other, name) for name in names]


SETS: dict[str, list[dict[str, Any]]] = {
    "rates": [{"lr": 1e-3}, {"lr": 4e-3}, {"lr": 1e-2}],
    "seeds": [{"data_seed": k, "init_seed": 10 + k, "basis_seed": 20 + k} for k in range(3)],
}


@pytest.mark.parametrize("differ", SETS)
@pytest.mark.parametrize("method", ["lora", "dora", "vera", "randlora", "nola", "adalora"])
def test_a_pack_equals_separate_trials(make_trial: MakeTrial, tmp_path: Path, method: str, differ: str) -> None:
    trials = [make_trial(method, **given) for given in SETS[differ]]
    warm: dict[str, Any] = {}
    packed = together(trials, tmp_path, keep=True, warm=warm)
    assert [sorted(reports) for reports in packed] == [[0, 1, 2]] * 3
    for k, trial in enumerate(trials):
        want = alone(trial, tmp_path / f"alone{k}", keep=True)
        for reports, expected in zip(packed, want, strict=True):
            check_same(reports[k], expected)  # type: ignore[arg-type]
        check_weights(tmp_path, k, tmp_path / f"alone{k}")
    module, fresh = warm["models"][trials[0].model].module, load_model(trials[0].model).module
    assert all(torch.equal(v, fresh.state_dict()[n]) for n, v in module.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert [type(m) for m in module.modules()] == [type(m) for m in fresh.modules()]


@pytest.mark.parametrize(
    "given",
    [
        {"adapt": "both"},
        {"train": {"augment": "crop-flip", "weight_decay": 0.1}},
        {"train": {"micro_batch_size": 6}},
        {"options": (("dropout", 0.2),), "targets": ("mlp.c_fc",)},
    ],
    ids=["both towers", "augmentation", "micro-batches", "dropout"],
)
def test_other_settings_too(make_trial: MakeTrial, tmp_path: Path, given: dict[str, Any]) -> None:
    trials = [make_trial(**given, **seeds) for seeds in SETS["seeds"][:2]]
    if "targets" in given:
        fit = tuple(c for c in trials[0].capacities if "c_fc" in c[0])
        trials = [trial.model_copy(update={"capacities": fit}) for trial in trials]
    packed = together(trials, tmp_path, keep=True)
    for k, trial in enumerate(trials):
        want = alone(trial, tmp_path / f"alone{k}", keep=True)
        check_same(packed[-1][k], want[-1])  # type: ignore[arg-type]
        check_weights(tmp_path, k, tmp_path / f"alone{k}")


def test_the_embedded_model_over_an_epoch(tmp_path: Path) -> None:
    """The quickstart's model, data and targets; three rates on one data order."""
    blocks = [f"visual.transformer.resblocks.{i}.attn.in_proj_weight" for i in range(4)]
    base = {
        "stage": "TUNE", "cell_id": "cell", "model": "embedded:tiny-clip", "adapt": "vision",
        "targets": ("attn.in_proj_weight",), "dataset": "embedded:fashion-mnist-turned", "train_size": 0.05,
        "method": "randlora", "data_seed": 1_000_000, "init_seed": 1_000_000, "basis_seed": 1_000_000,
        "train": TrainSettings(epochs=1, global_batch_size=64),
    }  # fmt: skip
    found = {n for n, _ in load_model("embedded:tiny-clip").module.named_parameters()}
    capacities = tuple((name, 6) for name in blocks if name in found)
    trials = [TrialConfig(**base, capacities=capacities, lr=lr) for lr in (2e-3, 5e-3, 1e-2)]
    (packed,) = together(trials, tmp_path, keep=True)
    for k, trial in enumerate(trials):
        (want,) = alone(trial, tmp_path / f"alone{k}", keep=True)
        assert packed[k]["train_loss"] == pytest.approx(want["train_loss"], rel=1e-4)  # type: ignore[index]
        assert packed[k]["val_score"] == pytest.approx(want["val_score"], abs=0.005)  # type: ignore[index]
        check_weights(tmp_path, k, tmp_path / f"alone{k}")


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_an_image_encoder_with_a_head_of_its_own_for_every_trial(colours: Path, tmp_path: Path, dropout: float) -> None:
    model = f"local:{save_dinov2(tmp_path / 'dinov2', dropout)}"
    shared = {
        "stage": "CONFIRM", "cell_id": "cell", "model": model, "adapt": "all", "method": "randlora",
        "targets": tuple(default_targets(model)), "dataset": f"parquet:{colours}", "train_size": 1.0,
        "capacities": tuple((n, 4) for n in target_shapes(model)), "image_size": 16, "lr": 5e-3,
        "train": TrainSettings(epochs=2, global_batch_size=16),
    }  # fmt: skip
    trials = [TrialConfig(**shared, **seeds) for seeds in SETS["seeds"][:2]]
    packed = together(trials, tmp_path, keep=True)
    for k, trial in enumerate(trials):
        check_same(packed[-1][k], alone(trial, tmp_path / f"alone{k}", keep=True)[-1])  # type: ignore[arg-type]
        check_weights(tmp_path, k, tmp_path / f"alone{k}")
        heads = [
            load_file(str(f / "adapter" / "head.safetensors"))
            for f in (tmp_path / f"packed{k}", tmp_path / f"alone{k}")
        ]
        assert all(torch.allclose(heads[0][n], v, rtol=0, atol=ATOL) for n, v in heads[1].items())


def test_a_trial_that_diverges_fails_alone(make_trial: MakeTrial, tmp_path: Path) -> None:
    trials = [make_trial(lr=1e-3), make_trial(lr=1e30), make_trial(lr=4e-3)]
    packed = together(trials, tmp_path, keep=True)
    error = next(reports[1] for reports in packed if isinstance(reports.get(1), TrialError))
    with pytest.raises(TrialError) as raised:
        alone(trials[1], tmp_path / "alone1")
    assert str(error) == str(raised.value)
    assert 1 not in packed[-1]
    for k in (0, 2):
        check_same(packed[-1][k], alone(trials[k], tmp_path / f"alone{k}", keep=True)[-1])  # type: ignore[arg-type]
        check_weights(tmp_path, k, tmp_path / f"alone{k}")


def test_a_stopped_trial_leaves_the_others(make_trial: MakeTrial, tmp_path: Path) -> None:
    trials = [make_trial(**given) for given in SETS["rates"]]
    places = folders(tmp_path, 3)
    pack = run_pack(trials, warm={}, directories=places, keep=[True] * 3)
    assert sorted(next(pack)) == [0, 1, 2]
    assert sorted(pack.send({0})) == [1, 2]
    last = pack.send(set())
    assert sorted(last) == [1, 2]
    check_same(last[2], alone(trials[2], tmp_path / "alone2", keep=True)[-1])  # type: ignore[arg-type]
    check_weights(tmp_path, 2, tmp_path / "alone2")
    (tmp_path / "again").mkdir()
    again = run_pack(trials, warm={}, directories=folders(tmp_path / "again", 3), keep=[False] * 3)
    next(again)
    with pytest.raises(StopIteration):
        again.send({0, 1, 2})


@pytest.mark.parametrize("method", ["randlora", "adalora"])
def test_an_abandoned_pack_goes_on_where_it_was(make_trial: MakeTrial, tmp_path: Path, method: str) -> None:
    trials = [make_trial(method, **given) for given in SETS["seeds"]]
    places = folders(tmp_path, 3)
    pack = run_pack(trials, warm={}, directories=places, keep=[False] * 3)
    first = next(pack)
    next(pack)  # the second epoch may or may not have a checkpoint, by how long it took
    pack.close()
    resumed = together(trials, tmp_path)
    whole = together(trials, tmp_path / "whole")
    assert len(resumed) == len(whole) == 3
    assert resumed[0] == first
    for k in range(3):
        assert resumed[-1][k]["train_loss"] == whole[-1][k]["train_loss"]  # type: ignore[index]
        assert resumed[-1][k]["result"].predicted.correct == whole[-1][k]["result"].predicted.correct  # type: ignore[index]


def test_a_trial_of_a_pack_goes_on_alone(make_trial: MakeTrial, tmp_path: Path) -> None:
    trials = [make_trial(**given) for given in SETS["rates"]]
    places = folders(tmp_path, 3)
    pack = run_pack(trials, warm={}, directories=places, keep=[False] * 3)
    next(pack)
    next(pack)
    pack.close()
    check_same(alone(trials[1], places[1])[-1], alone(trials[1], tmp_path / "alone")[-1])
    with pytest.raises(NotPackableError, match="different epochs"):
        list(run_pack(trials[1:], warm={}, directories=[tmp_path / "new", places[2]], keep=[False] * 2))


def test_what_is_not_packed_says_why(make_trial: MakeTrial, tmp_path: Path) -> None:
    dropping = make_trial(adapt="both", targets=("mlp.c_fc",), options=(("dropout", 0.1),))
    fit = tuple(c for c in dropping.capacities if "c_fc" in c[0])
    dropping = dropping.model_copy(update={"capacities": fit})
    cases: list[tuple[list[TrialConfig], str]] = [
        ([make_trial("lora"), make_trial("dora")], "not in method"),
        ([make_trial(), make_trial(train={"epochs": 2})], "not in train"),
        ([make_trial("full")] * 2, "method 'full' adds no adapter"),
        ([make_trial("zero-shot")] * 2, "method 'zero-shot' adds no adapter"),
        ([dropping] * 2, "other numbers of classes in every trial"),
        ([make_trial("autolora")] * 2, "AutoLoRA cannot be packed: it holds some rows of each batch out"),
    ]
    for trials, message in cases:
        warm: dict[str, Any] = {}
        with pytest.raises(NotPackableError, match=message):
            together(trials, tmp_path, warm=warm)
        if warm.get("models"):
            (loaded,) = warm["models"].values()
            assert all(p.requires_grad for p in loaded.module.parameters())
