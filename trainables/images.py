"""Image classification as a task: decoded pixels, labels, and a classifier of any kind."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from trainables.clip import BothTask, VisionTask
from trainables.data import Dataset, Splits, split
from trainables.data.batches import Normalise, apply_plan, crop_flip_plan, epoch_batches
from trainables.data.pixels import Pixels, Recipe
from trainables.errors import TrialError
from trainables.evaluate import Classifier, accuracy, correctness
from trainables.models import LoadedModel, Preprocess
from trainables.task import Parts, Scores, Which


class ImageTask:
    """One trial's images, and the classifier that learns them. The metric is top-1 accuracy."""

    metric = "accuracy"
    unit = "images"

    def __init__(
        self,
        parts: Parts,
        dataset: Dataset,
        classifier: Classifier,
        preprocess: Preprocess,
        head: nn.Module | None = None,
    ) -> None:
        trial = parts.trial
        self._trial, self._lane, self._dataset, self._classifier = trial, parts.lane, dataset, classifier
        self.head = head
        self._rows: Splits = split(dataset, trial.train_size, trial.data_seed, trial.stage, trial.protocol)
        self._skipped = 0
        self._recipe = recipe_of(preprocess)
        self._normalise = Normalise(preprocess.mean, preprocess.std, parts.lane.device)

    @functools.cached_property
    def _pixels(self) -> Pixels:
        """The pool that training and validation images come from."""
        return self._lane.pixels(self._dataset, "train", self._recipe)

    @functools.cached_property
    def _train_rows(self) -> Tensor:
        return self._usable(self._pixels, self._rows.train_idx)

    @functools.cached_property
    def _val_rows(self) -> Tensor:
        return self._usable(self._pixels, self._rows.val_idx)

    @functools.cached_property
    def _test_rows(self) -> Tensor:
        return self._usable(self._lane.pixels(self._dataset, "test", self._recipe), self._rows.test_idx)

    def _usable(self, pixels: Pixels, rows: Tensor) -> Tensor:
        """Decode rows all at once, so that they are kept together; those that can be read."""
        kept = pixels.prepare(rows, skip_bad=self._trial.skip_bad)
        if len(rows) and not len(kept):
            raise TrialError(f"data set {self._dataset.name!r}: none of {len(rows)} images can be read")
        self._skipped += len(rows) - len(kept)
        return kept

    def batches(self, epoch: int) -> list[Tensor]:
        s, rows = self._trial.train, self._train_rows
        size, least, again = s.global_batch_size, s.min_batches_per_epoch, s.sampling == "replacement"
        return epoch_batches(rows, size, least, self._trial.data_seed, epoch, replacement=again)

    def weight(self, batch: Tensor) -> float:
        return len(batch)

    def draw(self, batch: Tensor, generator: torch.Generator) -> Tensor | None:
        return crop_flip_plan(len(batch), generator) if self._trial.train.augment == "crop-flip" else None

    def loss_sum(self, rows: Tensor, plan: Tensor | None) -> Tensor:
        images = self._pixels.rows(rows)
        if plan is not None:
            images = apply_plan(images.to(self._normalise.device), plan)
        labels = self._pixels.split.labels[rows].to(self._normalise.device)
        return self._classifier.loss_sum(self._normalise(images), labels)

    def evaluate(self, which: Which, *, batch_size: int, rank: int = 0, world: int = 1) -> Scores | None:
        if which == "test":
            pixels, rows = self._lane.pixels(self._dataset, "test", self._recipe), self._test_rows
        else:
            pixels, rows = self._pixels, self._val_rows
        if len(rows) == 0:
            return None
        correct = correctness(
            self._classifier, pixels, rows, self._normalise, batch_size=batch_size, rank=rank, world=world
        )
        return Scores(
            score=accuracy(correct),
            metric=self.metric,
            n_examples=len(rows),
            examples_hash=pixels.split.examples_hash(rows),
            correct=correct,
            skipped=self._skipped,
        )


def recipe_of(preprocess: Preprocess) -> Recipe:
    """How images are brought to a model's size."""
    return Recipe(preprocess.image_size, "bilinear" if preprocess.interpolation == "bilinear" else "bicubic")


def preprocess_of(loaded: LoadedModel) -> Preprocess:
    """What the model expects of its images. Raises TrialError for a model without images."""
    if loaded.preprocess is None:
        raise TrialError(f"model {loaded.model_id!r} takes no images")
    return loaded.preprocess


def clip_task(parts: Parts) -> ImageTask:
    """CLIP on labelled images: one tower or both. Raises TrialError for what the contrastive loss cannot do."""
    trial, lane, loaded = parts.trial, parts.lane, parts.loaded
    if trial.adapt == "all":
        raise TrialError("adapt = 'all' is for models of one tower; a CLIP model takes 'vision' or 'both'")
    if trial.adapt == "both" and parts.world > 1:
        raise TrialError(
            f"adapt = 'both' on {parts.world} workers: the contrastive loss compares all images of a batch, which are "
            "on different workers; set resources.workers = 1 or adapt = 'vision'"
        )
    preprocess = preprocess_of(loaded)
    dataset = lane.dataset(trial.dataset, trial.stage)
    classifier: Classifier
    if trial.adapt == "both":
        classifier = BothTask(loaded.module, lane.class_tokens(loaded, dataset), parts.autocast)
    else:
        classes = lane.class_embeddings(loaded, dataset, parts.autocast, parts.precision)
        classifier = VisionTask(loaded.module, classes, parts.autocast)
    return ImageTask(parts, dataset, classifier, preprocess)
