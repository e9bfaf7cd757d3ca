"""Scores of classifiers: correctness per example, and what follows from it."""

from __future__ import annotations

import base64
from typing import Protocol

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from trainables.data.batches import Normalise
from trainables.data.pixels import Pixels


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


@torch.no_grad()
def correctness(
    task: Classifier,
    pixels: Pixels,
    rows: Tensor,
    normalise: Normalise,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
) -> Tensor:
    """Whether each of the given rows is classified right: (n,) bool on the CPU, in the order of `rows`.

    With several workers each takes every `world`-th row, and all get the whole answer.
    """
    task.before_evaluation()
    labels = pixels.split.labels
    right = torch.zeros(len(rows), dtype=torch.int32)
    mine = torch.arange(rank, len(rows), world)
    parts = []
    for part in torch.split(mine, batch_size) if len(mine) else ():
        predicted = task.predict(normalise(pixels.rows(rows[part])))
        parts.append(predicted == labels[rows[part]].to(predicted.device))
    if parts:
        right[mine] = torch.cat(parts).cpu().int()
    if world > 1:
        right = right.to(normalise.device)
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
