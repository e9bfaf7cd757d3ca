"""Scores of classifiers: correctness per example, and what follows from it."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from torch.nn.functional import cross_entropy


class Classifier(Protocol):
    """What image classification needs of a model. B images of S x S pixels, C classes."""

    def loss_sum(self, images: Tensor, labels: Tensor) -> Tensor:
        """Sum of the losses of images (B, 3, S, S) with labels (B,): a scalar with gradient."""
        ...

    def before_evaluation(self) -> None:
        """Bring up to date what `predict` needs; call it after training and before predicting."""
        ...

    def predict(self, images: Tensor) -> Tensor:
        """Predicted classes (B,) of images (B, 3, S, S)."""
        ...


class FeatureClassifier(ABC):
    """A classifier in two parts: a tower that makes one vector of an image, and what reads it."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Vectors (B, D) of images (B, 3, S, S)."""

    @abstractmethod
    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, C)."""

    def before_evaluation(self) -> None:  # noqa: B027  # most have nothing to bring up to date
        """See `Classifier`."""

    def loss_sum(self, images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(self.classify(self.features(images)), labels, reduction="sum")

    def loss_sums(self, heads: Sequence[FeatureClassifier], images: Tensor, labels: Sequence[Tensor]) -> list[Tensor]:
        """The summed losses of K trials that share one model in training (`randlora.packing.packing`).

        Args:
            heads: the classifiers of the trials, of this one's kind.
            images: (K b, 3, S, S), one trial's after another's.
            labels: (b,) for each trial.
        """
        parts = self.features(images).chunk(len(labels))
        return [
            cross_entropy(head.classify(part), own, reduction="sum")
            for head, part, own in zip(heads, parts, labels, strict=True)
        ]

    def predict(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images)).argmax(dim=1)


@torch.no_grad()
def correctness(
    predict: Callable[[Tensor], Tensor],
    labels: Tensor,
    *,
    batch_size: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> Tensor:
    """Whether each example is classified right: (n,) bool on the CPU, in the order of `labels`.

    With several workers each takes every `world`-th example, and all get the whole answer.

    Args:
        predict: predicted classes (b,) of the examples at some positions (b,) of `labels`.
        labels: (n,) the right classes, on the CPU.
        device: where several workers meet.
    """
    right = torch.zeros(len(labels), dtype=torch.int32)
    mine = torch.arange(rank, len(labels), world)
    parts = []
    for part in torch.split(mine, batch_size) if len(mine) else ():
        predicted = predict(part)
        parts.append(predicted == labels[part].to(predicted.device))
    if parts:
        right[mine] = torch.cat(parts).cpu().int()
    if world > 1:
        right = right.to(device)
        torch.distributed.all_reduce(right)
    return right.cpu().bool()


def accuracy(correct: Tensor) -> float:
    """Top-1 accuracy in [0, 1]: the share of right answers."""
    return int(correct.sum()) / len(correct)


def pack(correct: Tensor) -> str:
    """Correctness (n,) bool as base64 of its bits, eight to a byte, first example in the highest bit."""
    return base64.b64encode(np.packbits(correct.numpy()).tobytes()).decode("ascii")


def unpack(text: str, n: int) -> Tensor:
    """The inverse of `pack` for n examples."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=n)
    return torch.from_numpy(bits).bool()
