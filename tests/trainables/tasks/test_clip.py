"""The CLIP task: class embeddings and both losses, against their definitions."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from tests.trainables.support import run
from tests.trainables.tiny_images import write_photos
from trainables.config import TrialConfig
from trainables.data.images.pixels import Pixels, Recipe
from trainables.data.registry import load_dataset
from trainables.errors import TrialError
from trainables.models.loading import LoadedModel, load_model
from trainables.tasks.images.clip import BothTask, VisionTask, class_embeddings, logit_scale
from trainables.tasks.lane_cache import LaneCache
from trainables.tasks.make import make_task
from trainables.tasks.task import Parts
from trainables.training.adapting import adapted
from trainables.training.trainer import Trainer, Work

CLASSES = ["cat", "dog", "ship"]


@pytest.fixture(scope="module")
def loaded(model_dir: Path) -> LoadedModel:
    return load_model(f"local:{model_dir}")


@pytest.fixture(scope="module")
def images(colours: Path) -> Tensor:
    pixels = Pixels(load_dataset(f"parquet:{colours}").train, Recipe(16))
    return pixels.rows(torch.arange(6)).float() / 128 - 1


def tokens(loaded: LoadedModel, texts: list[str]) -> Tensor:
    assert loaded.tokenizer is not None
    return loaded.tokenizer(texts)


def test_logit_scale_is_exponentiated(loaded: LoadedModel) -> None:
    assert math.isclose(float(logit_scale(loaded.module).detach()), 1 / 0.07, rel_tol=1e-5)


def test_full_fine_tuning_may_train_the_temperature(make_trial: Callable[..., TrialConfig], tmp_path: Path) -> None:
    """As the RandLoRA paper's code for both towers; no other method does, and the base model gets its own back."""
    lane: dict[str, Any] = {}
    trials = {on: make_trial("full", adapt="both", train={"train_temperature": on}) for on in (False, True)}
    ends = {on: run(trial, tmp_path / str(on), lane)[-1] for on, trial in trials.items()}
    counts = {on: end["result"].measured.adapter_params for on, end in ends.items()}
    assert counts[True] == counts[False] + 1
    assert ends[True]["train_loss"] != ends[False]["train_loss"]
    loaded = LaneCache(lane, torch.device("cpu")).model(trials[True].model)
    own = float(loaded.module.get_parameter("logit_scale").detach())
    task = make_task(
        Parts(
            trial=trials[True],
            lane=LaneCache(lane, torch.device("cpu")),
            loaded=loaded,
            autocast=contextlib.nullcontext,
            precision="fp32",
        )
    )
    for on, trial in trials.items():
        with adapted(loaded.module, trial) as trainables:
            assert ("logit_scale" in trainables.parameters) == on == logit_scale(loaded.module).requires_grad
    with adapted(loaded.module, trials[True]) as trainables:
        task.loss_sum(task.batches(1)[0], None).backward()
        scale = trainables.parameters["logit_scale"]
        assert scale.grad is not None and scale.grad != 0
        with torch.no_grad():
            scale.add_(0.5)
        assert float(logit_scale(loaded.module).detach()) == pytest.approx(math.exp(own + 0.5))
    assert float(loaded.module.get_parameter("logit_scale").detach()) == own
    for method, adapt in (("lora", "both"), ("full", "vision")):
        with adapted(loaded.module, make_trial(method, adapt=adapt, train={"train_temperature": True})) as trainables:
            assert "logit_scale" not in trainables.parameters


def test_class_embeddings_are_the_unit_mean_of_unit_prompts(loaded: LoadedModel) -> None:
    templates = ["a photo of a {}.", "the {}"]
    got = class_embeddings(
        loaded.module,
        lambda texts: tokens(loaded, texts),
        CLASSES,
        templates,
        device=torch.device("cpu"),
        autocast=contextlib.nullcontext,
    )
    for row, name in zip(got, CLASSES, strict=True):
        with torch.no_grad():
            each = torch.cat([loaded.module.encode_text(tokens(loaded, [t.format(name)])) for t in templates])
        expected = normalize(normalize(each, dim=-1).mean(0), dim=0)
        torch.testing.assert_close(row, expected)
    assert not got.requires_grad


