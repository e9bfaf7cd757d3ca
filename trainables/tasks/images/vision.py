"""Image classification with a transformers encoder (DINOv2, ViT, ...) and a new linear head."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from trainables.config import LINEAR_PROBE, NO_TRAINING
from trainables.errors import TrialError
from trainables.metrics.classification import FeatureClassifier
from trainables.models.encoders import hidden_size, image_encoder, new_head
from trainables.runtime import Autocast
from trainables.tasks.images.images import ImageTask, preprocess_of
from trainables.tasks.images.probe import FrozenTask
from trainables.tasks.task import Parts, Task


class HeadClassifier(FeatureClassifier):
    """A linear head on the encoder's vectors."""

    def __init__(self, module: nn.Module, head: nn.Linear, autocast: Autocast) -> None:
        self._encode, self._head, self._autocast = image_encoder(module), head, autocast

    def features(self, images: Tensor) -> Tensor:
        with self._autocast():
            return self._encode(images)

    def classify(self, features: Tensor) -> Tensor:
        logits: Tensor = self._head(features)
        return logits


def vision_task(parts: Parts) -> Task:
    """An image encoder with a linear head on labelled images. Raises TrialError for zero-shot: there is no head yet."""
    trial, lane, loaded = parts.trial, parts.lane, parts.loaded
    if trial.method == NO_TRAINING:
        raise TrialError(f"zero-shot on {trial.model!r}, which has no head to classify with; use {LINEAR_PROBE!r}")
    preprocess = preprocess_of(loaded)
    if trial.image_size is not None:
        preprocess = dataclasses.replace(preprocess, image_size=trial.image_size)
    dataset = lane.dataset(trial.dataset, trial.stage)
    module = loaded.module
    head = new_head(hidden_size(module, trial.model), len(dataset.class_names), trial.init_seed, lane.device)
    classifier = HeadClassifier(module, head, parts.autocast)
    kind = FrozenTask if trial.method == LINEAR_PROBE else ImageTask
    return kind(parts, dataset, classifier, preprocess, head)
