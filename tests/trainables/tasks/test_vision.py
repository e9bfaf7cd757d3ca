"""Image encoders with a linear head: one trial of every method, resuming, keeping, two workers, bad input."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.multiprocessing
import transformers
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

import trainables.training.checkpoints
from randlora import load
from tests.trainables.support import one_tower_trial, outcome, run, saved_reports, work
from tests.trainables.tiny_images import save_dinov2
from trainables.config import FULL_METHODS, TrainSettings, TrialConfig
from trainables.data.registry import load_dataset
from trainables.errors import TrialError
from trainables.models.encoders import image_encoder, load_head, new_head
from trainables.models.loading import LoadedModel, load_model
from trainables.models.shapes import default_targets, target_shapes
from trainables.tasks.lane_cache import LaneCache
from trainables.tasks.make import make_task
from trainables.tasks.task import Parts
from trainables.training.worker import run_trial

MakeTrial = Callable[..., TrialConfig]
CLASSES, WIDTH = 4, 32
ASSETS = "SWEEPS_TEST_ASSETS"


@pytest.fixture(scope="session")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dinov2(tmp_path_factory.mktemp("tiny-dinov2"))


@pytest.fixture
def vision_trial(dinov2: Path, colours: Path) -> MakeTrial:
    """Makes a TrialConfig on the tiny DINOv2 at 16 pixels and the colour set."""

    def make(method: str = "lora", *, train: dict[str, Any] | None = None, **given: Any) -> TrialConfig:
        settings = {"epochs": 3, "global_batch_size": 16, "head_lr": 1e-2} | (train or {})
        given = {"model": dinov2, "dataset": f"parquet:{colours}", "image_size": 16} | given
        return one_tower_trial(method, train=settings, **given)

    return make


@pytest.mark.parametrize("method", ["lora", "randlora", "full", "full-targets", "linear-probe"])
def test_every_method_learns_and_gives_the_encoder_back(vision_trial: MakeTrial, tmp_path: Path, method: str) -> None:
    trial = vision_trial(method, train={"epochs": 6})
    warm: dict[str, Any] = {}
    reports = run(trial, tmp_path, warm)
    result = reports[-1]["result"]
    assert result.measured.head_params == CLASSES * WIDTH
    assert (result.measured.metric, result.measured.unit) == ("accuracy", "images")
    assert reports[-1]["train_loss"] < reports[0]["train_loss"]
    assert result.measured.test_score > 0.5  # chance is 0.25
    fresh = load_model(trial.model).module
    if method == "full":  # the mask token takes no part in classifying
        assert result.measured.adapter_params == sum(p.numel() for p in fresh.parameters()) - WIDTH
    elif method == "linear-probe":
        assert result.measured.adapter_params == 0
    module = warm["models"][trial.model].module
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in module.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_every_weight_that_full_trains_gets_a_gradient(vision_trial: MakeTrial, tmp_path: Path) -> None:
    run(vision_trial("full", train={"epochs": 1}), tmp_path, keep=True)
    after = load_file(str(tmp_path / "adapter" / "weights.safetensors"))
    before = dict(load_model(vision_trial().model).module.named_parameters())
    assert set(before) - set(after) == {"embeddings.mask_token"}
    assert not [n for n, w in after.items() if torch.equal(w, before[n])]


@pytest.mark.parametrize("method", ["lora", "full", "linear-probe"])
@pytest.mark.parametrize("augment", ["none", "crop-flip", "crop-flip-original"])
def test_resuming_is_exact(
    vision_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, augment: str
) -> None:
    monkeypatch.setattr(trainables.training.checkpoints, "CHECKPOINT_SHARE", 1e9)  # after every epoch
    trial = vision_trial(method, train={"augment": augment})
    whole = run(trial, tmp_path / "whole", keep=True)
    generator = run_trial(trial, warm={}, directory=tmp_path / "cut", keep=True)
    seen = [next(generator), next(generator)]
    generator.close()
    again = run(trial, tmp_path / "cut", keep=True)
    assert again[:2] == seen
    assert outcome(again) == outcome(whole)
    heads = [load_file(str(tmp_path / d / "adapter" / "head.safetensors")) for d in ("whole", "cut")]
    assert torch.equal(heads[0]["weight"], heads[1]["weight"])


def test_warm_trials_equal_cold_ones(vision_trial: MakeTrial, tmp_path: Path) -> None:
    trials = [vision_trial(m) for m in ("linear-probe", "full", "lora", "linear-probe")]
    warm: dict[str, Any] = {}
    together = [outcome(run(t, tmp_path / f"warm{i}", warm)) for i, t in enumerate(trials)]
    assert together == [outcome(run(t, tmp_path / f"cold{i}")) for i, t in enumerate(trials)]


def test_frozen_features_are_computed_once(vision_trial: MakeTrial, tmp_path: Path) -> None:
    warm: dict[str, Any] = {}
    run(vision_trial("linear-probe"), tmp_path / "a", warm)
    kept = dict(warm["features"])
    assert len(kept) == 3  # train, validation, test
    run(vision_trial("linear-probe", lr=1e-2, init_seed=9), tmp_path / "b", warm)
    assert {k: id(v) for k, v in warm["features"].items()} == {k: id(v) for k, v in kept.items()}
    run(vision_trial("linear-probe", train={"augment": "crop-flip"}), tmp_path / "c", warm)
    assert len(warm["features"]) == 3  # augmented images pass through the tower every time


def test_a_probe_on_kept_features_equals_one_through_the_tower(vision_trial: MakeTrial) -> None:
    trial = vision_trial("linear-probe")
    lane = LaneCache({}, torch.device("cpu"))
    task = make_task(Parts(trial=trial, lane=lane, loaded=lane.model(trial.model), autocast=_none, precision="fp32"))
    rows = task.batches(1)[0]
    identity = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(len(rows), 2, 3)
    torch.testing.assert_close(task.loss_sum(rows, None), task.loss_sum(rows, identity), rtol=1e-4, atol=1e-3)


def _none() -> Any:
    return torch.autocast("cpu", enabled=False)


def test_kept_adapter_and_head_reproduce_the_test_score(vision_trial: MakeTrial, tmp_path: Path) -> None:
    trial = vision_trial("randlora")
    result = run(trial, tmp_path, keep=True)[-1]["result"]
    loaded = load_model(trial.model)
    load(loaded.module, tmp_path / "adapter")
    head = load_head(tmp_path / "adapter")
    images, labels = colour_images(loaded, trial, "test")
    with torch.no_grad():
        right = head(image_encoder(loaded.module)(images)).argmax(1) == labels
    assert float(right.float().mean()) == pytest.approx(result.measured.test_score)


def colour_images(loaded: LoadedModel, trial: TrialConfig, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    from trainables.data.images.batches import Normalise
    from trainables.data.images.pixels import Pixels

    split = getattr(load_dataset(trial.dataset, stage="CONFIRM"), part)
    look = loaded.preprocess
    assert look is not None
    pixels = Pixels(split, replace(look.recipe, size=16))
    return Normalise(look.mean, look.std, torch.device("cpu"))(pixels.rows(torch.arange(len(split)))), split.labels


def test_the_features_are_the_class_token_after_the_final_norm(dinov2: Path) -> None:
    module = load_model(f"local:{dinov2}").module
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module(pixel_values=images).last_hidden_state[:, 0]
        torch.testing.assert_close(image_encoder(module)(images), expected)


def test_a_vit_interpolates_its_positions(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 32, "width": 32}}))
    module = load_model(f"local:{tmp_path}").module
    assert image_encoder(module)(torch.zeros(2, 3, 16, 16)).shape == (2, 16)


def test_a_convolutional_encoder_is_read_from_its_pooled_output(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    module = load_model(f"local:{tmp_path}").module
    assert image_encoder(module)(torch.zeros(2, 3, 32, 32)).shape == (2, 16)


def test_the_head_trains_at_its_own_rate(vision_trial: MakeTrial, tmp_path: Path) -> None:
    still = vision_trial("lora", lr=1e-3, train={"head_lr": 1e-12, "epochs": 1})
    run(still, tmp_path / "a", keep=True)
    start = new_head(WIDTH, CLASSES, still.init_seed, torch.device("cpu")).weight
    torch.testing.assert_close(load_head(tmp_path / "a" / "adapter").weight, start, rtol=0, atol=1e-9)
    run(vision_trial("lora", lr=1e-12, train={"epochs": 1}), tmp_path / "b", keep=True)
    moved = (load_head(tmp_path / "b" / "adapter").weight - start).abs().mean()
    assert moved > 1e-3
    run(vision_trial("lora", lr=1e-12, train={"head_lr": "lr", "epochs": 1}), tmp_path / "c", keep=True)
    torch.testing.assert_close(load_head(tmp_path / "c" / "adapter").weight, start, rtol=0, atol=1e-9)


def test_accumulation_gives_the_gradient_of_the_whole_batch(vision_trial: MakeTrial) -> None:
    grads = []
    for micro in (None, 6):
        trial = vision_trial("full", train={"global_batch_size": 20, "micro_batch_size": micro})
        lane = LaneCache({}, torch.device("cpu"))
        loaded = lane.model(trial.model)
        task = make_task(Parts(trial=trial, lane=lane, loaded=loaded, autocast=_none, precision="fp32"))
        batch = task.batches(1)[0]
        loaded.module.zero_grad()
        for part in batch.split(micro or len(batch)):
            (task.loss_sum(part, None) / task.weight(batch)).backward()
        grads.append(torch.cat([p.grad.flatten() for p in loaded.module.parameters() if p.grad is not None]))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)


def test_the_loss_is_cross_entropy_of_the_head(vision_trial: MakeTrial) -> None:
    trial = vision_trial("lora")
    lane = LaneCache({}, torch.device("cpu"))
    loaded = lane.model(trial.model)
    task = make_task(Parts(trial=trial, lane=lane, loaded=loaded, autocast=_none, precision="fp32"))
    images, labels = colour_images(loaded, trial, "test")
    assert task.head is not None
    with torch.no_grad():
        scores = task.evaluate("test", batch_size=7)
        logits = task.head(image_encoder(loaded.module)(images))
    assert scores is not None and scores.correct is not None
    assert torch.equal(scores.correct, logits.argmax(1) == labels)
    images, labels = colour_images(loaded, trial, "train")
    with torch.no_grad():
        torch.nn.init.normal_(task.head.weight)
        logits = task.head(image_encoder(loaded.module)(images[:5]))
        torch.testing.assert_close(
            task.loss_sum(torch.arange(5), None), cross_entropy(logits, labels[:5], reduction="sum")
        )


def test_zero_shot_names_the_probe(vision_trial: MakeTrial, tmp_path: Path) -> None:
    with pytest.raises(TrialError, match="no head to classify with; use 'linear-probe'"):
        run(vision_trial("zero-shot"), tmp_path)


@pytest.mark.parametrize("method", FULL_METHODS)
def test_full_fine_tuning_of_nothing_is_refused(vision_trial: MakeTrial, tmp_path: Path, method: str) -> None:
    with pytest.raises(TrialError, match=rf"adapt = 'vision' leaves '{method}' no weight of 'local:.*; use 'all'"):
        run(vision_trial(method, adapt="vision"), tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("method", ["full", "lora", "linear-probe"])
def test_two_workers_equal_one(vision_trial: MakeTrial, tmp_path: Path, method: str) -> None:
    # 58 images in batches of 19 leave one for the last batch: a worker without images
    trial = vision_trial(method, train={"global_batch_size": 19, "epochs": 2}, lr=1e-3)
    alone = list(run_trial(trial, warm={}, directory=tmp_path / "alone", keep=True))
    torch.multiprocessing.spawn(work, args=(2, trial, str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        reports = saved_reports(tmp_path, rank)
        assert [r["train_loss"] for r in reports] == pytest.approx([r["train_loss"] for r in alone], rel=1e-4)
        assert reports[-1]["result"].predicted.n_examples == 32
    a, b = (load_file(str(tmp_path / d / "adapter" / "head.safetensors")) for d in ("alone", "trial"))
    assert (a["weight"] - b["weight"]).abs().mean() < 2e-4


@pytest.mark.slow
def test_a_real_vit_learns(tmp_path: Path) -> None:
    """A ViT-S/14 (vit-s14, made by the assets' script) at 56 pixels: an adapter beats the probe's start."""
    folder = os.environ.get(ASSETS)
    if folder is None:
        pytest.skip(f"{ASSETS} is not set")
    model = next((p for p in (Path(folder) / "vit-s14", Path(folder) / "models" / "vit-s14") if p.is_dir()), None)
    if model is None:
        pytest.skip(f"no vit-s14 in {folder} or its models folder")
    name = f"local:{model}"
    trial = TrialConfig(
        stage="CONFIRM",
        cell_id="c",
        model=name,
        adapt="all",
        targets=tuple(default_targets(name)),
        dataset="embedded:fashion-mnist",
        train_size="16-shot",
        method="lora",
        capacities=tuple((n, 4) for n in target_shapes(name)),
        lr=2e-3,
        data_seed=0,
        init_seed=0,
        basis_seed=0,
        image_size=56,
        train=TrainSettings(epochs=3, global_batch_size=32),
    )
    result = run(trial, tmp_path)[-1]["result"]
    assert result.measured.adapter_params == 12 * 4 * (3 * 768 + 2 * 1920)
    assert result.measured.head_params == 3840
    assert result.measured.test_score > 0.5
