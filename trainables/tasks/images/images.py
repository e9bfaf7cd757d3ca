"""Image classification as a task: decoded pixels, labels, and a classifier in two parts.

`vision_task` makes the task for a transformers encoder (DINOv2, ViT, ...) with a new linear head, `clip` for CLIP.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainables.config import LINEAR_PROBE, NO_TRAINING
from trainables.data.images.batches import Normalise, apply_plan, crop_flip_plan, epoch_batches
from trainables.data.images.dataset import Dataset
from trainables.data.images.pixels import Pixels
from trainables.data.splits import VAL_SEED, split_of
from trainables.errors import TrialError
from trainables.models.encoders import hidden_size, image_encoder, new_head
from trainables.models.loading import LoadedModel, Preprocess
from trainables.runtime import Autocast
from trainables.seeds import generator
from trainables.tasks.task import LOSS, Alone, Parts, Scores, Split, Task, Which, eval_batch_size, summed


class FeatureClassifier(ABC):
    """A classifier of images: a tower that makes one vector of an image, and a part that reads it. B images, C
    classes."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Return vectors (B, D) of images (B, 3, S, S)."""

    @abstractmethod
    def classify(self, features: Tensor) -> Tensor:
        """Return logits (B, C) of vectors (B, D)."""

    def before_evaluation(self) -> None:  # noqa: B027  # most have nothing to bring up to date
        """Update what `classify` needs. Called after training and before evaluation."""

    def loss_of(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the summed loss of vectors (B, D) with labels (B,): a scalar with gradient."""
        return cross_entropy(self.classify(features), labels, reduction="sum")

    def loss_sum(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the summed loss of images (B, 3, S, S) with labels (B,): a scalar with gradient."""
        return self.loss_of(self.features(images), labels)

    def loss_sums(self, heads: Sequence[FeatureClassifier], images: Tensor, labels: Sequence[Tensor]) -> list[Tensor]:
        """Return the summed losses of K trials that share one model in training (`randlora.packing.packing`).

        Args:
            heads: the trials' classifiers, of this one's kind.
            images: (K b, 3, S, S), one trial's after another's.
            labels: (b,) for each trial.
        """
        parts = self.features(images).chunk(len(labels))
        return [
            cross_entropy(head.classify(part), trial_labels, reduction="sum")
            for head, part, trial_labels in zip(heads, parts, labels, strict=True)
        ]


def image_preprocess(loaded: LoadedModel, image_size: int | None) -> Preprocess:
    """Return how images become a model's input. `image_size` replaces the side in pixels, if the model accepts any."""
    look = loaded.preprocess
    assert look is not None  # every model of images has one
    if image_size is None or loaded.kind != "hf-vision":
        return look
    return dataclasses.replace(look, recipe=dataclasses.replace(look.recipe, size=image_size))


class ImageTask:
    """One trial's images, and the classifier that learns them. The metric is top-1 accuracy."""

    metric = "accuracy"
    unit = "images"

    def __init__(
        self, parts: Parts, dataset: Dataset, classifier: FeatureClassifier, head: nn.Module | None = None
    ) -> None:
        self._parts, self._trial, self._lane = parts, parts.trial, parts.lane
        self._dataset, self.classifier, self.head = dataset, classifier, head
        trial, look = parts.trial, image_preprocess(parts.loaded, parts.trial.image_size)
        self._rows = split_of(dataset, trial)
        self._usable: dict[str, tuple[Pixels, Tensor]] = {}
        self._skipped = 0
        self._recipe = look.recipe
        self._normalise = Normalise(look.mean, look.std, self._lane.device)

    @functools.cached_property
    def _pixels(self) -> Pixels:
        """Return the decoded images of the pool from which training and validation rows come."""
        return self._lane.pixels(self._dataset, "train", self._recipe)

    @functools.cached_property
    def _cropped(self) -> Pixels:
        """Return the decoded images of the pool in the form that crops are cut from."""
        original = self._trial.train.augment == "crop-flip-original"
        return self._lane.pixels(self._dataset, "train", self._recipe.wider) if original else self._pixels

    def _images_of(self, which: Literal["train", "val", "test"]) -> tuple[Pixels, Tensor]:
        """Return a split's decoded images, and the trial's rows that can be read.

        All rows are decoded at once, so that they are stored together.
        """
        if which not in self._usable:
            pool = self._cropped if which == "train" else self._pixels
            pixels = self._lane.pixels(self._dataset, "test", self._recipe) if which == "test" else pool
            rows = self._rows.of(which)
            readable = pixels.prepare(rows, skip_bad=self._trial.skip_bad)
            if len(rows) and not len(readable):
                raise TrialError(f"data set {self._dataset.name!r}: none of {len(rows)} images can be read")
            self._skipped += len(rows) - len(readable)
            self._usable[which] = pixels, readable
        return self._usable[which]

    def batches(self, epoch: int) -> list[Tensor]:
        s, rows = self._trial.train, self.rows("train")
        size, least = s.global_batch_size, s.min_batches_per_epoch
        replacement = s.sampling == "replacement"
        return epoch_batches(rows, size, least, self._trial.data_seed, epoch, replacement=replacement)

    def rows(self, which: Split) -> Tensor:
        return self._images_of(which)[1]

    def validated(self) -> Tensor:
        rows = self.rows(
            "val"
        )  # ascending rows of a folder go class by class, and a contrastive loss needs several classes in a batch
        return rows[torch.randperm(len(rows), generator=generator(VAL_SEED, "validated rows"))]

    def weight(self, batch: Tensor) -> float:
        return len(batch)

    def draw(self, batch: Tensor, generator: torch.Generator) -> Tensor | None:
        kind = self._trial.train.augment
        aspects = self._cropped.aspects(batch) if kind == "crop-flip-original" else None
        return None if kind == "none" else crop_flip_plan(len(batch), generator, aspects)

    def inputs(self, rows: Tensor, plan: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return images (b, 3, S, S), augmented by `plan`, and labels (b,) of training rows, on the device."""
        labels = self._pixels.split.labels[rows].to(self._normalise.device)
        return self._images(self._pixels if plan is None else self._cropped, rows, plan), labels

    def loss_sum(self, rows: Tensor, plan: Tensor | None) -> Tensor:
        return self.classifier.loss_sum(*self.inputs(rows, plan))

    def width(self, rows: Tensor) -> None:
        """Return None: images have no tokens to pad."""

    def packed_losses(
        self, tasks: Sequence[ImageTask], rows: Sequence[Tensor], plans: Sequence[Tensor | None], alone: Alone
    ) -> list[Tensor]:
        inputs = [task.inputs(trial_rows, plan) for task, trial_rows, plan in zip(tasks, rows, plans, strict=True)]
        images = torch.cat([images for images, _ in inputs])
        return self.classifier.loss_sums([task.classifier for task in tasks], images, [labels for _, labels in inputs])

    @torch.no_grad()
    def evaluate(self, which: Which, *, batch_size: int, rank: int = 0, world: int = 1) -> Scores | None:
        pixels, rows = self._images_of(which)
        if len(rows) == 0:
            return None
        self.classifier.before_evaluation()
        labels = pixels.split.labels[rows]
        results = torch.zeros(len(rows), 2, dtype=torch.float64)  # columns: whether the example is right, and its loss
        own_places = torch.arange(rank, len(rows), world)
        if len(own_places):
            at = iter(torch.split(own_places, batch_size))
            for logits in self._logits(pixels, rows[own_places], batch_size):
                these = next(at)
                right = labels[these].to(logits.device)
                results[these, 0] = (logits.argmax(dim=1) == right).double().cpu()
                results[these, 1] = cross_entropy(logits.float(), right, reduction="none").double().cpu()
        results = summed(results, world, self._normalise.device)
        correct = results[:, 0].bool()
        return Scores(
            score=int(correct.sum()) / len(correct),
            n_examples=len(rows),
            examples_hash=pixels.split.examples_hash(rows),
            correct=correct,
            further={LOSS: float(results[:, 1].mean())},
            skipped=self._skipped,
        )

    def _images(self, pixels: Pixels, rows: Tensor, plan: Tensor | None = None) -> Tensor:
        """Return normalised images (b, 3, S, S) on the device, augmented by `plan`."""
        images = pixels.rows(rows)
        if plan is not None:
            images = apply_plan(images.to(self._normalise.device), plan, self._recipe.size)
        return self._normalise(images)

    def _logits(self, pixels: Pixels, rows: Tensor, batch_size: int) -> Iterator[Tensor]:
        """Yield the logits (b, C) of one batch of the rows after another, on the device."""
        for part in torch.split(rows, batch_size):
            yield self.classifier.classify(self.classifier.features(self._images(pixels, part)))


class FrozenTask(ImageTask):
    """Image classification on a frozen tower, always in eval mode: for linear probes and zero-shot scores.

    Without augmentation an image passes through the tower once, whatever the number of epochs and trials, because the
    lane caches its vector.
    """

    def loss_sum(self, rows: Tensor, plan: Tensor | None) -> Tensor:
        labels = self._pixels.split.labels[rows].to(self._normalise.device)
        if plan is None:
            train = self.rows("train")  # ascending, as other rows are
            pool = train if bool((train == rows[0]).any()) else self.rows("val")
            features = self._features(self._pixels, pool)[torch.searchsorted(pool, rows)]
        else:
            features = self._through_tower(self._images(self._cropped, rows, plan))
        return self.classifier.loss_of(features, labels)

    def _logits(self, pixels: Pixels, rows: Tensor, batch_size: int) -> Iterator[Tensor]:
        yield from map(self.classifier.classify, torch.split(self._features(pixels, rows), batch_size))

    def _features(self, pixels: Pixels, rows: Tensor) -> Tensor:
        """Return the vectors (n, D) of the rows, on the device."""
        # a vector's last bits depend on the batch that it was computed in
        size = eval_batch_size(self._trial, self._parts.micro_batch_size, self._parts.world)
        digest = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
        data = (self._dataset.name, pixels.split.name, pixels.recipe)
        key = (self._trial.model, *data, self._parts.precision, size, digest)

        def make() -> Tensor:
            return torch.cat([self._through_tower(self._images(pixels, part)) for part in torch.split(rows, size)])

        return self._lane.features(key, make)

    @torch.no_grad()
    def _through_tower(self, images: Tensor) -> Tensor:
        """Return the vectors of images, computed by the tower without gradients."""
        self._parts.loaded.module.eval()
        return self.classifier.features(images)


class HeadClassifier(FeatureClassifier):
    """A linear head on an encoder's vectors."""

    def __init__(self, module: nn.Module, head: nn.Linear, autocast: Autocast) -> None:
        self._encode, self._head, self._autocast = image_encoder(module), head, autocast

    def features(self, images: Tensor) -> Tensor:
        with self._autocast():
            return self._encode(images)

    def classify(self, features: Tensor) -> Tensor:
        logits: Tensor = self._head(features)
        return logits


def vision_task(parts: Parts) -> Task:
    """Return the task of an image encoder with a linear head. Raises TrialError for zero-shot, because there is no head
    yet."""
    trial, lane, module = parts.trial, parts.lane, parts.loaded.module
    if trial.method == NO_TRAINING:
        raise TrialError(f"zero-shot on {trial.model!r}, which has no head to classify with; use {LINEAR_PROBE!r}")
    dataset = lane.dataset(trial.dataset, trial.stage)
    head = new_head(hidden_size(module, trial.model), len(dataset.class_names), trial.init_seed, lane.device)
    classifier = HeadClassifier(module, head, parts.autocast)
    kind = FrozenTask if trial.method == LINEAR_PROBE else ImageTask
    return kind(parts, dataset, classifier, head)
