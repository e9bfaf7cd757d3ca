"""Frozen towers: vectors of images computed once and kept by the lane, for linear probes and zero-shot scores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainables.data.dataset import Dataset
from trainables.data.images.pixels import Pixels
from trainables.metrics.classification import FeatureClassifier
from trainables.models.loading import Preprocess
from trainables.tasks.images.images import ImageTask
from trainables.tasks.task import Parts


class FrozenTask(ImageTask):
    """Image classification on a frozen tower, always in eval mode.

    Without augmentation an image passes through the tower once, whatever the number of epochs and trials.
    """

    def __init__(
        self,
        parts: Parts,
        dataset: Dataset,
        classifier: FeatureClassifier,
        preprocess: Preprocess,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__(parts, dataset, classifier, preprocess, head)
        self._frozen, self._module, self._precision = classifier, parts.loaded.module, parts.precision

    def loss_sum(self, rows: Tensor, plan: Tensor | None) -> Tensor:
        labels = self._pixels.split.labels[rows].to(self._normalise.device)
        if plan is None:
            pool = self._rows.train_idx  # ascending
            features = self._features(self._pixels, pool)[torch.searchsorted(pool, rows)]
        else:
            features = self._through_tower(self._images(self._pixels, rows, plan))
        return cross_entropy(self._frozen.classify(features), labels, reduction="sum")

    def _predictor(self, pixels: Pixels, rows: Tensor, mine: Tensor) -> Callable[[Tensor], Tensor]:
        features = self._features(pixels, rows[mine])
        return lambda part: self._frozen.classify(features[torch.searchsorted(mine, part)]).argmax(dim=1)

    def _features(self, pixels: Pixels, rows: Tensor) -> Tensor:
        """(n, D) vectors of the rows, on the device."""
        size = self._trial.train.eval_batch_size  # a vector's last bits depend on the batch that it was computed in
        digest = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
        data = (self._dataset.name, pixels.split.name, pixels.recipe)
        key = (self._trial.model, *data, self._precision, size, digest)

        def make() -> Tensor:
            return torch.cat([self._through_tower(self._images(pixels, part)) for part in torch.split(rows, size)])

        return self._lane.features(key, make)

    @torch.no_grad()
    def _through_tower(self, images: Tensor) -> Tensor:
        self._module.eval()
        return self._frozen.features(images)
