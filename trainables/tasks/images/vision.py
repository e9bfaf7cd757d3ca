"""Image classification with a transformers encoder (DINOv2, ViT, ...) and a new linear head."""

from __future__ import annotations

from torch import Tensor, nn

from trainables.config import LINEAR_PROBE, NO_TRAINING
from trainables.errors import TrialError
from trainables.models.encoders import hidden_size, image_encoder, new_head
from trainables.runtime import Autocast
from trainables.tasks.images.images import FeatureClassifier, FrozenTask, ImageTask
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
    trial, lane, module = parts.trial, parts.lane, parts.loaded.module
    if trial.method == NO_TRAINING:
        raise TrialError(f"zero-shot on {trial.model!r}, which has no head to classify with; use {LINEAR_PROBE!r}")
    dataset = lane.dataset(trial.dataset, trial.stage)
    head = new_head(hidden_size(module, trial.model), len(dataset.class_names), trial.init_seed, lane.device)
    classifier = HeadClassifier(module, head, parts.autocast)
    kind = FrozenTask if trial.method == LINEAR_PROBE else ImageTask
    return kind(parts, dataset, classifier, head)
