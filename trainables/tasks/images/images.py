"""Image classification as a task: decoded pixels, labels, and a classifier of any kind."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from trainables.data.dataset import Dataset
from trainables.data.images.batches import Normalise, apply_plan, crop_flip_plan, epoch_batches
from trainables.data.images.pixels import Pixels, Recipe
from trainables.data.splits import Splits, split
from trainables.errors import TrialError
from trainables.metrics.classification import Classifier, FeatureClassifier, accuracy, correctness
from trainables.models.loading import LoadedModel, Preprocess
from trainables.tasks.task import Alone, Parts, Scores, Split, Which


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

    def rows(self, which: Split) -> Tensor:
        return self._train_rows if which == "train" else self._val_rows

    def weight(self, batch: Tensor) -> float:
        return len(batch)

    def draw(self, batch: Tensor, generator: torch.Generator) -> Tensor | None:
        return crop_flip_plan(len(batch), generator) if self._trial.train.augment == "crop-flip" else None

    @property
    def classifier(self) -> Classifier:
        """What learns the images."""
        return self._classifier

    def inputs(self, rows: Tensor, plan: Tensor | None) -> tuple[Tensor, Tensor]:
        """Images (b, 3, S, S), augmented by `plan`, and labels (b,) of training rows, on the device."""
        labels = self._pixels.split.labels[rows].to(self._normalise.device)
        return self._images(self._pixels, rows, plan), labels

    def loss_sum(self, rows: Tensor, plan: Tensor | None) -> Tensor:
        return self._classifier.loss_sum(*self.inputs(rows, plan))

    def width(self, rows: Tensor) -> None:
        """Images have no tokens to pad."""
        return

    def packed_losses(
        self, tasks: Sequence[ImageTask], rows: Sequence[Tensor], plans: Sequence[Tensor | None], alone: Alone
    ) -> list[Tensor]:
        heads = [task._classifier for task in tasks]
        first = heads[0]
        assert isinstance(first, FeatureClassifier)  # whatever else there is trains no adapter
        inputs = [task.inputs(own, plan) for task, own, plan in zip(tasks, rows, plans, strict=True)]
        images = torch.cat([images for images, _ in inputs])
        return first.loss_sums(heads, images, [labels for _, labels in inputs])  # type: ignore[arg-type]

    def evaluate(self, which: Which, *, batch_size: int, rank: int = 0, world: int = 1) -> Scores | None:
        if which == "test":
            pixels, rows = self._lane.pixels(self._dataset, "test", self._recipe), self._test_rows
        else:
            pixels, rows = self._pixels, self._val_rows
        if len(rows) == 0:
            return None
        self._classifier.before_evaluation()
        correct = correctness(
            self._predictor(pixels, rows, torch.arange(rank, len(rows), world)),
            pixels.split.labels[rows],
            batch_size=batch_size,
            device=self._normalise.device,
            rank=rank,
            world=world,
        )
        return Scores(
            score=accuracy(correct),
            metric=self.metric,
            n_examples=len(rows),
            examples_hash=pixels.split.examples_hash(rows),
            correct=correct,
            skipped=self._skipped,
        )

    def _images(self, pixels: Pixels, rows: Tensor, plan: Tensor | None = None) -> Tensor:
        """Normalised images (b, 3, S, S) on the device, augmented by `plan`."""
        images = pixels.rows(rows)
        if plan is not None:
            images = apply_plan(images.to(self._normalise.device), plan)
        return self._normalise(images)

    def _predictor(self, pixels: Pixels, rows: Tensor, mine: Tensor) -> Callable[[Tensor], Tensor]:
        """What predicts the classes at some positions of `rows`; it will be asked for those in `mine`, in order."""
        del mine
        return lambda part: self._classifier.predict(self._images(pixels, rows[part]))


def recipe_of(preprocess: Preprocess) -> Recipe:
    """How images are brought to a model's size."""
    return Recipe(preprocess.image_size, preprocess.interpolation, preprocess.resize_mode)


def preprocess_of(loaded: LoadedModel) -> Preprocess:
    """What the model expects of its images. Raises TrialError for a model without images."""
    if loaded.preprocess is None:
        raise TrialError(f"model {loaded.model_id!r} takes no images")
    return loaded.preprocess