def test_vision_loss(loaded: LoadedModel, images: Tensor) -> None:
    classes = normalize(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    task = VisionTask(loaded.module, classes, contextlib.nullcontext)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    cosine = normalize(loaded.module.encode_image(images), dim=-1) @ classes.T
    expected = cross_entropy(cosine / 0.07, labels, reduction="sum")
    torch.testing.assert_close(task.loss_sum(images, labels), expected)
    assert torch.equal(task.classify(task.features(images)).argmax(1), cosine.argmax(1))


def published_loss(model: nn.Module, tokens_CL: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """In words: one prompt per image, made from its class; the target is the first image of the same class."""
    texts = normalize(model.encode_text(tokens_CL[labels]), dim=-1)
    logits = normalize(model.encode_image(images), dim=-1) @ texts.T / 0.07
    first = torch.tensor([labels.tolist().index(label) for label in labels.tolist()])
    return cross_entropy(logits, first, reduction="sum")


@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1, 2], [2, 2, 2, 0, 2, 2], [1, 1, 1, 1, 1, 1]])
def test_contrastive_loss_and_gradient_are_the_published(
    loaded: LoadedModel, images: Tensor, labels: list[int]
) -> None:
    model = loaded.module
    tokens_CL = tokens(loaded, [f"An image of {c}" for c in CLASSES])
    task = BothTask(model, tokens_CL, contextlib.nullcontext)
    weights = [model.get_parameter("visual.proj"), model.get_parameter("text_projection")]
    target = torch.tensor(labels)
    ours, theirs = task.loss_sum(images, target), published_loss(model, tokens_CL, images, target)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours, weights), torch.autograd.grad(theirs, weights), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_both_predicts_over_all_classes_with_the_current_text_tower(loaded: LoadedModel, images: Tensor) -> None:
    tokens_CL = tokens(loaded, [f"An image of {c}" for c in CLASSES])
    task = BothTask(loaded.module, tokens_CL, contextlib.nullcontext)
    with pytest.raises(TrialError, match="before_evaluation"):
        task.classify(task.features(images)).argmax(1)
    task.before_evaluation()
    with torch.no_grad():
        texts = normalize(loaded.module.encode_text(tokens_CL), dim=-1)
        expected = (normalize(loaded.module.encode_image(images), dim=-1) @ texts.T).argmax(1)
        assert torch.equal(task.classify(task.features(images)).argmax(1), expected)


def test_validation_rows_of_one_class_are_not_all_in_one_batch(
    make_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    """A contrastive loss compares the images of a batch; rows of class folders lie class by class."""
    trial = make_trial("full", adapt="both", dataset=f"folder:{write_photos(tmp_path, 32, 1)}")
    lane = LaneCache({}, torch.device("cpu"))
    parts = Parts(
        trial=trial, lane=lane, loaded=lane.model(trial.model), autocast=contextlib.nullcontext, precision="fp32"
    )
    rows, again = (make_task(parts).validated() for _ in range(2))
    assert torch.equal(rows, again) and torch.equal(rows.sort().values, make_task(parts).rows("val"))
    labels = lane.dataset(trial.dataset, "TUNE").train.labels[rows]
    assert all(len(batch.unique()) > 1 for batch in labels.split(4))


def test_negatives_within_each_part_are_the_mean_of_the_parts_losses(
    make_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    """The paper's 2 x 64: what a step of both towers sees is the mean over parts, each a batch of its own."""
    lane = LaneCache({}, torch.device("cpu"))
    train = {"global_batch_size": 20, "micro_batch_size": 10, "negatives": "part"}
    trial = make_trial("full", adapt="both", train=train)
    loaded = lane.model(trial.model)
    parts = Parts(trial=trial, lane=lane, loaded=loaded, autocast=contextlib.nullcontext, precision="fp32")
    task = make_task(parts)
    batch = task.batches(1)[0]
    with adapted(loaded.module, trial) as trainables:
        work = Work(trial=trial, module=loaded.module, task=task, trainables=trainables, device=torch.device("cpu"))
        found = float(Trainer(work)._backward(batch, None)) / 20
        mine = {n: p.grad.clone() for n, p in trainables.parameters.items() if p.grad is not None}
        for p in trainables.parameters.values():
            p.grad = None
        halves = [task.loss_sum(half, None) / 10 for half in batch.split(10)]
        mean = torch.stack(halves).mean()
        mean.backward()
        assert found == pytest.approx(mean.item(), rel=1e-5)
        assert all(torch.allclose(g, trainables.parameters[n].grad, atol=1e-6) for n, g in mine.items())
        assert abs(found - task.loss_sum(batch, None).item() / 20) > 0.1  # of more images each is told from
    with pytest.raises(ValueError, match="compare within each part: negatives = 'part'"):
        make_trial("full", adapt="both", train=train | {"negatives": "batch"})
    for other in ({"adapt": "vision"}, {"train": {"negatives": "part"}}):
        with pytest.raises(ValueError, match="is of the contrastive loss of adapt = 'both' in micro-batches"):
            make_trial("full", **({"adapt": "both", "train": train} | other))
    with pytest.raises(TrialError, match="takes whole batches"):
        run(trial, tmp_path, micro_batch_size=5)  # memory ran out: smaller parts would be another loss
